"""Lip motion against the tracked real video: correlation, amplitude, error, closures.

Signals are ``(T,)`` at one rate, e.g. ``jaw_open`` in outer-eye distances (0 = lips touch).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CHANNELS = ("jaw_open", "mouth_width", "lip_rounding", "jaw_rotation")
CLOSED = 0.02  # outer-eye distances: at or under this the lips meet (issue 2, "closures")
FLAT = 1e-3  # a lip signal with less deviation than this is the tracker's noise


def correlation(predicted: np.ndarray, real: np.ndarray) -> float:
    """Pearson's r, -1..1; 0 when only the prediction is flat, NaN when the real signal is."""
    if np.std(real) < FLAT:
        return float("nan")
    if np.std(predicted) < FLAT:
        return 0.0
    return float(np.corrcoef(predicted, real)[0, 1])


def amplitude_ratio(predicted: np.ndarray, real: np.ndarray) -> float:
    """Standard deviation of the prediction over that of the real signal; 1 is right, NaN if
    flat.
    """
    spread = float(np.std(real))
    return float(np.std(predicted) / spread) if spread >= FLAT else float("nan")


def rms_error(predicted: np.ndarray, real: np.ndarray) -> float:
    """Root mean square difference, in the signals' unit."""
    return float(np.sqrt(np.mean((np.asarray(predicted, float) - real) ** 2)))


def explained(predicted: np.ndarray, real: np.ndarray) -> float:
    """Share of the real signal's variance that the prediction explains, means removed: 1 - e²/var.

    1 is the real motion, 0 is no motion at all, negative is motion that is worse than none: wrong
    words score below a still mouth, which correlation does not say. NaN if the real signal is flat.
    Source: coefficient of determination (Wright 1921), each signal about its own mean.
    """
    a, b = predicted - np.mean(predicted), real - np.mean(real)
    power = float(np.mean(b**2))
    return 1.0 - float(np.mean((a - b) ** 2)) / power if power >= FLAT**2 else float("nan")


def concordance(predicted: np.ndarray, real: np.ndarray) -> float:
    """Lin's concordance correlation coefficient (Biometrics 45, 1989), -1..1; NaN if both are
    flat.
    """
    a, b = np.asarray(predicted, float), np.asarray(real, float)
    below = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    return (
        float(2 * np.mean((a - a.mean()) * (b - b.mean())) / below)
        if below > FLAT**2
        else float("nan")
    )


@dataclass(frozen=True)
class Closures:
    """Lip closures found and missed; ``precision`` and ``recall`` are NaN when there is none to
    find.
    """

    real: int
    predicted: int
    recalled: int
    confirmed: int

    @property
    def recall(self) -> float:
        return self.recalled / self.real if self.real else float("nan")

    @property
    def precision(self) -> float:
        return self.confirmed / self.predicted if self.predicted else float("nan")

    @property
    def f1(self) -> float:
        """2·hits / (real + predicted): 0, not NaN, for a mouth that never closes nor opens."""
        total = self.real + self.predicted
        return (self.recalled + self.confirmed) / total if total else float("nan")


def closure_spans(
    opening: np.ndarray, rate: float, threshold: float = CLOSED
) -> list[tuple[int, int]]:
    """Half-open sample spans in which the lips meet between two openings.

    A span counts when the mouth opens by a further ``threshold`` both before and after it within
    400 ms: a mouth that is merely shut makes no closures.

    Args:
        opening: ``(T,)`` inner-lip gap over outer-eye distance.
        rate: samples per second.
    """
    shut = np.concatenate([[False], np.asarray(opening) <= threshold, [False]])
    edges = np.flatnonzero(np.diff(shut.astype(np.int8)))
    reach = max(1, round(0.4 * rate))
    spans = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        before, after = opening[max(0, start - reach) : start], opening[end : end + reach]
        if len(before) and len(after) and min(before.max(), after.max()) >= 2 * threshold:
            spans.append((int(start), int(end)))
    return spans


def closures(
    predicted: np.ndarray,
    real: np.ndarray,
    rate: float,
    threshold: float = CLOSED,
    tolerance_ms: float = 80.0,
) -> Closures:
    """Real closures that the prediction makes, and predicted closures that the real mouth makes.

    Args:
        predicted, real: ``(T,)`` openings, outer-eye distances, same rate.
        rate: Hz.
        threshold: lips meet at or under it.
        tolerance_ms: how far apart the two closures may be (about the BT.1359 acceptance).
    """
    slack = round(tolerance_ms * rate / 1000)
    ours, theirs = closure_spans(predicted, rate, threshold), closure_spans(real, rate, threshold)

    def met(span: tuple[int, int], others: list[tuple[int, int]]) -> bool:
        return any(start - slack < span[1] and span[0] < end + slack for start, end in others)

    return Closures(
        real=len(theirs),
        predicted=len(ours),
        recalled=sum(met(span, ours) for span in theirs),
        confirmed=sum(met(span, theirs) for span in ours),
    )
