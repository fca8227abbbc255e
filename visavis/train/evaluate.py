"""Score a motion net on tracked clips, by the path users get: features, net, smoothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visavis.encoder import EncodedMotion, open_motion
from visavis.features import FeatureExtractor
from visavis.motion import MotionNet
from visavis.smoothing import Smoother
from visavis.train.clips import Clip
from visavis.types import CHANNEL

SHUT = 0.02  # lips meet, eye distances
WORDS_SHUT_FIRST = {"bin", "blue", "by", "b", "place", "please", "p"}
WORDS_SHUT_LAST = {"m"}


@dataclass(frozen=True)
class Voice:
    """The stages between sound and motion."""

    features: FeatureExtractor
    motion: MotionNet | EncodedMotion
    smoother: Smoother

    @classmethod
    def load(cls, model: str | Path | None = None, lookahead_ms: int = 80) -> Voice:
        """The stages with one model folder, the shipped one by default."""
        return cls(FeatureExtractor(), open_motion(model, lookahead_ms), Smoother())

    @property
    def stages(self) -> tuple:
        """In order; an encoder of its own takes the place of the features."""
        after = (self.motion, self.smoother)
        return after if self.motion.hears_sound else (self.features, *after)

    def speak(self, pcm: np.ndarray) -> np.ndarray:
        """``(B, N)`` float32 sound to ``(B, ceil(N / 320), 21)`` motion, smoothed."""
        for stage in self.stages:
            state, out = stage.step(stage.init_state(len(pcm)), pcm)
            pcm = np.concatenate([out, stage.flush(state)], axis=1)
        return pcm


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, 0 where one stands still."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() * b.std() > 1e-12 else 0.0


def speak_clips(
    voice: Voice, clips: list[Clip], batch: int = 64
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predicted and tracked motion of clips, both ``(T, 21)``, many clips side by side.

    Silence after a clip's end changes nothing before it but what the look-ahead reaches.
    """
    answers = speak_sounds(voice, clips, batch)
    steps = [min(len(a), len(c.motion)) for a, c in zip(answers, clips, strict=True)]
    return [(a[:n], c.motion[:n]) for a, c, n in zip(answers, clips, steps, strict=True)]


def speak_sounds(voice: Voice, clips: list[Clip], batch: int = 64) -> list[np.ndarray]:
    """Predicted motion ``(ceil(n / 320), 21)`` of clips, many side by side."""
    answers = []
    for start in range(0, len(clips), batch):
        group = clips[start : start + batch]
        pcm = np.zeros((len(group), max(len(c.pcm) for c in group)), np.float32)
        for row, clip in zip(pcm, group, strict=True):
            row[: len(clip.pcm)] = clip.pcm.astype(np.float32) / 32768.0
        spoken = zip(voice.speak(pcm), group, strict=True)
        answers += [answer[: -(-len(clip.pcm) // 320)] for answer, clip in spoken]
    return answers


def score(answer: np.ndarray, tracked: np.ndarray) -> dict[str, float]:
    """Correlations, amplitude and jitter of one clip; jitter at 25 Hz, as it was filmed."""
    jaw, width = CHANNEL["jaw_open"], CHANNEL["mouth_width"]
    second = [np.abs(np.diff(m[::2, jaw], 2)).mean() for m in (answer, tracked)]
    return {
        "opening": correlation(answer[:, jaw], tracked[:, jaw]),
        "width": correlation(answer[:, width], tracked[:, width]),
        "rounding": correlation(
            answer[:, CHANNEL["lip_rounding"]], tracked[:, CHANNEL["lip_rounding"]]
        ),
        "jaw": correlation(answer[:, CHANNEL["jaw_rotation"]], tracked[:, CHANNEL["jaw_rotation"]]),
        "amplitude": float(answer[:, jaw].std() / (tracked[:, jaw].std() + 1e-6)),
        "jitter": float(second[0] / (second[1] + 1e-9)),
    }


def closure_windows(words: list[tuple[float, float, str]], offset_ms: float = 0.0) -> list[slice]:
    """Motion steps in which the lips of each word with p, b or m should meet.

    Args:
        words: start and end in seconds, and the word.
        offset_ms: what the mouth lags the sound by, where the motion was not corrected for it.
    """
    spans = []
    for start, end, word in words:
        if word in WORDS_SHUT_FIRST:
            spans.append((start - 0.12, start + 0.14))
        elif word in WORDS_SHUT_LAST:
            spans.append((end - 0.2, end + 0.12))
    shift = offset_ms / 1000.0
    return [slice(max(0, round((a + shift) * 50)), round((b + shift) * 50)) for a, b in spans]


def closures(answer: np.ndarray, tracked: np.ndarray, spans: list[slice]) -> tuple[int, int]:
    """Of the spans in which the tracked lips meet: how many, and in how many ours do."""
    jaw = CHANNEL["jaw_open"]
    real = [s for s in spans if tracked[s, jaw].size and tracked[s, jaw].min() <= SHUT]
    return len(real), sum(bool(answer[s, jaw].min() <= SHUT) for s in real)


def read_words(path: str | Path) -> dict[str, list[tuple[float, float, str]]]:
    """``clip, start_s, end_s, word`` rows of a TSV, by clip."""
    rows: dict[str, list[tuple[float, float, str]]] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines()[1:]:
        clip, start, end, word = line.split("\t")
        rows.setdefault(clip, []).append((float(start), float(end), word))
    return rows


def runs_of(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and past-the-last index of every run of true in ``(T,)``."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def dips(opening: np.ndarray, threshold: float) -> np.ndarray:
    """Steps at which lips are nearest to each other, where that is at most ``threshold`` apart.

    Args:
        opening: ``(T,)`` lip opening.
        threshold: greatest opening of a dip.

    Returns:
        ``(n,)`` indices; a level floor counts once, in its middle. Unlike runs of shut steps, dips
        do not become fewer and broader as the threshold rises.
    """
    level = np.round(opening, 4)
    turns = np.flatnonzero(np.diff(level, prepend=np.inf, append=np.inf))
    first, last = turns[:-1], turns[1:] - 1
    around = np.concatenate([[np.inf], level, [np.inf]])
    low = (around[first] > level[first]) & (around[last + 2] > level[last])
    low &= level[first] <= threshold
    return (first[low] + last[low]) // 2


def closure_counts(
    opening: np.ndarray, wanted: list[tuple[int, int]], allowed: np.ndarray, judged: np.ndarray,
    threshold: float, reach: int = 2,
) -> np.ndarray:  # fmt: skip
    """How often lips meet where they should, and where they should not.

    Args:
        opening: ``(T,)`` lip opening of the answer, 50 Hz.
        wanted: spans of steps in which lips must meet.
        allowed: ``(T,)`` bool, steps in which meeting is right.
        judged: ``(T,)`` bool, steps in which a meeting counts at all.
        threshold: opening up to which a dip of the opening counts as lips that meet.
        reach: steps by which a closure may miss its place.

    Returns:
        ``(4,)``: wanted spans, those with a dip, judged dips, right ones among them.
    """
    found = dips(opening, threshold)
    met = sum(bool(((found >= a - reach) & (found < b + reach)).any()) for a, b in wanted)
    counted = found[judged[found]]
    right = sum(bool(allowed[max(0, i - reach) : i + reach + 1].any()) for i in counted)
    return np.array([len(wanted), met, len(counted), right])


def recall_at_precision(
    counts: dict[float, np.ndarray], least: float = 0.8
) -> dict[str, float | int]:
    """The threshold with most closures met among those precise enough.

    Args:
        counts: threshold -> summed ``closure_counts``.
        least: precision asked for.

    Returns:
        threshold, recall, precision, closures; of the most precise threshold where none will do.
    """
    rows = {
        t: (float(c[1] / max(c[0], 1)), float(c[3] / max(c[2], 1)), int(c[0]))
        for t, c in counts.items()
        if c[2]
    }
    good = {t: r for t, r in rows.items() if r[1] >= least}
    best = max(good, key=lambda t: good[t][0]) if good else max(rows, key=lambda t: rows[t][1])
    recall, precision, count = rows[best]
    return {
        "threshold": best, "recall": round(recall, 3), "precision": round(precision, 3),
        "closures": count,
    }  # fmt: skip
