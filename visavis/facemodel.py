"""The face model: 478 vertices posed by named motion channels, and channels measured from vertices.

``vertices = pose(neutral + offsets(motion))`` under weak perspective. Units: a *face frame* whose
origin is the middle of the outer eye corners, x to the image right, y down, z away from the camera,
and whose unit is the distance between the outer eye corners. Offsets are a linear basis fitted on
tracked clips (``visavis.train.face``) plus two exact constructions a linear basis cannot give: lids
that meet and lips that meet.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from visavis.errors import ModelError
from visavis.types import CHANNEL, CHANNELS, N_CHANNELS, RANGE_HIGH, RANGE_LOW

N_VERTICES = 478
MODEL_DIR = Path(__file__).parent / "assets" / "models" / "face"

LEFT_EYE_OUTER, RIGHT_EYE_OUTER = 263, 33
# Bone under thin skin: eye corners, nose bridge, forehead, temples. Never the mouth or the jaw.
RIGID = np.array(
    [33, 133, 362, 263, 168, 6, 197, 195, 8, 9, 151, 10, 109, 338, 67, 297, 103, 332, 54, 284,
     21, 251, 127, 356, 162, 389, 122, 351, 193, 417, 245, 465]
)  # fmt: skip
# Joint of head and neck in the face frame: nods and turns keep it in place.
PIVOT = np.array([0.0, 0.95, 0.75])
JAW_HINGE = np.array([0.0, 0.55, 0.75])
EYEBALL_RADIUS = 0.135  # 12 mm of about 90 mm

# Inner-lip rows from the person's right to left, upper and lower, corners left out.
LIP_UPPER = np.array([191, 80, 81, 82, 13, 312, 311, 310, 415])
LIP_LOWER = np.array([95, 88, 178, 87, 14, 317, 402, 318, 324])
SEAM_UPPER = np.array([78, *LIP_UPPER, 308])
SEAM_LOWER = np.array([78, *LIP_LOWER, 308])
LIP_INNER = np.array([78, *LIP_UPPER, 308, *LIP_LOWER[::-1]])
LIP_OUTER = np.array(
    [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146]
)
FACE_OVAL = np.array(
    [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
     148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
)  # fmt: skip
# Lid rows of each eye from the inner to the outer corner: contour, then skin outwards.
EYES = {
    "right": {
        "corners": (133, 33),
        "upper": np.array([173, 157, 158, 159, 160, 161, 246]),
        "lower": np.array([155, 154, 153, 145, 144, 163, 7]),
        "upper_1": np.array([190, 56, 28, 27, 29, 30, 247]),
        "lower_1": np.array([112, 26, 22, 23, 24, 110, 25]),
        "upper_2": np.array([189, 221, 222, 223, 224, 225, 113]),
        "iris": np.array([468, 469, 470, 471, 472]),
    },
    "left": {
        "corners": (362, 263),
        "upper": np.array([398, 384, 385, 386, 387, 388, 466]),
        "lower": np.array([382, 381, 380, 374, 373, 390, 249]),
        "upper_1": np.array([414, 286, 258, 257, 259, 260, 467]),
        "lower_1": np.array([341, 256, 252, 253, 254, 339, 255]),
        "upper_2": np.array([413, 441, 442, 443, 444, 445, 342]),
        "iris": np.array([473, 474, 475, 476, 477]),
    },
}
BROW_RIGHT = np.array([70, 63, 105, 66, 107, 46, 53, 52, 65, 55])
BROW_LEFT = np.array([300, 293, 334, 296, 336, 276, 283, 282, 295, 285])

# Channels with a vertex basis; the others act through pose, lids or irises.
BASIS_CHANNELS = (
    "jaw_open", "mouth_width", "lip_rounding", "jaw_rotation", "upper_lip_raise", "lower_lip_drop",
    "lip_press", "corner_pull_left", "corner_pull_right", "brow_raise", "brow_furrow",
)  # fmt: skip
BASIS_INDEX = np.array([CHANNEL[c] for c in BASIS_CHANNELS])
OPEN_CHANNELS = ("jaw_open", "jaw_rotation", "upper_lip_raise", "lower_lip_drop")

LIP_CONTACT = 0.008  # gap that the tracker reads on closed lips, eye distances
UPPER_SHARE = 0.25  # of a change of the lip gap, what the upper lip does
ROUND_FROM, ROUND_SPAN = 0.01, 0.07  # mouth narrower by the first: lips begin to round; both: fully
LID_MEET = 0.88  # lids meet this far down the open eye
LID_SKIN = (0.72, 0.25)  # how much the two skin rows above the lid follow it


@dataclass(frozen=True)
class Pose:
    """Weak-perspective pose: ``pixels = scale * rotation @ face + shift`` (z on the same scale).

    Attributes:
        rotation: ``(3, 3)`` float64.
        scale: pixels per eye distance.
        shift: ``(3,)`` float64 pixels.
    """

    rotation: np.ndarray
    scale: float
    shift: np.ndarray

    def apply(self, vertices: np.ndarray) -> np.ndarray:
        """Face frame ``(..., 3)`` to pixels ``(..., 3)``."""
        return self.scale * (vertices @ self.rotation.T) + self.shift

    def remove(self, points: np.ndarray) -> np.ndarray:
        """Pixels ``(..., 3)`` to the face frame ``(..., 3)``."""
        return ((points - self.shift) @ self.rotation) / self.scale

    @property
    def angles(self) -> np.ndarray:
        """``(pitch, yaw, roll)`` in degrees, as ``types.CHANNELS`` defines them."""
        return angles_of(self.rotation)


def rotation_of(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """``(3, 3)`` rotation from degrees: roll after yaw after pitch, in the face frame."""
    p, y, r = np.radians([pitch, yaw, roll])
    # y points down and z away: looking down turns the nose (-z) towards +y
    rx = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    ry = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return rz @ ry @ rx


def angles_of(rotation: np.ndarray) -> np.ndarray:
    """Inverse of ``rotation_of``, ``(3,)`` degrees (pitch, yaw, roll)."""
    yaw = np.arcsin(np.clip(rotation[2, 0], -1, 1))
    pitch = np.arctan2(rotation[2, 1], rotation[2, 2])
    roll = np.arctan2(rotation[1, 0], rotation[0, 0])
    return np.degrees(np.array([pitch, yaw, roll]))


def fit_pose(points: np.ndarray, reference: np.ndarray) -> Pose:
    """The similarity that takes the reference's rigid points to the observed ones.

    Umeyama, "Least-squares estimation of transformation parameters", PAMI 1991.

    Args:
        points: ``(478, 3)`` pixels.
        reference: ``(478, 3)`` face frame.
    """
    target, source = points[RIGID].astype(np.float64), reference[RIGID].astype(np.float64)
    mu_t, mu_s = target.mean(0), source.mean(0)
    u, sigma, vt = np.linalg.svd((target - mu_t).T @ (source - mu_s))
    sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ sign @ vt
    scale = float(np.trace(np.diag(sigma) @ sign) / ((source - mu_s) ** 2).sum())
    return Pose(rotation, scale, mu_t - scale * rotation @ mu_s)


def fit_affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares ``(2, 3)`` affine from ``(N, 2)`` source to target points."""
    rows = np.concatenate([source, np.ones((len(source), 1))], 1)
    return np.linalg.lstsq(rows, target, rcond=None)[0].T


@dataclass(frozen=True)
class FaceModel:
    """Template, expression basis and topology; constants only.

    Attributes:
        template: ``(478, 3)`` float32 face frame, the mean face, symmetric.
        basis: ``(C, 478, 3)`` float32, one direction per channel of ``BASIS_CHANNELS``.
        triangles: ``(F, 3)`` int32 over the first 468 vertices, lips and lids included.
        mirror: ``(478,)`` int32, each vertex's partner on the other side.
    """

    template: np.ndarray
    basis: np.ndarray
    triangles: np.ndarray
    mirror: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "_spread", _lip_spread(self.template))
        object.__setattr__(self, "_purse", _lip_purse(self.template))

    def neutral_of(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A closed-mouth neutral from one view of a face.

        Args:
            vertices: ``(478, 3)`` face frame (pose removed).

        Returns:
            ``(478, 3)`` neutral and the ``(D,)`` motion at which it reproduces ``vertices``.
        """
        motion = np.zeros(N_CHANNELS, np.float32)
        gap = lip_gap(vertices)
        if gap > 0:
            # how far the jaw and lips usually go for such a gap (regression on the tracked clips)
            motion[CHANNEL["jaw_open"]] = gap
            motion[CHANNEL["jaw_rotation"]] = 35.0 * gap
            motion[CHANNEL["upper_lip_raise"]] = 0.2 * gap
            motion[CHANNEL["lower_lip_drop"]] = 0.27 * gap
        return vertices - self.offsets(motion), motion

    def offsets(self, motion: np.ndarray) -> np.ndarray:
        """Linear part, ``(478, 3)``, of a ``(D,)`` motion vector."""
        return np.tensordot(motion[BASIS_INDEX], self.basis, axes=1)

    def deform(self, neutral: np.ndarray, motion: np.ndarray) -> np.ndarray:
        """The face at a motion, without its pose.

        Args:
            neutral: ``(478, 3)`` face frame, mouth closed, eyes open.
            motion: ``(D,)`` channels of ``types.CHANNELS``.

        Returns:
            ``(478, 3)`` face frame: lips pursed by ``lip_rounding`` or by a narrow mouth, exactly
            ``jaw_open`` apart at their middle and never crossed, lids closed by the blink channels,
            irises turned by the gaze channels.
        """
        motion = np.clip(motion, RANGE_LOW, RANGE_HIGH)
        out = neutral + self.offsets(motion)
        narrow = max(float(motion[CHANNEL["lip_rounding"]]), 0.0)
        implied = (-float(motion[CHANNEL["mouth_width"]]) - ROUND_FROM) / ROUND_SPAN
        self._round_lips(out, narrow, max(narrow, min(max(implied, 0.0), 1.0)))
        out = self._set_lips(out, float(motion[CHANNEL["jaw_open"]]))
        _turn_eyes(out, motion[CHANNEL["gaze_x"]], motion[CHANNEL["gaze_y"]])
        for side in EYES:
            _close_lids(out, EYES[side], float(motion[CHANNEL[f"eye_blink_{side}"]]))
        return out

    def _round_lips(self, vertices: np.ndarray, narrow: float, purse: float) -> None:
        """Draw the mouth together by ``narrow`` and make its lips round and full by ``purse``.

        The tracker sees little of a protruding lip from the front (on film its ``lip_rounding`` even
        falls in "two" and "blue"); what it does see is that the mouth gets narrower. So a narrow
        mouth is given round lips, its corners staying where ``mouth_width`` puts them.
        """
        if purse <= 0:
            return
        around, inner, fuller = self._purse
        from_middle = vertices[:, 0] - (vertices[61, 0] + vertices[291, 0]) / 2
        line = (vertices[SEAM_UPPER] + vertices[SEAM_LOWER])[:, :2] / 2
        bend = np.interp(vertices[:, 0], np.maximum.accumulate(line[:, 0]), line[:, 1])
        # the corners of a smile come level as they come together
        vertices[:, 1] -= min(narrow + 0.35 * purse, 1.0) * around * (bend - line[5, 1])
        draw = 0.30 * narrow * around + 0.28 * purse * inner
        vertices[:, 0] -= draw * from_middle
        vertices[:, 1] += 0.024 * purse * fuller
        vertices[:, 2] -= 0.08 * purse * around

    def _set_lips(self, vertices: np.ndarray, gap: float) -> np.ndarray:
        """Move the lips so that the middle gap is ``gap`` and no pair crosses."""
        upper_y, lower_y = vertices[LIP_UPPER, 1], vertices[LIP_LOWER, 1]
        have = lower_y - upper_y
        middle = len(LIP_UPPER) // 2
        # the tracker reads LIP_CONTACT more between drawn lips than lies there: add nothing
        target = gap
        # the shape of an opening mouth: a flat arch, zero at the corners
        arch = 1 - (np.abs(np.arange(len(LIP_UPPER)) - middle) / (middle + 1)) ** 2.2
        want = np.maximum(have + (target - have[middle]) * arch, 0.0)
        want = np.minimum(want, target * np.minimum(1.15 * arch + 0.15, 1.0))
        change = want - have
        out = vertices.copy()
        out[:, 1] += self._spread[0] @ (-UPPER_SHARE * change)
        out[:, 1] += self._spread[1] @ ((1 - UPPER_SHARE) * change)
        # the spread is smooth; pin the contour itself
        out[LIP_UPPER, 1] = upper_y - UPPER_SHARE * change
        out[LIP_LOWER, 1] = lower_y + (1 - UPPER_SHARE) * change
        return out


def lip_gap(vertices: np.ndarray) -> np.ndarray:
    """Distance of the inner lips at their middle minus the contact bias, eye distances, >= 0.

    Args:
        vertices: ``(..., 478, 3)`` face frame.
    """
    gap = vertices[..., 14, 1] - vertices[..., 13, 1]
    return np.maximum(gap - LIP_CONTACT, 0.0)


def eye_distance(points: np.ndarray) -> np.ndarray:
    """Outer eye corner distance of ``(..., 478, 3)`` points, in their unit."""
    return np.linalg.norm(points[..., LEFT_EYE_OUTER, :] - points[..., RIGHT_EYE_OUTER, :], axis=-1)


def head_transform(motion: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """What the head channels do to a resting head: rotation about ``PIVOT``, shift, scale.

    Args:
        motion: ``(D,)``.

    Returns:
        ``(3, 3)`` rotation, ``(2,)`` shift in eye distances, scale ratio.
    """
    rotation = rotation_of(
        *(float(motion[CHANNEL[c]]) for c in ("head_pitch", "head_yaw", "head_roll"))
    )
    shift = np.array([motion[CHANNEL["shift_x"]], motion[CHANNEL["shift_y"]]], np.float64)
    return rotation, shift, float(np.exp(motion[CHANNEL["scale"]]))


def pose_with(rest: Pose, motion: np.ndarray) -> Pose:
    """The pose of a head resting at ``rest`` once the head channels of ``motion`` act on it."""
    turn, shift, ratio = head_transform(motion)
    pivot = rest.apply(PIVOT)
    moved = pivot + np.array([shift[0], shift[1], 0.0]) * rest.scale
    rotation = turn @ rest.rotation
    scale = rest.scale * ratio
    return Pose(rotation, scale, moved - scale * rotation @ PIVOT)


def measure(vertices: np.ndarray, neutral: np.ndarray) -> np.ndarray:
    """The non-rigid channels of faces whose pose was removed.

    Args:
        vertices: ``(T, 478, 3)`` face frame.
        neutral: ``(478, 3)`` face frame of the same person.

    Returns:
        ``(T, D)`` float32; head and shift channels are zero.
    """
    v, n = vertices.astype(np.float64), neutral[None].astype(np.float64)
    out = np.zeros((len(v), N_CHANNELS))

    def put(name: str, values: np.ndarray) -> None:
        out[:, CHANNEL[name]] = values

    def change(term) -> np.ndarray:
        return term(v) - term(n)

    put("jaw_open", lip_gap(v))
    put("mouth_width", change(lambda a: a[:, 291, 0] - a[:, 61, 0]))
    # protrusion of the lips' middle in front of their corners; 0.12 is a firm pucker
    lips = np.array([0, 37, 267, 17, 84, 314])
    put(
        "lip_rounding",
        change(lambda a: a[:, [61, 291], 2].mean(1) - a[:, lips, 2].mean(1)) / 0.12,
    )
    put("jaw_rotation", change(lambda a: _jaw_angle(a)))
    put("upper_lip_raise", -change(lambda a: a[:, 13, 1] - a[:, 2, 1]))
    put("lower_lip_drop", -change(lambda a: a[:, 152, 1] - a[:, 14, 1]))
    put(
        "lip_press",
        -change(lambda a: (a[:, 13, 1] - a[:, 0, 1] + a[:, 17, 1] - a[:, 14, 1]) / 2),
    )
    put("corner_pull_left", -change(lambda a: a[:, 291, 1]))
    put("corner_pull_right", -change(lambda a: a[:, 61, 1]))
    brows = np.concatenate([BROW_LEFT, BROW_RIGHT])
    put("brow_raise", -change(lambda a: a[:, brows, 1].mean(1)))
    put("brow_furrow", -change(lambda a: a[:, 285, 0] - a[:, 55, 0]))
    gaze = {axis: [] for axis in (0, 1)}
    for side, eye in EYES.items():
        opening = _lid_opening(v, eye)
        rest = max(float(_lid_opening(n, eye)[0]), 1e-3)
        put(f"eye_blink_{side}", 1 - opening / rest)
        for axis in (0, 1):
            gaze[axis].append(change(lambda a, e=eye, k=axis: _iris_offset(a, e, k)))
    # the iris is not seen behind a lid
    visible = np.clip(
        1.5 - 2 * out[:, [CHANNEL["eye_blink_left"], CHANNEL["eye_blink_right"]]].mean(1), 0, 1
    )
    for axis, name in ((0, "gaze_x"), (1, "gaze_y")):
        sine = np.mean(gaze[axis], axis=0) / EYEBALL_RADIUS
        put(name, visible * np.degrees(np.arcsin(np.clip(sine, -0.7, 0.7))))
    return out.astype(np.float32)


def _jaw_angle(a: np.ndarray) -> np.ndarray:
    arm = a[:, 152] - JAW_HINGE
    return np.degrees(np.arctan2(arm[:, 1], -arm[:, 2]))


def _lid_opening(a: np.ndarray, eye: dict) -> np.ndarray:
    rows = slice(1, 6)
    return (a[:, eye["lower"][rows], 1] - a[:, eye["upper"][rows], 1]).mean(1)


def _iris_offset(a: np.ndarray, eye: dict, axis: int) -> np.ndarray:
    return a[:, eye["iris"][0], axis] - a[:, list(eye["corners"]), axis].mean(1)


def _turn_eyes(vertices: np.ndarray, gaze_x: float, gaze_y: float) -> None:
    step = EYEBALL_RADIUS * np.sin(np.radians([gaze_x, gaze_y]))
    for eye in EYES.values():
        vertices[eye["iris"], :2] += step
        # the upper lid rides on the cornea: it follows a third of a vertical glance
        vertices[eye["upper"], 1] += 0.33 * step[1]
        vertices[eye["upper_1"], 1] += 0.2 * step[1]


def _close_lids(vertices: np.ndarray, eye: dict, blink: float) -> None:
    """Move both lids towards their meeting line by ``blink`` (0 open .. 1 closed), in place."""
    upper, lower = vertices[eye["upper"]], vertices[eye["lower"]]
    meet = upper + LID_MEET * (lower - upper)
    down, up = blink * (meet - upper), max(blink, 0.0) * (meet - lower)
    vertices[eye["upper"]] += down
    vertices[eye["lower"]] += up
    vertices[eye["upper_1"]] += LID_SKIN[0] * down
    vertices[eye["upper_2"]] += LID_SKIN[1] * down
    vertices[eye["lower_1"]] += 0.5 * up


def _lip_spread(template: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How a vertical change at the lip contour carries to the skin around: two ``(478, 9)``."""
    spread = []
    middle_y = (template[LIP_UPPER, 1] + template[LIP_LOWER, 1]) / 2
    for rows, side in ((LIP_UPPER, -1), (LIP_LOWER, 1)):
        gap = template[:, None, :2] - template[None, rows, :2]
        reach = 0.10 if side < 0 else 0.22
        weight = np.exp(-((gap[..., 0] / 0.07) ** 2)) + 1e-9
        weight /= weight.sum(1, keepdims=True)
        nearest = np.abs(gap[..., 1]).min(1)
        away = np.exp(-((nearest / reach) ** 2))
        line = np.interp(template[:, 0], template[rows, 0], middle_y)
        on_side = np.clip(0.5 + side * (template[:, 1] - line) / 0.01, 0, 1)
        lateral = np.clip(1.4 - np.abs(template[:, 0]) / 0.35, 0, 1)
        spread.append(weight * (away * on_side * lateral)[:, None])
    spread[0][LIP_LOWER] = 0
    spread[1][LIP_UPPER] = 0
    fixed = np.concatenate([[e for eye in EYES.values() for e in eye["iris"]], [2, 94]])
    for matrix in spread:
        matrix[fixed] = 0
    return spread[0], spread[1]


def _lip_purse(template: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where pursing acts, each ``(478,)``: around the mouth, at the inner rim, and the signed
    fullness (-1 above the upper lip's red, +1 below the lower's)."""
    x, y = template[:, 0], template[:, 1]
    half = (template[291, 0] - template[61, 0]) / 2
    line = np.interp(x, template[SEAM_UPPER, 0], template[SEAM_UPPER, 1])
    around = np.exp(-((np.abs(x) / (1.5 * half)) ** 4) - (np.abs(y - line) / 0.26) ** 4)
    gap = template[:, None, :2] - template[None, LIP_INNER, :2]
    inner = np.exp(-((np.hypot(gap[..., 0], gap[..., 1]).min(1) / 0.03) ** 2))
    inner[LIP_OUTER] = 0
    away = (y - line) / np.where(y < line, 0.07, 0.12)  # 1 at the outer lip line
    bell = np.clip(1 - (x / half) ** 2, 0, 1)
    fuller = bell * away * np.exp(0.5 - 0.5 * away**2)
    still = [2, 94, 97, 326, *(i for eye in EYES.values() for i in eye["iris"])]
    for weights in (around, inner, fuller):
        weights[still] = 0
    return around, inner, fuller


@lru_cache(maxsize=4)
def load_face_model(folder: Path = MODEL_DIR) -> FaceModel:
    """Read ``face.safetensors`` from a model folder.

    Raises:
        ModelError: missing, damaged, or made for other channels.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / "face.safetensors"
    if not path.is_file():
        raise ModelError(f"no face model at {path}; reinstall visavis")
    try:
        with safe_open(path, "numpy") as handle:
            meta = handle.metadata() or {}
            arrays = {k: handle.get_tensor(k) for k in handle.keys()}
    except SafetensorError as err:
        raise ModelError(f"{path} is damaged: {err}; reinstall visavis") from err
    if tuple(json.loads(meta.get("channels", "[]"))) != BASIS_CHANNELS:
        raise ModelError(f"{path} was made for other channels; reinstall visavis")
    basis = arrays["basis"].astype(np.float32)
    return FaceModel(arrays["template"], basis, arrays["triangles"], arrays["mirror"])


__all__ = ["CHANNELS", "FaceModel", "Pose", "fit_pose", "lip_gap", "load_face_model", "measure"]
