"""Sound as it comes in the wild: rooms, noise, telephones, loudness, other vocal tracts.

Two places. ``wild`` changes samples and is drawn a few times per clip, ahead of training;
``warp_features`` changes finished features and is drawn anew for every batch, because it is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visavis.types import N_FEATURES, N_MELS, SAMPLE_RATE

_F0 = N_MELS + 1


def stretch(pcm: np.ndarray, factor: float) -> np.ndarray:
    """Play ``(n,)`` samples ``factor`` times as fast: pace, pitch and formants move together."""
    at = np.arange(int(len(pcm) / factor)) * factor
    return np.interp(at, np.arange(len(pcm)), pcm)


def noise(n: int, rng: np.random.Generator, slope: float) -> np.ndarray:
    """Unit-power noise ``(n,)`` whose spectrum falls as ``f ** -slope`` (0 white, 0.5 pink)."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** -slope
    x = np.fft.irfft(spectrum, n)
    return x / (np.sqrt(np.mean(x * x)) + 1e-12)


def room(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exponentially decaying noise as an impulse response, 0.1 to 0.5 s, after the direct sound."""
    decay = rng.uniform(0.1, 0.5)
    n = int(decay * SAMPLE_RATE)
    tail = rng.standard_normal(n) * 10.0 ** (-3.0 * np.arange(n) / n)
    tail *= rng.uniform(0.15, 0.6) / (np.sqrt(np.sum(tail * tail)) + 1e-9)
    tail[: int(0.002 * SAMPLE_RATE)] = 0.0
    size = len(pcm) + n
    wet = np.fft.irfft(np.fft.rfft(pcm, size) * np.fft.rfft(tail, size), size)
    return pcm + wet[: len(pcm)]


def telephone(pcm: np.ndarray) -> np.ndarray:
    """300 to 3400 Hz and 8-bit mu-law (ITU-T G.711)."""
    spectrum = np.fft.rfft(pcm)
    hz = np.fft.rfftfreq(len(pcm), 1 / SAMPLE_RATE)
    x = np.fft.irfft(spectrum * ((hz > 300) & (hz < 3400)), len(pcm))
    coded = np.sign(x) * np.log1p(255 * np.minimum(np.abs(x), 1)) / np.log(256)
    coded = np.round(coded * 127) / 127
    return np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255


def to_level(pcm: np.ndarray, level_db: float) -> np.ndarray:
    """Scale so that the mean square of the louder half of the 20 ms blocks is ``level_db``."""
    blocks = pcm[: len(pcm) // 320 * 320].reshape(-1, 320)
    power = np.sort(np.mean(blocks * blocks, axis=1))
    loud = float(np.mean(power[len(power) // 2 :])) if len(power) else 0.0
    return np.clip(pcm * 10 ** (level_db / 20) / np.sqrt(loud + 1e-12), -1, 1)


def wild(
    pcm: np.ndarray, rng: np.random.Generator, chatter: np.ndarray | None = None
) -> np.ndarray:
    """One random recording condition of ``(n,)`` float samples; length is kept."""
    x = to_level(np.asarray(pcm, np.float64), -20.0)
    if rng.random() < 0.35:
        x = room(x, rng)
    if rng.random() < 0.55:
        kind = 0.0 if rng.random() < 0.4 else rng.uniform(0.0, 0.8)
        x = x + noise(len(x), rng, kind) * 10 ** ((-20 - rng.uniform(2, 36)) / 20)
    if chatter is not None and rng.random() < 0.3:
        other = np.resize(chatter, len(x))
        x = x + to_level(other, -20 - rng.uniform(5, 38))
    if rng.random() < 0.2:
        x = telephone(to_level(x, -18.0))
    return to_level(x, rng.uniform(-40.0, -8.0)).astype(np.float32)


def crowd(
    voices: Sequence[np.ndarray], n: int, rng: np.random.Generator, least: int = 1
) -> np.ndarray:
    """``least`` to five of ``voices`` (samples each) at once, ``(n,)`` float64, within 6 dB."""
    total = np.zeros(n)
    for _ in range(int(rng.integers(least, 6))):
        voice = voices[rng.integers(len(voices))]
        part = np.resize(np.roll(voice, int(rng.integers(len(voice)))), n)
        total += to_level(part, -26.0) * 10 ** (rng.uniform(-6, 0) / 20)
    return total


def unspeech(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Sound with nobody speaking, ``(n,)`` float32: silence, noise, hum, breath, knocks, coughs, music."""
    n = int(seconds * SAMPLE_RATE)
    t = np.arange(n) / SAMPLE_RATE
    kind = rng.choice(8, p=[0.1, 0.25, 0.1, 0.1, 0.1, 0.1, 0.15, 0.1])
    floor = noise(n, rng, rng.uniform(0, 0.8)) * 10 ** (rng.uniform(-90, -50) / 20)
    if kind == 0:
        return np.zeros(n, np.float32)
    if kind == 1:
        x = floor
    elif kind == 2:
        hum = sum(np.sin(2 * np.pi * 50 * k * t) / k for k in (1, 2, 3, 5))
        x = floor + hum * 10 ** (rng.uniform(-60, -35) / 20)
    elif kind == 3:  # breath: slow swells of soft noise
        swell = (
            np.maximum(np.sin(2 * np.pi * rng.uniform(0.2, 0.4) * t + rng.uniform(0, 6)), 0) ** 2
        )
        x = floor + swell * noise(n, rng, 0.3) * 10 ** (rng.uniform(-60, -40) / 20)
    elif kind == 4:  # knocks and clicks
        x = floor.copy()
        for start in rng.integers(0, n, 4):
            length = min(int(rng.uniform(0.01, 0.08) * SAMPLE_RATE), n - start)
            fade = np.exp(-5.0 * np.arange(length) / max(length, 1))
            x[start : start + length] += noise(max(length, 2), rng, 0.4)[:length] * fade * 0.1
    elif kind >= 6:
        x = floor + (song if kind == 6 else cough)(seconds, rng)[:n] * 10 ** (
            rng.uniform(-30, 0) / 20
        )
    else:  # chords with soft attacks, faint as behind a talk or loud as alone
        x = floor.copy()
        for start in np.arange(0, n, int(rng.uniform(0.25, 0.6) * SAMPLE_RATE)):
            length = min(int(0.8 * SAMPLE_RATE), n - start)
            envelope = np.minimum(t[:length] / 0.01, 1) * np.exp(-3 * t[:length])
            for _ in range(3):
                hz = 110 * 2 ** (rng.integers(0, 30) / 12)
                tone = sum(np.sin(2 * np.pi * hz * k * t[:length]) / k**1.5 for k in (1, 2, 3, 4))
                x[start : start + length] += 0.05 * tone * envelope
        x *= 10 ** (rng.uniform(-30, 0) / 20)
    return x.astype(np.float32)


def song(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Music ``(n,)``: chords with a bass, a tune that wanders over a scale, drums on the beat."""
    n = int(seconds * SAMPLE_RATE)
    out = np.zeros(n + 2 * SAMPLE_RATE)
    beat = 60.0 / rng.uniform(80, 130)
    scale = np.array([0, 2, 4, 5, 7, 9, 11])
    place = 0
    for k in range(int(seconds / beat)):
        start = int(k * beat * SAMPLE_RATE)
        root = 110 * 2 ** (scale[(0, 5, 3, 4)[k // 4 % 4]] / 12)
        if k % 4 == 0:
            for ratio in (0.5, 1, 1.26, 1.5):
                _pluck(out, start, root * ratio, 4 * beat, 0.10)
        place = int(np.clip(place + rng.integers(-2, 3), -3, 9))
        tune = 440 * 2 ** (scale[place % 7] / 12 + place // 7)
        _pluck(out, start, tune, beat, 0.16)
        hit = noise(int(0.12 * SAMPLE_RATE), rng, 0.6 if k % 2 else 0.0)
        hit *= np.exp(-30.0 * np.arange(len(hit)) / SAMPLE_RATE)
        out[start : start + len(hit)] += 0.1 * hit
    return out[:n]


def cough(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Coughs ``(n,)``, one to three at a time: a burst, noise through a throat, a short voiced end."""
    n = int(seconds * SAMPLE_RATE)
    out = np.zeros(n + SAMPLE_RATE)
    at = 0.3
    while at < seconds - 1.5:
        for _ in range(int(rng.integers(1, 4))):
            length = int(rng.uniform(0.25, 0.45) * SAMPLE_RATE)
            t = np.arange(length) / SAMPLE_RATE
            burst = noise(length, rng, 0.3) * (np.exp(-60 * t) + 0.5 * np.exp(-7 * t))
            spectrum = np.fft.rfft(burst)
            hz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
            throat = sum(
                np.exp(-(((hz - f) / w) ** 2)) for f, w in ((600, 300), (1500, 500), (3000, 900))
            )
            voiced = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 8))
            end = np.exp(-(((t - 0.7 * t[-1]) / 0.05) ** 2))
            start = int(at * SAMPLE_RATE)
            out[start : start + length] += np.fft.irfft(spectrum * throat, length)
            out[start : start + length] += 0.15 * voiced * end
            at += length / SAMPLE_RATE + 0.05
        at += rng.uniform(0.8, 2.0)
    return out[:n]


def _pluck(out: np.ndarray, start: int, hz: float, seconds: float, gain: float) -> None:
    """Add a decaying tone of six partials to ``(n,)``, in place."""
    t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tone = sum(np.sin(2 * np.pi * hz * k * t) * np.exp(-2.0 * k * t) / k for k in range(1, 7))
    stop = min(start + len(t), len(out))
    out[start:stop] += gain * (tone * np.minimum(t / 0.01, 1))[: stop - start]


def warp_features(features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another vocal tract, microphone and pitch, in place of a new recording.

    Args:
        features: ``(n, 83)`` of ``FeatureExtractor``.

    Returns:
        ``(n, 83)``: bands stretched by up to 14 % (Jaitly and Hinton 2013), a smooth equaliser of
        up to 8 dB, pitch moved by up to half an octave, one narrow band masked at times.
    """
    out = features.copy()
    bands = features[:, :N_MELS]
    position = np.clip(np.arange(N_MELS) * rng.uniform(0.88, 1.14), 0, N_MELS - 1.001)
    low = position.astype(int)
    share = (position - low).astype(np.float32)
    bands = bands[:, low] * (1 - share) + bands[:, low + 1] * share
    knots = rng.normal(0, 0.12, 5)
    curve = np.interp(np.arange(N_MELS), np.linspace(0, N_MELS - 1, 5), knots)
    # Little is added where a band is at its floor: silence stays silence.
    lift = np.clip(bands + 1.0, 0.0, 0.5) / 0.5
    bands = bands + (curve + rng.normal(0, 0.08)) * lift
    if rng.random() < 0.3:
        first = rng.integers(0, N_MELS - 10)
        bands[:, first : first + rng.integers(2, 10)] = -1.0
    out[:, :N_MELS] = np.maximum(bands, -1.0)
    voiced = features[:, _F0] != 0
    out[:, _F0] = np.where(voiced, features[:, _F0] + rng.normal(0, 0.25), 0.0)
    assert out.shape[1] == N_FEATURES
    return out
