"""Tier `full`: crop, buffers, the net's state, batching, and that nothing is painted elsewhere."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import motion_row as row

from visavis import head
from visavis.avatar import load_avatar
from visavis.errors import ModelError
from visavis.facemodel import load_face_model
from visavis.headmesh import HeadMesh
from visavis.pipeline import Pipeline, PipelineConfig
from visavis.render import Renderer, find_head_dir
from visavis.types import CHANNEL, N_CHANNELS


@pytest.fixture(scope="module")
def avatar(drawn_avatar):
    return load_avatar(drawn_avatar)


@pytest.fixture(scope="module")
def view(avatar):
    return head.HeadView(avatar, HeadMesh(avatar))


@pytest.fixture(scope="module")
def head_dir(tmp_path_factory):
    """A tiny head net with random weights that paints visibly."""
    torch = pytest.importorskip("torch")
    from visavis.train.full import FullRecipe, export_head, head_nets
    from visavis.train.renderer import Learner

    run = tmp_path_factory.mktemp("run")
    recipe = FullRecipe(run=run, net={"widths": (4, 6, 8, 8), "deep": 1, "memory": 4, "code": 6})
    learner = Learner(recipe, head_nets)
    with torch.no_grad():
        for weight in learner.average.net.head.parameters():
            weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    learner.save(run / "last.pt")
    return export_head(run, recipe, run / "model", "# card\n")


@pytest.fixture(scope="module")
def renderer(avatar, head_dir):
    return Renderer(avatar, "full", head_dir=head_dir)


def test_the_box_lies_in_the_frame_and_around_the_face(avatar):
    left, top, side = head.head_box(avatar.points, avatar.size)
    assert min(left, top) >= 0 and max(left, top) + side <= avatar.size
    moved = head.to_crop(avatar.points, (left, top, side))
    assert moved.min() > 0 and moved.max() < head.SIZE - 1
    shifted = avatar.points + [500, -500, 0]  # a face at the picture's corner
    left, top, side = head.head_box(shifted, avatar.size)
    assert (left + side, top) == (avatar.size, 0)


def test_coordinates_follow_the_head(avatar, view):
    mesh = HeadMesh(avatar)
    for motion in (row(), row(head_yaw=10, shift_x=0.1)):
        target, face, _ = mesh.vertices(motion)
        seen = view.coordinates(target, face).astype(float)
        for point in (1, 4, 152, 205, 425):  # nose, chin, cheeks
            x, y = head.to_crop(face, view.box)[point].round().astype(int)
            told = seen[y - 2, x, :2] / 255 * 2 * head.REACH - head.REACH
            assert np.abs(told - avatar.neutral[point, :2]).max() < 0.06, point
            assert seen[y - 2, x, 2] == 255
    assert seen[2, 2].max() == 0, "nobody is in the corner"


def test_masks_tell_mouth_and_lids(avatar, view):
    mesh = HeadMesh(avatar)
    cover = np.zeros((head.SIZE, head.SIZE), np.float32)
    face = mesh.face(row(jaw_open=0.25, eye_blink_left=1))[0]
    masks = head.head_masks(head.to_crop(face, view.box), cover)
    assert masks["mouth"].sum() > 100 and (masks["lips"] + 1e-6 >= masks["mouth"]).all()
    middle = head.SIZE // 2
    left, right = masks["eyes"][:, middle:].sum(), masks["eyes"][:, :middle].sum()
    assert right > 50 and left < 0.25 * right, "the person's left eye is shut"
    shut = head.head_masks(head.to_crop(mesh.face(row())[0], view.box), cover)
    assert shut["mouth"].sum() < 0.1 * masks["mouth"].sum()
    assert masks["limit"][:, 0].max() == masks["limit"][0].max() == 0


def test_a_painting_is_added_where_it_is_told(avatar):
    box = head.head_box(avatar.points, avatar.size)
    frame = np.full((avatar.size, avatar.size, 3), 100, np.uint8)
    paint = np.zeros((3, head.SIZE, head.SIZE), np.float32)
    head.lay(frame, box, paint)
    assert (frame == 100).all()
    paint[0], paint[1] = 10 / 127.5, -3.0
    head.lay(frame, box, paint)
    left, top, side = box
    inside = frame[top : top + side, left : left + side]
    assert (inside == [110, 0, 100]).all()
    assert (frame[:top] == 100).all() and (frame[:, :left] == 100).all()


def test_full_paints_the_person_and_nothing_else(avatar, renderer):
    motion = row(jaw_open=0.2, head_yaw=5)
    plain = Renderer(avatar, "patch")
    _, before = plain.step(plain.init_state(), motion[None, None])
    _, after = renderer.step(renderer.init_state(), motion[None, None])
    changed = np.abs(after[0, 0].astype(int) - before[0, 0]).max(-1)
    assert (changed > 3).sum() > 1000
    near = cv2.dilate(renderer.matte(motion), np.ones((17, 17), np.uint8)) > 0
    assert changed[~near].max() == 0


def test_sessions_in_one_batch_are_those_run_alone(renderer):
    rows = np.stack([[row(jaw_open=0.1 * k), row(head_yaw=3 * k)] for k in range(3)])
    together = renderer.init_state(3)
    together, frames = renderer.step(together, rows)
    for b in range(3):
        state, alone = renderer.step(renderer.init_state(), rows[b : b + 1])
        assert np.abs(alone[0].astype(int) - frames[b]).max() <= 2  # bfloat16 in another order
        for name, value in state.items():
            assert np.abs(value[0] - together[name][b]).max() < 0.05, name


def test_any_split_of_the_rows_gives_the_same_frames(renderer):
    rows = np.stack([row(jaw_open=0.05 * k) for k in range(5)])[None]
    _, whole = renderer.step(renderer.init_state(), rows)
    state, parts = renderer.init_state(), []
    for piece in np.split(rows, [1, 3], axis=1):
        state, drawn = renderer.step(state, piece)
        parts.append(drawn)
    assert np.array_equal(np.concatenate(parts, 1), whole)
    _, fresh = renderer.step(renderer.init_state(), rows[:, 4:])
    assert not np.array_equal(fresh[0, 0], whole[0, 4]), "what was before is remembered"


def test_exported_graphs_equal_the_net(head_dir):
    torch = pytest.importorskip("torch")
    ort = pytest.importorskip("onnxruntime")
    from visavis.backends import Graph
    from visavis.train.full import FullRecipe, head_nets
    from visavis.train.renderer import Learner

    run = head_dir.parent
    recipe = FullRecipe(run=run, net={"widths": (4, 6, 8, 8), "deep": 1, "memory": 4, "code": 6})
    learner = Learner(recipe, head_nets)
    learner.load(run / "last.pt")
    rng = np.random.default_rng(0)
    shapes = {
        "inputs": (2, head.N_INPUTS, 256, 256), "code": (2, 6), "motion": (2, N_CHANNELS),
        "rgb": (2, 4, 256, 256), "memory": (2, 4, 32, 32),
    }  # fmt: skip
    feeds = {k: rng.normal(0, 0.5, s).astype(np.float32) for k, s in shapes.items()}
    with torch.no_grad():
        wanted = learner.average.net(*map(torch.from_numpy, feeds.values()))
    ours = Graph(head_dir / "head.onnx")(feeds)
    theirs = ort.InferenceSession(head_dir / "head.onnx").run(None, feeds)
    for name, value, other in zip(
        ("paint", "next_rgb", "next_memory"), wanted, theirs, strict=True
    ):
        np.testing.assert_allclose(ours[name], value.numpy(), atol=2e-2)  # weights are halves
        np.testing.assert_allclose(ours[name], other, atol=2e-3)


def test_the_shipped_head_net_changes_the_head_a_little_and_nothing_far_from_it(demo_avatar):
    motion = np.stack([row(jaw_open=0.12, jaw_rotation=5, head_yaw=4)] * 3)[None]
    drawn = {}
    for tier in ("patch", "full"):
        renderer = Renderer(demo_avatar, tier)
        drawn[tier] = renderer.step(renderer.init_state(), motion)[1][0, -1].astype(int)
    change = np.abs(drawn["full"] - drawn["patch"]).max(-1)
    matte = cv2.dilate(renderer.matte(motion[0, -1]), np.ones((41, 41), np.uint8))
    assert not change[matte == 0].any(), "the background stands still"
    assert change.max() > 3
    assert change.mean() < 6


def test_without_weights_the_message_says_what_to_do(avatar, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="visavis train renderer"):
        Renderer(avatar, "full", head_dir=tmp_path)
    (tmp_path / "model.json").write_text('{"kind": "mouth"}')
    with pytest.raises(ModelError, match="not a head net"):
        Renderer(avatar, "full", head_dir=tmp_path)


def test_a_pipeline_finds_the_net_where_models_are_looked_for(
    avatar, head_dir, tmp_path, monkeypatch
):
    (tmp_path / "head").symlink_to(head_dir)
    monkeypatch.setenv("VISAVIS_MODELS", str(tmp_path))
    monkeypatch.setattr("visavis.render.HEAD_DIR", tmp_path / "nowhere")
    assert find_head_dir() == tmp_path / "head"
    pipe = Pipeline(avatar, PipelineConfig(tier="full", size=256, threads=1))
    state = pipe.init_state()
    state, frames = pipe.step(state, np.zeros((1, 8000), np.float32))
    assert frames and frames[-1].image.shape == (256, 256, 3)
    assert state["render/head/rgb"][0, 3].min() == 1


def test_mirror_of_a_run_is_the_run_of_the_mirrored_head():
    full_data = pytest.importorskip("visavis.train.full_data")
    model = load_face_model()
    assert (full_data._mirror_map() == model.mirror).all()
    rng = np.random.default_rng(2)
    run = {
        "photo": rng.normal(size=(6, 256, 256)), "inputs": rng.normal(size=(2, 13, 256, 256)),
        "real": rng.normal(size=(2, 3, 256, 256)), "rgb": rng.normal(size=(4, 256, 256)),
        "steady": rng.random((2, 1, 256, 256)), "flow": rng.normal(size=(2, 256, 256, 2)),
        "points": rng.random((2, 478, 2)) * 256, "motion": rng.normal(size=(2, N_CHANNELS)),
    }  # fmt: skip
    once = full_data.mirrored(run)
    assert once["motion"][0, CHANNEL["head_yaw"]] == -run["motion"][0, CHANNEL["head_yaw"]]
    left, right = CHANNEL["eye_blink_left"], CHANNEL["eye_blink_right"]
    assert once["motion"][1, left] == run["motion"][1, right]
    for key, value in full_data.mirrored(once).items():
        np.testing.assert_allclose(value, run[key], atol=1e-9, err_msg=key)
