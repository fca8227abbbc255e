"""The one pipeline: sound in, frames out. ``render`` is ``stream``, drained into a file.

pcm -> features -> (motion net + idle) -> smoothing -> interpolation to frames -> renderer
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import Field, field_validator

from visavis.avatar import DEFAULT_SIZE, SIZES, Avatar, create_avatar, load_avatar
from visavis.config import Config
from visavis.encoder import open_motion
from visavis.errors import ConfigError
from visavis.features import FeatureExtractor
from visavis.idle import Idle, IdleConfig
from visavis.render import Renderer
from visavis.smoothing import Interpolator, Smoother
from visavis.style import idle_of
from visavis.types import (
    CHANNEL,
    CHANNELS,
    MOTION_HOP,
    MOTION_RATE,
    SPEECH_CHANNELS,
    Frame,
    Motion,
    State,
)

HEAD_CHANNELS = ("head_pitch", "head_yaw", "head_roll", "shift_x", "shift_y", "scale")
ALIGNMENTS = ("neutral", "first")


class PipelineConfig(Config):
    """Every choice of a pipeline, made once; unknown keys are errors.

    Attributes:
        fps: frames per second, 1 to 120.
        size: side of the square frame in pixels, 256 to 1024, even.
        tier: renderer tier.
        lookahead_ms: how much sound after a moment its mouth may depend on: 0, 40, 80 or 160.
        seed: of blinks, glances and head motion.
        threads: CPU threads of the mouth net; the motion net is too small for more than one.
        articulation: how far mouth and lips go, against what the net says, 0 to 2; shut stays shut.
        liveliness: how far the head goes, against what is usual, 0 to 2; blinks and gaze stay.
    """

    fps: Fraction = Fraction(30)
    size: int = Field(DEFAULT_SIZE, ge=SIZES[0], le=SIZES[1], multiple_of=2)
    tier: str = "patch"
    lookahead_ms: int = 80
    seed: int = Field(0, ge=0, lt=2**63)
    threads: int = Field(2, ge=1, le=64)
    articulation: float = Field(1.0, ge=0, le=2)
    liveliness: float = Field(1.0, ge=0, le=2)

    @field_validator("fps")
    @classmethod
    def _possible(cls, fps: Fraction) -> Fraction:
        if not 1 <= fps <= 120:
            raise ValueError("expected 1 to 120 frames per second")
        return fps


Timer = Callable[[str], object]


class StageClock:
    """Adds up the time of each stage. The clock is an argument: CPU or wall, in nanoseconds."""

    def __init__(self, now: Callable[[], int]):
        self._now = now
        self.total: dict[str, int] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = self._now()
        yield
        self.total[stage] = self.total.get(stage, 0) + self._now() - begin


@contextmanager
def untimed(stage: str) -> Iterator[None]:
    """The `Timer` of who does not want to know."""
    yield


class Pipeline:
    """All stages for one avatar. Holds weights and constants; a conversation is a ``State``.

    Args:
        avatar: who speaks.
        config: how.
        motion_dir: model folder of the audio-to-motion net; the shipped one by default.
        renderer: a ready renderer of this avatar, to share it between pipelines.

    Attributes:
        latency_samples: how long after a moment was heard its frame is out, 16 kHz samples.
    """

    def __init__(
        self,
        avatar: Avatar,
        config: PipelineConfig | None = None,
        *,
        motion_dir: str | Path | None = None,
        renderer: Renderer | None = None,
    ):
        self.config = config = config or PipelineConfig()
        self.features = FeatureExtractor()
        self.motion = open_motion(motion_dir, config.lookahead_ms)
        usual = IdleConfig.load(lookahead=self.motion.lookahead)
        self.idle = Idle(idle_of(avatar.style, usual))
        self.smoother = Smoother()
        self.interpolator = Interpolator(config.fps)
        self.renderer = renderer or Renderer(
            avatar, config.tier, config.size, threads=config.threads
        )

    @cached_property
    def _reach(self) -> np.ndarray:
        """The config's dials, ``(D,)``: what each channel is multiplied by."""
        reach = np.ones(len(CHANNELS), np.float32)
        reach[[CHANNEL[c] for c in SPEECH_CHANNELS]] = self.config.articulation
        reach[[CHANNEL[c] for c in HEAD_CHANNELS]] = self.config.liveliness
        return reach

    @property
    def latency_samples(self) -> int:
        """Hops and look-aheads: a motion step lasts 320 samples and waits for those after."""
        steps = 1 + self.motion.lookahead + self.smoother.lookahead + self.interpolator.lookahead
        return steps * MOTION_HOP

    @property
    def latency(self) -> Fraction:
        """``latency_samples`` in seconds."""
        return Fraction(self.latency_samples, 16_000)

    def init_state(self, batch: int = 1, seed: int | None = None) -> State:
        """A conversation that has not begun.

        Args:
            batch: how many run side by side.
            seed: of the idle motion; the config's by default.
        """
        state: State = {
            "pipeline/samples": np.zeros(batch, np.int64),
            "pipeline/frames": np.zeros(batch, np.int64),
        }
        for stage in (self.features, self.motion, self.smoother, self.interpolator, self.renderer):
            state |= stage.init_state(batch)
        return state | self.idle.init_state(batch, self.config.seed if seed is None else seed)

    def step(
        self, state: State, pcm: np.ndarray, timer: Timer = untimed
    ) -> tuple[State, list[Frame]]:
        """Hear a chunk, show what it allows.

        Args:
            state: from ``init_state`` or the step before.
            pcm: ``(1, N)`` float32 at 16 kHz, any N.
            timer: context manager factory around each stage.

        Returns:
            The next state and the frames that are due, in order.
        """
        state, steps = self.hear(state, pcm, timer)
        state, rows = self.to_frames(state, steps, timer)
        return self.draw(state, rows, timer)

    def flush(self, state: State, timer: Timer = untimed) -> list[Frame]:
        """The frames still owed when the sound has ended.

        ``round(duration * fps)`` in all, or one more where rounding down would take back a frame
        that a stream has shown already.
        """
        return list(self.drain(*self.hear_rest(state, timer), timer))

    def drain(self, state: State, steps: np.ndarray, timer: Timer = untimed) -> Iterator[Frame]:
        """The frames still owed, one by one.

        Args:
            state: after ``hear_rest``.
            steps: the motion that ``hear_rest`` gave.
        """
        state, rows = self.to_frames(state, steps, timer)
        samples = int(state["pipeline/samples"][0])
        rows = np.concatenate([rows, self.interpolator.flush(state, samples)], axis=1)
        for k in range(rows.shape[1]):
            state, frames = self.draw(state, rows[:, k : k + 1], timer)
            yield from frames

    def hear(
        self, state: State, pcm: np.ndarray, timer: Timer = untimed
    ) -> tuple[State, np.ndarray]:
        """Sound to smooth motion.

        Args:
            state: the conversation.
            pcm: ``(B, N)`` float32 at 16 kHz.

        Returns:
            The next state and ``(B, m, D)`` float32 motion at 50 Hz.
        """
        state = dict(state)
        state["pipeline/samples"] = state["pipeline/samples"] + pcm.shape[1]
        with timer("features"):
            state, features = _run(self.features, state, pcm)
        with timer("motion"):
            heard = pcm if self.motion.hears_sound else features
            state, speech = _run(self.motion, state, heard)
        with timer("idle"):
            state, idle = _run(self.idle, state, features)
        with timer("smoothing"):
            return _run(self.smoother, state, (speech + idle) * self._reach)

    def draw(
        self, state: State, rows: np.ndarray, timer: Timer = untimed
    ) -> tuple[State, list[Frame]]:
        """Frames for ``(1, K, D)`` motion rows."""
        if not rows.shape[1]:
            return state, []
        with timer("render"):
            mine = {k: v for k, v in state.items() if k.startswith("render/")}
            mine, images = self.renderer.step(mine, rows)
        first = int(state["pipeline/frames"][0])
        state = state | mine | {"pipeline/frames": state["pipeline/frames"] + rows.shape[1]}
        return state, [
            Frame(first + k, image, self.config.fps) for k, image in enumerate(images[0])
        ]

    def to_frames(
        self, state: State, steps: np.ndarray, timer: Timer = untimed
    ) -> tuple[State, np.ndarray]:
        """Motion at 50 Hz to the rows of the frames it allows, ``(B, K, D)``."""
        with timer("smoothing"):
            return _run(self.interpolator, state, steps)

    def hear_rest(self, state: State, timer: Timer = untimed) -> tuple[State, np.ndarray]:
        """The sound has ended: the motion still owed, each stage drained into the next."""
        with timer("features"):
            features = self.features.flush(state)
        with timer("motion"):
            heard = np.zeros((len(features), 0), np.float32)
            heard = heard if self.motion.hears_sound else features
            state, speech = _run(self.motion, state, heard)
            speech = np.concatenate([speech, self.motion.flush(state)], axis=1)
        with timer("idle"):
            state, idle = _run(self.idle, state, features)
            idle = np.concatenate([idle, self.idle.flush(state)], axis=1)
        with timer("smoothing"):
            state, steps = _run(self.smoother, state, (speech + idle) * self._reach)
            return state, np.concatenate([steps, self.smoother.flush(state)], axis=1)


def _run(stage, state: State, chunk: np.ndarray) -> tuple[State, np.ndarray]:
    """One stage on its own part of the state."""
    after, out = stage.step(state, chunk)
    return state | after, out


@dataclass(frozen=True)
class RenderReport:
    """What a render made.

    Attributes:
        path: the file written.
        frames: how many.
        seconds: length of the film.
        warnings: what was odd about the input, in words.
        meta: tier, size, fps and the like.
    """

    path: Path
    frames: int
    seconds: float
    warnings: tuple[str, ...] = ()
    meta: dict[str, object] = field(default_factory=dict)


def stream(
    avatar: Avatar,
    chunks: Iterable[np.ndarray],
    config: PipelineConfig | None = None,
    *,
    pipeline: Pipeline | None = None,
    timer: Timer = untimed,
    on_motion: Callable[[np.ndarray], None] | None = None,
) -> Iterator[Frame]:
    """Frames as the sound comes.

    Args:
        avatar: who speaks.
        chunks: ``(N,)`` float32 arrays at 16 kHz, any lengths.
        config: how; ignored when ``pipeline`` is given.
        pipeline: a ready one.
        timer: see ``Pipeline.step``.
        on_motion: called with each ``(m, D)`` piece of 50 Hz motion.

    Yields:
        Frames in order, each at most ``Pipeline.latency`` after it was heard.
    """
    pipe = pipeline or Pipeline(avatar, config)
    state = pipe.init_state()
    for chunk in chunks:
        # a long chunk is heard in slices, so that frames come out one by one
        for start in range(0, max(len(chunk), 1), MOTION_HOP):
            piece = np.asarray(chunk[start : start + MOTION_HOP], np.float32)[None]
            state, steps = pipe.hear(state, piece, timer)
            if on_motion and steps.shape[1]:
                on_motion(steps[0])
            state, rows = pipe.to_frames(state, steps, timer)
            state, frames = pipe.draw(state, rows, timer)
            yield from frames
    state, steps = pipe.hear_rest(state, timer)
    if on_motion and steps.shape[1]:
        on_motion(steps[0])
    yield from pipe.drain(state, steps, timer)


def render(
    avatar: Avatar | str | Path,
    audio: str | Path,
    out: str | Path,
    config: PipelineConfig | None = None,
    *,
    progress: Callable[[int], None] | None = None,
    motion_dir: str | Path | None = None,
    motion_out: str | Path | None = None,
    timer: Timer = untimed,
) -> RenderReport:
    """A sound file to a film with that sound.

    Args:
        avatar: an avatar, an ``.avatar`` file or a photo.
        audio: any file with sound.
        out: ``.mp4`` or ``.webm``; appears only when it is whole.
        config: how.
        progress: called with the number of frames done.
        motion_dir: model folder of the audio-to-motion net; the shipped one by default.
        motion_out: also write the motion (safetensors) here.
        timer: see ``Pipeline.step``.

    Raises:
        InputError: avatar, photo or sound cannot be used.
        OutputError: the film cannot be written.
    """
    from visavis.audio import decode_audio, read_audio
    from visavis.motionfile import save_motion
    from visavis.video import VideoWriter, write_all

    config = config or PipelineConfig()
    warnings: list[str] = []
    pieces: list[np.ndarray] = []
    pipe = Pipeline(open_avatar(avatar, config.size), config, motion_dir=motion_dir)
    chunks = read_audio(audio, on_warning=warnings.append)
    keep = pieces.append if motion_out else None
    size = (pipe.renderer.size, pipe.renderer.size)
    with VideoWriter(Path(out), config.fps, size, sound=decode_audio(audio)) as film:
        frames = stream(pipe.renderer.avatar, chunks, pipeline=pipe, timer=timer, on_motion=keep)
        count = write_all(film, (frame.image for frame in frames), progress)
    if motion_out:
        save_motion(Motion(np.concatenate(pieces), Fraction(MOTION_RATE)), motion_out)
    meta = {"tier": config.tier, "size": size[0], "fps": str(config.fps), "seed": config.seed}
    return RenderReport(Path(out), count, float(count / config.fps), tuple(warnings), meta)


def animate(
    avatar: Avatar | str | Path,
    motion: Motion,
    out: str | Path,
    config: PipelineConfig | None = None,
    *,
    sound: str | Path | None = None,
    align: str = "neutral",
    progress: Callable[[int], None] | None = None,
) -> RenderReport:
    """Drive an avatar by a motion clip.

    Args:
        avatar: an avatar, an ``.avatar`` file or a photo.
        motion: any channels and rate; channels it lacks stay at rest.
        out: ``.mp4`` or ``.webm``.
        config: how.
        sound: a file whose sound goes along.
        align: ``neutral`` plays the head motion around the photo's pose; ``first`` takes the first
            row as the photo itself (same person: reconstruction).
        progress: called with the number of frames done.

    Raises:
        InputError: avatar or motion cannot be used.
        OutputError: the film cannot be written.
    """
    from visavis.audio import decode_audio
    from visavis.video import VideoWriter, write_all

    config = config or PipelineConfig()
    who = open_avatar(avatar, config.size)
    renderer = Renderer(who, config.tier, config.size, threads=config.threads)
    rows = frames_of_motion(motion, config.fps, who, align)
    blocks = decode_audio(sound) if sound else None
    with VideoWriter(Path(out), config.fps, (renderer.size, renderer.size), sound=blocks) as film:
        count = write_all(film, _draw_rows(renderer, rows), progress)
    meta = {"tier": config.tier, "size": renderer.size, "fps": str(config.fps), "align": align}
    return RenderReport(Path(out), count, float(count / config.fps), (), meta)


def _draw_rows(renderer: Renderer, rows: np.ndarray) -> Iterator[np.ndarray]:
    state = renderer.init_state()
    for row in rows:
        state, images = renderer.step(state, row[None, None])
        yield images[0, 0]


def frames_of_motion(
    motion: Motion, fps: Fraction, avatar: Avatar, align: str = "neutral"
) -> np.ndarray:
    """A motion clip as one row per frame, in an avatar's terms.

    Args:
        motion: the clip.
        fps: of the frames.
        avatar: whose photo ``first`` aligns to.
        align: see ``animate``.

    Returns:
        ``(K, D)`` float32.

    Raises:
        ConfigError: unknown alignment, or a clip without rows.
    """
    if align not in ALIGNMENTS:
        raise ConfigError(f"align {align!r} is unknown; choose one of {', '.join(ALIGNMENTS)}")
    if not len(motion):
        raise ConfigError("the motion has no rows; give a clip of at least one")
    values = np.zeros((len(motion), len(CHANNELS)), np.float32)
    for name in motion.channels:
        if name in CHANNEL:
            values[:, CHANNEL[name]] = motion.channel(name)
    if align == "first":
        values = values - values[:1] + avatar.motion
    else:
        head = [CHANNEL[c] for c in HEAD_CHANNELS]
        values[:, head] -= np.median(values[:, head], axis=0)
    count = max(1, round(len(values) / motion.rate * fps))
    at = np.arange(count) * float(motion.rate / fps)
    columns = [np.interp(at, np.arange(len(values)), values[:, d]) for d in range(values.shape[1])]
    return np.stack(columns, 1).astype(np.float32)


def open_avatar(avatar: Avatar | str | Path, size: int = DEFAULT_SIZE) -> Avatar:
    """An avatar from itself, an ``.avatar`` file, or a photo.

    Raises:
        InputError: the file cannot be used.
    """
    if isinstance(avatar, Avatar):
        return avatar
    if Path(avatar).suffix.lower() == ".avatar":
        return load_avatar(avatar)
    return create_avatar(avatar, size=size)
