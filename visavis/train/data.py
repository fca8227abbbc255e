"""Clips to batches: features drawn ahead under several recording conditions, windows at random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from visavis.features import SILENCE, FeatureExtractor
from visavis.models.motion import LOOKAHEAD_STEPS
from visavis.train.augment import crowd, room, stretch, to_level, unspeech, warp_features, wild
from visavis.train.clips import Clip
from visavis.types import CHANNEL, FEATURES_PER_MOTION, MOTION_HOP, SAMPLE_RATE, SPEECH_CHANNELS

SPEECH = np.array([CHANNEL[c] for c in SPEECH_CHANNELS])
LOOKAHEAD_WEIGHT = np.array([0.5, 0.8, 1.6, 1.1], np.float32)  # of the motion at 0, 40, 80, 160 ms
CROWD_ODDS = 0.35  # of quiet examples in which others talk far away
WARP_ODDS = 0.7  # the rest is heard as it was recorded
HUSH_ODDS = 0.4  # of augmented copies in which the talker pauses while the room goes on


@dataclass
class Example:
    """One condition of one clip.

    Attributes:
        features: ``(2 T, 83)`` float16, or what another ``FrontEnd`` makes.
        motion: ``(T, 9)`` float32, NaN where nothing was filmed.
        phones: ``(T,)`` uint8, 255 where unknown.
        weight: of its motion loss; labels made by a model weigh less than tracked ones.
    """

    features: np.ndarray
    motion: np.ndarray
    phones: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class FrontEnd:
    """How sound becomes what a net is given.

    Attributes:
        extract: ``(n,)`` float32 samples to ``(about n / 320 * per_step, width)``.
        silence: ``(width,)`` float32, what it makes of no sound.
        per_step: rows of a motion step.
        warps: whether ``augment.warp_features`` makes sense of its rows.
    """

    extract: Callable[[np.ndarray], np.ndarray]
    silence: np.ndarray
    per_step: int = 1
    warps: bool = False

    @property
    def n_inputs(self) -> int:
        """Values of a motion step."""
        return self.per_step * len(self.silence)


@dataclass
class Pool:
    """Examples of one kind, drawn with a share of every batch."""

    name: str
    share: float
    examples: list[Example] = field(default_factory=list)

    def add(self, example: Example) -> None:
        """Put one in."""
        self.examples.append(example)


def extract(pcm: np.ndarray) -> np.ndarray:
    """``(n,)`` float32 samples to ``(n // 160, 83)`` by the runtime's own extractor."""
    stage = FeatureExtractor()
    return stage.step(stage.init_state(), pcm[None].astype(np.float32))[1][0]


LOG_MEL = FrontEnd(extract, SILENCE, FEATURES_PER_MOTION, warps=True)


def make_example(
    clip: Clip,
    rng: np.random.Generator,
    *,
    augment: bool = True,
    chatter: np.ndarray | None = None,
    weight: float = 1.0,
    front: FrontEnd = LOG_MEL,
) -> Example:
    """One recording condition of a clip, with its labels moved along."""
    if augment and rng.random() < HUSH_ODDS:
        clip = hush(clip, rng)
    pcm = clip.pcm.astype(np.float64) / 32768.0
    factor = float(np.exp(rng.uniform(-0.2, 0.2))) if augment and rng.random() < 0.7 else 1.0
    if augment:
        pcm = wild(stretch(pcm, factor), rng, chatter)
    features, steps = _whole_steps(pcm, front)
    motion = np.full((steps, len(SPEECH)), np.nan, np.float32)
    if clip.motion is not None:
        at = np.arange(steps) * factor
        known = np.arange(len(clip.motion))
        for i, channel in enumerate(SPEECH):
            motion[:, i] = np.interp(at, known, clip.motion[:, channel])
    phones = np.full(steps, 255, np.uint8)
    if clip.phones is not None and clip.phones.any():
        at = np.minimum(np.arange(steps) * factor * FEATURES_PER_MOTION, len(clip.phones) - 1)
        phones = clip.phones[at.astype(int)]
    return Example(features, motion, phones, weight)


def hush(clip: Clip, rng: np.random.Generator) -> Clip:
    """A clip whose talker stops for a while and shuts the mouth; the room's own noise goes on.

    The noise is the clip's quietest quarter of a second, repeated forwards and backwards so that it
    has no seams.
    """
    n, piece = len(clip.pcm), 4000
    if n < 4 * piece:
        return clip
    pcm = clip.pcm.astype(np.float32)
    total = np.concatenate([[0.0], np.cumsum(pcm.astype(np.float64) ** 2)])
    starts = np.arange(0, n - piece, 160)
    quiet = int(starts[np.argmin(total[starts + piece] - total[starts])])
    noise = pcm[quiet : quiet + piece]
    steps = n // MOTION_HOP
    start = int(rng.integers(0, steps - 40))
    stop = min(start + int(rng.integers(30, 120)), steps)
    a, b = start * MOTION_HOP, stop * MOTION_HOP
    loop = np.resize(np.concatenate([noise, noise[::-1]]), b - a)
    fade = np.minimum(1.0, np.minimum(np.arange(b - a), np.arange(b - a)[::-1]) / 320.0)
    pcm[a:b] = pcm[a:b] * (1 - fade) + loop * fade
    return replace(
        clip,
        pcm=np.round(pcm).astype(np.int16),
        motion=None if clip.motion is None else close_mouth(clip.motion, start, stop),
        phones=None if clip.phones is None else _silent(clip.phones, 2 * start, 2 * stop),
    )


def close_mouth(motion: np.ndarray, start: int, stop: int) -> np.ndarray:
    """``(T, D)`` motion at rest from 80 ms after step ``start`` to 80 ms before ``stop``."""
    share = np.interp(np.arange(len(motion)), [start, start + 4, stop - 4, stop], [1, 0, 0, 1])
    return motion * share[:, None].astype(np.float32)


def _silent(phones: np.ndarray, start: int, stop: int) -> np.ndarray:
    """A copy in which nothing is said from ``start`` to ``stop``."""
    copy = phones.copy()
    copy[start:stop] = 0
    return copy


def make_quiet(
    rng: np.random.Generator,
    seconds: float = 4.0,
    front: FrontEnd = LOG_MEL,
    voices: Sequence[np.ndarray] = (),
) -> Example:
    """Nobody speaks, or several of ``voices`` do far away: mouth shut and at rest."""
    if len(voices) and rng.random() < CROWD_ODDS:
        others = crowd(voices, int(seconds * SAMPLE_RATE), rng, least=3)
        pcm = to_level(room(others, rng), rng.uniform(-65.0, -25.0))
    else:
        pcm = unspeech(seconds, rng)
    features, steps = _whole_steps(pcm, front)
    rest = np.zeros((steps, len(SPEECH)), np.float32)
    return Example(features, rest, np.zeros(steps, np.uint8))


def _whole_steps(pcm: np.ndarray, front: FrontEnd) -> tuple[np.ndarray, int]:
    """Features of whole motion steps, float16, and how many steps."""
    features = front.extract(pcm.astype(np.float32))
    steps = len(features) // front.per_step
    return features[: steps * front.per_step].astype(np.float16), steps


def with_silence(example: Example, rng: np.random.Generator, front: FrontEnd = LOG_MEL) -> Example:
    """Cut digital silence into a copy of an example, from a random step to its end or a while."""
    steps = len(example.motion)
    start = int(rng.integers(0, max(steps - 30, 1)))
    stop = min(start + int(rng.integers(30, 150)), steps)
    features = example.features.copy()
    features[front.per_step * start : front.per_step * stop] = front.silence
    motion = close_mouth(example.motion, start, stop)
    return Example(features, motion, _silent(example.phones, start, stop), example.weight)


@dataclass(frozen=True)
class Batch:
    """Arrays of one training step, batch on axis 0.

    Attributes:
        features: ``(B, T, 166)`` float32.
        motion: ``(B, 4, T, 9)`` float32, what to answer at each input step by look-ahead.
        known: ``(B, 4, T)`` float32 weight, 0 where there is nothing to learn.
        phones: ``(B, 4, T)`` int64, -100 where unknown.
    """

    features: np.ndarray
    motion: np.ndarray
    known: np.ndarray
    phones: np.ndarray


def batches(
    pools: list[Pool],
    batch: int,
    steps: int,
    seed: int,
    start: int = 0,
    front: FrontEnd = LOG_MEL,
) -> Iterator[Batch]:
    """Endless batches; number ``k`` depends on ``seed`` and ``k`` alone, so a run can go on."""
    shares = np.array([p.share for p in pools])
    shares = shares / shares.sum()
    index = start
    while True:
        rng = np.random.default_rng([seed, index])
        rows = []
        for which in rng.choice(len(pools), batch, p=shares):
            pool = pools[which]
            example = pool.examples[rng.integers(len(pool.examples))]
            if rng.random() < 0.15:
                example = with_silence(example, rng, front)
            rows.append(window(example, steps, rng, front=front))
        yield Batch(*(np.stack(column) for column in zip(*rows, strict=True)))
        index += 1


def window(
    example: Example,
    steps: int,
    rng: np.random.Generator,
    front: FrontEnd = LOG_MEL,
) -> tuple[np.ndarray, ...]:
    """A random stretch of an example, padded with silence, as one row of a ``Batch``."""
    total = len(example.motion)
    start = int(rng.integers(0, max(total - steps, 0) + 1))
    rows = front.per_step
    features = np.broadcast_to(front.silence, (rows * steps, len(front.silence))).copy()
    part = example.features[rows * start : rows * (start + steps)].astype(np.float32)
    if front.warps and rng.random() < WARP_ODDS:
        part = warp_features(part, rng)
    features[: len(part)] = part
    behind = np.array(list(LOOKAHEAD_STEPS.values()))
    source = start + np.arange(steps) - behind[:, None]
    inside = (source >= 0) & (source < total)
    source = np.clip(source, 0, total - 1)
    motion = example.motion[source]
    known = (inside & np.isfinite(motion[..., 0])) * LOOKAHEAD_WEIGHT[:, None]
    phones = np.where(inside, example.phones[source], 255).astype(np.int64)
    return (
        features.reshape(steps, -1),
        np.nan_to_num(motion),
        known * np.float32(example.weight),
        np.where(phones == 255, -100, phones),
    )
