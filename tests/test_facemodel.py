"""The face model: pose, channels and the exact constructions for lids and lips."""

import numpy as np
import pytest

from visavis.avatar import load_avatar
from visavis.facemodel import (
    EYES,
    LIP_LOWER,
    LIP_UPPER,
    PIVOT,
    Pose,
    angles_of,
    fit_pose,
    lip_gap,
    load_face_model,
    measure,
    pose_with,
    rotation_of,
)
from visavis.types import CHANNEL, CHANNELS, N_CHANNELS, RANGE_HIGH, RANGE_LOW, RANGES


@pytest.fixture(scope="module")
def model():
    return load_face_model()


@pytest.fixture(scope="module")
def neutral(demo_avatar_path):
    return load_avatar(demo_avatar_path).neutral.astype(np.float64)


def motion(**channels):
    row = np.zeros(N_CHANNELS, np.float32)
    for name, value in channels.items():
        row[CHANNEL[name]] = value
    return row


@pytest.mark.parametrize("angles", [(0, 0, 0), (5, -12, 3), (-20, 30, -15)])
def test_angles_invert_rotation(angles):
    np.testing.assert_allclose(angles_of(rotation_of(*angles)), angles, atol=1e-9)


def test_positive_angles_turn_the_nose_as_documented():
    nose = np.array([0.0, 0.0, -1.0])
    assert (rotation_of(10, 0, 0) @ nose)[1] > 0.1, "pitch > 0 looks down (y grows down)"
    assert (rotation_of(0, 10, 0) @ nose)[0] > 0.1, "yaw > 0 turns to the image right"
    assert (rotation_of(0, 0, 10) @ np.array([1.0, 0, 0]))[1] > 0.1, "roll > 0 is clockwise"


def test_pose_is_recovered_whatever_the_mouth_does(model):
    pose = Pose(rotation_of(6, -14, 4), 120.0, np.array([250.0, 240.0, 10.0]))
    talking = model.deform(model.template.astype(np.float64), motion(jaw_open=0.3, jaw_rotation=10))
    found = fit_pose(pose.apply(talking), model.template)
    np.testing.assert_allclose(found.angles, (6, -14, 4), atol=0.1)
    assert found.scale == pytest.approx(120, rel=1e-3)
    np.testing.assert_allclose(pose.remove(pose.apply(talking)), talking, atol=1e-9)


def test_neutral_mouth_is_shut_and_lips_never_cross(model, neutral):
    rng = np.random.default_rng(0)
    for _ in range(200):
        row = rng.uniform(RANGE_LOW, RANGE_HIGH).astype(np.float32)
        shape = model.deform(neutral, row)
        assert np.isfinite(shape).all()
        assert (shape[LIP_LOWER, 1] - shape[LIP_UPPER, 1] >= -1e-9).all()
        for eye in EYES.values():
            assert (shape[eye["lower"], 1] - shape[eye["upper"], 1]).mean() > -0.02
    assert lip_gap(model.deform(neutral, motion())) == 0


@pytest.mark.parametrize("gap", [0.02, 0.05, 0.1, 0.2, 0.4])
def test_lips_part_by_exactly_the_channel(model, neutral, gap):
    shape = model.deform(neutral, motion(jaw_open=gap, jaw_rotation=30 * gap))
    assert shape[14, 1] - shape[13, 1] == pytest.approx(gap, abs=1e-6)


def test_blink_closes_the_lids(model, neutral):
    shut = model.deform(neutral, motion(eye_blink_left=1, eye_blink_right=1))
    for eye in EYES.values():
        np.testing.assert_allclose(shut[eye["lower"], 1], shut[eye["upper"], 1], atol=1e-6)


def test_channels_read_back_what_was_set(model):
    """measure(deform(m)) is close to m, channel by channel, for the ones that act on their own."""
    template = model.template.astype(np.float64)
    for name, value in [
        ("jaw_open", 0.15), ("mouth_width", 0.06), ("eye_blink_left", 0.6), ("gaze_x", 8.0),
        ("gaze_y", 5.0), ("brow_raise", 0.03), ("corner_pull_left", 0.05),
    ]:  # fmt: skip
        got = measure(model.deform(template, motion(**{name: value}))[None], template)[0]
        assert got[CHANNEL[name]] == pytest.approx(value, rel=0.15), name


def test_basis_is_mirror_symmetric(model):
    left = model.basis[8 - 1]  # corner_pull_left, corner_pull_right are neighbours
    right = model.basis[8]
    flipped = (left * [-1, 1, 1])[model.mirror]
    np.testing.assert_allclose(flipped, right, atol=2e-3)


def test_head_turns_about_the_neck(neutral):
    rest = Pose(np.eye(3), 100.0, np.array([256.0, 200.0, 0.0]))
    turned = pose_with(rest, motion(head_yaw=10, head_pitch=5, head_roll=-8))
    np.testing.assert_allclose(turned.apply(PIVOT), rest.apply(PIVOT), atol=1e-9)
    assert not np.allclose(turned.apply(neutral), rest.apply(neutral))


def test_measuring_ignores_the_head(model, neutral):
    talking = model.deform(neutral, motion(jaw_open=0.12, jaw_rotation=4))
    pose = Pose(rotation_of(-8, 11, 6), 90.0, np.array([200.0, 210.0, 0.0]))
    points = pose.apply(talking)
    still = measure(talking[None], neutral)[0]
    found = measure(fit_pose(points, neutral).remove(points)[None], neutral)[0]
    np.testing.assert_allclose(found, still, rtol=0.01, atol=0.02)


def test_every_channel_has_a_range():
    assert tuple(RANGES) == CHANNELS
    assert (RANGE_LOW < RANGE_HIGH).all()
