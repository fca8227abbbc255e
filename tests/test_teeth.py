"""What lies between the lips: the photo's own teeth, the generic set, and shut lips."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import motion_row as row

from visavis.avatar import resize_avatar
from visavis.facemodel import LIP_INNER, LIP_LOWER, load_face_model
from visavis.headmesh import HeadMesh
from visavis.render import Renderer
from visavis.teeth import TeethPainter
from visavis.types import CHANNEL

OPEN = 0.10  # of the smiling photo, eye distances


@pytest.fixture(scope="module")
def shut(demo_avatar):
    return resize_avatar(demo_avatar, 256)


@pytest.fixture(scope="module")
def smiling(shut):
    return smile(shut)


def smile(shut):
    """The demo portrait with its mouth drawn open: white teeth with gaps over a red tongue."""
    points = shut.points.copy()
    lips = shut.rest.remove(points.astype(np.float64))
    arch = 1 - np.linspace(-1, 1, len(LIP_LOWER)) ** 2
    lips[LIP_LOWER, 1] += OPEN * arch
    points[LIP_LOWER] = shut.rest.apply(lips)[LIP_LOWER]
    image = shut.image.copy()
    ring = np.round(points[LIP_INNER, :2]).astype(np.int32)
    inside = cv2.fillPoly(np.zeros(image.shape[:2], np.uint8), [ring], 1) > 0
    rows = np.flatnonzero(inside.any(1))
    edge = rows[0] + (rows[-1] - rows[0]) * 0.55
    y, x = np.indices(inside.shape)
    image[inside & (y > edge)] = (150, 30, 40)
    image[inside & (y <= edge)] = (225, 220, 205)
    image[inside & (y <= edge) & (x % 5 == 0)] = (170, 160, 150)
    neutral, motion = load_face_model().neutral_of(shut.rest.remove(points.astype(np.float64)))
    return replace(
        shut, image=image, points=points, neutral=neutral.astype(np.float32), motion=motion
    )


def mouth_of(avatar, frame):
    low = avatar.points[LIP_INNER, :2].min(0).astype(int)
    high = avatar.points[LIP_INNER, :2].max(0).astype(int)
    return frame[low[1] : high[1], low[0] : high[0]].astype(int)


@pytest.mark.parametrize("tier", ["mesh", "patch"])
def test_teeth_are_the_same_from_frame_to_frame_and_after_closing(smiling, tier):
    renderer = Renderer(smiling, tier)
    speak = row(jaw_open=0.07, jaw_rotation=2)
    rows = (
        [speak] * 6 + [row()] * 4 + [row(head_yaw=6, jaw_open=0.04)] * 3 + [row()] * 4 + [speak] * 6
    )
    _, frames = renderer.step(renderer.init_state(), np.array(rows)[None])
    before, steady, closed, again = (mouth_of(smiling, frames[0, k]) for k in (5, 4, 8, 22))
    assert np.abs(before - steady).max() <= 1
    assert np.abs(before - again).max() <= 2, "closing and turning must not change the teeth"
    assert np.abs(before - closed).mean() > 5, "the mouth did shut between"


def test_the_photos_own_teeth_are_the_ones_shown(smiling):
    renderer = Renderer(smiling, "patch")
    asked = row(jaw_open=float(smiling.motion[CHANNEL["jaw_open"]]), jaw_rotation=3.5)
    frame = renderer.step(renderer.init_state(), np.array([asked] * 4)[None])[1][0, -1]
    teeth = mouth_of(smiling, smiling.image).mean(-1) > 190
    shown = mouth_of(smiling, frame).mean(-1)
    assert shown[teeth].mean() > 150
    assert shown[teeth].mean() - shown[~teeth].mean() > 40


def painted(avatar, **channels):
    """A green frame with only the mouth's inside laid into it, and the lips' ring."""
    motion = row(**channels)
    face, pose = HeadMesh(avatar).face(motion)
    frame = np.full((avatar.size, avatar.size, 3), (0, 255, 0), np.uint8)
    TeethPainter(avatar).paint(frame, face, pose, motion)
    return frame, face[LIP_INNER, :2]


def test_bright_teeth_never_wrap_round_to_blue(shut):
    """Regression: grey levels over 255 were cast to uint8, and blue dashes lit up in the mouth."""
    motion, mesh = row(jaw_open=0.2, jaw_rotation=8), HeadMesh(shut)
    painter = TeethPainter(shut)
    painter._light = painter._light * np.array([4.0, 3.0, 2.0])  # a glaring photo
    frame = np.full((shut.size, shut.size, 3), (255, 255, 255), np.uint8)
    painter.paint(frame, *mesh.face(motion), motion)
    inside = frame[(frame != 255).any(-1)].astype(int)
    assert (inside.max(-1) == 255).any(), "it glares"
    assert (inside[:, 2] - inside[:, 0]).max() <= 0


def test_own_teeth_have_gums_above_them_and_no_second_row_of_teeth(demo_avatar):
    def magenta(avatar):
        motion, painter = row(jaw_open=OPEN, upper_lip_raise=0.08), TeethPainter(avatar)
        picture, anchor, density = painter._atlas["upper"]
        marked = picture * np.array([1, 0, 1, 1], np.float32)
        painter._atlas = painter._atlas | {"upper": (marked, anchor, density)}
        frame = np.zeros((avatar.size, avatar.size, 3), np.uint8)
        painter.paint(frame, *HeadMesh(avatar).face(motion), motion)
        frame = frame.astype(int)
        return ((frame[..., 2] - frame[..., 1]) > 30).sum()

    assert magenta(demo_avatar) > 200, "generic teeth where the photo shows none"
    assert magenta(smile(demo_avatar)) == 0


def test_lips_that_hardly_part_look_shut(shut):
    """Regression: from gap 0 to 0.001 a black line leapt from corner to corner."""
    renderer = Renderer(shut, "patch")
    frames = [
        renderer.step(renderer.init_state(), row(jaw_open=gap)[None, None])[1][0, 0]
        for gap in (0.0, 0.001, 0.004)
    ]
    closed, hardly, little = (mouth_of(shut, f) for f in frames)
    assert np.abs(hardly - closed).max() <= 12
    assert np.abs(little - closed).max() <= 40


def test_a_photos_tongue_stays_behind_when_the_jaw_drops_further(smiling):
    def red(gap):
        frame, _ = painted(smiling, jaw_open=gap)
        laid = frame[(frame != (0, 255, 0)).any(-1)].astype(int)
        return (np.abs(laid - (150, 30, 40)).max(-1) < 25).sum()

    assert red(OPEN) > 20
    assert red(OPEN + 0.12) < 0.3 * red(OPEN)


@pytest.mark.parametrize("yaw", [-8.0, -5.0, 6.0])
def test_shut_lips_of_a_turned_head_let_nothing_glint_through(shut, yaw):
    """Regression: the lips' rows turn a little apart, and dashes of the unmoved photo showed."""
    frame, ring = painted(shut, head_yaw=yaw, head_pitch=3.0)
    between = np.zeros(frame.shape[:2], np.uint8)
    cv2.fillPoly(between, [np.round(ring * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    green = (frame == (0, 255, 0)).all(-1)
    assert not green[between > 0].any()
    assert green[between == 0].all()


def test_a_monochrome_photo_gets_a_monochrome_mouth(shut):
    def chroma(avatar):
        frame, ring = painted(avatar, jaw_open=0.25, jaw_rotation=8.0)
        inside = cv2.fillPoly(np.zeros(frame.shape[:2], np.uint8), [np.int32(ring)], 1)
        return np.ptp(frame[cv2.erode(inside, np.ones((5, 5))) > 0].astype(int), axis=-1).mean()

    grey = replace(shut, image=np.repeat(shut.image.mean(-1, keepdims=True).astype(np.uint8), 3, 2))
    assert chroma(shut) > 12
    assert chroma(grey) < 6
