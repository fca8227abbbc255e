"""Tracks to motion, on synthetic points whose motion is known."""

import numpy as np
import pytest

from visavis.errors import VideoError
from visavis.facemodel import load_face_model, pose_with
from visavis.track import Track, motion_of_track, resample, track_points
from visavis.types import CHANNEL, N_CHANNELS


def clip(avatar, rows, rate=25, lost=()):
    model = load_face_model()
    points = np.array(
        [
            pose_with(avatar.rest, r).apply(model.deform(avatar.neutral.astype(float), r))
            for r in rows
        ]
    ).astype(np.float32)
    points[list(lost)] = np.nan
    scores = np.where(np.isfinite(points[:, 0, 0]), 1, 0).astype(np.float32)
    return Track(points, np.arange(len(rows)) / rate, scores, (512, 512))


@pytest.fixture
def spoken():
    rows = np.zeros((60, N_CHANNELS), np.float32)
    t = np.arange(60)
    rows[:, CHANNEL["jaw_open"]] = 0.12 * np.clip(np.sin(t / 4), 0, None)
    rows[:, CHANNEL["jaw_rotation"]] = 30 * rows[:, CHANNEL["jaw_open"]]
    rows[:, CHANNEL["head_yaw"]] = 6 * np.sin(t / 15)
    rows[:, CHANNEL["shift_x"]] = 0.03 * np.sin(t / 10)
    rows[20:23, CHANNEL["eye_blink_left"]] = 1
    return rows


def test_known_motion_is_measured(demo_avatar, spoken):
    values = motion_of_track(clip(demo_avatar, spoken))
    for name, least in (
        ("jaw_open", 0.99),
        ("head_yaw", 0.99),
        ("shift_x", 0.95),
        ("jaw_rotation", 0.9),
    ):
        a, b = values[:, CHANNEL[name]], spoken[:, CHANNEL[name]]
        assert np.corrcoef(a, b)[0, 1] > least, name
    gap = values[:, CHANNEL["jaw_open"]] - spoken[:, CHANNEL["jaw_open"]]
    assert np.abs(gap).max() < 0.01
    assert values[21, CHANNEL["eye_blink_left"]] > 0.85
    assert abs(values[21, CHANNEL["eye_blink_right"]]) < 0.15


def test_short_losses_are_bridged_long_ones_refused(demo_avatar, spoken):
    whole = motion_of_track(clip(demo_avatar, spoken))
    holes = motion_of_track(clip(demo_avatar, spoken, lost=(10, 11, 40)))
    assert np.isfinite(holes).all()
    assert np.abs(holes[:, 0] - whole[:, 0]).max() < 0.08
    with pytest.raises(VideoError, match="at least half"):
        motion_of_track(clip(demo_avatar, spoken, lost=range(40)))


def test_resample_keeps_time():
    times = np.array([0, 0.04, 0.08, 0.16, 0.2])  # one frame missing
    values = np.repeat(times[:, None], N_CHANNELS, 1)
    out = resample(values, times)
    assert len(out) == 12
    np.testing.assert_allclose(out[:11, 0], np.arange(11) / 50, atol=1e-6)


def test_no_frames(mesh):
    with pytest.raises(VideoError, match="no frame"):
        track_points([], mesh)
