"""Every provider that is here gives the same numbers; one that is not says so."""

import numpy as np
import pytest

from visavis import backends
from visavis.backends import PROVIDERS, available_providers, open_graph
from visavis.errors import ConfigError, ModelError
from visavis.mouth import MouthNet
from visavis.render import MOUTH_DIR

GRAPH = MOUTH_DIR / "mouth.onnx"


@pytest.fixture(scope="module")
def feeds():
    return {"inputs": np.random.default_rng(5).normal(0, 0.5, (3, 17, 128, 128)).astype(np.float32)}


@pytest.fixture(scope="module")
def wanted(feeds):
    return backends.Graph(GRAPH)(feeds)["rgba"]


def opened(provider, **options):
    if provider not in available_providers():
        pytest.skip(f"provider {provider} is not installed here")
    try:
        return open_graph(GRAPH, provider, **options)
    except ConfigError as error:
        if provider in ("cuda", "tensorrt"):
            pytest.skip(f"no GPU answers: {error}")
        raise


@pytest.mark.parametrize("provider", PROVIDERS)
def test_providers_agree_at_any_batch(provider, feeds, wanted):
    graph = opened(provider)
    whole = graph(feeds)["rgba"]
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, wanted, atol=2e-4)
    one = graph({"inputs": feeds["inputs"][1:2]})["rgba"]
    np.testing.assert_allclose(one, wanted[1:2], atol=2e-4)


@pytest.mark.parametrize("provider", ["onnxruntime", "cuda", "tensorrt", "torch"])
def test_halves_stay_near(provider, feeds, wanted):
    got = opened(provider, precision="f16")({"inputs": feeds["inputs"][:1]})["rgba"]
    assert got.dtype == np.float32
    off = np.abs(got - wanted[:1])
    assert 0 < off.mean() < 4e-3, "the flag must act, and act little"


@pytest.mark.parametrize("provider", ["onnxruntime", "torch"])
def test_a_persons_own_weights(provider, feeds):
    import onnx
    from onnx import numpy_helper

    held = {t.name: t for t in onnx.load(GRAPH).graph.initializer}
    name = "head.weight"
    own = {name: -numpy_helper.to_array(held[f"{name}.half"]).astype(np.float32)}
    one = {"inputs": feeds["inputs"][:1]}
    other = backends.Graph(GRAPH, constants=own)(one)["rgba"]
    np.testing.assert_allclose(opened(provider, constants=own)(one)["rgba"], other, atol=2e-4)
    with pytest.raises(ModelError, match="does not fit"):
        opened(provider, constants={name: np.zeros((2, 2), np.float32)})


def test_a_missing_provider_is_a_clear_error(monkeypatch):
    with pytest.raises(ConfigError, match=r"unknown.*openvino"):
        open_graph(GRAPH, "vulkan")
    monkeypatch.setattr(backends, "_execution_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match="CUDAExecutionProvider"):
        open_graph(GRAPH, "cuda")
    assert isinstance(open_graph(GRAPH, "auto"), backends.Graph)


def test_torch_refuses_what_it_does_not_know():
    opened("torch")
    with pytest.raises(ModelError, match="use openvino"):
        open_graph(MOUTH_DIR.parent / "motion" / "motion.onnx", "torch")


def test_sessions_are_painted_in_one_call(monkeypatch):
    pytest.importorskip("onnxruntime")
    from test_mouth import crop_points, face

    points = np.stack([crop_points(face(gap)) for gap in (20.0, 0.0, 30.0)])
    crops = np.random.default_rng(2).integers(0, 256, (3, 128, 128, 3)).astype(np.uint8)
    single = MouthNet(MOUTH_DIR, "f32")
    stacked = MouthNet(MOUTH_DIR, "f32", provider="onnxruntime")
    stacked._graph.batched, batches, run = True, [], stacked._graph.__call__
    stacked._graph = type("Counting", (), {
        "batched": True,
        "__call__": lambda self, feeds: batches.append(len(feeds["inputs"])) or run(feeds),
    })()  # fmt: skip
    state, rgb, alpha = stacked.step(stacked.init_state(3), crops, points)
    assert batches == [2], "the shut mouth needs no net, the others go together"
    wanted, plain, cover = single.step(single.init_state(3), crops, points)
    assert np.abs(rgb.astype(int) - plain).max() <= 1
    np.testing.assert_allclose(alpha, cover, atol=1e-4)
    np.testing.assert_allclose(state["mouth/rgb"], wanted["mouth/rgb"], atol=0.1)
