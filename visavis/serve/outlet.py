"""Where a session's sound and frames wait to be sent: two short queues, paced by the session clock.

What a `Coder` made ready where the session is drawn is queued here, on the event loop. A client that
does not take its frames loses the oldest; nothing grows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from visavis.clock import Clock
from visavis.serve.coders import Coder, Parcel, PlainCoder
from visavis.serve.metrics import Metrics

FRAMES_HELD = 6  # 200 ms at 30 fps
BLOCKS_HELD = 50  # 1 s


@dataclass
class Held:
    """One thing to send, and when (clock nanoseconds)."""

    ready: Any
    when: int


class Outlet:
    """Base of the transports' outlets: override ``wrap`` and ``silence``.

    A transport whose pictures build on those before (``chained``) loses none of them alone: where one
    must go, all that wait go, and nothing follows until a key frame comes.

    Args:
        clock: the sessions'.
        margin_ms: added to every due time, so that late work still leaves evenly.
        metrics: counts frames lost to slow clients, and the offset of sound and picture.

    Attributes:
        coder: makes this transport's `Coder`, where the session is drawn; can be pickled.
        tell: has something done there: ``tell("want_key")``, ``tell("aim", bitrate)``.
    """

    chained = False

    def __init__(self, clock: Clock, margin_ms: int, metrics: Metrics):
        self.clock, self.metrics = clock, metrics
        self.margin_ns = margin_ms * 1_000_000
        self.epoch = 0
        self.closed = False
        self.coder: Callable[[], Coder] = PlainCoder
        self.tell: Callable[..., None] = lambda verb, *args: None  # until attached
        self.sent = {"audio": 0, "video": 0}
        self.offset_ms = 0.0  # sound minus picture, of the last frame handed over
        self.on_first: Callable[[int], None] | None = None  # called once, at the first frame
        self._slip = {"audio": 0, "video": 0}  # ns after the planned moment
        self._taken = {"audio": False, "video": False}  # whether anyone has asked yet
        self._broken = False  # a picture was lost that others build on
        self._queues: dict[str, deque[Held]] = {"audio": deque(), "video": deque()}
        self._news = {"audio": asyncio.Event(), "video": asyncio.Event()}

    def wrap(self, parcel: Parcel) -> Any:
        """What the transport takes, of what its coder made."""
        return parcel.body

    def silence(self, ready: Any) -> Any:
        """``ready`` of a block, made silent: an interruption leaves no hole in the timestamps."""
        raise NotImplementedError

    def is_key(self, ready: Any) -> bool:
        """Whether a chained transport's picture stands alone."""
        raise NotImplementedError

    def offer(self, parcel: Parcel) -> None:
        """From the session, on the loop."""
        if self.closed:
            return
        kind, ready = parcel.kind, self.wrap(parcel)
        held, limit = self._queues[kind], FRAMES_HELD if kind == "video" else BLOCKS_HELD
        if len(held) == limit:
            self._drop_oldest(kind)
        if kind == "video" and self._useless(parcel, ready):
            return
        if kind == "audio" and parcel.epoch < self.epoch:  # on its way when the interruption came
            ready = self.silence(ready)
        held.append(Held(ready, parcel.when + self.margin_ns))
        self.metrics.queue_depth.labels(kind).set(len(held))
        self._news[kind].set()

    def _useless(self, parcel: Parcel, ready: Any) -> bool:
        """Whether a picture cannot be shown: of before an interruption, or its forerunner is lost."""
        if not self.chained:
            return parcel.epoch < self.epoch
        if self._broken and self.is_key(ready):
            self._broken = False
        return self._broken

    def _drop_oldest(self, kind: str) -> None:
        if kind == "audio":
            self._queues[kind].popleft()
        elif self.chained:
            self._break_chain()
        else:
            self._queues[kind].popleft()
            self.metrics.dropped.labels("slow_client").inc()

    def _break_chain(self) -> None:
        self.metrics.dropped.labels("slow_client").inc(len(self._queues["video"]))
        self._queues["video"].clear()
        self._broken = True
        self.tell("want_key")

    def interrupt(self) -> None:
        """Old sound becomes silence; old pictures, 45 ms at most, go unless others build on them."""
        self.epoch += 1
        if not self.chained:
            self._queues["video"].clear()
        for held in self._queues["audio"]:
            held.ready = self.silence(held.ready)

    def _begin(self, kind: str) -> None:
        """What was due before anyone asked is not sent in a burst: it is thrown away."""
        self._taken[kind] = True
        held, now = self._queues[kind], self.clock.now()
        if kind == "video" and self.chained and held:
            self._break_chain()
        while held and held[0].when < now:
            held.popleft()

    async def next(self, kind: str) -> Held | None:
        """The next of a kind, at its moment; ``None`` when the outlet is closed."""
        if not self._taken[kind]:
            self._begin(kind)
        while not self.closed:
            held = self._queues[kind]
            if not held:
                self._news[kind].clear()
                await self._news[kind].wait()
                continue
            wait = held[0].when - self.clock.now()
            if wait > 0:
                await asyncio.sleep(wait / 1e9)
                continue  # an interruption may have come meanwhile
            thing = held.popleft()
            self.sent[kind] += 1
            self._slip[kind] = -wait
            if kind == "video":
                if self.on_first is not None:
                    self.on_first(self.clock.now())
                    self.on_first = None
                self.offset_ms = (self._slip["audio"] - self._slip["video"]) / 1e6
                self.metrics.av_offset.observe(abs(self.offset_ms) / 1e3)
            return thing
        return None

    def close(self) -> None:
        """Wake whoever waits; nothing more is taken."""
        self.closed = True
        for kind, event in self._news.items():
            self._queues[kind].clear()
            event.set()
