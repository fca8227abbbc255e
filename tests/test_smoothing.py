"""Smoothing and interpolation: streaming contracts, closures, silence, limits, frame counts."""

from fractions import Fraction

import numpy as np
import pytest

from visavis.smoothing import Interpolator, Smoother, soft_limit
from visavis.types import CHANNEL, MOTION_HOP, N_CHANNELS, RANGE_HIGH, RANGE_LOW, SAMPLE_RATE

JAW = CHANNEL["jaw_open"]
BLINK = CHANNEL["eye_blink_left"]


def drain(stage, motion, chunk=None):
    state, parts = stage.init_state(len(motion)), []
    chunk = chunk or max(motion.shape[1], 1)
    for start in range(0, motion.shape[1], chunk):
        state, out = stage.step(state, motion[:, start : start + chunk])
        parts.append(out)
    return np.concatenate([*parts, stage.flush(state)], axis=1)


def talking(steps=100, batch=1, seed=0):
    """Smoothed noise on every channel with shut lips now and then, ``(batch, steps, 21)``."""
    rng = np.random.default_rng(seed)
    raw = rng.standard_normal((batch, steps + 8, N_CHANNELS))
    raw = np.stack([raw[:, i : i + steps] for i in range(8)]).mean(0)
    motion = raw * (RANGE_HIGH - RANGE_LOW) * 0.3
    motion[..., JAW] = np.maximum(0.06 + motion[..., JAW], 0.0)
    return motion.astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_smoother_gives_the_same_for_any_chunks(chunk):
    motion = talking(batch=2)
    stage = Smoother()
    whole = drain(stage, motion)
    assert whole.shape == motion.shape
    np.testing.assert_allclose(drain(stage, motion, chunk), whole, atol=1e-6)


def test_smoother_looks_one_step_ahead_and_no_further():
    motion = talking()
    changed = motion.copy()
    changed[:, 50:] += 0.05
    stage = Smoother()
    a, b = drain(stage, motion), drain(stage, changed)
    np.testing.assert_array_equal(a[:, :49], b[:, :49])
    state = stage.init_state()
    assert stage.step(state, motion[:, :5])[1].shape[1] == 5 - stage.lookahead


def test_step_leaves_the_state_it_was_given():
    stage, motion = Smoother(), talking(10)
    state, _ = stage.step(stage.init_state(), motion)
    before = {k: v.copy() for k, v in state.items()}
    stage.step(state, motion)
    for name, value in before.items():
        np.testing.assert_array_equal(state[name], value)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_closure_survives(length):
    motion = np.zeros((1, 60, N_CHANNELS), np.float32)
    motion[..., JAW] = 0.12
    motion[:, 30 : 30 + length, JAW] = 0.01
    motion[:, [29, 30 + length], JAW] = 0.06
    out = drain(Smoother(), motion)[0, :, JAW]
    assert out[30 : 30 + length].min() <= 0.012
    assert out[20:25].min() > 0.1


def test_the_mouth_is_shut_and_still_200_ms_after_the_voice():
    motion = talking(100)
    motion[..., JAW] += 0.05
    rest = motion[:, :1] * 0
    rest[..., JAW] = 0.006  # what a net may leave behind
    rest[..., CHANNEL["mouth_width"]] = 0.01
    noise = 0.0002 * np.random.default_rng(0).standard_normal((1, 200, N_CHANNELS))
    quiet = (np.repeat(rest, 200, axis=1) + noise).astype(np.float32)
    out = drain(Smoother(), np.concatenate([motion, quiet], axis=1))
    after = out[0, 115:]
    assert after[:, JAW].max() <= 0.004
    assert after[5:, JAW].std() < 0.001
    assert np.abs(after[60:, CHANNEL["mouth_width"]]).max() < 0.002


def test_blinks_pass_unsmoothed():
    motion = np.zeros((1, 20, N_CHANNELS), np.float32)
    motion[0, 10, BLINK] = 0.8
    np.testing.assert_allclose(
        drain(Smoother(), motion)[0, :, BLINK], motion[0, :, BLINK], atol=1e-6
    )


def test_jitter_is_reduced_and_speech_is_not():
    t = np.arange(200) / 50
    wave = 0.1 + 0.06 * np.sin(2 * np.pi * 1.5 * t)
    motion = np.zeros((1, 200, N_CHANNELS), np.float32)
    motion[0, :, JAW] = wave + 0.003 * np.random.default_rng(0).standard_normal(200)
    out = drain(Smoother(), motion)[0, :, JAW]
    assert np.abs(np.diff(out, 2)).mean() < 0.75 * np.abs(np.diff(motion[0, :, JAW], 2)).mean()
    assert np.corrcoef(out[20:], wave[20:])[0, 1] > 0.97
    assert np.ptp(out[50:]) > 0.8 * np.ptp(wave)


def test_limits_hold_and_do_not_touch_the_middle():
    motion = talking(50) * 20
    limited = soft_limit(motion)
    assert np.all(limited >= RANGE_LOW)
    assert np.all(limited <= RANGE_HIGH)
    small = 0.5 * (RANGE_LOW + RANGE_HIGH) + 0.3 * (RANGE_HIGH - RANGE_LOW)
    np.testing.assert_allclose(soft_limit(small[None, None])[0, 0], small, atol=1e-6)
    np.testing.assert_array_equal(soft_limit(np.zeros((1, 1, N_CHANNELS), np.float32)), 0)


RATES = [24, 25, 30, 50, 60, Fraction(30000, 1001), Fraction(24000, 1001), 15]


@pytest.mark.parametrize("fps", RATES)
def test_interpolator_is_linear_interpolation_at_exact_times(fps):
    motion = talking(60)
    out = drain(Interpolator(fps), motion)
    inside = [k for k in range(out.shape[1]) if Fraction(k) / Fraction(fps) * 50 < 59]
    times = np.array([float(Fraction(k) / Fraction(fps) * 50) for k in inside])
    for channel in (JAW, BLINK):
        want = np.interp(times, np.arange(60), motion[0, :, channel])
        np.testing.assert_allclose(out[0, inside, channel], want, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 11])
@pytest.mark.parametrize("fps", [24, 60, Fraction(30000, 1001)])
def test_interpolator_gives_the_same_for_any_chunks(fps, chunk):
    motion = talking(50, batch=2)
    stage = Interpolator(fps)
    np.testing.assert_array_equal(drain(stage, motion, chunk), drain(stage, motion))


def test_frame_k_comes_with_the_motion_step_after_it():
    stage = Interpolator(30)
    state = stage.init_state()
    counts = []
    for m in range(6):
        state, out = stage.step(state, talking(6)[:, m : m + 1])
        counts.append(out.shape[1])
    assert counts == [0, 1, 1, 0, 1, 0] or np.cumsum(counts).tolist() == [
        sum(50 * k // 30 + 1 <= m for k in range(9)) for m in range(6)
    ]


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("samples", [1, 319, 320, 321, 16_000, 33_333, 48_123])
def test_frame_count_follows_the_sound(fps, samples):
    steps = -(-samples // MOTION_HOP)
    stage = Interpolator(fps)
    state, out = stage.step(stage.init_state(), talking(steps))
    total = out.shape[1] + stage.flush(state, samples).shape[1]
    exact = Fraction(samples) * Fraction(fps) / SAMPLE_RATE
    assert abs(total - exact) <= 1
    if out.shape[1] <= round(float(exact)):
        assert total == int(exact + Fraction(1, 2))
