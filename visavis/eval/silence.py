"""What the face does when nobody speaks, and at the seams between idling and speech."""

from __future__ import annotations

import itertools

import numpy as np

from visavis.types import FEATURE_HOP, SAMPLE_RATE

SILENCE_DB = -45.0  # under this level (10 ms RMS, full scale 0 dB) a hop is silence
BELOW_SPEECH_DB = 20.0  # and so is one this far under the clip's loud hops: films carry room noise
LEAST_HOPS = 8  # shorter bursts (80 ms) are clicks, not speech


def speech_mask(pcm: np.ndarray, hang_ms: int = 150) -> np.ndarray:
    """Which 10 ms hops hold speech, ``(len(pcm) // 160,)`` bool.

    Louder than -45 dB and than 20 dB under the clip's 95th percentile; gaps up to ``hang_ms`` are
    bridged, bursts under 80 ms dropped. The judge may look at the whole clip; the system may not.

    Args:
        pcm: ``(S,)`` float32, 16 kHz, full scale 1.
    """
    hops = len(pcm) // FEATURE_HOP
    if hops == 0:
        return np.zeros(0, bool)
    power = (np.asarray(pcm[: hops * FEATURE_HOP], float) ** 2).reshape(hops, FEATURE_HOP)
    level = 10 * np.log10(power.mean(axis=1) + 1e-12)
    mask = level > max(SILENCE_DB, float(np.quantile(level, 0.95)) - BELOW_SPEECH_DB)
    hang = hang_ms * SAMPLE_RATE // 1000 // FEATURE_HOP
    where = np.flatnonzero(mask)
    for left, right in itertools.pairwise(where):
        if right - left <= hang:
            mask[left:right] = True
    for start, end in spans(mask):
        if end - start < LEAST_HOPS:
            mask[start:end] = False
    return mask


def spans(mask: np.ndarray) -> list[tuple[int, int]]:
    """Half-open index spans where a bool ``(T,)`` mask is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def motion_in_silence(
    opening: np.ndarray, speech: np.ndarray, rate: float, settle_ms: float = 300.0
) -> tuple[float, float]:
    """(standard deviation, mean) of the lip opening in silence, outer-eye distances.

    Args:
        opening: ``(T,)`` at ``rate`` Hz.
        speech: ``(H,)`` bool at 100 Hz (``speech_mask``).
        settle_ms: left out after speech, and before it (the mouth may open for a breath).

    NaN when no silence is left.
    """
    quiet = np.zeros(len(opening), bool)
    margin = settle_ms / 1000
    for start, end in spans(~speech):
        low = start / 100 + (margin if start > 0 else 0.0)
        high = end / 100 - (margin if end < len(speech) else 0.0)
        quiet[int(np.ceil(low * rate)) : max(0, int(high * rate))] = True
    if not quiet.any():
        return float("nan"), float("nan")
    return float(opening[quiet].std()), float(opening[quiet].mean())


def closing_times_ms(
    opening: np.ndarray,
    speech: np.ndarray,
    rate: float,
    closed: float = 0.02,
    limit_ms: float = 1500.0,
) -> np.ndarray:
    """From each end of speech to the first closed mouth that stays so for 100 ms, ms, ``(ends,)``.

    ``limit_ms`` where it does not close in that time or before speech goes on. Ends of speech at
    the
    end of the clip (less than 200 ms of silence behind them) are not counted.
    """
    hold = max(1, round(0.1 * rate))
    times = []
    for _, end in spans(speech):
        following = np.flatnonzero(speech[end:])
        quiet = following[0] if len(following) else len(speech) - end
        if quiet < 20:
            continue
        first = round(end / 100 * rate)
        last = min(len(opening) - hold + 1, round((end + quiet) / 100 * rate))
        shut = [k for k in range(first, last) if np.all(opening[k : k + hold] <= closed)]
        times.append((shut[0] - first) * 1000 / rate if shut else limit_ms)
    return np.minimum(np.array(times, float), limit_ms)


def seam_peak_ratio(
    motion: np.ndarray, seams: np.ndarray, rate: float, window_ms: float = 200.0
) -> float:
    """Peak speed near the seams between idle and speech over the 99th percentile elsewhere.

    Args:
        motion: ``(T, D)``; each column is divided by its own standard deviation.
        seams: ``(S,)`` sample indices at ``rate`` where speech starts or ends.

    About 1 or less: no jump at the seams. NaN without seams, or when nothing moves elsewhere.
    """
    spread = motion.std(axis=0)
    moving = spread > 1e-6
    if not moving.any() or len(seams) == 0 or len(motion) < 3:
        return float("nan")
    speed = np.linalg.norm(np.diff(motion[:, moving] / spread[moving], axis=0), axis=1) * rate
    near = np.zeros(len(speed), bool)
    half = round(window_ms / 2000 * rate)
    for seam in np.asarray(seams, int):
        near[max(0, seam - half) : seam + half + 1] = True
    if near.all() or not near.any():
        return float("nan")
    usual = float(np.quantile(speed[~near], 0.99))
    return float(speed[near].max() / usual) if usual > 1e-9 else float("nan")
