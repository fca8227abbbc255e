"""Means with honest error bars: bootstrap over clips, paired tests between systems. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean over clips with its 95 % interval; ``count`` is the number of clips behind it."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(
    values: np.ndarray, seed: int = 0, draws: int = 2000, level: float = 0.95
) -> Interval:
    """Percentile bootstrap of the mean over clips.

    Args:
        values: ``(N,)`` one figure per clip; NaN (not measurable on that clip) is left out.
        seed: of the resampling.
        draws: resamples.
        level: of the interval.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
    """
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    if n == 1 or not np.isfinite(values).all():
        mean = float(values.mean())
        return Interval(mean, mean if n > 1 else np.nan, mean if n > 1 else np.nan, n)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, n, (draws, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), n)


def sign_flip_test(a: np.ndarray, b: np.ndarray, seed: int = 0, draws: int = 20_000) -> float:
    """Two-sided p value of "the mean of a - b is zero", pairs flipped at random; all flips if few.

    Args:
        a, b: ``(N,)`` paired figures (same clip, or same rater and clip). Pairs with NaN are left
        out.

    Returns 1.0 when fewer than two pairs, or no difference, are left.

    Source: Good, Permutation, Parametric and Bootstrap Tests of Hypotheses (2005), sec. 3.2.
    """
    diff = np.asarray(a, float) - np.asarray(b, float)
    diff = diff[~np.isnan(diff)]
    n = len(diff)
    if n < 2 or not np.any(diff):
        return 1.0
    observed = abs(diff.mean())
    if n <= 14:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        means = np.abs(signs @ diff) / n
        return float(np.mean(means >= observed - 1e-12))
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], (draws, n))
    extreme = np.sum(np.abs(signs @ diff) / n >= observed - 1e-12)
    return float((extreme + 1) / (draws + 1))


def binomial_test(wins: int, losses: int) -> float:
    """Two-sided exact p value of "A is preferred as often as B"; ties are left out by the
    caller.
    """
    from math import comb

    n = wins + losses
    if n == 0:
        return 1.0
    tail = sum(comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n
    return float(min(1.0, 2 * tail))


def t_interval(values: np.ndarray) -> Interval:
    """Mean with the 95 % interval ``1.96 -> t`` of ITU-T P.910 (10/2023) clause 8: mean ± t·s/√N.

    Args:
        values: ``(N,)`` ratings 1..5 (or one mean per rater).
    """
    from scipy.stats import t as student

    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(values.mean())
    if n == 1:
        return Interval(mean, np.nan, np.nan, 1)
    half = float(student.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)
