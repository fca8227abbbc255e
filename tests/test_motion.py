"""The motion stage on a tiny random net: streaming contracts at every look-ahead, parity."""

import json

import numpy as np
import pytest

from visavis.errors import ConfigError, ModelError
from visavis.features import FeatureExtractor
from visavis.motion import DEFAULT_MODEL, LOOKAHEAD_STEPS, MotionNet
from visavis.types import (
    CHANNEL,
    MOTION_HOP,
    N_CHANNELS,
    N_FEATURES,
    RANGE_HIGH,
    RANGE_LOW,
    SPEECH_CHANNELS,
)

torch = pytest.importorskip("torch")
SPEECH = [CHANNEL[c] for c in SPEECH_CHANNELS]


def tiny(seed=0):
    from visavis.models.motion import SIZES
    from visavis.models.motion import MotionNet as Net

    torch.manual_seed(seed)
    net = Net(SIZES["tiny"]).eval()
    with torch.no_grad():  # loud weights, so that a fault shows
        for p in net.parameters():
            p.mul_(2.0)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from visavis.export import export_motion

    return export_motion(tiny(), tmp_path_factory.mktemp("model"), "card")


def noise(n, batch=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, n, N_FEATURES)).astype(np.float32)


def drain(stage, features, chunk=None):
    state, parts = stage.init_state(len(features)), []
    chunk = chunk or max(features.shape[1], 1)
    for start in range(0, features.shape[1], chunk):
        state, out = stage.step(state, features[:, start : start + chunk])
        parts.append(out)
    return np.concatenate([*parts, stage.flush(state)], axis=1)


@pytest.mark.parametrize("lookahead_ms", LOOKAHEAD_STEPS)
def test_chunk_size_never_changes_the_output(folder, lookahead_ms):
    stage = MotionNet(folder, lookahead_ms)
    for n in (1, 2, 3, 41, 60):
        features = noise(n, batch=2)
        whole = drain(stage, features)
        assert whole.shape == (2, -(-n // 2), N_CHANNELS)
        for chunk in (1, 2, 7):
            np.testing.assert_allclose(drain(stage, features, chunk), whole, atol=1e-5)


@pytest.mark.parametrize("lookahead_ms", LOOKAHEAD_STEPS)
def test_no_step_hears_beyond_its_lookahead(folder, lookahead_ms):
    """Motion step m depends on samples before 320 m + 16 lookahead_ms, and on those right there."""
    stage = MotionNet(folder, lookahead_ms)
    pcm = np.random.default_rng(0).standard_normal((1, 16_000)).astype(np.float32) * 0.1
    cut = 30 * MOTION_HOP
    changed = pcm.copy()
    changed[:, cut:] *= -0.3

    def perform(sound):
        extractor = FeatureExtractor()
        state, features = extractor.step(extractor.init_state(), sound)
        return drain(stage, np.concatenate([features, extractor.flush(state)], axis=1))

    a, b = perform(pcm), perform(changed)
    assert a.shape[1] == 50
    first = 30 - lookahead_ms // 20 + 1  # the first that may hear the change
    np.testing.assert_array_equal(a[:, :first], b[:, :first])
    assert np.abs(a[:, first] - b[:, first]).max() > 1e-6


@pytest.mark.parametrize("lookahead_ms", LOOKAHEAD_STEPS)
def test_output_lags_input_by_the_declared_steps(folder, lookahead_ms):
    stage = MotionNet(folder, lookahead_ms)
    state, out = stage.step(stage.init_state(), noise(40))
    assert out.shape[1] == 20 - stage.lookahead
    assert stage.flush(state).shape[1] == stage.lookahead
    assert stage.lookahead == max(lookahead_ms // 20 - 1, 0)


def test_only_speech_channels_move(folder):
    out = drain(MotionNet(folder), noise(60))
    others = [i for i in range(N_CHANNELS) if i not in SPEECH]
    assert not out[..., others].any()
    assert out[..., SPEECH].std(axis=1).min() > 0


def test_step_leaves_the_state_it_was_given(folder):
    stage = MotionNet(folder, 0)
    state, _ = stage.step(stage.init_state(), noise(11))
    before = {k: v.copy() for k, v in state.items()}
    stage.step(state, noise(11))
    for name, value in before.items():
        np.testing.assert_array_equal(state[name], value)
    assert all(k.startswith("motion/") for k in state)


def test_batch_rows_do_not_mix(folder):
    stage = MotionNet(folder)
    features = noise(30, batch=3)
    np.testing.assert_allclose(drain(stage, features)[1:2], drain(stage, features[1:2]), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_torch_onnx_and_openvino_agree_over_ten_seconds(folder, steps):
    onnxruntime = pytest.importorskip("onnxruntime")
    net, stage = tiny(), MotionNet(folder)
    features = noise(1000)
    wanted = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    state, parts = net.init_state(1), []
    pairs = torch.from_numpy(features.reshape(1, 500, -1))
    with torch.no_grad():
        for start in range(0, 500, steps):
            motion, _, state = net(pairs[:, start : start + steps], wanted, state)
            parts.append(motion)
    by_torch = torch.cat(parts, dim=1).numpy()[0]
    by_openvino = drain(stage, features, 2 * steps)[0][:, SPEECH]
    np.testing.assert_allclose(by_openvino[:497], by_torch[3:], atol=1e-4)
    session = onnxruntime.InferenceSession(
        folder / "motion.onnx", providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()][2:]
    memory = {k: v.numpy() for k, v in net.init_state(1).items()}
    rows = []
    for j in range(200):
        feeds = {"features": pairs[:, j : j + 1].numpy(), "lookahead": wanted.numpy(), **memory}
        motion, *following = session.run(None, feeds)
        memory = dict(zip(names, following, strict=True))
        rows.append(motion[0, 0])
    np.testing.assert_allclose(np.stack(rows), by_torch[:200], atol=1e-4)


def test_impossible_lookahead_and_broken_folders_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="choose one of 0"):
        MotionNet(folder, 60)
    with pytest.raises(ModelError, match="is missing"):
        MotionNet(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        MotionNet(tmp_path)
    card = json.loads((folder / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(card | {"version": 9}))
    with pytest.raises(ModelError, match="version 1"):
        MotionNet(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(card | {"channels": ["ear_wiggle"]}))
    with pytest.raises(ModelError, match="channels"):
        MotionNet(tmp_path)


@pytest.mark.skipif(not (DEFAULT_MODEL / "model.json").exists(), reason="no weights shipped yet")
def test_the_shipped_net_rests_in_silence():
    extractor, stage = FeatureExtractor(), MotionNet()
    _, features = extractor.step(extractor.init_state(), np.zeros((1, 64_000), np.float32))
    out = drain(stage, features)[0, 25:]
    assert out[:, CHANNEL["jaw_open"]].max() < 0.02
    assert np.all(out.std(axis=0) < 0.01 * (RANGE_HIGH - RANGE_LOW))
