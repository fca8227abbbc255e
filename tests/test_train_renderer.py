"""Training of the renderer nets: one person's mouth, the head of tier full, distillation, pruning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from visavis.backends import Graph  # noqa: E402
from visavis.errors import ConfigError, ModelError  # noqa: E402
from visavis.facemodel import load_face_model  # noqa: E402
from visavis.learn import LEAST  # noqa: E402
from visavis.models.mouth import MouthUNet  # noqa: E402
from visavis.mouth import N_CHANNELS, SIZE, apply_transform, crop_transform  # noqa: E402
from visavis.render import MOUTH_DIR  # noqa: E402
from visavis.train import personal  # noqa: E402
from visavis.train.renderer import RendererRecipe, begin, load_recipe  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


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


# --- tier full ----------------------------------------------------------------------------------

HEAD_NET = {"widths": (4, 6, 8, 8), "deep": 1, "memory": 4, "code": 6}


@pytest.fixture(scope="module")
def heads(drawn_avatar):
    """A drawn head that ought to be redder than the mesh draws it, and a lone still."""
    from visavis.avatar import load_avatar
    from visavis.train.full_data import Scene, Watcher
    from visavis.types import CHANNEL
    from visavis.types import N_CHANNELS as N_MOTION

    avatar = load_avatar(drawn_avatar)
    motion = np.zeros((6, N_MOTION), np.float32)
    motion[:, CHANNEL["jaw_open"]] = np.linspace(0, 0.2, 6)
    red = avatar.image.copy()
    red[..., 0] = np.minimum(red[..., 0] + 40.0, 255)
    watcher = Watcher()
    watcher.watch(Scene(avatar, motion, [red] * 5 + [None]), "film/a", np.arange(6))
    watcher.watch(Scene(avatar, motion[:1], [red]), "still/b", np.arange(1))
    return watcher.data()


def full_recipe(run, **changes):
    from visavis.train.full import FullRecipe

    given = {
        "run": run, "steps": 3, "batch": 2, "sizes": ((0, 64), (2, 128)), "warm_up": 1, "bf16": False,
        "save_every": 1, "evaluate_every": 2, "net": HEAD_NET, "mix": {"film": 0.7, "still": 0.3},
        "loss": {"perceptual": 0.0, "mouth": 0.0, "identity": 0.0},
    }  # fmt: skip
    return FullRecipe(**given | changes)


def test_head_data_keep_runs_apart(heads, tmp_path):
    from visavis.train.full_data import HeadData, HeadSampler, runs_of

    assert heads.follows.tolist() == [False, True, True, True, True, False]
    heads.save(tmp_path / "h.npz")
    assert np.array_equal(HeadData.load(tmp_path / "h.npz").reals, heads.reals)
    run = HeadSampler(heads, {"film": 1.0}, 3).run(4)
    assert np.allclose(run["motion"][:, 0], heads.motion[2:5, 0])
    assert np.abs(run["flow"][0]).max() == 0 and run["steady"][1:].mean() > 0.5
    with pytest.raises(ConfigError, match="film, still"):
        HeadSampler(heads, {"grid": 1.0})
    assert runs_of(100, 2, 3).tolist() == [25, 26, 27, 73, 74, 75]
    assert runs_of(2, 1, 3).tolist() == [0, 1]


def test_the_head_net_learns_what_the_mesh_lacks(heads, tmp_path):
    from visavis.train import full

    recipe = full_recipe(
        tmp_path / "run", steps=24, learning_rate=1e-2, sizes=((0, 64),), warm_up=99, save_every=99
    )
    full.fit_full(recipe, heads)
    learner = full.begin(recipe, full.head_nets)
    figures, grid = full.evaluate(learner.average, heads, 2, 64)
    assert figures["psnr"] > figures["psnr_under"] + 1, figures
    assert grid.shape == (128, 192, 3)


def test_a_stopped_head_run_goes_on_as_if_it_had_not_been(heads, tmp_path):
    from visavis.train import full

    whole, parts = full_recipe(tmp_path / "whole"), full_recipe(tmp_path / "parts")
    full.fit_full(whole, heads, heads, board=True)
    full.fit_full(parts, heads, stop=2)
    full.fit_full(parts, heads)
    a, b = (torch.load(r.run / "last.pt", weights_only=True) for r in (whole, parts))
    for part in ("net", "average", "critic"):
        for name, value in a[part].items():
            torch.testing.assert_close(b[part][name], value, rtol=0, atol=0)
    assert list((tmp_path / "whole" / "tensorboard").iterdir()), "scalars and pictures"


def test_two_processes_train_the_head_net_like_one(heads, tmp_path):
    """Gloo under torchrun, through the command line; a batch of two, one row each."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        heads.save(tmp_path / name / "data.npz")
        recipe = full_recipe(tmp_path / name, steps=3, sizes=((0, 64),))
        told = json.loads(recipe.model_dump_json(exclude={"data", "models", "loss"}))
        text = "\n".join(
            f"{k} = {json.dumps(v)}" for k, v in told.items() if not isinstance(v, dict)
        )
        tables = told | {"loss": {"perceptual": 0.0, "mouth": 0.0, "identity": 0.0}}
        for key, value in tables.items():
            if isinstance(value, dict):
                text += f"\n[{key}]\n" + "\n".join(
                    f"{k} = {json.dumps(v)}" for k, v in value.items()
                )
        (tmp_path / f"{name}.toml").write_text(text)
    from visavis.train.renderer import train_renderer

    train_renderer(tmp_path / "one.toml", "full")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "visavis", "train", "renderer", str(tmp_path / "two.toml"), "--tier", "full",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / n / "log.jsonl").read_text()) for n in ("one", "two"))
    assert one["critic_own"] > 0
    for key, value in one.items():
        assert two[key] == pytest.approx(value, abs=3e-4), key
    a, b = (torch.load(tmp_path / n / "last.pt", weights_only=True)["net"] for n in ("one", "two"))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, atol=1e-3, rtol=1e-2)


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    from contextlib import nullcontext

    from visavis.train import full
    from visavis.train.parallel import Ranks

    monkeypatch.setattr(full, "joined", lambda _: nullcontext(Ranks(0, 4)))
    with pytest.raises(ConfigError, match="4 processes"):
        full.train_full("full", distributed=True)


def test_an_identity_distance_in_torch_is_the_graphs_own():
    from visavis.train.renderer_losses import Identity

    models = ROOT.parent / "shared" / "models"
    if not (models / "face-reidentification-retail-0095.xml").is_file():
        pytest.skip("needs the identity graph")
    graph = Graph(models / "face-reidentification-retail-0095.xml")
    faces = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bgr = ((faces.flip(1) + 1) * 127.5).numpy()
    (wanted,) = graph({next(iter(graph.inputs)): bgr}).values()
    wanted = wanted.reshape(-1) / np.linalg.norm(wanted)
    judge = Identity(models)
    assert np.abs(judge.embed(faces).numpy()[0] - wanted).max() < 1e-4
    moved = faces.clone().requires_grad_(True)
    judge(moved, faces.flip(3)).sum().backward()
    assert float(moved.grad.abs().max()) > 0


# --- distillation and compression ---------------------------------------------------------------


def test_a_run_starts_from_the_average_of_another(tmp_path):
    changes = {"models": tmp_path, "net": {"widths": (8, 8, 12, 12)}}
    first = begin(RendererRecipe(run=tmp_path / "first", seed=1, **changes))
    with torch.no_grad():
        first.average.head.bias += 0.5
    first.step = 7
    first.save(tmp_path / "first" / "last.pt")
    again = RendererRecipe(run=tmp_path / "again", seed=2, start=tmp_path / "first", **changes)
    second = begin(again)
    assert second.step == 0
    for net in (second.net, second.average):
        assert torch.equal(net.head.bias, first.average.head.bias)
    second.step = 3
    second.save(tmp_path / "again" / "last.pt")
    assert begin(again).step == 3, "a run that has begun goes on where it was"
    for wrong in (
        {"start": tmp_path / "none"},
        {"start": tmp_path / "first", "net": {"widths": (9, 9, 9, 9)}},
    ):
        recipe = RendererRecipe(**({"run": tmp_path / "other", "models": tmp_path} | wrong))
        with pytest.raises(ConfigError, match="holds no net of this recipe"):
            begin(recipe)


def test_shipped_mouth_recipes_name_what_they_need():
    base, last = (load_recipe(name, tier="patch") for name in ("patch_base", "patch"))
    assert last.start == base.run
    assert base.net == last.net
    assert base.start is None


def test_pruning_keeps_all_or_the_strong_channels():
    from visavis.train.compress import kept_share, pruned

    torch.manual_seed(3)
    net = MouthUNet(N_CHANNELS, (8, 10, 12, 14), 2)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.08)
    x = torch.randn(1, N_CHANNELS, SIZE, SIZE)
    with torch.no_grad():
        wanted = net(x)
        torch.testing.assert_close(pruned(net, (8, 10, 12, 14))(x), wanted, atol=1e-4, rtol=1e-4)
        for layer in (net.encode[1].only, net.down[0], net.decode[1].second, net.merge[1]):
            layer.weight[:3], layer.bias[:3] = 0, 0  # three channels that say nothing
        for layer in (net.encode[1].only, net.down[1], net.decode[1].first):
            layer.weight[:, :3] = 0
        net.merge[1].weight[:, :3] = 0
        net.merge[0].weight[:, 8:11] = 0
        net.decode[1].first.weight[:3], net.decode[1].first.bias[:3] = 0, 0
        net.decode[1].second.weight[:, :3] = 0
        small = pruned(net, (8, 7, 12, 14))
        torch.testing.assert_close(small(x), net(x), atol=1e-4, rtol=1e-4)
    assert 0.85 < kept_share(net, small) < 0.95
    with pytest.raises(ModelError, match="smaller"):
        pruned(net, (9, 10, 12, 14))


def mouth_folder(recipe, folder) -> Path:
    """A model folder of a small net, no two of whose weights are equal (the exporter joins those)."""
    from visavis.train.renderer import write_mouth

    net = small()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn(weight.shape) * 0.01)
    return write_mouth(net, recipe, 0, folder, "# card\n")


def lessons(mouths):
    from visavis.train.distill import Lessons

    seen = np.arange(len(mouths)) % 4 > 0
    return Lessons(mouths.under, mouths.real, mouths.real, mouths.points, seen)


def test_distilling_ends_in_nets_that_pass_the_gate_or_are_refused(mouths, tmp_path):
    pytest.importorskip("onnxruntime")
    from visavis.mouth import MouthNet
    from visavis.train import distill

    recipe = distill.DistillRecipe(run=tmp_path / "run", steps=3, batch=3, bf16=False, most_db=60.0)
    start = mouth_folder(recipe, tmp_path / "start")
    recipe = recipe.model_copy(
        update={"student": str(start), "widths": (8, 6, 8), "teacher": "some", "save_every": 1}
    )
    distill.fit_distill(recipe, lessons(mouths), stop=2)
    learner = distill.fit_distill(recipe, lessons(mouths))
    straight = distill.fit_distill(
        recipe.model_copy(update={"run": tmp_path / "other"}), lessons(mouths)
    )
    for a, b in zip(learner.net.parameters(), straight.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    report = distill.compress(recipe, learner, lessons(mouths))
    assert report["int8"]["bytes"] > 0 and abs(report["int8"]["lost_db"]) < 3
    assert MouthNet(tmp_path / "run" / "model").card["net"]["widths"] == [8, 6, 8]
    integers = (tmp_path / "run" / "model_int8" / "mouth.onnx").read_bytes()
    assert b"QuantizeLinear" in integers
    strict = recipe.model_copy(update={"most_db": -60.0})
    with pytest.raises(ModelError, match="loses"):
        distill.compress(strict, learner, lessons(mouths))


def test_a_teacher_is_followed(mouths, tmp_path):
    from dataclasses import replace

    from visavis.train import distill

    taught = replace(lessons(mouths), taught=np.full_like(mouths.real, 30))
    recipe = distill.DistillRecipe(run=tmp_path / "run", steps=25, batch=3, learning_rate=2e-2)
    start = mouth_folder(recipe, tmp_path / "start")
    recipe = recipe.model_copy(update={"student": str(start), "teacher": "some"})
    recipe = recipe.model_copy(
        update={"loss": distill.DistillLossConfig(pixel=0, gradient=0, energy=0)}
    )
    batch = next(distill._batches(recipe, taught, 0, 1))

    def far(net) -> float:
        with torch.no_grad():
            shown = distill.compose(net(batch["inputs"]), batch)
        return float(((shown - batch["taught"]).abs() * batch["limit"]).mean())

    before = far(distill.student_nets(recipe)[0])
    learner = distill.fit_distill(recipe, taught)
    assert far(learner.net) < 0.8 * before
