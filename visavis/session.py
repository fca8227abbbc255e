"""One live conversation: sound pushed in as it comes, frames and the same sound out on one clock.

The master clock is the count of 16 kHz samples heard. What was heard at sample ``p`` is out, sound
and picture alike, at clock ``p + latency_samples``; presentation times count from the first sample,
so picture and sound share them exactly. With nothing to say the face idles for ever. Late work
lowers the tier first, then drops video frames; never sound.

    session.advance(): tick -> (sound block, frame rows); then the rows that are not late are drawn

Synchronous: whoever owns the thread calls ``advance`` every few milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from visavis.clock import Clock, MonotonicClock
from visavis.errors import ConfigError, InputError
from visavis.pipeline import Pipeline, Timer, untimed
from visavis.render import Renderer
from visavis.turns import Listening, MouthGate
from visavis.types import MOTION_HOP, SAMPLE_RATE, State
from visavis.voice import ENDS, SAID, Fifo, Voice, check_pcm, door

SAMPLE_NS = 1_000_000_000 // SAMPLE_RATE  # 62 500 exactly
STATE_VERSION = 2
QUIET_HOPS = 15  # without a voice for 300 ms the mouth is shut whatever the net says
ANTICIPATION = 3  # hops a mouth may open before its sound
DECLICK = 2  # ms in which the last sample dies away when sound is cut


class SessionConfig(BaseModel):
    """Every choice of a session; unknown keys are errors.

    Attributes:
        audio_rate: of the sound handed out, 16000 or 48000.
        buffer_s: seconds of speech that may wait.
        prebuffer_ms: gathered before an utterance starts.
        late_frames: a frame later than this many frames is dropped.
        catch_up_ms: a stall longer than this is not caught up: the conversation pauses.
        step_down_late: of the last ten frames, this many late ones lower the tier.
        step_up_s: seconds without two late frames of ten before the tier is raised; doubles, up to a
            minute, for a tier that failed when it was tried.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    audio_rate: int = 48_000
    buffer_s: float = Field(60.0, gt=0, le=600)
    prebuffer_ms: int = Field(40, ge=0, le=500)
    late_frames: float = Field(1.0, gt=0)
    catch_up_ms: int = Field(500, ge=100)
    step_down_late: int = Field(4, ge=1, le=10)
    step_up_s: float = Field(8.0, gt=0)


@dataclass(frozen=True)
class AudioBlock:
    """20 ms of sound: ``pcm`` ``(N,)`` float32 at ``rate``; ``pts`` in samples of that rate.

    ``due`` is the session clock (16 kHz samples) at which it starts to be heard; ``epoch`` counts the
    interruptions before it, so that a transport can throw away what it still holds of older ones.
    """

    pts: int
    rate: int
    pcm: np.ndarray
    epoch: int
    due: int
    speaking: bool = False
    ends: bool = False


@dataclass(frozen=True)
class VideoFrame:
    """``image`` ``(S, S, 3)`` uint8 RGB, shown at ``pts / fps`` seconds; the rest as `AudioBlock`."""

    pts: int
    fps: Fraction
    image: np.ndarray
    epoch: int
    due: int
    tier: str
    late_ns: int


@dataclass
class _Row:
    """A frame to be drawn."""

    pts: int
    due: int
    motion: np.ndarray


class Tiers:
    """Which renderer draws: down at once when frames come late, up again after a good while."""

    def __init__(self, count: int, config: SessionConfig):
        self._config, self._count = config, count
        self.level = 0
        self.changes = 0
        self._recent: deque[bool] = deque(maxlen=10)
        self._good_since: int | None = None
        self._waits = [config.step_up_s] * count  # good seconds before each level is tried
        self._raised: tuple[int, int] = (-1, 0)  # the level tried last, and when

    def note(self, late: bool, now_ns: int) -> None:
        """One frame was drawn, in time or late."""
        self._recent.append(late)
        if sum(self._recent) > 1 or self._good_since is None:  # one late frame is no overload
            self._good_since = now_ns
        if sum(self._recent) >= self._config.step_down_late and self.level + 1 < self._count:
            tried, since = self._raised
            wait = self._waits[self.level]
            failed = tried == self.level and now_ns - since < wait * 1e9
            self._waits[self.level] = min(wait * 2, 60.0) if failed else self._config.step_up_s
            self._move(self.level + 1, now_ns)
        elif self.level and now_ns - self._good_since > self._waits[self.level - 1] * 1e9:
            self._raised = (self.level - 1, now_ns)
            self._move(self.level - 1, now_ns)

    def _move(self, level: int, now_ns: int) -> None:
        self.level = level
        self.changes += 1
        self._recent.clear()
        self._good_since = now_ns


class Session:
    """One conversation. Not thread-safe: one thread owns it.

    Args:
        pipeline: weights of the avatar; may be shared by sessions of the same thread.
        config: see `SessionConfig`.
        clock: the time it lives in.
        fallbacks: cheaper renderers of the same avatar, best first; a smaller one makes smaller frames.
        seed: of idle and listening motion; the pipeline's by default.
        timer: context manager factory around each stage, as in ``Pipeline.step``.

    Attributes:
        epoch: how often it was interrupted.
        latency_samples: sound and frames come out this long after they were heard.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        config: SessionConfig | None = None,
        *,
        clock: Clock | None = None,
        fallbacks: tuple[Renderer, ...] = (),
        seed: int | None = None,
        timer: Timer = untimed,
    ):
        self.config = config = config or SessionConfig()
        if config.audio_rate not in (16_000, 48_000):
            raise ConfigError(f"audio_rate = {config.audio_rate}; expected 16000 or 48000")
        self._pipe = pipeline
        self._clock = clock or MonotonicClock()
        self._timer = timer
        self.fps = Fraction(pipeline.config.fps)
        self.latency_samples = pipeline.latency_samples
        self._renderers = (pipeline.renderer, *fallbacks)
        self._tiers = Tiers(len(self._renderers), config)
        self._gate, self._listening = MouthGate(), Listening()
        self._voice = Voice(config.audio_rate, config.buffer_s, config.prebuffer_ms // 20)
        ratio = self._voice.ratio
        self._delay = Fifo(np.zeros((self.latency_samples - MOTION_HOP) * ratio, np.float32))
        self._said = deque([0] * (self.latency_samples // MOTION_HOP - 1))  # marks of each hop
        self._user, self._user_rate, self._user_state = Fifo(), 0, {}
        seed = pipeline.config.seed if seed is None else seed
        self._state: State = pipeline.init_state(1, seed) | self._gate.init_state()
        self._state |= self._listening.init_state(seed)
        self._hops = self._steps = self._quiet = 0
        self._release = -1  # where, in samples heard, the mouth may open; -1: no voice yet
        self._floor = 0  # not before this: what was heard at the last interruption
        self._cut = 0.0
        self._last_sample = 0.0
        self.epoch = 0
        self._counts = dict.fromkeys(("rendered", "dropped", "late", "stalls"), 0)
        self._max_late_ns = 0
        self._anchor: int | None = None

    # --- in ---

    def push_audio(self, pcm: np.ndarray, sample_rate: int, *, live: bool = False) -> int:
        """Sound to be spoken.

        Args:
            pcm: ``(N,)`` or ``(N, C)``, any PCM type and length.
            sample_rate: Hz, 8000 to 96000.
            live: it comes from a microphone, so delay must not pile up: see ``Voice.push``.

        Returns:
            How many of the samples were taken: fewer than given when the buffer is full, and the
            rest may be pushed later.

        Raises:
            AudioError: not sound.
        """
        return self._voice.push(check_pcm(pcm, sample_rate), sample_rate, live)

    def push_listen_audio(self, pcm: np.ndarray, sample_rate: int) -> None:
        """The user's voice, to be listened to; only the latest half second is kept.

        Raises:
            AudioError: not sound.
        """
        pcm = check_pcm(pcm, sample_rate)[-sample_rate // 2 :]
        if sample_rate != self._user_rate:
            self._user_rate = sample_rate
            self._user_state = door(sample_rate).init_state()
        self._user_state, heard = door(sample_rate).step(self._user_state, pcm[None])
        self._user.push(heard[0])
        self._user.take(max(0, len(self._user) - SAMPLE_RATE // 2))

    def end_of_speech(self) -> None:
        """The utterance pushed is complete."""
        self._voice.end()

    def clear_buffer(self) -> None:
        """Interrupt: no more of the old sound leaves, the mouth shuts within 150 ms."""
        self._voice.clear()
        length = len(self._delay)
        self._delay.clear()
        self._delay.push(np.zeros(length, np.float32))
        self._said = deque([0] * len(self._said))
        self._cut = self._last_sample
        self.epoch += 1
        self._release, self._floor = -1, self._hops * MOTION_HOP
        self._state |= self._gate.close(self._state)

    @property
    def speaking(self) -> bool:
        """Whether something is being said or waits to be."""
        return self._voice.samples > 0 or any(self._said)

    # --- out ---

    def advance(self, now: int | None = None) -> Iterator[AudioBlock | VideoFrame]:
        """All that is due by ``now`` (nanoseconds; the clock's by default), sound first.

        Exhaust the iterator before anything else is called. A frame comes up to 20 ms before its
        ``due``; a late one carries by how much.
        """
        now = self._clock.now() if now is None else now
        if self._anchor is None:
            self._anchor = now - self._hops * MOTION_HOP * SAMPLE_NS
        behind = now - self.time_of((self._hops + 1) * MOTION_HOP)
        if behind > self.config.catch_up_ms * 1_000_000:
            self._counts["stalls"] += 1
            self._anchor += behind
        rows: list[_Row] = []
        while self.time_of((self._hops + 1) * MOTION_HOP) <= now:
            block, due = self._tick()
            rows += due
            if block is not None:
                yield block
        for i, row in enumerate(rows):
            frame = self._draw(row, last=i + 1 == len(rows))
            if frame is not None:
                yield frame

    def time_of(self, due: int) -> int:
        """The moment, in the clock's nanoseconds, at which the session clock reads ``due``."""
        assert self._anchor is not None, "advance first"
        return self._anchor + due * SAMPLE_NS

    def next_due(self) -> int:
        """When ``advance`` will next have something, nanoseconds; 0 where it has not begun."""
        if self._anchor is None:
            return 0
        return self.time_of((self._hops + 1) * MOTION_HOP)

    def pause(self) -> None:
        """Let the session clock stand until the next ``advance``: nobody looks."""
        self._anchor = None

    def _tick(self) -> tuple[AudioBlock | None, list[_Row]]:
        """Hear one hop of 20 ms."""
        begin = self._hops * MOTION_HOP
        heard, shown, said = self._voice.take()
        self._turn(bool(said & SAID), begin)
        self._delay.push(shown)
        self._said.append(said)
        self._state, steps = self._pipe.hear(self._state, heard[None], self._timer)
        steps = self._compose(steps)
        self._state, rows = self._pipe.to_frames(self._state, steps, self._timer)
        self._hops += 1
        due_rows = []
        for row in rows[0]:
            pts = int(self._state["pipeline/frames"][0])
            self._state["pipeline/frames"] = self._state["pipeline/frames"] + 1
            due = -(-pts * SAMPLE_RATE // self.fps) + self.latency_samples
            due_rows.append(_Row(pts, int(due), row))
        return self._block(begin + MOTION_HOP - self.latency_samples), due_rows

    def _turn(self, said: bool, begin: int) -> None:
        """Keep account of who has the word."""
        if said:
            if self._release < 0:
                self._release = max(begin - ANTICIPATION * MOTION_HOP, self._floor)
            self._quiet = 0
        else:
            self._quiet += 1

    def _compose(self, steps: np.ndarray) -> np.ndarray:
        """Gate and listening face on ``(1, m, D)`` motion steps."""
        out = []
        for row in steps[0]:
            content = self._steps * MOTION_HOP
            heard = (self._hops + 1) * MOTION_HOP - content  # between hearing and this step
            if self._quiet * MOTION_HOP > heard + QUIET_HOPS * MOTION_HOP:
                self._release = -1
                self._state |= self._gate.close(self._state)
            elif 0 <= self._release <= content:
                self._state |= self._gate.open(self._state)
            pcm = self._user.take(MOTION_HOP) if len(self._user) >= MOTION_HOP else None
            listen, row = self._listening.step(self._state, pcm, row)
            gate, row = self._gate.step(self._state, row)
            self._state |= {k: v for k, v in listen.items() if k.startswith("listen/")} | gate
            self._steps += 1
            out.append(row)
        return np.asarray(out, np.float32).reshape(1, len(out), steps.shape[2])

    def _block(self, begin: int) -> AudioBlock | None:
        """The sound that starts to be heard now: 20 ms from sample ``begin`` on."""
        ratio = self._voice.ratio
        pcm = np.clip(self._delay.take(MOTION_HOP * ratio), -1.0, 1.0)  # resampling overshoots
        said = self._said.popleft()
        if begin < 0:
            return None
        if self._cut:
            fade = DECLICK * self.config.audio_rate // 1000
            pcm[:fade] += np.float32(self._cut) * np.linspace(1, 0, fade + 1, dtype=np.float32)[1:]
            self._cut = 0.0
        self._last_sample = float(pcm[-1])
        due = begin + self.latency_samples
        speaking, ends = bool(said & SAID), bool(said & ENDS)
        rate = self.config.audio_rate
        return AudioBlock(begin * ratio, rate, pcm, self.epoch, due, speaking, ends)

    def _draw(self, row: _Row, last: bool) -> VideoFrame | None:
        interval = int(1_000_000_000 / self.fps)
        late = self._clock.now() - self.time_of(row.due)
        if late > self.config.late_frames * interval and not last:
            self._counts["dropped"] += 1
            self._tiers.note(True, self._clock.now())
            return None
        level = self._tiers.level
        renderer = self._renderers[level]
        mine = {k: v for k, v in self._state.items() if k.startswith("render/")}
        with self._timer("render"):
            mine, images = renderer.step(mine, row.motion[None, None])
        self._state |= mine
        late = self._clock.now() - self.time_of(row.due)
        self._counts["rendered"] += 1
        self._counts["late"] += late > interval
        self._max_late_ns = max(self._max_late_ns, late)
        self._tiers.note(late > interval, self._clock.now())
        if self._tiers.level != level:
            self._new_renderer()
        return VideoFrame(
            row.pts, self.fps, images[0, 0], self.epoch, row.due, renderer.tier, max(late, 0)
        )

    def _new_renderer(self) -> None:
        self._state = {k: v for k, v in self._state.items() if not k.startswith("render/")}
        self._state |= self._renderers[self._tiers.level].init_state(1)

    # --- account ---

    def stats(self) -> dict[str, float | int | str | bool]:
        """What has happened so far, for people and for metrics."""
        return self._counts | {
            "underruns": self._voice.underruns,
            "skipped": self._voice.skipped,
            "seconds": self._hops * MOTION_HOP / SAMPLE_RATE,
            "tier": self._renderers[self._tiers.level].tier,
            "size": self._renderers[self._tiers.level].size,
            "tier_changes": self._tiers.changes,
            "queued_s": self._voice.samples / SAMPLE_RATE,
            "latency_ms": 1000 * self.latency_samples / SAMPLE_RATE,
            "max_late_ms": self._max_late_ns / 1e6,
            "interruptions": self.epoch,
            "speaking": self.speaking,
            "mouth_shut": self._gate.shut(self._state),
        }

    def save_state(self) -> bytes:
        """The conversation as safetensors; ``load_state`` goes on at the next frame, bit for bit."""
        from safetensors.numpy import save

        numbers = [STATE_VERSION, self._tiers.level, self.fps.numerator, self.fps.denominator]
        numbers += [self._hops, self._steps, self._quiet, self._release, self._floor]
        numbers += [self.epoch, self._user_rate, *self._counts.values()]
        state = self._state | self._voice.state()
        state |= {
            "session/numbers": np.array(numbers, np.int64),
            "session/samples": np.array([self._cut, self._last_sample]),
            "session/delay": self._delay.array(),
            "session/said": np.array(list(self._said), np.uint8),
            "session/user": self._user.array(),
        }
        state |= {f"session/in/{k}": v for k, v in self._user_state.items()}
        return save({k: np.ascontiguousarray(v) for k, v in state.items()})

    def load_state(self, data: bytes, *, keep_picture: bool = True) -> None:
        """Take up a conversation saved by a session of the same rates and look-ahead.

        Args:
            data: from ``save_state``.
            keep_picture: also the renderer's memory; not when this is another face.

        Raises:
            InputError: damaged, or of another kind of session.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            state = load(data)
            numbers = [int(v) for v in state.pop("session/numbers")]
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"not the state of a session ({error}); save it again") from error
        self._check_fits(state, numbers)
        self._tiers.level = numbers[1]
        self._hops, self._steps, self._quiet, self._release, self._floor = numbers[4:9]
        self.epoch, self._user_rate = numbers[9:11]
        self._counts = dict(zip(self._counts, numbers[11:], strict=True))
        self._cut, self._last_sample = (float(v) for v in state.pop("session/samples"))
        self._delay = Fifo(state.pop("session/delay"))
        self._said = deque(int(v) for v in state.pop("session/said"))
        self._user = Fifo(state.pop("session/user"))
        inside = {k: state.pop(k) for k in list(state) if k.startswith("session/in/")}
        self._user_state = {k.removeprefix("session/in/"): v for k, v in inside.items()}
        self._voice.restore(state)
        self._state = {k: v for k, v in state.items() if not k.startswith("voice/")}
        self._anchor = None
        if not keep_picture:
            self._new_renderer()

    def _check_fits(self, state: State, numbers: list[int]) -> None:
        delay = (self.latency_samples - MOTION_HOP) * self._voice.ratio
        if numbers[:1] != [STATE_VERSION] or len(numbers) != 11 + len(self._counts):
            raise InputError("the state is of another version of visavis; start a new session")
        missing = [k for k in self._state if k not in state and not k.startswith("render/")]
        alike = Fraction(*numbers[2:4]) == self.fps and len(state.get("session/delay", ())) == delay
        if missing or not alike:
            raise InputError("the state is of a session with other rates; start it alike")
        if not 0 <= numbers[1] < len(self._renderers):
            raise InputError("the state is of a session with more tiers; give it the same ones")
