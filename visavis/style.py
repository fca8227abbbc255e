"""How a person behaves on film: the range of every channel, blinks, how the head moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from visavis.idle import IdleConfig
from visavis.types import CHANNEL, CHANNELS

SHUT = 0.5  # of a lid's way, more is a blink
BREAK = 0.5  # seconds without a face that end a stretch of film
LEAST_SECONDS = 20.0  # of film before its blinks are counted on
INTERVALS = (1.5, 10.0)  # seconds between blinks that are believed
LIVELINESS = (0.3, 1.6)  # of the head, against the usual talker, that is believed
_HEAD = [CHANNEL[c] for c in ("head_pitch", "head_yaw", "head_roll")]


def style_of(motion: np.ndarray, times: np.ndarray) -> dict:
    """Style statistics of a film.

    Args:
        motion: ``(T, D)`` channels.
        times: ``(T,)`` seconds, increasing.

    Returns:
        ``range``: channel to its 5th, 50th and 95th percentile; ``blinks_per_minute``;
        ``head_sd``: degrees of pitch, yaw and roll about their means over 3 s, which a change of
        seat does not widen; ``head_speed``: mean degrees per second of the same; ``seconds``.
    """
    low, middle, high = np.percentile(motion, [5, 50, 95], axis=0)
    ranges = {c: [float(x[i]) for x in (low, middle, high)] for i, c in enumerate(CHANNELS)}
    step = np.diff(times)
    whole = step < BREAK
    seconds = float(step[whole].sum())
    lids = motion[:, [CHANNEL["eye_blink_left"], CHANNEL["eye_blink_right"]]].mean(1)
    shut = lids > SHUT
    blinks = int((shut[1:] & ~shut[:-1] & whole).sum())
    head = motion[:, _HEAD].astype(np.float64)
    speed = np.abs(np.diff(head, axis=0))[whole].sum(0) / max(seconds, 1e-6)
    about = np.concatenate([w - w.mean(0) for w in _windows(head, times)])
    return {
        "seconds": seconds,
        "range": ranges,
        "blinks_per_minute": 60 * blinks / max(seconds, 1e-6),
        "head_sd": about.std(0).tolist(),
        "head_speed": speed.tolist(),
    }


def _windows(values: np.ndarray, times: np.ndarray, length: float = 3.0) -> list[np.ndarray]:
    bins = np.floor((times - times[0]) / length).astype(int)
    edges = np.flatnonzero(np.diff(bins)) + 1
    return np.split(values, edges)


def idle_of(style: dict | None, usual: IdleConfig) -> IdleConfig:
    """The behaviour of a person on film: their blinks, and a head as lively as theirs.

    Args:
        style: from `style_of`, perhaps by way of a file of unknown origin; None changes nothing.
        usual: the behaviour of the usual talker.
    """
    if not style:
        return usual
    seconds, rate = _number(style.get("seconds")), _number(style.get("blinks_per_minute"))
    heads = style.get("head_sd")
    changes: dict = {}
    if seconds >= LEAST_SECONDS and rate * seconds >= 3 * 60:  # three blinks
        changes["blink_interval"] = float(np.clip(60 / rate, *INTERVALS))
    if isinstance(heads, list) and len(heads) == 3 and min(map(_number, heads)) > 0:
        ratio = np.mean([_number(h) for h in heads]) / np.mean(usual.sway)
        factor = float(np.clip(ratio, *LIVELINESS))
        for name in ("head_sd", "sway"):
            changes[name] = tuple(factor * v for v in getattr(usual, name))
        changes["nod"] = factor * usual.nod
    return replace(usual, **changes)


def _number(value: object) -> float:
    """A finite number, or 0 for anything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    return float(value) if good else 0.0
