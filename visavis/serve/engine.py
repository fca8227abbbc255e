"""Sessions as the event loop sees them, and the workers that draw them.

Inference is off the event loop, one session's crash never another's: see ``runner`` for the side that
draws, ``workers`` and ``process`` for where it does.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from typing import Any

import numpy as np

from visavis.clock import Clock, MonotonicClock
from visavis.serve.coders import Parcel
from visavis.serve.metrics import Metrics
from visavis.serve.outlet import Outlet
from visavis.serve.workers import Hire, Worker, WorkerGone

log = logging.getLogger("visavis.serve")


class LiveSession:
    """One session as the event loop sees it. Every method may be called from the loop only."""

    def __init__(self, worker: Worker, avatar: str, seed: int, owner: str, clock: Clock):
        self.id = secrets.token_hex(8)
        self.avatar, self.owner, self.seed = avatar, owner, seed
        self.opened_ns = clock.now()
        self.outlet: Outlet | None = None
        self.error = ""
        self.closed = asyncio.Event()
        self.stats: dict[str, Any] = {}
        self.epoch = 0
        self.asked = self.answered = 0  # commands
        self.attached = 0  # transports so far
        self.detached_ns: int | None = self.opened_ns
        self.first_frame_ns = 0
        self.worker = worker

    def attach(self, outlet: Outlet) -> None:
        """Send to ``outlet`` from now on; the one before is closed."""
        if self.outlet is not None:
            self.outlet.close()
        outlet.epoch = self.epoch
        outlet.tell = lambda verb, *args: self.worker.do(self, verb, *args)
        self.outlet, self.detached_ns = outlet, None
        self.attached += 1
        self.worker.do(self, "attach", self.attached, outlet.coder)

    def detach(self, outlet: Outlet) -> None:
        """The transport is gone; the session waits for another."""
        if self.outlet is outlet:
            self.outlet, self.detached_ns = None, self.worker.clock.now()
            self.attached += 1
            self.worker.do(self, "attach", self.attached, None)
        outlet.close()

    async def push_audio(self, pcm: np.ndarray, rate: int, *, live: bool = False) -> int:
        """As `Session.push_audio`; raises what it raises."""
        return await self.worker.ask(self, "push_live" if live else "push_audio", pcm, rate)

    async def say(self, pcm: np.ndarray, rate: int) -> None:
        """Push all of it, waiting for room, and end the utterance; an interruption ends it too."""
        epoch, start = self.epoch, 0
        while start < len(pcm) and self.epoch == epoch and not self.closed.is_set():
            taken = await self.push_audio(pcm[start : start + rate], rate)
            start += taken
            if taken == 0:
                await asyncio.sleep(0.1)
        if self.epoch == epoch and not self.closed.is_set():
            await self.worker.ask(self, "end_of_speech")

    async def push_listen_audio(self, pcm: np.ndarray, rate: int) -> None:
        """As `Session.push_listen_audio`."""
        await self.worker.ask(self, "push_listen_audio", pcm, rate)

    async def end_of_speech(self) -> None:
        """As `Session.end_of_speech`."""
        await self.worker.ask(self, "end_of_speech")

    def clear_buffer(self) -> None:
        """Interrupt: what waits here or at the transport is thrown away at once."""
        self.epoch += 1
        if self.outlet is not None:
            self.outlet.interrupt()
        self.worker.do(self, "clear_buffer")
        self.worker.metrics.interruptions.inc()

    async def save_state(self) -> bytes:
        """As `Session.save_state`."""
        return await self.worker.ask(self, "save_state")

    async def change_avatar(self, avatar: str) -> None:
        """Go on as another face; the conversation's state goes along."""
        await self.worker.prepare(avatar)
        await self.worker.ask(self, "avatar", avatar)
        self.avatar = avatar

    async def close(self, error: str = "") -> None:
        """End it; harmless when ended."""
        if not self.closed.is_set():
            self.error = error
            self.closed.set()
            if self.outlet is not None:
                self.outlet.close()
            with suppress(LookupError):  # its worker is gone, and the session with it
                await self.worker.ask(self, "drop")

    def crashed(self, error: str) -> None:
        """Called by the worker, through the loop, after a failure inside the session."""
        if not self.closed.is_set():
            log.error("session crashed", extra={"session": self.id, "error": error})
            self.worker.metrics.crashed.inc()
            self.error = "the session failed; start another"
            self.closed.set()
            if self.outlet is not None:
                self.outlet.close()

    def take(self, attached: int, parcel: Parcel) -> None:
        """What the worker made ready for the transport attached as this number."""
        if attached == self.attached and self.outlet is not None:
            self.outlet.offer(parcel)


class Engine:
    """All sessions of the process.

    Args:
        hire: see `Hire`.
        workers: how many.
        limit: sessions at most.
        metrics: where it is counted.
        clock: shared by all.
    """

    def __init__(
        self,
        hire: Hire,
        *,
        workers: int,
        limit: int,
        metrics: Metrics,
        clock: Clock | None = None,
    ):
        self.clock = clock or MonotonicClock()
        self.metrics = metrics
        self.workers = [hire(metrics, self.clock) for _ in range(workers)]
        self.sessions: dict[str, LiveSession] = {}
        self.limit = limit

    @property
    def limit(self) -> int:
        """Sessions at most."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self.metrics.session_limit.set(limit)

    async def start(self, avatar: str) -> None:
        """Start the workers, ready for ``avatar``; slow.

        Raises:
            VisavisError: the avatar or the models cannot be used.
        """
        await asyncio.gather(*(worker.start(avatar) for worker in self.workers))

    @property
    def full(self) -> bool:
        """Whether one more would be too many."""
        return len(self.sessions) >= self.limit

    async def open(self, avatar: str, seed: int, owner: str) -> LiveSession:
        """A new session on the least busy worker; the caller has asked `full`.

        Raises:
            VisavisError: the avatar or the models cannot be used.
            WorkerGone: no worker at the moment.
        """
        ready = [worker for worker in self.workers if worker.ready]
        if not ready:
            raise WorkerGone("the drawing processes are being started again")
        worker = min(ready, key=lambda w: len(w.sessions))
        live = LiveSession(worker, avatar, seed, owner, self.clock)
        self.sessions[live.id] = live  # counted from here on, so that two cannot take one place
        worker.sessions[live.id] = live
        self.metrics.sessions.set(len(self.sessions))
        try:
            await worker.prepare(avatar)
            await worker.ask(live, "open", avatar, seed)
        except BaseException:
            worker.do(live, "drop")  # it may have been made after the caller gave up
            self._forget(live)
            live.closed.set()
            raise
        self.metrics.sessions_total.inc()
        return live

    async def close(self, live: LiveSession, error: str = "") -> None:
        """End a session and give its place free."""
        await live.close(error)
        self._forget(live)

    def _forget(self, live: LiveSession) -> None:
        if self.sessions.pop(live.id, None) is not None:
            live.worker.sessions.pop(live.id, None)
            self.metrics.sessions.set(len(self.sessions))

    async def stop(self) -> None:
        """End all sessions and workers."""
        for live in list(self.sessions.values()):
            await self.close(live, "the server is going down")
        await asyncio.gather(*(worker.stop() for worker in self.workers))
