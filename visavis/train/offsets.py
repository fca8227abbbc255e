"""How far each filmed clip's mouth lags its sound, found by a voice net and taken out.

Found clips carry offsets of up to 200 ms. The lag is read where the jaw's rotation that a net hears and
the one that was filmed agree best; the jaw alone, so that the lips, which nets are scored on, have no say.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from visavis.train.clips import Clip
from visavis.train.evaluate import Voice, speak_clips
from visavis.types import CHANNEL, MOTION_RATE

REACH_STEPS = 7
TRUST = 0.9  # of what a clip's own lag differs from its corpus's median
LEAST_CORRELATION = 0.7  # below it the corpus's median is taken


def find_lag(guess: np.ndarray, seen: np.ndarray, reach: int = REACH_STEPS) -> tuple[float, float]:
    """Lag of one curve behind another, finer than a step.

    Args:
        guess: ``(T,)`` at 50 Hz, in time with the sound.
        seen: ``(T,)`` at 50 Hz, as filmed.
        reach: steps searched either way.

    Returns:
        Milliseconds by which ``seen`` lags ``guess`` (top of a parabola through the three best
        neighbours), and the correlation at the best whole step. ``(0, 0)`` where one stands still.
    """
    n = min(len(guess), len(seen))
    reach = min(reach, n // 3)
    scores = []
    for lag in range(-reach, reach + 1):
        a = guess[max(0, -lag) : n - max(0, lag)]
        b = seen[max(0, lag) : n - max(0, -lag)]
        still = a.std() * b.std() < 1e-12
        scores.append(0.0 if still else float(np.corrcoef(a, b)[0, 1]))
    best = int(np.argmax(scores))
    if scores[best] <= 0:
        return 0.0, 0.0
    shift = 0.0
    if 0 < best < 2 * reach:
        left, top, right = scores[best - 1 : best + 2]
        bend = left - 2 * top + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return (best - reach + shift) * 1000.0 / MOTION_RATE, scores[best]


def clip_lags(clips: list[Clip], voice: Voice) -> dict[str, tuple[float, float]]:
    """Lag of each clip's jaw behind the one ``voice`` hears, ms, and the correlation there."""
    jaw = CHANNEL["jaw_rotation"]
    pairs = zip(clips, speak_clips(voice, clips), strict=True)
    return {c.name: find_lag(a[:, jaw], b[:, jaw]) for c, (a, b) in pairs}


def settle(lags: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Lags as found to offsets to take out: shrunk to their median, which the doubtful ones get."""
    trusted = [lag for lag, r in lags.values() if r >= LEAST_CORRELATION]
    middle = float(np.median(trusted)) if trusted else 0.0
    return {
        name: round(middle + TRUST * (lag - middle) if r >= LEAST_CORRELATION else middle, 1)
        for name, (lag, r) in lags.items()
    }


def clip_offsets(clips: list[Clip], voice: Voice) -> dict[str, float]:
    """Offset still in each clip's motion, by clip name, in ms (positive: the mouth is late).

    Args:
        clips: filmed clips of one corpus.
        voice: what hears; its own corpus offset does not matter, only what clips differ by does, and
            the median of all.
    """
    return settle(clip_lags(clips, voice))


def shift_motion(clip: Clip, late_ms: float) -> Clip:
    """The clip with its motion moved earlier by ``late_ms``; ``offset_ms`` in its facts grows by it."""
    at = np.arange(len(clip.motion)) + late_ms * MOTION_RATE / 1000.0
    known = np.arange(len(clip.motion))
    motion = np.stack([np.interp(at, known, column) for column in clip.motion.T], axis=1)
    facts = clip.meta | {"offset_ms": round(float(clip.meta.get("offset_ms", 0.0)) + late_ms, 1)}
    return replace(clip, motion=motion.astype(np.float32), meta=facts)
