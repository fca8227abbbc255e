"""The side of a worker that draws: runs whichever of its sessions is due first.

Commands come through a queue; replies, parcels and accounts leave through one function. Neither
knows whether the other end is a thread or a process.

====================================  ==========================================================
message out                           meaning
====================================  ==========================================================
``reply, call, session, value, error``  a command was obeyed, or failed
``parcel, session, attached, Parcel``   to be sent, through the outlet attached as that number
``stats, session, dict``                twice a second
``crashed, session, text``              the session failed and is gone
====================================  ==========================================================
"""

from __future__ import annotations

import functools
import heapq
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from visavis.clock import Clock, ManualClock
from visavis.serve.capacity import core_ms_per_frame
from visavis.serve.coders import Coder, Parcel
from visavis.serve.tracing import open_trace
from visavis.session import AudioBlock, Session, SessionConfig, VideoFrame
from visavis.types import N_CHANNELS

log = logging.getLogger("visavis.serve")

Models = Callable[[str], tuple[Any, tuple]]
"""Avatar id to (pipeline, fallback renderers); called once for each, the result kept."""

AVATARS_KEPT = 8
WARM_HOPS = 10
REPORT_NS = 500_000_000
ASKED_OF_SESSION = (
    "push_audio",
    "push_listen_audio",
    "end_of_speech",
    "clear_buffer",
    "save_state",
)


class Command(NamedTuple):
    """Something to be done for a session; ``call`` numbers the reply."""

    call: int
    session: str
    verb: str
    args: tuple = ()


class _Slot:
    """A session and where it sends to."""

    def __init__(self, name: str, session: Session, avatar: str, seed: int):
        self.name, self.session, self.seed = name, session, seed
        self.trace = open_trace(name, avatar)
        self.coder: Coder | None = None
        self.attached = 0
        self.reported = 0
        self.before: dict[str, Any] = {}


class Runner:
    """Sessions of one thread, which is the one that calls `run`.

    Args:
        models: see `Models`.
        config: of each session.
        metrics: a `Metrics`, or what stands in for it.
        clock: shared by all.
        send: takes the messages above; called from this thread.
    """

    def __init__(
        self,
        models: Models,
        config: SessionConfig,
        metrics: Any,
        clock: Clock,
        send: Callable[[tuple], None],
    ):
        self.inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._models = functools.lru_cache(maxsize=AVATARS_KEPT)(models)
        self._config, self._metrics, self._clock, self._send = config, metrics, clock, send
        self._slots: dict[str, _Slot] = {}
        self._halt = False
        self._preparing = threading.Lock()

    def prepare(self, avatar: str) -> None:
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

    def measure(self, avatar: str) -> float:
        """Core milliseconds of one frame; as slow as `prepare`, on the same terms."""
        return core_ms_per_frame(self._models(avatar), self._config)

    def run(self) -> None:
        """Until told to halt."""
        while not self._halt:
            self._commands()
            now = self._clock.now()
            due = [
                (slot.session.next_due(), slot.name)
                for slot in self._slots.values()
                if slot.coder is not None
            ]
            heapq.heapify(due)
            while due and due[0][0] <= now and self.inbox.empty():
                self._step(self._slots[heapq.heappop(due)[1]])

    def _commands(self) -> None:
        """Do what was asked; wait for more until the next session is due."""
        active = [s.session.next_due() for s in self._slots.values() if s.coder is not None]
        wait = max(0.0, (min(active) - self._clock.now()) / 1e9) if active else None
        try:
            item = self.inbox.get(timeout=wait) if wait != 0.0 else self.inbox.get_nowait()
            while True:
                self._command(item)
                item = self.inbox.get_nowait()
        except queue.Empty:
            return

    def _command(self, command: Command) -> None:
        value, error = None, None
        if command.verb == "halt":
            self._halt = True
            return
        try:
            value = self._obey(command)
        except Exception as fault:  # noqa: BLE001 - handed to the one who asked, whatever it is
            error = fault
        self._send(("reply", command.call, command.session, value, error))

    def _obey(self, command: Command) -> object:
        _, name, verb, args = command
        if verb == "open":
            return self._open(name, *args)
        if verb == "drop":
            gone = self._slots.pop(name, None)
            if gone is not None:
                gone.trace.close()
            return gone is not None
        slot = self._slots.get(name)
        if slot is None:
            raise LookupError("the session has ended")
        if verb == "attach":
            slot.attached, slot.coder = args[0], args[1]() if args[1] else None
            slot.session.pause()
            return None
        if verb in ("want_key", "aim"):
            if slot.coder is not None:
                getattr(slot.coder, verb)(*args)
            return None
        if verb == "avatar":
            fresh = self._session(args[0], slot.seed)
            fresh.load_state(slot.session.save_state(), keep_picture=False)
            slot.session = fresh
            return None
        return self._ask_session(slot, verb, args)

    def _ask_session(self, slot: _Slot, verb: str, args: tuple) -> object:
        if verb in ("push_audio", "push_live"):
            slot.trace.heard(self._clock.now())
        elif verb == "end_of_speech":
            slot.trace.complete()
        elif verb == "clear_buffer":
            slot.trace.cut()
        if verb == "push_live":
            return slot.session.push_audio(*args, live=True)
        assert verb in ASKED_OF_SESSION, verb
        return getattr(slot.session, verb)(*args)

    def _open(self, name: str, avatar: str, seed: int) -> int:
        session = self._session(avatar, seed)
        self._slots[name] = _Slot(name, session, avatar, seed)
        return session.latency_samples

    def _session(self, avatar: str, seed: int) -> Session:
        pipeline, fallbacks = self._models(avatar)
        return Session(
            pipeline,
            self._config,
            clock=self._clock,
            fallbacks=fallbacks,
            seed=seed,
            timer=self._metrics.timer,
        )

    def _step(self, slot: _Slot) -> None:
        try:
            for item in slot.session.advance():
                self._hand_over(slot, item)
            if self._clock.now() - slot.reported > REPORT_NS:
                self._report(slot)
        except Exception as error:
            log.exception("step failed", extra={"session": slot.name})
            self._slots.pop(slot.name, None)
            slot.trace.close(repr(error))
            self._send(("crashed", slot.name, repr(error)))

    def _hand_over(self, slot: _Slot, item: AudioBlock | VideoFrame) -> None:
        assert slot.coder is not None
        when = slot.session.time_of(item.due)
        slot.trace.sent(item, when, self._clock.now(), slot.session.speaking)
        metrics = self._metrics
        if isinstance(item, VideoFrame):
            metrics.frames.labels(item.tier).inc()
            metrics.lateness.observe(item.late_ns / 1e9)
            if item.pts % 150 == 0:
                metrics.variance.set(float(item.image[::8, ::8].var()))
            with metrics.timer("encode"):
                parcel = Parcel("video", item.epoch, when, slot.coder.frame(item))
        else:
            metrics.blocks.inc()
            parcel = Parcel("audio", item.epoch, when, slot.coder.block(item))
        self._send(("parcel", slot.name, slot.attached, parcel))

    def _report(self, slot: _Slot) -> None:
        stats, before, metrics = slot.session.stats(), slot.before, self._metrics
        metrics.dropped.labels("late").inc(stats["dropped"] - before.get("dropped", 0))
        metrics.underruns.inc(stats["underruns"] - before.get("underruns", 0))
        metrics.tier_changes.inc(stats["tier_changes"] - before.get("tier_changes", 0))
        slot.before, slot.reported = stats, self._clock.now()
        self._send(("stats", slot.name, stats))
