"""Cutting the person out: what the net sees, what is made of its matte, and the plate behind."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from visavis.errors import ModelError
from visavis.facemodel import load_face_model
from visavis.matte import (
    MODEL_DIR,
    N_INPUTS,
    WORK_SIZE,
    MatteNet,
    background_plate,
    matte_inputs,
    person_matte,
)


def face_points(size: int, roll: float = 0.0) -> np.ndarray:
    """The mean face in the middle of a square, rolled by some degrees."""
    template = load_face_model().template
    flat = template[:, :2] - template[[10, 152], :2].mean(0)
    flat = flat * (0.4 * size / np.linalg.norm(flat[152] - flat[10]))
    turn = np.radians(roll)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return flat @ spin.T + size / 2


class Painted:
    """A net that answers with a given matte."""

    def __init__(self, alpha: np.ndarray):
        self.alpha = alpha

    def __call__(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        assert image.shape == (WORK_SIZE, WORK_SIZE, 3)
        return self.alpha


def body(size: int) -> np.ndarray:
    """A head on shoulders, 0 or 1."""
    mask = np.zeros((size, size), np.uint8)
    cv2.ellipse(mask, (size // 2, size // 2), (size // 4, size // 3), 0, 0, 360, 1, -1)
    mask[int(0.75 * size) :, size // 8 : -size // 8] = 1
    return mask.astype(np.float32)


def test_the_net_sees_colour_place_and_oval():
    size = 128
    image = np.full((size, size, 3), (255, 0, 128), np.uint8)
    points = face_points(size)
    maps = matte_inputs(image, points)
    assert maps.shape == (N_INPUTS, size, size)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps[:3, 0, 0], [1, -1, 128 / 127.5 - 1], atol=1e-6)
    x, y = np.round(points[152]).astype(int)
    np.testing.assert_allclose(maps[3:5, y, x], [0, 0.5], atol=0.02)
    nose = np.round(points[1]).astype(int)
    assert maps[5, nose[1], nose[0]] == 1
    assert maps[5, 0, 0] == 0


def test_places_turn_with_the_head():
    size = 128
    image = np.zeros((size, size, 3), np.uint8)
    for roll in (0.0, 30.0):
        points = face_points(size, roll)
        maps = matte_inputs(image, points)
        for row in (152, 234, 454):
            x, y = np.round(points[row]).astype(int)
            expected = (face_points(size)[row] - size / 2) / (0.4 * size)
            np.testing.assert_allclose(maps[3:5, y, x], expected, atol=0.03)


def scene(size: int) -> np.ndarray:
    """A skin-coloured body before a blue wall."""
    mask = cv2.resize(body(WORK_SIZE), (size, size), interpolation=cv2.INTER_NEAREST)
    image = np.where(mask[..., None] > 0, np.uint8([180, 120, 90]), np.uint8([30, 60, 120]))
    noise = np.random.default_rng(1).normal(0, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_only_the_piece_with_the_face_stays_and_has_no_holes():
    alpha = body(WORK_SIZE)
    alpha[140:150, 120:130] = 0  # a hole
    alpha[5:25, 5:25] = 1  # a lamp
    found = person_matte(scene(WORK_SIZE), face_points(WORK_SIZE), Painted(alpha))
    assert found[145, 125] == 1
    assert found[15, 15] == 0
    assert found[128, 128] == 1
    assert found[5, 128] == 0


def test_colour_decides_only_where_the_net_is_in_doubt():
    size, points = WORK_SIZE, face_points(WORK_SIZE)
    truth = body(size)
    image = scene(size)
    image[60:120, 200:230] = (180, 120, 90)  # a shelf as brown as the face
    unsure = cv2.GaussianBlur(truth, (0, 0), 12)
    unsure[40:140, 196:240] = 0.01  # of which the net knows that it is none
    found = person_matte(image, points, Painted(unsure))
    assert found[60:120, 204:226].max() == 0
    assert np.abs(found - truth).mean() < 0.01
    assert np.abs(unsure - truth).mean() > 0.03


def test_a_head_that_fills_the_photo_needs_no_background():
    everything = np.ones((WORK_SIZE, WORK_SIZE), np.float32)
    found = person_matte(scene(300), face_points(300), Painted(everything))
    assert found.min() > 0.95


@pytest.mark.parametrize("size", [200, 512])
def test_the_matte_has_the_size_of_the_photo_and_its_edge(size):
    """The net's outline is blurred and too wide: the photo's own edge draws it in."""
    mask = cv2.resize(body(WORK_SIZE), (size, size), interpolation=cv2.INTER_NEAREST)
    wide = cv2.GaussianBlur(cv2.dilate(body(WORK_SIZE), np.ones((3, 3))), (0, 0), 2.5)
    found = person_matte(scene(size), face_points(size), Painted(wide))
    assert found.shape == (size, size)
    assert found.dtype == np.float32
    assert 0 <= found.min()
    assert found.max() <= 1
    assert np.abs(found - mask).mean() < 0.6 * np.abs(cv2.resize(wide, (size, size)) - mask).mean()


def test_nothing_of_the_person_is_left_in_the_plate():
    """Regression: a rim of hair stayed in the plate and showed as a ghost when the head moved."""
    size = 256
    rows, columns = np.mgrid[:size, :size]
    room = np.stack([columns // 2, rows // 2, 200 - columns // 3], -1).astype(np.uint8)
    mask = cv2.GaussianBlur(body(size), (0, 0), 1.5)
    person = np.full_like(room, (250, 20, 20))
    photo = np.uint8(np.round(room + (person.astype(float) - room) * mask[..., None]))
    seen = np.clip((mask - 0.2) / 0.8, 0, 1).astype(np.float32)  # a little too narrow
    plate = background_plate(photo, seen)
    assert plate.dtype == np.uint8
    red = plate[..., 0].astype(int) - plate[..., 1]
    assert red.max() <= (room[..., 0].astype(int) - room[..., 1]).max() + 12
    far = cv2.dilate((mask > 0).astype(np.uint8), np.ones((31, 31), np.uint8)) == 0
    np.testing.assert_array_equal(plate[far], photo[far])


def test_stripes_go_on_beside_the_outline():
    """Where a moving head uncovers the plate, shelves go on instead of fading to grey."""
    size = 256
    photo = np.zeros((size, size, 3), np.uint8)
    photo[np.arange(size) // 16 % 2 == 0] = 255
    mask = np.zeros((size, size), np.float32)
    mask[:, 90:166] = 1
    plate = background_plate(photo, mask)[..., 0].astype(int)
    beside = plate[:, 90:98].mean(1)
    assert np.abs(beside - photo[:, 0, 0]).mean() < 30
    assert plate[:, 128].std() < 40  # far in, smooth


def test_a_photo_full_of_person_is_its_own_plate():
    photo = np.full((64, 64, 3), 90, np.uint8)
    np.testing.assert_array_equal(background_plate(photo, np.ones((64, 64), np.float32)), photo)


def test_the_shipped_net_is_small_and_finds_the_demo(demo_avatar):
    net = MatteNet()
    assert net.card["parameters"] <= 1_000_000
    assert (MODEL_DIR / net.card["graph"]).stat().st_size <= 2 << 20
    found = person_matte(demo_avatar.image, demo_avatar.points, net)
    x, y = np.round(demo_avatar.points[1, :2]).astype(int)
    assert found[y, x] == 1
    assert found[2, -3] == 0
    again = person_matte(demo_avatar.image, demo_avatar.points)
    np.testing.assert_array_equal(found, again)
    mirrored = demo_avatar.points[:, :2] * [-1, 1] + [demo_avatar.size - 1, 0]
    swapped = person_matte(np.ascontiguousarray(demo_avatar.image[:, ::-1]), mirrored, net)
    assert np.abs(swapped[:, ::-1] - found).mean() < 0.01


@pytest.mark.parametrize("text", ["", "{}", json.dumps({"kind": "mouth", "graph": "x.onnx"})])
def test_another_model_is_refused(tmp_path, text):
    if text:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(ModelError, match="matting|readable"):
        MatteNet(tmp_path)
