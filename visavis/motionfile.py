"""Motion on disk: safetensors in and out, and a CSV of ARKit blendshapes for 3D rigs.

The safetensors file holds one tensor ``motion`` ``(T, D)`` float32; its metadata says ``format``
(``visavis-motion``), ``version``, ``rate`` in Hz as a fraction, ``channels`` and ``meta`` as JSON.
"""

from __future__ import annotations

import csv
import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from visavis.errors import InputError
from visavis.media import reason, replacing
from visavis.types import CONTRACT_CHANNELS, RANGES, Motion

FORMAT, VERSION = "visavis-motion", 1
MAX_BYTES = 512 * 2**20  # more than a day at 50 Hz
MAX_VALUE = 1000.0  # no channel comes near it
EXPECTED = "a motion file as written by `visavis track` or --motion-out"


def save_motion(motion: Motion, path: str | Path) -> None:
    """Write ``motion``; an older file of that name is replaced only by a whole one.

    Raises:
        InputError: NaN or infinite values.
        OutputError: the file cannot be written.
    """
    if not np.isfinite(motion.values).all():
        raise InputError("motion has NaN or infinite values; expected finite numbers: not saved")
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "rate": str(Fraction(motion.rate)),
        "channels": json.dumps(motion.channels),
        "meta": json.dumps(motion.meta),
    }
    values = np.ascontiguousarray(motion.values, np.float32)
    data = safetensors.numpy.save({"motion": values}, metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def load_motion(path: str | Path) -> Motion:
    """Read a motion file, which may come from anyone.

    Raises:
        InputError: missing, not a motion file, damaged, NaN, or without the nine contract channels.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path} is {size} bytes; expected at most {MAX_BYTES}: cut it")
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or "motion" not in file.keys():
                raise InputError(
                    f"{path} is a safetensors file, but no motion; expected {EXPECTED}"
                )
            rate, channels, meta = _header(path, metadata)
            values = file.get_tensor("motion")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); expected {EXPECTED}") from None
    if values.ndim != 2 or values.dtype.kind != "f" or values.shape[1] != len(channels):
        raise InputError(
            f"{path} holds {values.dtype} of shape {values.shape}; expected float32 (T, "
            f"{len(channels)}), one column per channel: export it again"
        )
    if len(values) == 0:
        raise InputError(f"{path} holds no motion (0 steps); expected {EXPECTED}")
    bad = ~(np.abs(values) <= MAX_VALUE)  # NaN too
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InputError(
            f"{path} has {channels[column]} = {values[row, column]} at step {row}; expected a "
            "finite number a face can follow: repair it"
        )
    return Motion(values.astype(np.float32), rate, channels, meta)


def _header(path: Path, metadata: dict[str, str]) -> tuple[Fraction, tuple[str, ...], dict]:
    version = metadata.get("version", "")
    if version != str(VERSION):
        raise InputError(
            f"{path} is of version {version[:20]!r}; expected {VERSION}: update visavis"
        )
    rate = metadata.get("rate", "")
    if not re.fullmatch(r"[1-9]\d{0,8}(/[1-9]\d{0,8})?", rate) or Fraction(rate) > 1000:
        raise InputError(f"{path} has rate {rate[:20]!r}; expected 1 to 1000 Hz, such as '50'")
    try:
        channels, meta = (json.loads(metadata.get(k, "null")) for k in ("channels", "meta"))
    except (ValueError, RecursionError):
        channels = meta = None
    named = isinstance(channels, list) and all(isinstance(name, str) for name in channels)
    if not named or not isinstance(meta, dict) or len(set(channels)) != len(channels):
        raise InputError(f"{path} has damaged metadata; expected {EXPECTED}")
    missing = [name for name in CONTRACT_CHANNELS if name not in channels]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; expected the nine contract channels")
    return Fraction(rate), tuple(channels), meta


# --- ARKit ---------------------------------------------------------------------------------------

_SIDES = ("Left", "Right")
_EYE = ("Blink", "LookDown", "LookIn", "LookOut", "LookUp", "Squint", "Wide")
_MOUTH = """Close Funnel Pucker Right Left SmileLeft SmileRight FrownLeft FrownRight DimpleLeft
DimpleRight StretchLeft StretchRight RollLower RollUpper ShrugLower ShrugUpper PressLeft PressRight
LowerDownLeft LowerDownRight UpperUpLeft UpperUpRight""".split()
BLENDSHAPES = (
    *(f"Eye{name}{side}" for side in _SIDES for name in _EYE),
    *("JawForward", "JawRight", "JawLeft", "JawOpen"),
    *(f"Mouth{name}" for name in _MOUTH),
    *("BrowDownLeft", "BrowDownRight", "BrowInnerUp", "BrowOuterUpLeft", "BrowOuterUpRight"),
    *("CheekPuff", "CheekSquintLeft", "CheekSquintRight", "NoseSneerLeft", "NoseSneerRight"),
    "TongueOut",
)
ANGLES = (
    *("HeadYaw", "HeadPitch", "HeadRoll"),
    *(f"{side}Eye{axis}" for side in _SIDES for axis in ("Yaw", "Pitch", "Roll")),
)


def to_arkit(motion: Motion) -> dict[str, np.ndarray]:
    """The 52 ARKit blendshapes, 0 to 1, and 9 angles in radians; each ``(T,)`` float32.

    A channel's upper (or lower) limit in `visavis.types.RANGES` counts as a full 1:

    ===================================  =========================================================
    JawOpen                              the larger of jaw_open and jaw_rotation
    MouthClose                           what JawOpen has over jaw_open: jaw down, lips together
    MouthPucker, MouthFunnel             lip_rounding, shared by how far the jaw is shut or open
    MouthStretch*                        mouth_width above neutral
    MouthSmile*, MouthFrown*             corner_pull above, below
    MouthUpperUp*                        upper_lip_raise above
    MouthLowerDown*, MouthShrugLower     lower_lip_drop above, below
    MouthPress*                          lip_press above
    BrowInnerUp, BrowOuterUp*            brow_raise above
    BrowDown*                            brow_furrow above, or brow_raise below
    EyeBlink*, EyeWide*                  eye_blink above, below 0
    EyeLook*                             gaze; In and Out follow from the side; 30 degrees is 1
    HeadYaw, HeadPitch, HeadRoll         the head channels, their signs kept
    (Left|Right)Eye(Yaw|Pitch)           gaze_x, gaze_y
    ===================================  =========================================================

    Left and right are the person's. All others are 0.
    """
    zero = np.zeros(len(motion), np.float32)

    def raw(name: str) -> np.ndarray:
        return motion.channel(name) if name in motion.channels else zero

    def above(name: str) -> np.ndarray:
        return np.clip(raw(name) / RANGES[name][1], 0, 1)

    def below(name: str) -> np.ndarray:
        return np.clip(raw(name) / RANGES[name][0], 0, 1)

    out = dict.fromkeys(BLENDSHAPES + ANGLES, zero)
    jaw = np.maximum(above("jaw_open"), above("jaw_rotation"))
    out["JawOpen"], out["MouthClose"] = jaw, jaw - above("jaw_open")
    out["MouthPucker"] = above("lip_rounding") * (1 - jaw)
    out["MouthFunnel"] = above("lip_rounding") * jaw
    out["MouthShrugLower"] = below("lower_lip_drop")
    out["BrowInnerUp"] = above("brow_raise")
    gaze_x, gaze_y = raw("gaze_x") / 30, raw("gaze_y") / 30
    for side in _SIDES:
        low, outward = side.lower(), gaze_x if side == "Left" else -gaze_x
        out[f"EyeBlink{side}"] = above(f"eye_blink_{low}")
        out[f"EyeWide{side}"] = below(f"eye_blink_{low}")
        out[f"EyeLookOut{side}"] = np.clip(outward, 0, 1)
        out[f"EyeLookIn{side}"] = np.clip(-outward, 0, 1)
        out[f"EyeLookDown{side}"] = np.clip(gaze_y, 0, 1)
        out[f"EyeLookUp{side}"] = np.clip(-gaze_y, 0, 1)
        out[f"MouthSmile{side}"] = above(f"corner_pull_{low}")
        out[f"MouthFrown{side}"] = below(f"corner_pull_{low}")
        out[f"MouthStretch{side}"] = above("mouth_width")
        out[f"MouthUpperUp{side}"] = above("upper_lip_raise")
        out[f"MouthLowerDown{side}"] = above("lower_lip_drop")
        out[f"MouthPress{side}"] = above("lip_press")
        out[f"BrowDown{side}"] = np.maximum(above("brow_furrow"), below("brow_raise"))
        out[f"BrowOuterUp{side}"] = above("brow_raise")
        out[f"{side}EyeYaw"], out[f"{side}EyePitch"] = (
            np.radians(raw("gaze_x")),
            np.radians(raw("gaze_y")),
        )
    for axis in ("Yaw", "Pitch", "Roll"):
        out[f"Head{axis}"] = np.radians(raw(f"head_{axis.lower()}"))
    return {name: values.astype(np.float32) for name, values in out.items()}


def to_arkit_csv(motion: Motion, path: str | Path) -> None:
    """Write `to_arkit` as CSV in the columns of Live Link Face, one row per motion step.

    ``Timecode`` is HH:MM:SS:FF.mmm with FF the whole step within the second at the motion's rate.

    Raises:
        OutputError: the file cannot be written.
    """
    columns = to_arkit(motion)
    table = np.stack(list(columns.values()), axis=1)
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="ascii") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["Timecode", "BlendshapeCount", *columns])
        for index, row in enumerate(table):
            time = _timecode(index, motion.rate)
            writer.writerow([time, len(columns), *(f"{value:.6f}" for value in row)])


def _timecode(index: int, rate: Fraction) -> str:
    seconds = int(index / Fraction(rate))
    step = index - seconds * Fraction(rate)
    thousandths = int(step * 1000) % 1000
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{clock}:{int(step):02}.{thousandths:03}"
