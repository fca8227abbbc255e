"""Sessions on worker threads: inference off the event loop, one crash never another's.

A worker owns its pipelines (weights are shared by its sessions, one set per worker and avatar) and
runs whichever of its sessions is due first. ``LiveSession`` is a session seen from the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import logging
import queue
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from visavis.clock import Clock, ManualClock, MonotonicClock
from visavis.serve.metrics import Metrics
from visavis.serve.outlet import Outlet
from visavis.serve.tracing import open_trace
from visavis.session import AudioBlock, Session, SessionConfig, VideoFrame
from visavis.types import N_CHANNELS

log = logging.getLogger("visavis.serve")

Models = Callable[[str], tuple[Any, tuple]]
"""Avatar id to (pipeline, fallback renderers); called on the worker's thread, result kept."""

AVATARS_KEPT = 8  # per worker
WARM_HOPS = 10
COMMANDS = 512  # waiting per session at most: a flood is refused


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
        self.asked = self.answered = 0  # commands: the loop counts one, the worker the other
        self.detached_ns: int | None = self.opened_ns
        self.first_frame_ns = 0
        self.worker = worker
        self._loop = asyncio.get_running_loop()

    def attach(self, outlet: Outlet) -> None:
        """Send to ``outlet`` from now on; the one before is closed."""
        if self.outlet is not None:
            self.outlet.close()
        outlet.epoch = self.epoch
        self.outlet, self.detached_ns = outlet, None
        self.worker.do(self, "attach", outlet)

    def detach(self, outlet: Outlet) -> None:
        """The transport is gone; the session waits for another."""
        if self.outlet is outlet:
            self.outlet, self.detached_ns = None, self.worker.clock.now()
            self.worker.do(self, "attach", None)
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
        await asyncio.to_thread(self.worker.prepare_once, avatar)
        await self.worker.ask(self, "avatar", avatar)
        self.avatar = avatar

    async def close(self, error: str = "") -> None:
        """End it; harmless when ended."""
        if not self.closed.is_set():
            self.error = error
            self.closed.set()
            if self.outlet is not None:
                self.outlet.close()
            await self.worker.drop(self)

    def crashed(self, error: str) -> None:
        """Called by the worker, through the loop, after a failure inside the session."""
        if not self.closed.is_set():
            log.error("session crashed", extra={"session": self.id, "error": error})
            self.worker.metrics.crashed.inc()
            self.error = "the session failed; start another"
            self.closed.set()
            if self.outlet is not None:
                self.outlet.close()

    def call(self, function: Callable, *args: object) -> None:
        """From the worker's thread: run ``function`` on the loop, if there still is one."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: nobody listens any more
            log.debug("loop gone", extra={"session": self.id})


class _Slot:
    """A session on its worker's thread."""

    def __init__(self, live: LiveSession, session: Session):
        self.live, self.session = live, session
        self.trace = open_trace(live.id, live.avatar)
        self.outlet: Outlet | None = None
        self.reported = 0
        self.before: dict[str, Any] = {}


class Worker(threading.Thread):
    """Runs its sessions, the one due first, first."""

    def __init__(self, models: Models, config: SessionConfig, metrics: Metrics, clock: Clock):
        super().__init__(name="visavis-worker", daemon=True)
        self.clock, self.metrics = clock, metrics
        self.load = 0
        self._models = functools.lru_cache(maxsize=AVATARS_KEPT)(models)
        self._config = config
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._slots: dict[str, _Slot] = {}
        self._halt = False
        self._preparing = threading.Lock()

    def prepare_once(self, avatar: str) -> None:
        """Load an avatar's models and draw once; slow, on a thread that holds up no session.

        Raises:
            VisavisError: the avatar or the models cannot be used.
        """
        with self._preparing:
            misses = self._models.cache_info().misses
            pipeline, fallbacks = self._models(avatar)
            if self._models.cache_info().misses == misses:
                return
        clock = ManualClock()
        session = Session(pipeline, self._config, clock=clock)
        for _ in range(WARM_HOPS):
            clock.advance(20_000_000)
            list(session.advance())
        for renderer in fallbacks:
            rest = np.zeros((1, 1, N_CHANNELS), np.float32)
            renderer.step(renderer.init_state(1), rest)

    # --- from the loop ---

    def do(self, live: LiveSession, verb: str, *args: object) -> Future:
        """Have ``verb`` done before the session's next step."""
        future: Future = Future()
        if live.asked - live.answered >= COMMANDS and verb != "drop":
            future.set_exception(BufferError("too many commands at once"))
            return future
        live.asked += 1
        self._inbox.put((future, live, verb, args))
        return future

    async def ask(self, live: LiveSession, verb: str, *args: object) -> Any:
        """``do`` and wait for the answer."""
        return await asyncio.wrap_future(self.do(live, verb, *args))

    async def drop(self, live: LiveSession) -> None:
        """Forget a session, whatever waits for it."""
        await asyncio.wrap_future(self.do(live, "drop"))

    def halt(self) -> None:
        """End the thread after the present step."""
        self._inbox.put((Future(), None, "halt", ()))

    # --- on the thread ---

    def run(self) -> None:
        """See `threading.Thread`."""
        while not self._halt:
            self._commands()
            now = self.clock.now()
            due = [
                (slot.session.next_due(), slot.live.id)
                for slot in self._slots.values()
                if slot.outlet is not None
            ]
            heapq.heapify(due)
            while due and due[0][0] <= now and self._inbox.empty():
                self._step(self._slots[heapq.heappop(due)[1]])

    def _commands(self) -> None:
        """Do what was asked; wait for more until the next session is due."""
        active = [s.session.next_due() for s in self._slots.values() if s.outlet is not None]
        wait = max(0.0, (min(active) - self.clock.now()) / 1e9) if active else None
        try:
            item = self._inbox.get(timeout=wait) if wait != 0.0 else self._inbox.get_nowait()
            while True:
                self._command(*item)
                item = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _command(self, future: Future, live: LiveSession | None, verb: str, args: tuple) -> None:
        if live is None:
            self._halt = True
            return
        live.answered += 1
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(self._obey(live, verb, args))
        except Exception as error:  # noqa: BLE001 - handed to the one who asked, whatever it is
            future.set_exception(error)

    def _obey(self, live: LiveSession, verb: str, args: tuple) -> object:
        if verb == "open":
            session = self._session(live.avatar, live.seed)
            self._slots[live.id] = _Slot(live, session)
            return session.latency_samples
        if verb == "drop":
            gone = self._slots.pop(live.id, None)
            if gone is not None:
                gone.trace.close()
            return gone is not None
        slot = self._slots.get(live.id)
        if slot is None:
            raise LookupError("the session has ended")
        if verb == "attach":
            slot.outlet = args[0]
            slot.session.pause()
            return None
        if verb == "avatar":
            fresh = self._session(args[0], live.seed)
            fresh.load_state(slot.session.save_state(), keep_picture=False)
            slot.session = fresh
            return None
        if verb in ("push_audio", "push_live"):
            slot.trace.heard(self.clock.now())
        elif verb == "end_of_speech":
            slot.trace.complete()
        elif verb == "clear_buffer":
            slot.trace.cut()
        if verb == "push_live":
            return slot.session.push_audio(*args, live=True)
        return getattr(slot.session, verb)(*args)

    def _session(self, avatar: str, seed: int) -> Session:
        pipeline, fallbacks = self._models(avatar)
        return Session(
            pipeline,
            self._config,
            clock=self.clock,
            fallbacks=fallbacks,
            seed=seed,
            timer=self.metrics.timer,
        )

    def _step(self, slot: _Slot) -> None:
        try:
            for item in slot.session.advance():
                self._send(slot, item)
            if self.clock.now() - slot.reported > 500_000_000:
                self._report(slot)
        except Exception as error:
            log.exception("step failed", extra={"session": slot.live.id})
            self._slots.pop(slot.live.id, None)
            slot.trace.close(repr(error))
            slot.live.call(slot.live.crashed, repr(error))

    def _send(self, slot: _Slot, item: AudioBlock | VideoFrame) -> None:
        outlet = slot.outlet
        assert outlet is not None
        when = slot.session.time_of(item.due)
        slot.trace.sent(item, when, self.clock.now(), slot.session.speaking)
        if isinstance(item, VideoFrame):
            self.metrics.frames.labels(item.tier).inc()
            self.metrics.lateness.observe(item.late_ns / 1e9)
            if item.pts % 150 == 0:
                self.metrics.variance.set(float(item.image[::8, ::8].var()))
            with self.metrics.timer("encode"):
                ready = outlet.prepare_frame(item)
        else:
            self.metrics.blocks.inc()
            ready = outlet.prepare_block(item)
        slot.live.call(outlet.offer, item, ready, when)

    def _report(self, slot: _Slot) -> None:
        stats, before = slot.session.stats(), slot.before
        self.metrics.dropped.labels("late").inc(stats["dropped"] - before.get("dropped", 0))
        self.metrics.underruns.inc(stats["underruns"] - before.get("underruns", 0))
        self.metrics.tier_changes.inc(stats["tier_changes"] - before.get("tier_changes", 0))
        slot.before, slot.reported = stats, self.clock.now()
        slot.live.call(slot.live.stats.update, stats)


class Engine:
    """All sessions of the process.

    Args:
        models: see `Models`.
        workers: threads.
        limit: sessions at most.
        config: of each session.
        metrics: where it is counted.
        clock: shared by all.
    """

    def __init__(
        self,
        models: Models,
        *,
        workers: int,
        limit: int,
        metrics: Metrics,
        config: SessionConfig | None = None,
        clock: Clock | None = None,
    ):
        self.clock = clock or MonotonicClock()
        self.metrics, self.limit = metrics, limit
        config = config or SessionConfig()
        self.config = config
        self.workers = [Worker(models, config, metrics, self.clock) for _ in range(workers)]
        self.sessions: dict[str, LiveSession] = {}
        metrics.session_limit.set(limit)

    def start(self, avatar: str) -> None:
        """Start the threads, ready for ``avatar``; slow."""
        for worker in self.workers:
            worker.prepare_once(avatar)
            worker.start()

    @property
    def full(self) -> bool:
        """Whether one more would be too many."""
        return len(self.sessions) >= self.limit

    async def open(self, avatar: str, seed: int, owner: str) -> LiveSession:
        """A new session on the least busy worker; the caller has asked `full`.

        Raises:
            VisavisError: the avatar or the models cannot be used.
        """
        worker = min(self.workers, key=lambda w: w.load)
        live = LiveSession(worker, avatar, seed, owner, self.clock)
        self.sessions[live.id] = live  # counted from here on, so that two cannot take one place
        worker.load += 1
        self.metrics.sessions.set(len(self.sessions))
        try:
            await asyncio.to_thread(worker.prepare_once, avatar)
            await worker.ask(live, "open")
        except BaseException:
            self._forget(live)
            live.closed.set()
            worker.do(live, "drop")  # it may have been made after the caller gave up
            raise
        self.metrics.sessions_total.inc()
        return live

    async def close(self, live: LiveSession, error: str = "") -> None:
        """End a session and give its place free."""
        await live.close(error)
        self._forget(live)

    def _forget(self, live: LiveSession) -> None:
        if self.sessions.pop(live.id, None) is not None:
            live.worker.load -= 1
            self.metrics.sessions.set(len(self.sessions))

    async def stop(self) -> None:
        """End all sessions and threads."""
        for live in list(self.sessions.values()):
            await self.close(live, "the server is going down")
        for worker in self.workers:
            worker.halt()
        for worker in self.workers:
            await asyncio.to_thread(worker.join, 5.0)
