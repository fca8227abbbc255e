"""Score a motion net on tracked clips, by the path users get: features, net, smoothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    motion: MotionNet
    smoother: Smoother

    @classmethod
    def load(cls, model: str | Path | None = None, lookahead_ms: int = 80) -> Voice:
        """The stages with one model folder, the shipped one by default."""
        return cls(FeatureExtractor(), MotionNet(model, lookahead_ms), Smoother())

    def speak(self, pcm: np.ndarray) -> np.ndarray:
        """``(B, N)`` float32 sound to ``(B, ceil(N / 320), 21)`` motion, smoothed."""
        for stage in (self.features, self.motion, self.smoother):
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
    pairs = []
    for start in range(0, len(clips), batch):
        group = clips[start : start + batch]
        pcm = np.zeros((len(group), max(len(c.pcm) for c in group)), np.float32)
        for row, clip in zip(pcm, group, strict=True):
            row[: len(clip.pcm)] = clip.pcm.astype(np.float32) / 32768.0
        for answer, clip in zip(voice.speak(pcm), group, strict=True):
            n = min(-(-len(clip.pcm) // 320), len(clip.motion))
            pairs.append((answer[:n], clip.motion[:n]))
    return pairs


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
