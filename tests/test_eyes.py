"""Eyes: reflections stay behind when the iris turns, the iris stays round."""

import cv2
import numpy as np
import pytest

from visavis.eyes import GLINT_SHARE, SCALE, _lay_eye, _lift_glint
from visavis.facemodel import EYES
from visavis.render import Renderer
from visavis.types import CHANNEL, N_CHANNELS

RADIUS, MIDDLE = 12.0, (40.0, 30.0)  # of the iris, px of the photo


def eye(spot: bool = True) -> np.ndarray:
    """A white eyeball with a brown iris, a reflection above its middle and one on the white."""
    picture = np.full((60 * SCALE, 80 * SCALE, 3), (215, 210, 205), np.uint8)
    centre = tuple(int((v + 0.5) * SCALE) for v in MIDDLE)
    cv2.circle(picture, centre, int(RADIUS * SCALE), (80, 60, 40), -1)
    if spot:
        at = (centre[0], centre[1] - int(0.3 * RADIUS * SCALE))
        cv2.circle(picture, at, 3, (250, 250, 250), -1)
        cv2.circle(
            picture, (centre[0] + int(2 * RADIUS * SCALE), centre[1]), 3, (255, 255, 255), -1
        )
    return picture


def lifted(picture):
    middle = (np.array(MIDDLE) + 0.5) * SCALE - 0.5
    return _lift_glint(picture, middle, RADIUS * SCALE)


def laid(picture, glint, step):
    frame = np.zeros((60, 80, 3), np.uint8)
    same = np.array([[1.0, 0, 0], [0, 1, 0]])
    _lay_eye(
        frame, np.zeros(2, np.int64), np.ones((60, 80), np.float32), picture, glint, same,
        np.zeros(2), np.array(MIDDLE), np.array(step, float), RADIUS, 0.0, 60.0, 0.0,
    )  # fmt: skip
    return frame


def away(shape, centre):
    """Distance of each pixel to a point, px."""
    y, x = np.indices(shape)
    return np.hypot(x - centre[0], y - centre[1])


def middle_of(mask):
    y, x = np.nonzero(mask)
    return np.array([x.mean(), y.mean()])


def test_a_lifted_reflection_and_the_rest_are_the_eye_again():
    picture = eye()
    bare, glint = lifted(picture)
    np.testing.assert_array_equal(bare.astype(int) + glint, picture)
    assert glint.max() > 120
    iris = away(glint.shape[:2], (np.array(MIDDLE) + 0.5) * SCALE)
    assert not glint[iris > RADIUS * SCALE].any(), "the white of the eye keeps its own"
    assert bare[iris < 0.9 * RADIUS * SCALE].max() < 110


def test_an_eye_without_a_reflection_is_left_alone():
    bare, glint = lifted(eye(spot=False))
    np.testing.assert_array_equal(bare, eye(spot=False))
    assert not glint.any()


@pytest.mark.parametrize("step", [(6.0, 0.0), (-6.0, 0.0), (0.0, 4.0)])
def test_the_reflection_moves_less_than_the_iris_which_stays_round(step):
    def parts(frame):
        near = away(frame.shape[:2], MIDDLE) < 1.7 * RADIUS
        grey = frame.mean(-1)
        iris = cv2.morphologyEx((grey < 150).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9))) > 0
        return (iris & near), (iris & near & (grey > 150))

    iris, spot = parts(laid(*lifted(eye()), (0.0, 0.0)))
    iris_after, spot_after = parts(laid(*lifted(eye()), step))
    moved = middle_of(iris_after) - middle_of(iris)
    np.testing.assert_allclose(moved, step, atol=0.6)
    glint = middle_of(spot_after) - middle_of(spot)
    np.testing.assert_allclose(glint, np.array(step) * GLINT_SHARE, atol=0.7)
    y, x = np.nonzero(iris_after)
    assert np.ptp(x) / np.ptp(y) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("blink", [0.0, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("yaw", [-8.0, 0.0, 8.0])
def test_no_hole_is_left_between_lids_and_eyeball(demo_renderer, blink, yaw):
    """The mesh draws nothing between the lids: what the eye does not cover shows what was there."""
    motion = np.zeros(N_CHANNELS, np.float32)
    for name, value in {"head_yaw": yaw, "eye_blink_left": blink, "eye_blink_right": blink}.items():
        motion[CHANNEL[name]] = value
    frame = demo_renderer.step({}, motion[None, None])[1][0, 0].astype(int)
    face, _ = demo_renderer.mesh.face(motion)
    near = np.zeros(frame.shape[:2], np.uint8)
    for side in EYES.values():
        ring = np.concatenate([side["corners"], side["upper_1"], side["lower_1"]])
        cv2.fillConvexPoly(near, cv2.convexHull(np.round(face[ring, :2]).astype(np.int32)), 1)
    greener = frame[..., 1] - np.maximum(frame[..., 0], frame[..., 2])
    assert (greener[near > 0] > 80).sum() <= 2


@pytest.fixture(scope="module")
def demo_renderer(demo_avatar):
    """The demo avatar over a green photo instead of its own."""
    renderer = Renderer(demo_avatar, "mesh", 512)
    renderer._still[:] = (0, 255, 0)
    return renderer
