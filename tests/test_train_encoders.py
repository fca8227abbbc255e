"""Learned encoders on tiny random weights: windows, look-ahead, training frozen and tuned, licences."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import TOY_RECIPE, babble, speech_like

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="pip install 'visavis[encoders]'")

from visavis.avatar import load_avatar  # noqa: E402
from visavis.encoder import Grid, open_motion  # noqa: E402
from visavis.errors import ConfigError, ModelError  # noqa: E402
from visavis.motion import MotionNet  # noqa: E402
from visavis.pipeline import Pipeline, PipelineConfig  # noqa: E402
from visavis.train import cli, encoders, loop  # noqa: E402
from visavis.train.clips import save_clip  # noqa: E402
from visavis.train.evaluate import Voice  # noqa: E402
from visavis.train.recipes import MotionRecipe  # noqa: E402
from visavis.types import MOTION_HOP, N_CHANNELS  # noqa: E402

GRID = {"encoder_past": 6, "encoder_chunk": 3, "encoder_future": 2}
TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "vocab_size": 8,
}  # fmt: skip
CONFIGS = {"hubert": "HubertConfig", "wav2vec2": "Wav2Vec2Config", "wavlm": "WavLMConfig"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """``weights(name) -> folder`` of random weights as transformers writes them."""
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            config = getattr(transformers, CONFIGS[name])(**TINY)
            made[name] = str(tmp_path_factory.mktemp(name))
            getattr(transformers, encoders.ENCODERS[name])(config).save_pretrained(made[name])
        return made[name]

    return make


def recipe_of(weights, name="hubert", **changes):
    keys = TOY_RECIPE | GRID | {"encoder": name, "encoder_weights": weights(name)} | changes
    return MotionRecipe(**keys)


def drain(stage, sound, chunk):
    state, parts = stage.init_state(len(sound)), []
    for start in range(0, sound.shape[1], chunk):
        state, out = stage.step(state, sound[:, start : start + chunk])
        parts.append(out)
    return np.concatenate([*parts, stage.flush(state)], axis=1)


@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_chunks_of_the_stream_never_change_the_answers(weights, name):
    encoder = encoders.load_encoder(recipe_of(weights, name), accept_licence=True)
    stage = encoders.stage_of(encoder)
    for n in (0, 100, 320, 9000):
        sound = speech_like(1.0)[None, :n]
        whole = drain(stage, sound, max(n, 1))
        assert whole.shape == (1, -(-n // MOTION_HOP), 16)
        for chunk in (160, 999):
            np.testing.assert_allclose(drain(stage, sound, chunk), whole, atol=1e-5)
    # The batched pass of training is the same windows.
    sound = speech_like(0.4)[None, : 19 * MOTION_HOP]
    with torch.no_grad():
        at_once = encoder(torch.from_numpy(sound.reshape(1, 19, MOTION_HOP))).numpy()
    np.testing.assert_allclose(drain(stage, sound, 777), at_once, atol=1e-5)


def test_an_answer_waits_no_longer_than_it_says(weights):
    """Step m depends on samples before its window's end alone, and comes out by its look-ahead."""
    stage = encoders.stage_of(encoders.load_encoder(recipe_of(weights)))
    grid = stage.grid
    assert stage.lookahead == 4
    sound = speech_like(1.0)[None, : 40 * MOTION_HOP]
    for m in (12, 13, 14):
        heard = ((m // grid.chunk + 1) * grid.chunk + grid.future) * MOTION_HOP
        assert heard <= (m + stage.lookahead + 1) * MOTION_HOP
        state, out = stage.step(stage.init_state(), sound[:, :heard])
        assert out.shape[1] > m
        changed = sound.copy()
        changed[:, heard:] = 0.3
        after, before = drain(stage, changed, 640), drain(stage, sound, 640)
        np.testing.assert_array_equal(after[:, : m + 1], before[:, : m + 1])
        assert np.abs(after - before).max() > 1e-3
        state, out = stage.step(stage.init_state(), sound[:, : heard - 1])
        assert out.shape[1] <= m


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    out = tmp_path_factory.mktemp("clips")
    for seed in range(3):
        save_clip(babble(seed, 1.0), out)
    return out


@pytest.mark.parametrize("tuned", [0, 1])
def test_a_net_on_an_encoder_is_trained_exported_and_speaks(weights, clips, tmp_path, tuned):
    path = tmp_path / "toy.toml"
    keys = {k: v for k, v in TOY_RECIPE.items() if k not in ("pools", "quiet")} | GRID
    keys |= {"iterations": 3, "batch": 2, "steps": 20, "quiet": 1, "learning_rate": 0.01}
    text = [f"{k} = {json.dumps(v)}" for k, v in keys.items()]
    path.write_text("\n".join([*text, '[pools.toy]\ncorpora = ["toy"]\nshare = 1\ncopies = 0']))
    changes = {
        "encoder": "hubert", "encoder_weights": weights("hubert"), "encoder_layers": tuned,
    }  # fmt: skip
    run = tmp_path / "run"
    cli.train_motion(path, clips, run, changes=changes)
    net = cli.load_average(run)
    before = encoders.load_encoder(recipe_of(weights)).state_dict()
    if tuned:
        after = net.encoder.state_dict()
        moved = {k for k in before if not torch.equal(before[k], after[k])}
        assert moved
        assert all("encoder.layers.1." in k for k in moved), moved
    folder = cli.export_motion_run(run, tmp_path / "model", "card")
    front = json.loads((folder / "model.json").read_text())["front"]
    assert (front["encoder"], front["lookahead_ms"], len(front["silence"])) == ("hubert", 80, 16)
    with pytest.raises(ModelError, match="taught on features of hubert"):
        MotionNet(folder)
    # The graphs alone, sound in pieces, answer what torch does; evenly, each step by its look-ahead.
    stage, sound = open_motion(folder, 40), speech_like(1.0)[None, :15_900]
    assert stage.lookahead == 4 + 1
    whole = drain(stage, sound, 20_000)
    assert whole.shape == (1, 50, N_CHANNELS)
    for chunk in (160, 777):
        np.testing.assert_array_equal(drain(stage, sound, chunk), whole)
    state, given = stage.init_state(), 0
    for k in range(40):
        state, out = stage.step(state, sound[:, 320 * k : 320 * (k + 1)])
        given += out.shape[1]
        assert given == max(0, k + 1 - stage.lookahead)
    encoder = getattr(net, "encoder", None) or encoders.load_encoder(recipe_of(weights))
    heard = drain(encoders.stage_of(encoder), sound, 1000)
    motion = getattr(net, "motion", net)
    with torch.no_grad():
        wanted = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
        by_torch = motion(torch.from_numpy(heard), wanted, motion.init_state(1))[0][0].numpy()
    spoken = whole[0][: len(by_torch) - 1, stage.net._columns]
    np.testing.assert_allclose(spoken, by_torch[1:], atol=1e-4)
    assert Voice.load(folder, 40).speak(sound).shape == (1, 50, N_CHANNELS)
    two = drain(stage, np.concatenate([sound, sound[:, ::-1]]), 999)
    np.testing.assert_allclose(two[:1], whole, atol=1e-5)


@pytest.fixture(scope="module")
def heard_model(weights, tmp_path_factory):
    """An untrained net on a tiny encoder, exported."""
    run, recipe = tmp_path_factory.mktemp("run"), recipe_of(weights, encoder_layers=1)
    net = loop.fresh_net(recipe, *encoders.open_front(recipe))
    torch.save({"average": net.state_dict()}, run / "run.pt")
    (run / "recipe.json").write_text(recipe.model_dump_json())
    return cli.export_motion_run(run, run / "model", "card")


def test_the_renderer_hears_with_an_encoder_and_without_torch(heard_model, drawn_avatar, wav):
    """A render in a process of its own; whatever is imported there, torch is not."""
    script = (
        "import sys; from visavis import pipeline as p; "
        "c = p.PipelineConfig.of(fps=10, size=256, tier='mesh'); "
        "print(p.render(sys.argv[1], sys.argv[2], sys.argv[3], c, motion_dir=sys.argv[4]).frames); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    sound = wav(speech_like(1.0))
    out = sound.with_suffix(".mp4")
    command = [sys.executable, "-c", script, str(drawn_avatar), str(sound), str(out)]
    done = subprocess.run(
        [*command, str(heard_model)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 10


def test_the_pipeline_keeps_voice_and_idle_together(heard_model, drawn_avatar):
    """Chunks of any size give the same motion, one step per begun 320 samples."""
    pipe = Pipeline(
        load_avatar(drawn_avatar), PipelineConfig.of(size=256, tier="mesh"), motion_dir=heard_model
    )
    assert pipe.idle.lookahead == pipe.motion.lookahead == 4 + 3
    sound, found = speech_like(1.0)[None, :15_000], []
    for chunk in (15_000, 700):
        state, parts = pipe.init_state(), []
        for start in range(0, sound.shape[1], chunk):
            state, steps = pipe.hear(state, sound[:, start : start + chunk])
            parts.append(steps)
        found.append(np.concatenate([*parts, pipe.hear_rest(state)[1]], axis=1))
    assert found[0].shape == (1, 47, N_CHANNELS)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_a_model_without_its_encoders_graph_is_refused(heard_model, tmp_path):
    card = json.loads((heard_model / "model.json").read_text())
    del card["front"]["graph"]
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="export the run again"):
        open_motion(tmp_path)


def test_wavlm_is_refused_until_its_licence_is_accepted(weights):
    with pytest.raises(ConfigError, match="BY-SA"):
        encoders.load_encoder(recipe_of(weights, "wavlm"))
    assert encoders.load_encoder(recipe_of(weights, "wavlm"), accept_licence=True).width == 16


def test_impossible_encoders_are_refused(weights, tmp_path):
    with pytest.raises(ConfigError, match="choose one of log_mel, hubert"):
        encoders.open_front(recipe_of(weights, encoder="whisper"))
    with pytest.raises(ConfigError, match="--encoder-weights"):
        encoders.open_front(recipe_of(weights, encoder_weights=""))
    with pytest.raises(ConfigError, match="future"):
        encoders.open_front(recipe_of(weights, encoder_future=0))
    with pytest.raises(ModelError, match="no hubert weights"):
        encoders.open_front(recipe_of(weights, encoder_weights=str(tmp_path)))
    slow = transformers.HubertModel(
        transformers.HubertConfig(**TINY, conv_stride=(5, 2, 2, 2, 2, 2, 1))
    )
    with pytest.raises(ModelError, match="every 160 samples"):
        encoders.ChunkedEncoder(slow, Grid())
