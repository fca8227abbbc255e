"""A judge's own ear: lip motion that a sound calls for, by ridge regression, to measure A/V offset.

It shares the features with the system under test but no weight of it, looks 200 ms both ways, and
is fitted by `benchmarks/sync_scorer.py`. It only ranks lags, so a linear map is enough; it cannot
say how good the lips look.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visavis.errors import ModelError
from visavis.eval.sync import Offset, offset
from visavis.features import FeatureExtractor
from visavis.types import CHANNEL, FEATURES_PER_MOTION, MOTION_RATE, N_FEATURES

CONTEXT = 10  # motion steps of 20 ms, each way
HEARD = ("jaw_open", "mouth_width", "lip_rounding")  # what is predicted
DEFAULT = Path(__file__).parent / "listener.safetensors"


def context_features(pcm: np.ndarray) -> np.ndarray:
    """``(T, 21·83)`` float32 at 50 Hz: features in steps of 20 ms, 200 ms of context each way.

    Args:
        pcm: ``(S,)`` float32 16 kHz. Row t describes the sound about t / 50 seconds.
    """
    extractor = FeatureExtractor()
    state, values = extractor.step(extractor.init_state(), pcm[None])
    tail = extractor.flush(state)
    features = np.concatenate([values[0], tail[0]])
    steps = len(features) // FEATURES_PER_MOTION
    pairs = features[: steps * FEATURES_PER_MOTION].reshape(steps, FEATURES_PER_MOTION, N_FEATURES)
    padded = np.pad(pairs.mean(axis=1), ((CONTEXT, CONTEXT), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * CONTEXT + 1, axis=0)
    return windows.transpose(0, 2, 1).reshape(steps, -1).astype(np.float32)


@dataclass(frozen=True)
class Listener:
    """``weight`` ``(1743, C)``, ``bias`` ``(C,)``: features to standardised lip channels."""

    weight: np.ndarray
    bias: np.ndarray

    def hear(self, pcm: np.ndarray) -> np.ndarray:
        """Lip motion ``(T, C)`` at 50 Hz that the sound calls for (standardised units)."""
        return context_features(pcm) @ self.weight + self.bias

    def offset(self, motion: np.ndarray, pcm: np.ndarray, max_ms: float = 640.0) -> Offset:
        """How late the lips are against the sound.

        Args:
            motion: ``(T, D)`` at 50 Hz, all channels of ``types.CHANNELS``.
            pcm: ``(S,)`` float32 16 kHz, starting with the motion.
        """
        return offset(lip_columns(motion), self.hear(pcm), MOTION_RATE, max_ms)

    def save(self, path: Path, facts: dict[str, str]) -> None:
        """Write the weights with their sources in the metadata."""
        from safetensors.numpy import save_file

        save_file({"weight": self.weight, "bias": self.bias}, str(path), facts)


def lip_columns(motion: np.ndarray) -> np.ndarray:
    """The channels that the listener predicts, ``(T, C)``."""
    return motion[:, [CHANNEL[name] for name in HEARD]]


def fit(inputs: list[np.ndarray], targets: list[np.ndarray], ridge: float = 300.0) -> Listener:
    """Ridge regression over clips.

    Args:
        inputs: per clip ``(T, 1743)`` from ``context_features``.
        targets: per clip ``(T, C)``; each clip is standardised, so that people of different
            amplitude weigh the same.
        ridge: penalty on weights of standardised inputs.
    """
    x = np.concatenate(inputs).astype(np.float64)
    y = np.concatenate([(t - t.mean(axis=0)) / np.maximum(t.std(axis=0), 1e-3) for t in targets])
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-3)
    x = (x - mean) / scale
    solved = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y) / scale[:, None]
    return Listener(solved.astype(np.float32), (-mean @ solved).astype(np.float32))


def load(path: Path | None = None) -> Listener:
    """Read a listener; ``ModelError`` when missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = Path(path or DEFAULT)
    try:
        arrays = load_file(str(path))
        return Listener(arrays["weight"], arrays["bias"])
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelError(f"{path}: no sync listener there: {error}") from error
