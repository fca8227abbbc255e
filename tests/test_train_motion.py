"""Training the motion net, small: clips, labels, augmentation, batches, resume, offsets."""

import json

import numpy as np
import pytest
from conftest import TOY_RECIPE, babble

from visavis.features import SILENCE
from visavis.types import CHANNEL, N_CHANNELS

torch = pytest.importorskip("torch")

from visavis.errors import ConfigError, InputError  # noqa: E402
from visavis.train import augment, cli, data, loop, phones, pseudo  # noqa: E402
from visavis.train.clips import is_held_out, load_clip, load_corpus, save_clip  # noqa: E402
from visavis.train.evaluate import closure_windows, closures, score  # noqa: E402
from visavis.train.recipes import FOLDER, MotionRecipe, read_motion_recipe  # noqa: E402

JAW = CHANNEL["jaw_open"]


def test_clips_come_back_as_they_were(tmp_path):
    clip = babble(1)
    again = load_clip(save_clip(clip, tmp_path))
    for name in ("pcm", "motion", "phones"):
        np.testing.assert_array_equal(getattr(again, name), getattr(clip, name))
    assert (again.name, again.corpus, again.talker) == (clip.name, "toy", clip.talker)


def test_a_tenth_is_held_out_by_name_alone():
    names = [f"{a}{b}{c}{d}" for a in "bpls" for b in "abcde" for c in "abcde" for d in "1234567"]
    held = [n for n in names if is_held_out(n)]
    assert 0.06 < len(held) / len(names) < 0.14
    assert held == [n for n in names if is_held_out(n)]


def test_resampling_goes_through_its_samples_and_never_overshoots():
    from visavis.train.prepare import monotone_resample

    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, 3))
    times = np.arange(30) / 25
    dense = monotone_resample(values, times, np.arange(0, 29 / 25, 0.001))
    np.testing.assert_allclose(monotone_resample(values, times, times), values, atol=1e-6)
    for k in range(28):
        part = dense[(np.arange(len(dense)) * 0.001 >= k / 25)][:39]
        low, high = np.minimum(values[k], values[k + 1]), np.maximum(values[k], values[k + 1])
        assert np.all(part >= low - 1e-5)
        assert np.all(part <= high + 1e-5)


def test_an_offset_between_voice_and_mouth_is_found():
    rng = np.random.default_rng(0)
    guess = np.convolve(rng.standard_normal(200), np.ones(6) / 6, "same")
    for lag in (-5, 0, 4):
        found, r = pseudo.best_lag(guess, np.roll(guess, lag))
        assert found == lag
        assert r > 0.95


@pytest.mark.parametrize("level", [-40.0, -10.0])
def test_wild_sound_keeps_length_and_limits(level):
    pcm = babble(0).pcm / 32768.0
    for seed in range(6):
        out = augment.wild(pcm, np.random.default_rng(seed), chatter=pcm)
        assert out.shape == pcm.shape
        assert np.isfinite(out).all()
        assert np.abs(out).max() <= 1
    assert augment.to_level(pcm, level).std() == pytest.approx(10 ** (level / 20), rel=0.6)


def test_a_crowd_is_several_voices_of_the_length_asked_for():
    voices = [babble(k).pcm / 32768.0 for k in range(3)]
    out = augment.crowd(voices, 5000, np.random.default_rng(0), least=3)
    assert out.shape == (5000,)
    assert 0.01 < out.std() < 1


def test_a_crowd_far_away_leaves_the_mouth_shut(monkeypatch):
    voices = [babble(k).pcm / 32768.0 for k in range(3)]
    monkeypatch.setattr(data, "CROWD_ODDS", 1.0)
    example = data.make_quiet(np.random.default_rng(0), 1.0, voices=voices)
    assert example.features[:, :80].astype(np.float32).max() > -0.5  # something is to be heard
    assert (example.motion == 0).all()
    assert (example.phones == 0).all()


def test_warped_silence_is_silence():
    quiet = np.broadcast_to(SILENCE, (20, 83))
    for seed in range(5):
        out = augment.warp_features(quiet.copy(), np.random.default_rng(seed))
        np.testing.assert_allclose(out, quiet, atol=1e-6)


def test_a_window_asks_for_the_step_the_lookahead_reaches():
    example = data.make_example(babble(2), np.random.default_rng(0), augment=False)
    _, motions, knowns, phones_ = data.window(example, 100, np.random.default_rng(1))
    for behind, weight, motion, known, said in zip(
        (-1, 1, 3, 7), data.LOOKAHEAD_WEIGHT, motions, knowns, phones_, strict=True
    ):
        inside = slice(max(behind, 0), 100 + min(behind, 0))
        source = np.arange(100)[inside] - behind
        np.testing.assert_array_equal(motion[inside, 0], example.motion[source, 0])
        np.testing.assert_array_equal(said[inside], example.phones[source])
        assert (known[inside] == weight).all()
        assert (known > 0).sum() == 100 - abs(behind)


def test_batches_depend_on_their_number_alone(toy_clips):
    recipe = MotionRecipe(**TOY_RECIPE)
    pools = loop.build_pools(recipe, toy_clips, lambda _: None)
    source = data.batches(pools, 4, 40, seed=3)
    third = [next(source) for _ in range(3)][2]
    again = next(data.batches(pools, 4, 40, seed=3, start=2))
    np.testing.assert_array_equal(third.features, again.features)
    np.testing.assert_array_equal(third.motion, again.motion)


def test_training_learns_and_a_stopped_run_ends_in_the_same_weights(toy_clips, tmp_path):
    path = tmp_path / "toy.toml"
    lines = [f"{k} = {json.dumps(v)}" for k, v in TOY_RECIPE.items() if k != "pools"]
    path.write_text(
        "\n".join([*lines, "[pools.toy]", 'corpora = ["toy"]', "share = 0.9\ncopies = 0"])
    )
    cli.train_motion(path, toy_clips, tmp_path / "whole")
    cli.train_motion(path, toy_clips, tmp_path / "parts", stop=10)
    cli.train_motion(path, toy_clips, tmp_path / "parts")
    a, b = (torch.load(tmp_path / r / "run.pt", weights_only=True) for r in ("whole", "parts"))
    for name, value in a["net"].items():
        torch.testing.assert_close(b["net"][name], value, rtol=0, atol=0)
    log = [json.loads(x) for x in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["regression"] < 0.9 * log[0]["regression"]
    model = cli.export_motion_run(tmp_path / "whole", tmp_path / "model", "card")
    assert {p.name for p in model.iterdir()} == {"motion.onnx", "model.json", "card.md"}


def test_the_teacher_learns_shut_lips_from_phones(toy_clips):
    clips = load_corpus(toy_clips, "toy")
    net, talkers = pseudo.fit_phone_motion(clips[:5], iterations=40, batch=4, steps=60)
    assert set(talkers) == {"t0", "t1"}
    guess = pseudo.predict(net, clips[5])
    assert np.corrcoef(guess[:, JAW], clips[5].motion[:, JAW])[0, 1] > 0.8


def test_every_phone_has_an_articulation():
    table = phones.articulation()
    assert table.shape[0] == len(phones.PHONES) == 40
    assert table.any(axis=1).all()
    shut = {p for p, row in zip(phones.PHONES, table, strict=True) if row[0]}
    assert shut == {"P", "B", "M"}


def test_scores_know_a_perfect_and_a_still_mouth():
    motion = babble(0).motion
    assert score(motion, motion)["opening"] == pytest.approx(1)
    assert score(motion * 0, motion)["opening"] == 0
    spans = closure_windows([(0.5, 0.7, "bin"), (0.9, 1.1, "at"), (1.2, 1.4, "m")])
    assert len(spans) == 2
    shut = np.zeros_like(motion)
    assert closures(shut, shut, spans) == (2, 2)
    assert closures(shut + 0.1, shut, spans) == (2, 0)


def test_shipped_recipes_are_read_and_unknown_keys_refused(tmp_path):
    for path in FOLDER.glob("motion*.toml"):
        assert read_motion_recipe(path.stem).pools
    bad = tmp_path / "bad.toml"
    bad.write_text("sise = 'tiny'\n[pools]\n")
    with pytest.raises(ConfigError, match="sise"):
        read_motion_recipe(bad)
    with pytest.raises(ConfigError, match="motion"):
        read_motion_recipe("nonsense")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no videos"):
        cli.prepare(tmp_path, tmp_path)


def test_lips_meet_while_a_bilabial_is_held():
    motion = np.full((20, N_CHANNELS), 0.1, np.float32)
    said = np.full(20, phones.PHONE_INDEX["AA"])
    said[8:11] = phones.PHONE_INDEX["M"]
    out = pseudo.meet_lips(motion, said)
    assert (out[8:11, JAW] == 0).all()
    np.testing.assert_allclose(out[4:8, JAW], [0.1, 0.075, 0.05, 0.025], atol=1e-6)
    assert (np.delete(out, JAW, axis=1) == np.delete(motion, JAW, axis=1)).all()
    assert pseudo.meet_lips(motion, np.full(20, phones.PHONE_INDEX["S"])) is motion
