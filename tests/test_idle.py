"""Idle behaviour: streaming contracts, seeds, rates and limits; no wall time."""

import numpy as np
import pytest

from visavis.errors import ModelError
from visavis.features import SILENCE
from visavis.idle import Idle, IdleConfig, uniform
from visavis.types import CHANNEL, N_FEATURES, N_MELS, RANGE_HIGH, RANGE_LOW, SPEECH_CHANNELS

HEAD = [CHANNEL[c] for c in ("head_pitch", "head_yaw", "head_roll")]
BLINK = CHANNEL["eye_blink_left"]


def quiet(seconds, batch=1):
    return np.broadcast_to(SILENCE, (batch, int(seconds * 100), N_FEATURES)).copy()


def speech(seconds, batch=1, seed=0):
    """Features whose energy and pitch move like syllables."""
    out = quiet(seconds, batch)
    rng = np.random.default_rng(seed)
    n = out.shape[1]
    syllables = np.repeat(rng.random(n // 20 + 1) > 0.4, 20)[:n]
    out[:, :, N_MELS] = np.where(syllables, 0.9, -0.1)
    pitch = np.repeat(rng.normal(0.4, 0.25, n // 20 + 1), 20)[:n]
    out[:, :, N_MELS + 1] = np.where(syllables, pitch, 0)
    return out


def drain(stage, features, chunk=None, seed=0):
    state, parts = stage.init_state(len(features), seed), []
    chunk = chunk or max(features.shape[1], 1)
    for start in range(0, features.shape[1], chunk):
        state, out = stage.step(state, features[:, start : start + chunk])
        parts.append(out)
    return np.concatenate([*parts, stage.flush(state)], axis=1)


@pytest.mark.parametrize("chunk", [1, 3, 50])
@pytest.mark.parametrize("lookahead", [0, 3, 7])
def test_chunk_size_never_changes_the_output(chunk, lookahead):
    stage = Idle(IdleConfig(lookahead=lookahead))
    features = speech(2.03, batch=2)
    whole = drain(stage, features)
    assert whole.shape[1] == -(-features.shape[1] // 2)
    np.testing.assert_array_equal(drain(stage, features, chunk), whole)


def test_later_sound_changes_nothing_before_it_less_the_lookahead():
    stage = Idle(IdleConfig(lookahead=3))
    features = speech(3)
    changed = features.copy()
    changed[:, 200:, N_MELS:] = 1.5
    a, b = drain(stage, features), drain(stage, changed)
    np.testing.assert_array_equal(a[:, :97], b[:, :97])
    assert np.abs(a[:, 97:] - b[:, 97:]).max() > 0.01


def test_step_leaves_the_state_it_was_given():
    stage = Idle(IdleConfig())
    state, _ = stage.step(stage.init_state(), speech(1))
    before = {k: v.copy() for k, v in state.items()}
    stage.step(state, speech(1))
    for name, value in before.items():
        np.testing.assert_array_equal(state[name], value)


def test_same_seed_same_motion_and_other_seed_other_motion():
    stage = Idle()
    features = speech(10)
    np.testing.assert_array_equal(drain(stage, features, seed=5), drain(stage, features, seed=5))
    a, b = drain(stage, features, seed=5), drain(stage, features, seed=6)
    assert np.abs(a - b)[..., HEAD].max() > 0.5


def test_a_batch_row_moves_as_if_it_were_alone():
    stage = Idle()
    features = speech(4, batch=3)
    together = drain(stage, features, seed=np.array([3, 1, 4]))
    alone = drain(stage, features[:1], seed=np.array([1]))
    np.testing.assert_array_equal(together[1], alone[0])
    rows = drain(stage, features, seed=0)
    assert np.abs(rows[0] - rows[1]).max() > 0.1


def test_speech_channels_are_left_alone():
    out = drain(Idle(), speech(3))
    assert not out[..., [CHANNEL[c] for c in SPEECH_CHANNELS]].any()


@pytest.mark.parametrize("features", [quiet, speech])
def test_blinks_come_4_to_12_times_in_20_seconds(features):
    out = drain(Idle(), features(50, batch=8))
    shut = out[..., BLINK] > 0.5
    starts = np.diff(shut.astype(int), axis=1) == 1
    for first in range(0, 1500, 500):
        counts = starts[:, first : first + 1000].sum(axis=1)
        assert counts.min() >= 4
        assert counts.max() <= 12


def test_lids_close_faster_than_they_open():
    out = drain(Idle(), quiet(20, batch=8))
    change = np.diff(out[..., BLINK], axis=1)
    assert (change > 0.02).sum() < 0.75 * (change < -0.02).sum()
    assert out[..., BLINK].max() > 0.9
    assert out[..., BLINK].min() > -0.01


def test_the_head_is_never_frozen_for_two_seconds():
    out = drain(Idle(), quiet(20, batch=8))[..., HEAD]
    windows = np.lib.stride_tricks.sliding_window_view(out, 100, axis=1)
    assert np.ptp(windows, axis=-1).max(axis=-1).min() > 0.15


def test_the_head_moves_smoothly():
    out = drain(Idle(), speech(20, batch=8))[..., HEAD]
    assert np.abs(np.diff(out, axis=1)).max() < 1.5  # degrees in 20 ms
    assert np.abs(np.diff(out, 2, axis=1)).mean() < 0.02


def test_speech_widens_the_movement_and_nods_on_stress():
    loud = drain(Idle(), speech(20, batch=16))
    calm = drain(Idle(), quiet(20, batch=16))
    assert loud[..., HEAD[0]].std() > 1.15 * calm[..., HEAD[0]].std()
    assert loud[..., CHANNEL["brow_raise"]].max() > 2 * calm[..., CHANNEL["brow_raise"]].max()


@pytest.mark.parametrize("counter", [0, 86_400 * 50])
def test_nothing_leaves_its_range_also_after_a_day(counter):
    stage = Idle(IdleConfig(head_sd=(6.0, 9.0, 8.0), gaze_reach=(12.0, 9.0)))
    state = stage.init_state(32)
    state["idle/counter"] = np.full(32, counter)
    _, out = stage.step(state, speech(20, batch=32))
    assert np.all(out >= RANGE_LOW)
    assert np.all(out <= RANGE_HIGH)


def test_random_numbers_are_even_and_lanes_do_not_resemble_each_other():
    draws = np.stack([uniform(np.array([7]), np.array([k]))[0] for k in range(4000)])
    assert draws.min() > 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.025)
    np.testing.assert_allclose(draws.var(axis=0), 1 / 12, atol=0.006)
    correlation = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert np.abs(correlation).max() < 0.08
    assert np.abs(np.corrcoef(draws[1:, 0], draws[:-1, 0])[0, 1]) < 0.05


def test_an_unknown_style_is_refused(tmp_path):
    path = tmp_path / "idle.json"
    path.write_text('{"style": {"wink": 1}}')
    with pytest.raises(ModelError, match="wink"):
        IdleConfig.load(path)
