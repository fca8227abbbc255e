"""Sound to features: 80 log-mel bands, energy, pitch and voicing, 100 times a second.

Feature ``k`` ends with its hop: it covers samples ``[160(k+1) - 400, 160(k+1))`` and exists as soon
as ``160(k+1)`` samples have come. The floor and scale are fixed. Only the mel bands are levelled,
by a peak level that rises at once and falls slowly and never below ``level_floor_db``, so quiet
speech is lifted and the noise of a silence is not pumped up; ``energy`` stays absolute.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visavis.types import FEATURE_HOP, N_FEATURES, N_MELS, SAMPLE_RATE, State

WINDOW = 400  # samples, 25 ms
N_FFT = 512
PITCH_WINDOW = 1024  # samples, 64 ms: three periods of the lowest pitch
PITCH_RATE = SAMPLE_RATE // 2  # Hz, pairs of samples are averaged first
HISTORY = PITCH_WINDOW - FEATURE_HOP  # samples kept behind the next hop

# What the extractor gives for digital silence; the motion net is flushed with it.
SILENCE = np.concatenate([np.full(N_MELS, -1.0), [-1.0, 0.0, 0.0]]).astype(np.float32)


@dataclass(frozen=True)
class FeatureConfig:
    """Levels are dB relative to full scale, of the mean square of one 25 ms window."""

    level_start_db: float = -26.0  # assumed peak level before anything was heard
    level_floor_db: float = -42.0  # louder noise than this less 20 dB would be lifted into speech
    level_fall_db: float = 0.02  # per feature: 2 dB a second
    level_target_db: float = -18.0
    band_floor_db: float = -70.0  # after levelling; maps to -1
    band_scale_db: float = 25.0
    pitch_low: float = 60.0  # Hz
    pitch_high: float = 400.0
    voicing_threshold: float = 0.45


def mel_filters(n_mels: int = N_MELS, n_fft: int = N_FFT, low: float = 40.0) -> np.ndarray:
    """Triangles equally wide on the mel scale, ``(n_fft // 2 + 1, n_mels)`` float64, peak 1.

    The scale is O'Shaughnessy's, 2595 log10(1 + f / 700). Bands narrower than a bin are widened
    so that none is empty.
    """

    def mel(hz: np.ndarray | float) -> np.ndarray:
        return 2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0)

    edges = np.linspace(mel(low), mel(SAMPLE_RATE / 2), n_mels + 2)
    edges = 700.0 * (10.0 ** (edges / 2595.0) - 1.0)
    bin_hz = SAMPLE_RATE / n_fft
    hz = np.arange(n_fft // 2 + 1)[:, None] * bin_hz
    centre = edges[1:-1]
    left = np.minimum(edges[:-2], centre - bin_hz)
    right = np.maximum(edges[2:], centre + bin_hz)
    return np.clip(np.minimum((hz - left) / (centre - left), (right - hz) / (right - centre)), 0, 1)


class FeatureExtractor:
    """Stage: ``(B, N)`` float32 samples in, ``(B, n, 83)`` float32 features out."""

    lookahead = 0

    def __init__(self, config: FeatureConfig | None = None) -> None:
        self.config = config or FeatureConfig()
        self._window = np.hanning(WINDOW + 1)[:-1]
        self._mel = mel_filters() / np.square(self._window.sum())
        self._pitch_window = np.hanning(PITCH_WINDOW // 2 + 1)[:-1]
        spectrum = np.abs(np.fft.rfft(self._pitch_window, PITCH_WINDOW)) ** 2
        self._window_correlation = np.fft.irfft(spectrum)
        c = self.config
        self._lags = np.arange(int(PITCH_RATE / c.pitch_high), int(PITCH_RATE / c.pitch_low) + 2)

    def init_state(self, batch: int = 1) -> State:
        """Silence before the first sample."""
        return {
            "features/history": np.zeros((batch, HISTORY), np.float32),
            "features/pending": np.zeros((batch, FEATURE_HOP), np.float32),
            "features/pending_count": np.zeros(batch, np.int64),
            "features/level_db": np.full(batch, self.config.level_start_db),
        }

    def step(self, state: State, chunk: np.ndarray) -> tuple[State, np.ndarray]:
        """Every feature whose hop is complete; the rest waits in the state."""
        count = int(state["features/pending_count"][0])
        waiting = state["features/pending"][:, :count]
        pcm = np.concatenate([state["features/history"], waiting, chunk], axis=1, dtype=np.float32)
        n = (pcm.shape[1] - HISTORY) // FEATURE_HOP
        used = n * FEATURE_HOP
        rest = pcm[:, HISTORY + used :]
        pending = np.zeros_like(state["features/pending"])
        pending[:, : rest.shape[1]] = rest
        values, level = self._features(pcm[:, : HISTORY + used], n, state["features/level_db"])
        return {
            "features/history": pcm[:, used : used + HISTORY],
            "features/pending": pending,
            "features/pending_count": np.full_like(state["features/pending_count"], rest.shape[1]),
            "features/level_db": level,
        }, values

    def flush(self, state: State) -> np.ndarray:
        """The last, begun hop filled up with silence: ``(B, 0 or 1, 83)``."""
        count = int(state["features/pending_count"][0])
        batch = len(state["features/pending"])
        if count == 0:
            return np.zeros((batch, 0, N_FEATURES), np.float32)
        return self.step(state, np.zeros((batch, FEATURE_HOP - count), np.float32))[1]

    def _features(
        self, pcm: np.ndarray, n: int, level: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        batch = len(pcm)
        if n == 0:
            return np.zeros((batch, 0, N_FEATURES), np.float32), level
        c = self.config
        windows = np.lib.stride_tricks.sliding_window_view(pcm, PITCH_WINDOW, axis=1)
        windows = windows[:, ::FEATURE_HOP]
        short = windows[..., -WINDOW:].astype(np.float64)
        short = short - short.mean(axis=-1, keepdims=True)
        energy_db = 10.0 * np.log10(np.mean(short * short, axis=-1) + 1e-10)

        # level[k] = max(energy[k], level[k-1] - fall) in closed form, so a chunk needs no loop.
        fall = c.level_fall_db * np.arange(1, n + 1)
        raised = np.maximum(np.maximum(energy_db, c.level_floor_db) + fall, level[:, None])
        levels = np.maximum.accumulate(raised, axis=1) - fall

        power = np.abs(np.fft.rfft(short * self._window, N_FFT)) ** 2
        gain = 10.0 ** ((c.level_target_db - levels) / 10.0)
        bands = (power @ self._mel) * gain[..., None] + 10.0 ** (c.band_floor_db / 10.0)
        bands = (10.0 * np.log10(bands) - c.band_floor_db) / c.band_scale_db - 1.0
        energy = (np.maximum(energy_db, -90.0) + 90.0) / 40.0 - 1.0
        pitch, voicing = self._pitch(windows)
        out = np.concatenate([bands, np.stack([energy, pitch, voicing], axis=-1)], axis=-1)
        return out.astype(np.float32), levels[:, -1]

    def _pitch(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Octaves above 100 Hz (0 where unvoiced) and voicing 0 .. 1, each ``(B, n)``.

        Window-corrected autocorrelation after Boersma (1993), with his small cost per octave down.
        """
        c = self.config
        x = windows.astype(np.float64)
        x = 0.5 * (x[..., 0::2] + x[..., 1::2])
        x = (x - x.mean(axis=-1, keepdims=True)) * self._pitch_window
        correlation = np.fft.irfft(np.abs(np.fft.rfft(x, PITCH_WINDOW)) ** 2)
        lags = self._lags
        # The added power makes faint sound (below about -65 dB) count as unvoiced.
        scale = correlation[..., :1] + 3e-7 * np.square(self._pitch_window).sum()
        span = np.arange(lags[0] - 1, lags[-1] + 2)
        values = (
            correlation[..., span]
            / scale
            * (self._window_correlation[0] / self._window_correlation[span])
        )
        inner = values[..., 1:-1]
        peak = (inner >= values[..., :-2]) & (inner > values[..., 2:])
        score = np.where(peak, inner - 0.03 * np.log2(lags / lags[0]), -1.0)
        best = np.argmax(score, axis=-1)[..., None]
        here = np.take_along_axis(inner, best, -1)
        before = np.take_along_axis(values, best, -1)
        after = np.take_along_axis(values, best + 2, -1)
        bend = np.minimum(before - 2.0 * here + after, -1e-9)
        shift = np.clip(0.5 * (before - after) / bend, -0.5, 0.5)
        lag = (lags[best] + shift)[..., 0]
        strength = np.where(np.take_along_axis(peak, best, -1), here, 0.0)[..., 0]
        voicing = np.clip(strength, 0.0, 1.0)
        voiced = voicing > c.voicing_threshold
        return np.where(voiced, np.log2(PITCH_RATE / lag / 100.0), 0.0), voicing
