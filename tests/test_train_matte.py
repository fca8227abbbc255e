"""Training of the matting net: labels without a net, rooms, samples, exact resume, export."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from visavis.backends import Graph  # noqa: E402
from visavis.errors import ConfigError  # noqa: E402
from visavis.facemodel import load_face_model  # noqa: E402
from visavis.matte import N_INPUTS, NET_SIZE, MatteNet  # noqa: E402
from visavis.train import matte, matte_cuts, matte_data, matte_scenes  # noqa: E402
from visavis.train.matte_data import CANVAS, FILMS, STILLS, MatteData, is_held_out  # noqa: E402


def face_points(size: int) -> np.ndarray:
    """The mean face in the middle of a square."""
    template = load_face_model().template
    flat = template[:, :2] - template[[10, 152], :2].mean(0)
    flat = flat * (0.33 * size / np.linalg.norm(flat[152] - flat[10]))
    return (flat + size / 2).astype(np.float32)


def body(size: int) -> np.ndarray:
    """A head on shoulders, 0 or 1 uint8."""
    mask = np.zeros((size, size), np.uint8)
    cv2.ellipse(mask, (size // 2, size // 2), (int(0.2 * size), int(0.27 * size)), 0, 0, 360, 1, -1)
    mask[int(0.72 * size) :, size // 8 : -size // 8] = 1
    return mask


def portrait(wall: tuple[int, int, int], size: int = CANVAS) -> np.ndarray:
    """Skin-coloured body before a wall that is darker on the right, with some noise."""
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = wall
    picture *= np.linspace(1, 0.6, size)[None, :, None]
    picture[body(size) > 0] = (170, 120, 90)
    noise = np.random.default_rng(0).normal(0, 3, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def people() -> MatteData:
    """Two people, one of them with a room."""
    mask = body(CANVAS)
    picture = portrait((40, 120, 200))
    rows = 2
    return MatteData(
        np.stack([picture] * rows),
        np.stack([np.full_like(picture, (170, 120, 90))] * rows),
        np.stack([mask * np.uint8(255)] * rows),
        np.stack([face_points(CANVAS)] * rows),
        np.array(["grid_s1", "grid_more/s4"]),
        np.full((1, CANVAS, CANVAS, 3), 90, np.uint8),
        np.array(["grid_s1"]),
    )


def recipe(folder, **changes) -> matte.MatteRecipe:
    given = {
        "run": folder, "steps": 4, "batch": 2, "bf16": False, "save_every": 2, "mix": {"grid_s1": 1.0},
        "drawn_rooms": 2, "sizes": [[0, 32], [2, 64]], "net": {"widths": (4, 4, 4, 4, 4), "deep": 1},
    }  # fmt: skip
    return matte.MatteRecipe.model_validate(given | changes)


def test_walls_tell_people_from_themselves():
    points = face_points(CANVAS)
    truth = body(CANVAS)
    for key, wall in (
        (matte_cuts.blue_key, (30, 120, 210)),
        (matte_cuts.white_key, (250, 250, 250)),
    ):
        picture = portrait(wall)
        if key is matte_cuts.white_key:
            picture[truth == 0] = 250
        assert matte_cuts.overlap(key(picture, points) > 0.5, truth) > 0.98


def test_three_cuts_agree_on_an_easy_still_only():
    picture, points = portrait((60, 110, 90), 256), face_points(256)
    cuts = matte_cuts.still_cuts(picture, points)
    assert matte_data.accepts(*cuts, points)
    assert matte_cuts.overlap(cuts[0], body(256)) > 0.95
    beside = cuts[0].copy()
    beside[100:130, 128:] = 1  # a flag taken for an ear
    assert matte_cuts.lopsided(beside, points) > matte_data.MOST_LOPSIDED
    assert not matte_data.accepts(beside, beside, beside, points)


def test_who_is_scored_on_is_not_learned_from(people):
    corpora = {name for name, *_ in FILMS} | set(STILLS)
    assert not corpora & set(matte_data.NEVER)
    for person in ("grid_more/s4", "grid_more/s34", "presenter/second"):
        assert is_held_out(person)
    learned, scored = people.part(held=False), people.part(held=True)
    assert list(learned.people) == ["grid_s1"]
    assert list(scored.people) == ["grid_more/s4"]
    assert len(scored.rooms) == 0


def test_rooms_are_drawn_and_found_beside_a_head():
    for name, draw in matte_scenes.ROOMS.items():
        first, again = (draw(np.random.default_rng(3), 64) for _ in range(2))
        assert first.shape == (64, 64, 3), name
        assert first.dtype == np.uint8, name
        np.testing.assert_array_equal(first, again)
        assert first.std() > 0
    picture = portrait((40, 120, 200))
    found = matte_data.room_beside(picture, body(CANVAS), face_points(CANVAS))
    skin = np.abs(found.astype(int) - (170, 120, 90)).max(-1) < 15
    assert not skin.any()
    np.testing.assert_array_equal(found[:100, :40], picture[:100, :40])
    assert matte_data.room_beside(picture, np.ones((CANVAS, CANVAS)), face_points(CANVAS)) is None


def test_samples_keep_the_person_on_the_lower_rim(people):
    sampler = matte.MatteSampler(people.part(held=False), {"grid_s1": 1.0}, drawn_rooms=4)
    for seed in range(12):
        one, two = (sampler.batch(np.random.default_rng(seed), 2, 64) for _ in range(2))
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
        assert one["inputs"].shape == (2, N_INPUTS, 64, 64)
        alpha = one["alpha"][:, 0]
        assert alpha.min() >= 0
        assert alpha.max() <= 1
        assert (alpha[:, -1] > 0.5).mean() > 0.3
        face = one["inputs"][:, 5] > 0
        assert alpha[face].min() > 0.9  # the face lies where the points say, mirrored or not


def test_a_mix_of_nobody_is_refused(people):
    with pytest.raises(ConfigError, match="sfhq"):
        matte.MatteSampler(people, {"sfhq": 1.0}, drawn_rooms=1)


def test_the_loss_is_least_at_the_truth():
    alpha = cv2.GaussianBlur(body(64).astype(np.float32), (0, 0), 1.0).clip(0.001, 0.999)
    alpha = torch.from_numpy(alpha)[None, None]
    rim = torch.from_numpy(matte.rim_of(alpha[0, 0].numpy()))[None, None]
    right = torch.logit(alpha)
    best, at_best = matte.matte_loss(recipe("run"), right, alpha, rim)
    assert at_best["off"] == pytest.approx(0, abs=1e-6)
    shifted, parts = matte.matte_loss(recipe("run"), torch.roll(right, 3, 3), alpha, rim)
    assert float(shifted) > float(best) + 0.1
    assert parts["off"] > 0
    by_rim = matte.matte_loss(recipe("run", edge=20.0), torch.roll(right, 3, 3), alpha, rim)[1]
    assert by_rim["entropy"] > parts["entropy"]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(people, tmp_path):
    matte.fit(recipe(tmp_path / "a"), people)
    matte.fit(recipe(tmp_path / "b"), people, stop=3)
    assert matte.fit(recipe(tmp_path / "b"), people) == 4
    whole, parts = (torch.load(tmp_path / n / "last.pt", weights_only=True) for n in "ab")
    for key, value in whole["average"].items():
        torch.testing.assert_close(parts["average"][key], value, rtol=0, atol=0)


def test_the_graph_is_the_net(people, tmp_path):
    run = recipe(tmp_path / "run", steps=1)
    matte.fit(run, people)
    folder = matte.export_matte(tmp_path / "run", run, tmp_path / "model", "card")
    about = json.loads((folder / "model.json").read_text())
    assert about["kind"] == "matte"
    assert (folder / "card.md").read_text() == "card"
    learner = matte.Learner(run, matte.build_nets)
    learner.load(tmp_path / "run" / "last.pt")
    feed = np.random.default_rng(0).normal(0, 1, (1, N_INPUTS, NET_SIZE, NET_SIZE))
    feed = feed.astype(np.float32)
    wanted = learner.average(torch.from_numpy(feed)).detach().numpy()
    found = Graph(folder / "matte.onnx")({"inputs": feed})["alpha"]
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    alpha = MatteNet(folder)(portrait((9, 9, 9), NET_SIZE), face_points(NET_SIZE))
    assert alpha.shape == (NET_SIZE, NET_SIZE)


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="train first"):
        matte.export_matte(tmp_path, recipe(tmp_path), tmp_path / "model", "")
