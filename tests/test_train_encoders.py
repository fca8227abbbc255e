"""Learned encoders on tiny random weights: windows, look-ahead, training frozen and tuned, licences."""

import json

import numpy as np
import pytest
from conftest import speech_like
from test_train_motion import RECIPE, babble

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="pip install 'visavis[encoders]'")

from visavis.errors import ConfigError, ModelError  # noqa: E402
from visavis.motion import MotionNet  # noqa: E402
from visavis.train import cli, encoders  # noqa: E402
from visavis.train.clips import save_clip  # noqa: E402
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
    keys = RECIPE | GRID | {"encoder": name, "encoder_weights": weights(name)} | changes
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
    stage = encoders.EncoderStage(encoder)
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
    stage = encoders.EncoderStage(encoders.load_encoder(recipe_of(weights)))
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
    keys = {k: v for k, v in RECIPE.items() if k not in ("pools", "quiet")} | GRID
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
    voice = encoders.load_voice(folder, lookahead_ms=40)
    sound = speech_like(1.0)[None]
    spoken = voice.speak(sound)
    assert spoken.shape == (1, 50, N_CHANNELS)
    # Before smoothing it is what torch answers.
    heard = drain(voice.features, sound, 1000)
    state, out = voice.motion.step(voice.motion.init_state(), heard)
    motion = getattr(net, "motion", net)
    with torch.no_grad():
        wanted = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
        by_torch = motion(torch.from_numpy(heard), wanted, motion.init_state(1))[0][0].numpy()
    np.testing.assert_allclose(out[0][:, voice.motion._columns], by_torch[1:], atol=1e-4)


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
        encoders.ChunkedEncoder(slow, encoders.Grid())
