"""Time: the clocks a live session may be given, and the integer arithmetic between rates."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Protocol

from visavis.types import MOTION_RATE, SAMPLE_RATE


class Clock(Protocol):
    """The one thing live code may know of time."""

    def now(self) -> int:
        """Nanoseconds since some fixed moment; never runs backwards."""
        ...


class MonotonicClock:
    """The machine's own."""

    def now(self) -> int:
        """See `Clock`."""
        return time.monotonic_ns()


class ManualClock:
    """Moves when told to: for tests and for rendering faster or slower than life."""

    def __init__(self, start_ns: int = 0):
        self._now = start_ns

    def now(self) -> int:
        """See `Clock`."""
        return self._now

    def advance(self, nanoseconds: int) -> None:
        """Let time pass."""
        assert nanoseconds >= 0, "a clock does not run backwards"
        self._now += nanoseconds


def frame_position(index: int, fps: Fraction) -> tuple[int, Fraction]:
    """Where video frame ``index``, shown at index / fps, reads the 50 Hz motion.

    Returns:
        motion index i and weight w in [0, 1): the motion is ``(1 - w) * m[i] + w * m[i + 1]``.
    """
    position = index * MOTION_RATE / Fraction(fps)
    whole = position.numerator // position.denominator
    return whole, position - whole


def frame_count(samples: int, fps: Fraction) -> int:
    """Video frames for a sound of ``samples`` at 16 kHz: rounded, and at least one if any sound."""
    if samples <= 0:
        return 0
    exact = samples * Fraction(fps) / SAMPLE_RATE
    return max(1, (2 * exact.numerator + exact.denominator) // (2 * exact.denominator))


def frame_sample(index: int, fps: Fraction) -> int:
    """The first 16 kHz sample at or after the time frame ``index`` is shown."""
    exact = index * SAMPLE_RATE / Fraction(fps)
    return -(-exact.numerator // exact.denominator)
