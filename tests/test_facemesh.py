"""The tracker, on the real graphs where they can be had."""

import numpy as np
import pytest

from visavis import modelstore
from visavis.errors import ModelError
from visavis.facemesh import FaceMesh, roi_from_points


def test_finds_the_face_where_the_avatar_was_tracked(mesh, demo_avatar):
    faces = mesh.find(demo_avatar.image)
    assert len(faces) == 1
    assert faces[0].score > 0.9
    apart = np.linalg.norm(faces[0].points[:, :2] - demo_avatar.points[:, :2], axis=1)
    assert np.median(apart) < (2.5 if faces[0].irises else 4)


def test_finds_it_rotated_small_and_filling_the_picture(mesh, demo_avatar):
    import cv2

    image = demo_avatar.image
    small = np.full((900, 900, 3), 128, np.uint8)
    small[500:756, 600:856] = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
    assert len(mesh.find(small)) == 1
    turned = cv2.warpAffine(image, cv2.getRotationMatrix2D((256, 256), 25, 1), (512, 512))
    assert len(mesh.find(turned)) == 1
    x0, y0 = demo_avatar.points[:, :2].min(0).astype(int) - 4
    x1, y1 = demo_avatar.points[:, :2].max(0).astype(int) + 4
    assert len(mesh.find(np.ascontiguousarray(image[y0:y1, x0:x1]))) == 1
    assert mesh.find(np.full((300, 300, 3), 90, np.uint8)) == []
    assert len(mesh.find(np.concatenate([image, image[:, ::-1]], axis=1))) == 2


def test_track_survives_loss(mesh, demo_avatar):
    state = mesh.init_state()
    state, first = mesh.track(state, demo_avatar.image)
    state, gone = mesh.track(state, np.full_like(demo_avatar.image, 120))
    assert gone is None
    state, again = mesh.track(state, demo_avatar.image)
    np.testing.assert_allclose(again.points, first.points, atol=0.5)
    before = {k: v.copy() for k, v in state.items()}
    mesh.track(state, demo_avatar.image)
    assert all(np.array_equal(before[k], state[k]) for k in before), (
        "the state given is not changed"
    )


def test_track_follows_a_moving_face(mesh, demo_avatar):
    state = mesh.init_state()
    for step in range(6):
        image = np.roll(demo_avatar.image, 6 * step, axis=1)
        state, face = mesh.track(state, image)
        expected = demo_avatar.points[:, 0].mean() + 6 * step
        assert face.points[:, 0].mean() == pytest.approx(expected, abs=3)


def test_blendshapes_are_coefficients(mesh, demo_avatar):
    values = mesh.blendshapes(demo_avatar.points)
    if values is None:
        pytest.skip("the wheel's graphs have no blendshapes; needs face_landmarker.task")
    assert values.shape == (52,)
    assert 0 <= values.min() <= values.max() <= 1


def test_region_is_level_with_the_eyes(demo_avatar):
    x, y, side, cos, sin = roi_from_points(demo_avatar.points)
    assert 0 < x < 512
    assert 0 < y < 512
    assert side > 100
    assert cos**2 + sin**2 == pytest.approx(1, abs=1e-5)


def test_wheel_graphs_serve_the_same_code(demo_avatar, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VISAVIS_MODELS", raising=False)
    try:
        folder = modelstore.pull_wheel()
    except ModelError as err:
        pytest.skip(f"the mediapipe wheel cannot be fetched here: {err}")
    assert folder.is_relative_to(tmp_path)
    wheel = FaceMesh(download=False)
    face = wheel.find(demo_avatar.image)[0]
    assert face.points.shape == (478, 3)
    assert not face.irises
    assert wheel.blendshapes(face.points) is None
    apart = np.linalg.norm(face.points[:468, :2] - demo_avatar.points[:468, :2], axis=1)
    assert np.median(apart) < 4


def test_store_names_what_it_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    monkeypatch.delenv("VISAVIS_MODELS", raising=False)
    with pytest.raises(ModelError, match="VISAVIS_MODELS"):
        modelstore.face_graphs(download=False)
    with pytest.raises(ModelError, match="no model file"):
        modelstore.face_graphs(tmp_path / "no.task", download=False)
    wrong = tmp_path / modelstore.TASK_NAME
    wrong.write_bytes(b"not the file")
    with pytest.raises(ModelError, match="sha256"):
        modelstore.find_task(tmp_path)
