"""What a live session is given to say: a bounded queue that any sample rate may be pushed into.

Every sound is kept twice, in step: at 16 kHz for the pipeline and at the session's output rate for
the viewer. The queue hands out whole hops of 20 ms, silence where there is nothing to say.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache

import numpy as np

from visavis.audio import AudioIn, Resampler, pcm_to_float
from visavis.errors import AudioError
from visavis.types import MOTION_HOP, SAMPLE_RATE, State

LIVE_RATES = (8_000, 96_000)  # Hz; beyond is no voice, and costs
LIVE_PREBUFFER = 1  # hops gathered before a microphone is heard
LIVE_SPARE = 2  # hops (40 ms) that need not have waited, for
LIVE_WINDOW = 50  # hops (1 s) on end, cost a quiet hop of a microphone's sound;
LIVE_LIMIT = 12  # where this many wait (240 ms) any hop goes
QUIET_DB = -45.0
SAID, ENDS = 1, 2  # marks of a hop: there is speech in it; with it an utterance is complete
IMPLIED_END = 10  # hops without sound after which an utterance counts as ended


class Fifo:
    """``(N,)`` float32 samples in, the same out, without copying what waits."""

    def __init__(self, samples: np.ndarray | None = None):
        self._chunks: deque[np.ndarray] = deque()
        self._length = 0
        if samples is not None:
            self.push(samples)

    def __len__(self) -> int:
        return self._length

    def push(self, samples: np.ndarray) -> None:
        """Append."""
        if len(samples):
            self._chunks.append(np.asarray(samples, np.float32))
            self._length += len(samples)

    def take(self, count: int) -> np.ndarray:
        """The oldest ``count``, or as many as there are."""
        count = min(count, self._length)
        self._length -= count
        parts = []
        while count:
            head = self._chunks.popleft()
            if len(head) > count:
                self._chunks.appendleft(head[count:])
                head = head[:count]
            parts.append(head)
            count -= len(head)
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def clear(self) -> None:
        """Forget all."""
        self._chunks.clear()
        self._length = 0

    def array(self) -> np.ndarray:
        """All that waits, as one array."""
        return np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.float32)


@lru_cache(maxsize=8)
def door(rate: int) -> AudioIn:
    """The way in for live sound of a rate: 16 kHz mono, made sure of."""
    return AudioIn(rate)


@lru_cache(maxsize=8)
def _resampler(rate: int, out: int) -> Resampler:
    return Resampler(rate, 1, out)


def check_pcm(pcm: np.ndarray, rate: int) -> np.ndarray:
    """Live sound made sure of: ``(N,)`` or ``(N, C)`` of any PCM type to ``(N,)`` float32.

    Raises:
        AudioError: wrong shape, type or rate, or NaN.
    """
    if not LIVE_RATES[0] <= rate <= LIVE_RATES[1]:
        raise AudioError(f"sample rate {rate} Hz; expected {LIVE_RATES[0]} to {LIVE_RATES[1]}")
    pcm = np.asarray(pcm)
    if pcm.ndim not in (1, 2) or (pcm.ndim == 2 and not 1 <= pcm.shape[1] <= 8):
        raise AudioError(f"sound of shape {pcm.shape}; expected (N,) or (N, channels)")
    pcm = pcm_to_float(pcm)
    return pcm if pcm.ndim == 1 else pcm.mean(axis=1, dtype=np.float32)


class Voice:
    """The queue. ``state`` and ``restore`` carry it to another process.

    Args:
        rate_out: of what the viewer hears, a multiple of 16 kHz.
        limit_s: seconds it holds at most.
        prebuffer_hops: hops gathered before an utterance starts, against network jitter.
    """

    def __init__(self, rate_out: int, limit_s: float, prebuffer_hops: int):
        self.ratio, rest = divmod(rate_out, SAMPLE_RATE)
        assert self.ratio >= 1 and rest == 0, rate_out
        self.rate_out = rate_out
        self._limit = round(limit_s * SAMPLE_RATE)
        self._prebuffer = prebuffer_hops
        self._heard, self._shown = Fifo(), Fifo()
        self.underruns = 0  # times an utterance not ended ran dry
        self.skipped = 0  # hops of a microphone left out
        self.clear()

    def clear(self) -> None:
        """Nothing to say, nothing half said."""
        self._heard.clear()
        self._shown.clear()
        self._in: State = {}
        self._out: State = {}
        self._rate = 0
        self._running = False  # an utterance is being handed out
        self._waited = 0  # hops the queue has been non-empty and not running, or starved
        self._ended = False
        self._live = False
        self._spare, self._watched = LIVE_LIMIT, 0  # least hops left waiting; of how many looks
        self._end_now = False  # the end came after the last hop had gone out

    @property
    def samples(self) -> int:
        """16 kHz samples waiting."""
        return len(self._heard)

    @property
    def room(self) -> int:
        """16 kHz samples that still fit."""
        return max(0, self._limit - len(self._heard))

    def push(self, pcm: np.ndarray, rate: int, live: bool = False) -> int:
        """Add what fits of ``(N,)`` float32; returns the number of samples taken.

        Sound of a ``live`` microphone has no end: what piles up of it after a stall, or because the
        microphone's clock is fast, is left out where it is quiet.
        """
        self._live = live
        fits = self.room * rate // SAMPLE_RATE
        pcm = pcm[:fits]
        if rate != self._rate:
            self._flush()
            self._rate = rate
            self._in, self._out = (
                door(rate).init_state(),
                _resampler(rate, self.rate_out).init_state(),
            )
        self._ended = False
        self._in, heard = door(rate).step(self._in, pcm[None])
        self._out, shown = _resampler(rate, self.rate_out).step(self._out, pcm[None])
        self._heard.push(heard[0])
        self._shown.push(shown[0])
        return len(pcm)

    def end(self) -> None:
        """The utterance is complete: its last, begun hop may go out."""
        self._flush()
        if len(self._heard):
            self._ended = True
        else:
            self.clear()
            self._end_now = True

    def _flush(self) -> None:
        if not self._rate:
            return
        self._heard.push(door(self._rate).flush(self._in)[0])
        self._shown.push(_resampler(self._rate, self.rate_out).flush(self._out)[0])
        self._rate, self._in, self._out = 0, {}, {}
        # the two rates round apart by less than a sample
        missing = len(self._heard) * self.ratio - len(self._shown)
        if missing > 0:
            self._shown.push(np.zeros(missing, np.float32))
        elif missing < 0:
            self._shown = Fifo(self._shown.array()[:missing])

    def take(self) -> tuple[np.ndarray, np.ndarray, int]:
        """One hop: ``(320,)`` for the pipeline, ``(320 ratio,)`` for the viewer, `SAID` | `ENDS`."""
        ready = min(len(self._heard), len(self._shown) // self.ratio)
        self._decide(ready)
        heard = np.zeros(MOTION_HOP, np.float32)
        shown = np.zeros(MOTION_HOP * self.ratio, np.float32)
        if not self._running or not ready or (ready < MOTION_HOP and not self._ended):
            ends = ENDS * self._end_now
            self._end_now = False
            return heard, shown, ends
        count = min(ready, MOTION_HOP)
        heard[:count] = self._heard.take(count)
        shown[: count * self.ratio] = self._shown.take(count * self.ratio)
        if self._live and self._pile(ready, heard):
            heard = self._heard.take(MOTION_HOP)
            shown = self._shown.take(MOTION_HOP * self.ratio)
            self.skipped += 1
        if self._ended and not len(self._heard):
            self.clear()
            return heard, shown, SAID | ENDS
        return heard, shown, SAID

    def _pile(self, ready: int, heard: np.ndarray) -> bool:
        """Whether too much waits for this hop to be worth hearing."""
        hops = ready // MOTION_HOP
        self._spare, self._watched = min(self._spare, hops - 1), self._watched + 1
        if hops > LIVE_LIMIT:
            return True
        if self._watched < LIVE_WINDOW:
            return False
        level = 10 * np.log10(float(np.mean(np.square(heard))) + 1e-12)
        if self._spare < LIVE_SPARE:
            self._spare, self._watched = LIVE_LIMIT, 0
        elif level < QUIET_DB:
            self._spare -= 1
            return True
        return False

    def _decide(self, ready: int) -> None:
        """Start after the prebuffer; stop when starved, and take a long silence for the end."""
        if self._running and ready < MOTION_HOP and not self._ended:
            self._running, self._waited = False, 0
            self.underruns += 1
        if not self._running:
            needed = min(self._prebuffer, LIVE_PREBUFFER) if self._live else self._prebuffer
            filled = ready >= needed * MOTION_HOP
            self._waited += 1
            if self._ended or (filled and ready >= MOTION_HOP):
                self._running = bool(ready)
                self._waited = 0
            elif self._waited >= IMPLIED_END and (ready or self._rate):
                self.end()
                self._running = True

    def state(self) -> State:
        """Flat arrays under ``voice/``."""
        flags = [self._rate, self._running, self._waited, self._ended, self._live]
        flags += [self._end_now, self._spare, self._watched, self.underruns, self.skipped]
        state = {
            "voice/heard": self._heard.array(),
            "voice/shown": self._shown.array(),
            "voice/flags": np.array(flags, np.int64),
        }
        state |= {f"voice/in/{k}": v for k, v in self._in.items()}
        return state | {f"voice/out/{k}": v for k, v in self._out.items()}

    def restore(self, state: State) -> None:
        """Take up where ``state`` was left."""
        self._heard, self._shown = Fifo(state["voice/heard"]), Fifo(state["voice/shown"])
        rate, running, waited, ended, live, now, *rest = (int(v) for v in state["voice/flags"])
        self._rate, self._waited = rate, waited
        self._running, self._ended, self._live = bool(running), bool(ended), bool(live)
        self._end_now = bool(now)
        self._spare, self._watched, self.underruns, self.skipped = rest
        self._in, self._out = (
            {k.removeprefix(p): v for k, v in state.items() if k.startswith(p)}
            for p in ("voice/in/", "voice/out/")
        )
