"""The feature front end: causality, chunk invariance, and what the numbers mean."""

import numpy as np
import pytest

from visavis.features import SILENCE, WINDOW, FeatureExtractor
from visavis.types import FEATURE_HOP, N_FEATURES, N_MELS, SAMPLE_RATE

ENERGY, F0, VOICING = N_MELS, N_MELS + 1, N_MELS + 2


def drain(stage, pcm, chunk=None):
    state, parts = stage.init_state(len(pcm)), []
    for start in range(0, pcm.shape[1], chunk or max(pcm.shape[1], 1)):
        state, out = stage.step(state, pcm[:, start : start + (chunk or pcm.shape[1])])
        parts.append(out)
    return np.concatenate([*parts, stage.flush(state)], axis=1)


def speechlike(seconds=1.0, seed=0, batch=1):
    """Buzz of gliding pitch with noise, ``(batch, n)``."""
    n = int(seconds * SAMPLE_RATE)
    t = np.arange(n) / SAMPLE_RATE
    rng = np.random.default_rng(seed)
    phase = 2 * np.pi * (120 * t + 20 * t * t)
    buzz = sum(np.sin(k * phase) / k for k in range(1, 12)) * 0.1 * (1 + np.sin(2 * np.pi * 3 * t))
    return (buzz + 0.003 * rng.standard_normal((batch, n))).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 7, 159, 160, 161, 1000])
def test_chunk_size_never_changes_the_output(chunk):
    pcm = speechlike(0.5 if chunk > 1 else 0.1, batch=2)
    stage = FeatureExtractor()
    np.testing.assert_allclose(drain(stage, pcm, chunk), drain(stage, pcm), atol=1e-5)


def test_feature_k_needs_only_the_samples_of_its_hop():
    pcm = speechlike(0.5)
    changed = pcm.copy()
    cut = 20 * FEATURE_HOP
    changed[:, cut:] = 0.7
    stage = FeatureExtractor()
    a, b = drain(stage, pcm), drain(stage, changed)
    np.testing.assert_array_equal(a[:, :20], b[:, :20])
    assert np.abs(a[:, 20:] - b[:, 20:]).max() > 0.1


def test_feature_k_exists_once_its_hop_is_complete():
    stage = FeatureExtractor()
    state = stage.init_state()
    state, out = stage.step(state, np.zeros((1, FEATURE_HOP - 1), np.float32))
    assert out.shape == (1, 0, N_FEATURES)
    state, out = stage.step(state, np.zeros((1, 1), np.float32))
    assert out.shape == (1, 1, N_FEATURES)
    assert stage.flush(state).shape == (1, 0, N_FEATURES)


def test_digital_silence_is_the_published_constant():
    out = drain(FeatureExtractor(), np.zeros((1, 16_100), np.float32))
    assert out.shape[1] == 101
    np.testing.assert_allclose(out[0], np.broadcast_to(SILENCE, out[0].shape), atol=1e-4)


def test_pitch_of_a_buzz_is_found():
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    for hz in (90.0, 140.0, 210.0, 330.0):
        pcm = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 9))[None] * 0.1
        out = drain(FeatureExtractor(), pcm.astype(np.float32))[0, 20:]
        assert np.all(out[:, VOICING] > 0.8)
        np.testing.assert_allclose(100 * 2 ** out[:, F0], hz, rtol=0.01)


def test_noise_is_unvoiced():
    noise = np.random.default_rng(0).standard_normal((1, SAMPLE_RATE)).astype(np.float32) * 0.1
    out = drain(FeatureExtractor(), noise)[0, 20:]
    assert np.mean(out[:, F0] != 0) < 0.1


def test_quiet_speech_is_lifted_and_noise_is_not():
    loud = speechlike(12.0)
    stage = FeatureExtractor()
    reference = drain(stage, loud)[0, -100:, :N_MELS]
    quiet = drain(stage, loud * np.float32(0.1))[0, -100:, :N_MELS]  # 20 dB down
    assert np.abs(reference - quiet).mean() < 0.4  # of 0.8 without levelling
    noise = np.random.default_rng(0).standard_normal((1, 320_000)).astype(np.float32) * 1e-3
    assert drain(stage, noise)[0, -100:, :N_MELS].mean() < -0.2


def test_a_constant_offset_is_not_sound():
    pcm = np.full((1, 8000), 0.3, np.float32)
    assert drain(FeatureExtractor(), pcm)[0, 20:, ENERGY].max() < -0.9


def test_window_is_25_ms_of_past():
    pcm = np.zeros((1, 8000), np.float32)
    pcm[0, 1600] = 0.5  # first heard by feature 10, last by the one whose window begins after it
    out = drain(FeatureExtractor(), pcm)[0, :, ENERGY]
    heard = np.flatnonzero(out > -0.99)
    assert heard[0] == 10
    assert heard[-1] == (1600 + WINDOW) // FEATURE_HOP - 1
