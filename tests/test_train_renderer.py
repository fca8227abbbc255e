"""Training of the mouth net on one person: it gains, stops, goes on, and fits the shipped graph."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from visavis.backends import Graph  # noqa: E402
from visavis.errors import ModelError  # noqa: E402
from visavis.facemodel import load_face_model  # noqa: E402
from visavis.learn import LEAST  # noqa: E402
from visavis.models.mouth import MouthUNet  # noqa: E402
from visavis.mouth import N_CHANNELS, SIZE, apply_transform, crop_transform  # noqa: E402
from visavis.render import MOUTH_DIR  # noqa: E402
from visavis.train import personal  # noqa: E402


@pytest.fixture(scope="module")
def mouths() -> personal.Mouths:
    """Grey mouths that ought to be red, at several openings."""
    template = load_face_model().template.astype(np.float64) * 120 + 256
    points = []
    for k in range(LEAST):
        face = template.copy()
        lower = face[:, 1] > (face[13, 1] + face[14, 1]) / 2
        face[lower, 1] += 4 + 12 * (k % 5) / 4
        points.append(apply_transform(crop_transform(template), face))
    under = np.full((LEAST, SIZE, SIZE, 3), 120, np.uint8)
    real = under.copy()
    real[..., 0], real[..., 1:] = 200, 60
    return personal.Mouths(under, real, np.stack(points).astype(np.float32))


def small() -> MouthUNet:
    torch.manual_seed(0)
    return MouthUNet(N_CHANNELS, (8, 8, 8), 1)


def trained(mouths, path, steps, net=None):
    """A run whose clock ticks once a step."""
    done = []
    return personal.fine_tune(
        mouths, path, steps, lambda: float(len(done)), net=net or small(),
        progress=lambda *told: done.append(told),
    )  # fmt: skip


def test_training_gains_on_mouths_it_does_not_see(mouths, tmp_path):
    run = trained(mouths, tmp_path / "run.pt", 25)
    assert run.step == 25
    losses = [loss for _, loss in run.history]
    assert losses[-1] < 0.97 * losses[0]
    kept = run.net.state_dict()
    assert all(torch.equal(kept[k], v) for k, v in run.best.items())


def test_a_stopped_run_goes_on_as_if_it_had_not_been(mouths, tmp_path):
    whole = trained(mouths, tmp_path / "whole.pt", 4)
    trained(mouths, tmp_path / "parts.pt", 2)
    parts = trained(mouths, tmp_path / "parts.pt", 4)
    assert whole.step == parts.step == 4
    a, b = whole.net.state_dict(), parts.net.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_time_already_spent_counts(mouths, tmp_path):
    trained(mouths, tmp_path / "run.pt", 2)
    assert trained(mouths, tmp_path / "run.pt", 2).step == 2


def test_a_run_without_gain_is_stale():
    run = personal.Run(small())
    run.history = [(k, 1.0 - 0.1 * k) for k in range(5)]
    assert not run.stale
    run.history += [(5 + k, 0.7) for k in range(personal.PATIENCE)]
    assert run.stale


def test_examples_survive_the_disk(mouths, tmp_path):
    mouths.save(tmp_path / "m.npz")
    again = personal.Mouths.load(tmp_path / "m.npz")
    assert np.array_equal(again.real, mouths.real) and np.array_equal(again.points, mouths.points)


def test_own_weights_take_the_place_of_the_shipped_ones():
    weights = personal.Run(personal.shipped_net()).weights()
    inputs = np.random.default_rng(0).normal(0, 0.5, (1, N_CHANNELS, SIZE, SIZE)).astype(np.float32)

    def painted(**more) -> np.ndarray:
        return Graph(MOUTH_DIR / "mouth.onnx", **more)({"inputs": inputs})["rgba"]

    shipped = painted()
    assert np.abs(painted(constants=weights) - shipped).max() < 2e-3  # biases are halves now
    lift = np.array([1, 1, 1, 0, 0], np.float16)  # colours, not the gaps' gain, not alpha
    brighter = weights | {"head.bias": weights["head.bias"] + lift}
    assert np.allclose(painted(constants=brighter)[:, :3] - shipped[:, :3], 1, atol=0.02)


@pytest.mark.parametrize(
    "wrong", [{"head.bias": np.zeros(7, np.float16)}, {"nothing": np.zeros(5, np.float16)}]
)
def test_weights_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ModelError, match="does not fit"):
        Graph(MOUTH_DIR / "mouth.onnx", constants=wrong)
