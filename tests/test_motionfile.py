"""Motion on disk: round trip, hostile files, ARKit columns."""

from __future__ import annotations

import csv
import json
from fractions import Fraction

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visavis.errors import InputError, OutputError
from visavis.motionfile import (
    ANGLES,
    BLENDSHAPES,
    load_motion,
    save_motion,
    to_arkit,
    to_arkit_csv,
)
from visavis.types import CHANNEL, CHANNELS, CONTRACT_CHANNELS, RANGE_HIGH, RANGE_LOW, Motion


def random_motion(steps=20, seed=0):
    return Motion(
        np.random.default_rng(seed)
        .uniform(RANGE_LOW, RANGE_HIGH, (steps, len(CHANNELS)))
        .astype("f4"),
        meta={"source": "test"},
    )


def motion_of(**channels):
    values = np.zeros((1, len(CHANNELS)), np.float32)
    for name, value in channels.items():
        values[0, CHANNEL[name]] = value
    return Motion(values)


def test_round_trip(tmp_path):
    motion = random_motion()
    save_motion(motion, tmp_path / "m.safetensors")
    back = load_motion(tmp_path / "m.safetensors")
    assert np.array_equal(back.values, motion.values)
    assert back.values.dtype == np.float32
    assert (back.rate, back.channels, back.meta) == (motion.rate, motion.channels, motion.meta)
    odd = Motion(motion.values, Fraction(30000, 1001), CHANNELS)
    save_motion(odd, tmp_path / "m.safetensors")
    assert load_motion(tmp_path / "m.safetensors").rate == Fraction(30000, 1001)


def foreign(path, values=None, name="motion", **metadata):
    header = {
        "format": "visavis-motion",
        "version": "1",
        "rate": "50",
        "channels": json.dumps(CHANNELS),
        "meta": "{}",
    }
    values = np.zeros((3, len(CHANNELS)), np.float32) if values is None else values
    path.write_bytes(safetensors.numpy.save({name: values}, header | metadata))
    return path


NAN = np.full((3, len(CHANNELS)), np.nan, np.float32)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"name": "weights"}, "no motion"),
        ({"format": "other"}, "no motion"),
        ({"version": "2"}, "update visavis"),
        ({"rate": "1e999999999"}, "rate"),
        ({"rate": "0"}, "rate"),
        ({"rate": "5000"}, "rate"),
        ({"channels": "[1"}, "metadata"),
        ({"channels": "[" * 100_000}, "metadata"),
        ({"meta": "[]"}, "metadata"),
        ({"channels": json.dumps(["jaw_open"] * len(CHANNELS))}, "metadata"),
        ({"channels": json.dumps(CHANNELS[1:])}, "lacks jaw_open"),
        ({"values": NAN}, "jaw_open = nan at step 0"),
        ({"values": np.full((3, len(CHANNELS)), 1e30, np.float32)}, "face can follow"),
        ({"values": np.zeros((3, 4), np.float32)}, r"shape \(3, 4\)"),
        ({"values": np.zeros((3, len(CHANNELS)), np.int32)}, "int32"),
        ({"values": np.zeros((0, len(CHANNELS)), np.float32)}, "0 steps"),
    ],
)
def test_foreign_files_are_refused(tmp_path, kwargs, match):
    with pytest.raises(InputError, match=match) as caught:
        load_motion(foreign(tmp_path / "m.safetensors", **kwargs))
    assert "\n" not in str(caught.value)


def test_missing_and_unwritable(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_motion(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_motion(tmp_path)
    with pytest.raises(OutputError, match="does not exist"):
        save_motion(random_motion(), tmp_path / "folder" / "m.safetensors")
    with pytest.raises(InputError, match="not saved"):
        save_motion(Motion(NAN), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_bytes_break_the_reader(tmp_path, data):
    raw = bytearray(foreign(tmp_path / "good.safetensors").read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    for _ in range(data.draw(st.integers(0, 6))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(bytes(raw))
    try:
        motion = load_motion(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(motion.values).all()


def test_arkit_is_in_range_and_means_what_it_says():
    assert len(BLENDSHAPES) == len(set(BLENDSHAPES)) == 52
    columns = to_arkit(random_motion(200))
    assert tuple(columns) == BLENDSHAPES + ANGLES
    shapes = np.stack([columns[name] for name in BLENDSHAPES])
    assert shapes.min() >= 0
    assert shapes.max() <= 1

    def active(**channels):
        return {
            k: round(float(v[0]), 3) for k, v in to_arkit(motion_of(**channels)).items() if v[0]
        }

    assert active() == {}
    assert active(jaw_open=0.45) == {"JawOpen": 1}
    assert active(jaw_rotation=10) == {"JawOpen": 0.5, "MouthClose": 0.5}
    assert active(lip_rounding=0.5) == {"MouthPucker": 0.5}
    assert active(corner_pull_left=0.1) == {"MouthSmileLeft": 1}
    assert active(eye_blink_right=1) == {"EyeBlinkRight": 1}
    assert active(gaze_x=15).keys() == {
        "EyeLookOutLeft",
        "EyeLookInRight",
        "LeftEyeYaw",
        "RightEyeYaw",
    }
    assert active(head_yaw=12) == {"HeadYaw": round(float(np.radians(12)), 3)}


def test_arkit_needs_only_the_contract_channels():
    motion = Motion(np.ones((2, 9), np.float32), channels=CONTRACT_CHANNELS)
    assert to_arkit(motion)["BrowInnerUp"].tolist() == [0, 0]


def test_csv(tmp_path):
    to_arkit_csv(random_motion(151), tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["Timecode", "BlendshapeCount", *BLENDSHAPES, *ANGLES]
    assert len(rows) == 152
    assert rows[1][:2] == ["00:00:00:00.000", "61"]
    assert rows[151][0] == "00:00:03:00.000"
    assert rows[76][0] == "00:00:01:25.000"
