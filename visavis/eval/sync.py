"""When the lips move against when they should: offset in milliseconds and how sure that is.

Sign everywhere: **positive = the video is late** (the sound comes early), the sign of ITU-R
BT.1359.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STILL = 1e-3  # a column with less deviation than this (eye distances) does not move
DETECTABLE_MS = (-125.0, 45.0)  # ITU-R BT.1359-1: sound late .. sound early that a viewer notices


@dataclass(frozen=True)
class Offset:
    """``offset_ms`` of the best lag; ``confidence`` = correlation there above the median lag's;
    ``peak`` = correlation at the best lag; NaN where a signal does not move."""

    offset_ms: float
    confidence: float
    peak: float


def lag_correlation(video: np.ndarray, reference: np.ndarray, max_lag: int) -> np.ndarray:
    """Pearson's r at each lag over the overlap, ``(2·max_lag + 1,)``; index ``max_lag`` is lag 0.

    Args:
        video, reference: ``(T,)`` or ``(T, D)``; with D columns the standardised columns are
        pooled.
        max_lag: samples; lag k pairs ``video[t + k]`` with ``reference[t]``.

    Short overlaps are shrunk by sqrt(overlap / T), or chance peaks at the ends would win.
    """
    a = _standard(video)
    b = _standard(reference)
    n = len(a)
    scores = np.zeros(2 * max_lag + 1)
    for lag in range(-max_lag, max_lag + 1):
        if n - abs(lag) < 3:
            continue
        x, y = a[max(0, lag) : n + min(0, lag)], b[max(0, -lag) : n + min(0, -lag)]
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        power = np.sqrt((x**2).sum() * (y**2).sum())
        if power > 1e-9:
            scores[lag + max_lag] = (x * y).sum() / power * np.sqrt(1 - abs(lag) / n)
    return scores


def offset(video: np.ndarray, reference: np.ndarray, rate: float, max_ms: float = 640.0) -> Offset:
    """Lag of ``video`` behind ``reference`` by cross-correlation, refined by a parabola.

    Args:
        video: ``(T,)`` or ``(T, D)`` lip motion seen in the video.
        reference: same shape: lip motion that the sound calls for, or the real video's.
        rate: Hz of both.
        max_ms: largest lag looked for (640 ms is 16 frames at 25 fps).

    Source: SyncNet's "median minus minimum distance" confidence (Chung & Zisserman 2016), on
    correlations instead of distances.
    """
    if min(len(video), len(reference)) < 8 or _flat(video) or _flat(reference):
        return Offset(float("nan"), 0.0, 0.0)
    n = min(len(video), len(reference))
    max_lag = min(round(max_ms * rate / 1000), n - 4)
    scores = lag_correlation(video[:n], reference[:n], max_lag)
    best = int(np.argmax(scores))
    shift = 0.0
    if 0 < best < len(scores) - 1:
        left, mid, right = scores[best - 1 : best + 2]
        curve = left - 2 * mid + right
        shift = 0.5 * (left - right) / curve if curve < -1e-12 else 0.0
    peak = float(scores[best])
    return Offset(
        offset_ms=float((best - max_lag + shift) * 1000 / rate),
        confidence=peak - float(np.median(scores)),
        peak=peak,
    )


def shift_signal(signal: np.ndarray, samples: int) -> np.ndarray:
    """The signal ``samples`` later (negative: earlier), its end values held; same shape."""
    index = np.clip(np.arange(len(signal)) - samples, 0, len(signal) - 1)
    return signal[index]


def shift_errors(
    video: np.ndarray, reference: np.ndarray, rate: float, shifts: range, max_ms: float = 1000.0
) -> np.ndarray:
    """Validation of a scorer: error in samples for each shift put into a clip, ``(len(shifts),)``.

    The clip's own offset (measured unshifted) is not the scorer's fault and is subtracted. NaN
    where
    no offset could be measured.
    """
    own = offset(video, reference, rate, max_ms).offset_ms
    found = [offset(shift_signal(video, k), reference, rate, max_ms).offset_ms for k in shifts]
    return (np.array(found) - own) * rate / 1000 - np.array(list(shifts))


def _standard(signal: np.ndarray) -> np.ndarray:
    signal = np.asarray(signal, float)
    signal = signal[:, None] if signal.ndim == 1 else signal
    signal = signal - signal.mean(axis=0)
    spread = signal.std(axis=0)
    return np.where(spread > STILL, signal / np.maximum(spread, STILL), 0.0)


def _flat(signal: np.ndarray) -> bool:
    return bool(np.std(signal, axis=0).max() < STILL)
