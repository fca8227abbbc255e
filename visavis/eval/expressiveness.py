"""Life beside the lips: blinks, head motion, its spectrum and tie to the voice, diversity, beats.

Signals are motion channels ``(T,)`` at ``rate`` Hz: blinks 0 open .. 1 closed, head angles degrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLINK_CLOSED = 0.5  # a lid over this is in a blink
BANDS_HZ = ((0.1, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 8.0))


@dataclass(frozen=True)
class Blinks:
    """``rate_per_minute``, mean ``duration_ms`` at half height, ``asymmetry`` = mean |left -
    right|.
    """

    count: int
    rate_per_minute: float
    duration_ms: float
    asymmetry: float


def blinks(left: np.ndarray, right: np.ndarray, rate: float) -> Blinks:
    """Blinks: spans of 40 to 700 ms in which the mean of both lids is over one half.

    People blink 10 to 20 times a minute, for 100 to 400 ms (Stern, Walrath, Goldstein 1984).
    """
    both = (np.asarray(left, float) + right) / 2
    edges = np.flatnonzero(np.diff(np.concatenate([[0], both > BLINK_CLOSED, [0]]).astype(np.int8)))
    lengths = (edges[1::2] - edges[::2]) * 1000 / rate
    lengths = lengths[(lengths >= 40 - 1e-9) & (lengths <= 700)]
    minutes = len(both) / rate / 60
    return Blinks(
        count=len(lengths),
        rate_per_minute=len(lengths) / minutes if minutes else float("nan"),
        duration_ms=float(lengths.mean()) if len(lengths) else float("nan"),
        asymmetry=float(np.abs(np.asarray(left, float) - right).mean()),
    )


def head_range(angles: np.ndarray) -> np.ndarray:
    """5th to 95th percentile span of each column of ``(T, 3)`` degrees: ``(3,)`` degrees."""
    return np.ptp(np.quantile(angles, [0.05, 0.95], axis=0), axis=0)


def band_power(signal: np.ndarray, rate: float, bands: tuple = BANDS_HZ) -> np.ndarray:
    """Power of a signal in each band (Hz), ``(bands,)``, signal unit squared; Hann window, one
    segment.
    """
    signal = np.asarray(signal, float) - np.mean(signal)
    window = np.hanning(len(signal))
    spectrum = (
        np.abs(np.fft.rfft(signal * window)) ** 2 / max(np.sum(window**2), 1e-9) / len(signal) * 2
    )
    frequency = np.fft.rfftfreq(len(signal), 1 / rate)
    return np.array(
        [spectrum[(frequency >= low) & (frequency < high)].sum() for low, high in bands]
    )


def spectrum_distance(predicted: np.ndarray, real: np.ndarray, rate: float) -> float:
    """Mean absolute difference of the band powers, in dB; 0 = moves in the same bands as
    strongly.
    """
    a, b = band_power(predicted, rate), band_power(real, rate)
    return float(np.abs(10 * np.log10((a + 1e-6) / (b + 1e-6))).mean())


def prosody_correlation(motion_speed: np.ndarray, prosody: np.ndarray, max_lag: int = 15) -> float:
    """Largest r of head speed and voice energy (or F0) over ±``max_lag`` samples; 0 if either is
    flat.

    Args:
        motion_speed, prosody: ``(T,)`` at one rate.
    """
    from visavis.eval.sync import lag_correlation

    if np.std(motion_speed) < 1e-6 or np.std(prosody) < 1e-6 or len(prosody) <= 2 * max_lag:
        return 0.0
    return float(lag_correlation(motion_speed, prosody, max_lag).max())


def speed(angles: np.ndarray, rate: float) -> np.ndarray:
    """Length of the angular velocity of ``(T, D)`` degrees, degrees per second, ``(T,)``."""
    return np.linalg.norm(np.gradient(np.asarray(angles, float), axis=0), axis=1) * rate


def diversity(clips: np.ndarray) -> float:
    """Mean over time, channels and pairs of |a - b| between seeds, in the channels' unit.

    Args:
        clips: ``(S, T, D)`` the same voice, S seeds. 0 when every seed gives the same motion.
    """
    count = len(clips)
    if count < 2:
        return float("nan")
    pairs = [np.abs(clips[i] - clips[j]).mean() for i in range(count) for j in range(i)]
    return float(np.mean(pairs))


def motion_beats(signal: np.ndarray, rate: float, least: float = 0.0) -> np.ndarray:
    """Times (s) at which a movement turns: local minima of its speed between two faster stretches.

    Args:
        signal: ``(T,)``.
        least: speeds (unit per second) that must be passed between two beats, or it is noise.
    """
    pace = np.abs(np.gradient(np.asarray(signal, float))) * rate
    inner = np.flatnonzero((pace[1:-1] <= pace[:-2]) & (pace[1:-1] < pace[2:])) + 1
    beats, last = [], 0
    for index in inner:
        if pace[last : index + 1].max(initial=0) > least:
            beats.append(index / rate)
            last = index
    return np.array(beats)


def voice_beats(energy: np.ndarray, rate: float, prominence: float = 0.1) -> np.ndarray:
    """Times (s) of syllable beats: peaks of the rise of the energy envelope, 100 ms apart at least.

    Args:
        energy: ``(T,)`` any unit; ``prominence`` is in the unit of its rise per sample times 10.
    """
    from scipy.signal import find_peaks

    rise = np.maximum(np.gradient(np.asarray(energy, float)), 0) * 10
    peaks, _ = find_peaks(rise, prominence=prominence, distance=max(1, round(0.1 * rate)))
    return peaks / rate


def beat_alignment(
    motion_times: np.ndarray, voice_times: np.ndarray, sigma_s: float = 0.1
) -> float:
    """Mean over motion beats of exp(-d²/2σ²), d to the nearest voice beat; 1 = all on the beat.

    Source: beat alignment score of AI Choreographer (Li et al., ICCV 2021), motion to audio; σ is
    0.1 s here. NaN without beats on either side.
    """
    if len(motion_times) == 0 or len(voice_times) == 0:
        return float("nan")
    nearest = np.abs(motion_times[:, None] - voice_times[None]).min(axis=1)
    return float(np.exp(-(nearest**2) / (2 * sigma_s**2)).mean())
