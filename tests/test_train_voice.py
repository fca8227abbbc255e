"""Training the voice, the rest: transformer, parts and processes, autoencoder, export of the mouth."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TOY_RECIPE

torch = pytest.importorskip("torch")

from visavis.backends import Graph  # noqa: E402
from visavis.errors import ConfigError, InputError  # noqa: E402
from visavis.export import export_motion  # noqa: E402
from visavis.models.architectures import ARCHITECTURES, build_motion_net  # noqa: E402
from visavis.motion import MotionNet  # noqa: E402
from visavis.train import autoencoder, cli, data, loop, losses  # noqa: E402
from visavis.train.recipes import MotionRecipe  # noqa: E402
from visavis.types import CHANNEL, N_FEATURES, SPEECH_CHANNELS  # noqa: E402

SPEECH = [CHANNEL[c] for c in SPEECH_CHANNELS]
ROOT = Path(__file__).parents[1]
WANTED = torch.tensor([[0.0, 0.0, 1.0, 0.0]])  # 80 ms


@pytest.fixture(scope="module")
def pools(toy_clips):
    return loop.build_pools(MotionRecipe(**TOY_RECIPE), toy_clips, lambda _: None)


def recipe_file(path, **changes):
    keys = {k: v for k, v in (TOY_RECIPE | changes).items() if k != "pools"}
    lines = [f"{k} = {json.dumps(v)}" for k, v in keys.items()]
    path.write_text("\n".join([*lines, '[pools.toy]\ncorpora = ["toy"]\nshare = 0.9\ncopies = 0']))
    return path


def loud(architecture, seed=0):
    torch.manual_seed(seed)
    net = build_motion_net(architecture, "tiny").eval()
    with torch.no_grad():  # loud weights, so that a fault shows
        for p in net.parameters():
            p.mul_(1.5)
    return net


def stream(net, features, steps):
    state, parts = net.init_state(len(features)), []
    with torch.no_grad():
        for start in range(0, features.shape[1], steps):
            motion, _, state = net(
                features[:, start : start + steps], WANTED.expand(len(features), 4), state
            )
            parts.append(motion)
    return torch.cat(parts, dim=1)


def curve(pools, **changes):
    """The loss of six updates, by terms."""
    recipe = MotionRecipe(**(TOY_RECIPE | {"dropout": 0.0} | changes))
    run, source = loop.start_run(recipe, pools), data.batches(pools, recipe.batch, 40, recipe.seed)
    return [loop.train_step(run, next(source), recipe) for _ in range(6)], run


def test_no_net_knows_of_training():
    """Models are used by train, never the other way round."""
    for path in (ROOT / "visavis" / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "visavis.train" not in ast.unparse(node), path.name


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_transformer_in_torch_onnx_and_openvino_over_ten_seconds(tmp_path, steps):
    onnxruntime = pytest.importorskip("onnxruntime")
    net = loud("transformer")
    folder = export_motion(net, tmp_path, "card")
    assert not net.training  # the exporter once handed it back with dropout on
    features = np.random.default_rng(0).standard_normal((1, 1000, N_FEATURES)).astype(np.float32)
    pairs = torch.from_numpy(features.reshape(1, 500, -1))
    by_torch = stream(net, pairs, steps).numpy()[0]
    np.testing.assert_allclose(by_torch, stream(net, pairs, 500).numpy()[0], atol=1e-4)
    stage = MotionNet(folder)
    state, parts = stage.init_state(), []
    for start in range(0, 1000, 2 * steps):
        state, out = stage.step(state, features[:, start : start + 2 * steps])
        parts.append(out[0][:, SPEECH])
    np.testing.assert_allclose(np.concatenate(parts), by_torch[3:], atol=1e-4)
    session = onnxruntime.InferenceSession(
        folder / "motion.onnx", providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()][2:]
    assert set(names) == set(net.state_shapes())
    memory = {k: v.numpy() for k, v in net.init_state(1).items()}
    rows = []
    for j in range(500):
        feeds = {"features": pairs[:, j : j + 1].numpy(), "lookahead": WANTED.numpy(), **memory}
        motion, *following = session.run(None, feeds)
        memory = dict(zip(names, following, strict=True))
        rows.append(motion[0, 0])
    np.testing.assert_allclose(np.stack(rows), by_torch, atol=1e-4)


def test_the_transformer_hears_nothing_ahead_and_forgets_beyond_its_window():
    net = loud("transformer")
    c = net.config
    reach = c.layers * c.window + net.stem.context
    generator = torch.Generator().manual_seed(1)
    sound = torch.randn(1, reach + 30, 166, generator=generator)
    changed = sound.clone()
    changed[:, 10] += 3.0
    a, b = stream(net, sound, 16), stream(net, changed, 16)
    assert torch.equal(a[:, :10], b[:, :10])
    assert (a[:, 10] - b[:, 10]).abs().max() > 1e-3
    assert (a[:, 11 : 10 + c.window] - b[:, 11 : 10 + c.window]).abs().max() > 1e-3
    torch.testing.assert_close(a[:, 11 + reach :], b[:, 11 + reach :], atol=1e-5, rtol=0)
    bytes_kept = 4 * sum(int(np.prod(s)) for s in build_motion_net("transformer", "base")
                         .state_shapes().values())  # fmt: skip
    assert bytes_kept < 1 << 20


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_architectures_learn(pools, architecture):
    _, run = curve(pools, architecture=architecture)
    recipe = MotionRecipe(**(TOY_RECIPE | {"architecture": architecture}))
    source = data.batches(pools, 4, 40, 0, start=6)
    first = loop.train_step(run, next(source), recipe)["regression"]
    for _ in range(30):
        last = loop.train_step(run, next(source), recipe)["regression"]
    assert last < first


def test_a_batch_in_parts_gives_the_curve_of_the_whole(pools):
    whole, a = curve(pools)
    parts, b = curve(pools, accumulate=3)
    for x, y in zip(whole, parts, strict=True):
        assert x == pytest.approx(y, rel=1e-4, abs=1e-6)
    for x, y in zip(a.net.parameters(), b.net.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3)
    assert whole[0] != pytest.approx(whole[-1], rel=1e-2)


def test_the_loss_is_what_it_was_before_it_could_be_shared(pools):
    """Against the obvious means, term by term."""
    batch = next(data.batches(pools, 4, 40, 1))
    target, known, phones = (
        torch.from_numpy(x).flatten(0, 1) for x in (batch.motion, batch.known, batch.phones)
    )
    generator = torch.Generator().manual_seed(0)
    motion = target + 0.02 * torch.randn(target.shape, generator=generator)
    logits = torch.randn(*known.shape, 40, generator=generator)
    scale = torch.full((9,), 0.05)
    weights = losses.LossWeights()
    got = losses.motion_loss(motion, logits, target, known, phones, scale, weights)
    heard = phones >= 0
    said = torch.nn.functional.cross_entropy(logits[heard], phones[heard])
    assert float(got["phones"]) == pytest.approx(weights.phones * float(said), rel=1e-5)
    error = ((motion - target) / scale).abs()
    huber = torch.where(error < 1, 0.5 * error**2, error - 0.5)
    share = torch.tensor(losses.CHANNEL_WEIGHT) / sum(losses.CHANNEL_WEIGHT)
    regression = ((huber * share).sum(-1) * known).sum() / known.sum()
    assert float(got["regression"]) == pytest.approx(float(regression), rel=1e-5)
    spreads = []
    for said_, wanted, weight in zip(motion, target, known, strict=True):
        there = weight > 0
        if 2 * there.sum() > len(there):
            a, b = ((x[there].var(0, correction=0) + 1e-6).sqrt() for x in (said_, wanted))
            spreads.append(((a - b).abs() / scale * share).sum() * weight[there][0])
    amplitude = weights.amplitude * float(sum(spreads)) / len(known)
    assert float(got["amplitude"]) == pytest.approx(amplitude, rel=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_hearing_answers_for_every_lookahead(architecture):
    net = loud(architecture)
    sound = torch.randn(2, 12, 166, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        motion, phones, _ = net(sound, None, net.init_state(2))
        for k in range(4):
            wanted = torch.eye(4)[k].expand(2, 4)
            one, said, _ = net(sound, wanted, net.init_state(2))
            torch.testing.assert_close(motion[:, k], one, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(phones[:, k], said, atol=1e-6, rtol=1e-5)
    assert (motion[:, 0] - motion[:, 3]).abs().max() > 1e-3


def test_bfloat16_keeps_weights_whole_and_follows_the_exact_curve(pools):
    exact, _ = curve(pools)
    rough, run = curve(pools, bf16=True)
    assert {p.dtype for p in run.net.parameters()} == {torch.float32}
    assert rough != exact
    for x, y in zip(exact, rough, strict=True):
        assert sum(x.values()) == pytest.approx(sum(y.values()), rel=0.05)


def test_two_processes_give_the_curve_of_one(toy_clips, tmp_path):
    """Gloo under torchrun; the batch of four is shared two and two, and worked off in parts."""
    path = recipe_file(tmp_path / "toy.toml", iterations=8, checkpoint_every=2, dropout=0.0)
    cli.train_motion(path, toy_clips, tmp_path / "one")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "visavis", "train", "motion", str(path), "--clips", str(toy_clips),
        "-o", str(tmp_path / "two"), "--accumulate", "2",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        [json.loads(x) for x in (tmp_path / r / "log.jsonl").read_text().splitlines()]
        for r in ("one", "two")
    )
    assert [x["step"] for x in two] == [2, 4, 6, 8]
    for x, y in zip(one, two, strict=True):
        for name in ("regression", "velocity", "amplitude", "phones"):
            assert y[name] == pytest.approx(x[name], abs=2e-4), (x["step"], name)
    a, b = (torch.load(tmp_path / r / "run.pt", weights_only=True)["net"] for r in ("one", "two"))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, atol=1e-3, rtol=1e-2)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(pools, tmp_path):
    recipe = MotionRecipe(**TOY_RECIPE)
    with pytest.raises(ConfigError, match="3 processes"):
        loop.check_shares(recipe, 3)
    loop.check_shares(recipe, 2)


def test_tensorboard_shows_what_the_log_says(pools, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = MotionRecipe(**(TOY_RECIPE | {"iterations": 4, "checkpoint_every": 2}))
    loop.train(recipe, pools, tmp_path, lambda _: None, board=True)
    lines = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = events.Scalars("motion/regression")
    assert [e.step for e in shown] == [2, 4]
    np.testing.assert_allclose(
        [e.value for e in shown], [x["regression"] for x in lines], rtol=1e-5
    )


def test_one_dial_sets_the_size_and_a_run_keeps_its_own(toy_clips, tmp_path):
    path = recipe_file(tmp_path / "toy.toml", iterations=2, size="base")
    cli.train_motion(path, toy_clips, tmp_path / "run", changes={"size": "tiny", "seed": None})
    assert cli.load_average(tmp_path / "run").config.width == 32
    with pytest.raises(ConfigError, match="begun with size = 'tiny', not 'base'"):
        cli.train_motion(path, toy_clips, tmp_path / "run")
    for changes in ({"size": "huge"}, {"architecture": "lstm"}):
        with pytest.raises(ConfigError, match="choose one of"):
            cli.train_motion(path, toy_clips, tmp_path / "other", changes=changes)


def test_a_run_of_before_the_architectures_is_still_read(toy_clips, tmp_path):
    """Checkpoints whose recipe has none of the later keys."""
    path = recipe_file(tmp_path / "toy.toml", iterations=2)
    cli.train_motion(path, toy_clips, tmp_path / "run")
    kept = tmp_path / "run" / "recipe.json"
    old = json.loads(kept.read_text())
    for key in [k for k in old if k.startswith("encoder")] + ["architecture", "accumulate"]:
        del old[key]
    kept.write_text(json.dumps(old))
    assert cli.load_average(tmp_path / "run").config.width == 32


# --- the autoencoder ---


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    """Faces that open, round and smile on the mean face, as the tracker would keep them."""
    from visavis.facemodel import load_face_model
    from visavis.types import N_CHANNELS

    model, out = load_face_model(), tmp_path_factory.mktemp("tracked")
    (out / "tracks" / "toy").mkdir(parents=True)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        t, points = np.arange(60) / 25, []
        speed = rng.uniform(0.5, 3, 3)
        for now in t:
            motion = np.zeros(N_CHANNELS, np.float32)
            motion[CHANNEL["jaw_open"]] = 0.1 * max(0.0, np.sin(2 * np.pi * speed[0] * now))
            motion[CHANNEL["mouth_width"]] = 0.08 * np.sin(2 * np.pi * speed[1] * now)
            motion[CHANNEL["lip_rounding"]] = 0.3 * np.sin(2 * np.pi * speed[2] * now)
            points.append(100 * model.deform(model.template, motion) + 200)
        noise = 0.05 * rng.standard_normal((60, 478, 3))
        np.savez(out / "tracks" / "toy" / f"f{seed}.npz", points=np.array(points) + noise)
    return out


def toy_autoencoder(**changes):
    keys = {"latent": 8, "iterations": 120, "corpora": {"toy": 1.0}, "smooth": 1e-3}
    return autoencoder.AutoencoderRecipe(**(keys | changes))


def test_the_autoencoder_finds_what_moved(tracks, tmp_path):
    lines = []
    path = autoencoder.train_autoencoder(toy_autoencoder(), tracks, tmp_path, lines.append)
    report = json.loads(path.read_text())
    assert report["explained"] > 0.97
    assert report["jitter"] < 1.0  # the tracker's noise does not come back
    assert report["clips_scored"] >= 1
    strongest = sorted(report["moves"], key=lambda m: -m["moves_mm"])
    assert strongest[0]["moves_mm"] > 2 * strongest[5]["moves_mm"]
    import cv2

    picture = cv2.imread(str(tmp_path / "latents.png"))
    assert picture.std() > 10
    assert picture.shape[1] > 600
    # A run that is done is scored again, not trained again.
    again = autoencoder.train_autoencoder(toy_autoencoder(), tracks, tmp_path, lambda _: None)
    assert json.loads(again.read_text()) == report
    with pytest.raises(ConfigError, match="begun with latent = 8, not 9"):
        autoencoder.train_autoencoder(toy_autoencoder(latent=9), tracks, tmp_path, print)
    out = cli.export_run(tmp_path, tmp_path / "model", "card")
    films = autoencoder.load_films(tracks, toy_autoencoder(), lambda _: None)
    channels, offsets = films[0].channels, films[0].offsets
    (code,) = Graph(out / "encoder.onnx")({"channels": channels, "offsets": offsets}).values()
    (back,) = Graph(out / "decoder.onnx")({"code": code}).values()
    net = autoencoder.load_net(tmp_path)
    with torch.no_grad():
        by_torch = net(torch.from_numpy(channels), torch.from_numpy(offsets)).numpy()
    np.testing.assert_allclose(back, by_torch, atol=1e-5)
    assert len(json.loads((out / "model.json").read_text())["vertices"]) == back.shape[1]


def test_a_dearer_second_difference_makes_a_steadier_code(tracks, tmp_path):
    films = autoencoder.load_films(tracks, toy_autoencoder(), lambda _: None)
    learned, kept = autoencoder.split(films)
    assert {f.name for f in learned}.isdisjoint(f.name for f in kept)
    figures = []
    for price in (0.0, 0.3):
        recipe = toy_autoencoder(smooth=price, iterations=60, learning_rate=3e-3)
        net = autoencoder.fresh_net(recipe, learned)
        place = tmp_path / str(price)
        place.mkdir()
        net = autoencoder.fit(net, learned, recipe, place, lambda _: None)
        figures.append(autoencoder.score(net, kept))
    assert figures[1]["code_jitter"] < 0.9 * figures[0]["code_jitter"]


def test_autoencoder_recipes_and_empty_folders(tmp_path):
    assert autoencoder.read_autoencoder_recipe("autoencoder").latent == 16
    bad = tmp_path / "bad.toml"
    bad.write_text("latent = 64\n[corpora]\ntoy = 1.0\n")
    with pytest.raises(ConfigError, match="latent"):
        autoencoder.read_autoencoder_recipe(bad)
    with pytest.raises(InputError, match="visavis prepare"):
        autoencoder.train_autoencoder(toy_autoencoder(), tmp_path, tmp_path / "run", print)


# --- export of the mouth ---


def test_a_mouth_run_is_exported_and_paints_the_same_everywhere(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from visavis.mouth import N_CHANNELS, SIZE
    from visavis.train import renderer

    recipe = renderer.RendererRecipe(run=tmp_path / "run", net={"widths": (8, 12, 16, 16)})
    learner = renderer.Learner(recipe)
    (tmp_path / "run").mkdir()
    learner.save(tmp_path / "run" / "last.pt")
    with pytest.raises(InputError, match="--recipe"):
        cli.export_run(tmp_path / "run", tmp_path / "model")
    (tmp_path / "run" / "recipe.json").write_text(recipe.model_dump_json())
    out = cli.export_run(tmp_path / "run", tmp_path / "model", "card")
    assert json.loads((out / "model.json").read_text())["kind"] == "mouth"
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(2, N_CHANNELS, SIZE, SIZE, generator=generator)
    with torch.no_grad():
        by_torch = learner.average.eval()(inputs).numpy()
    (by_openvino,) = Graph(out / "mouth.onnx")({"inputs": inputs.numpy()}).values()
    session = onnxruntime.InferenceSession(out / "mouth.onnx", providers=["CPUExecutionProvider"])
    (by_onnx,) = session.run(None, {"inputs": inputs.numpy()})
    np.testing.assert_allclose(by_onnx, by_torch, atol=5e-3)  # weights are stored as float16
    np.testing.assert_allclose(by_openvino, by_onnx, atol=1e-3)
