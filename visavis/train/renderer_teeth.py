"""The generic teeth as tier `mesh` lays them, for training: drawn, lit, fitted to real ones."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from visavis.errors import ModelError
from visavis.mouth import SIZE, SPAN, tooth_origins

OVERBITE = 3.5  # crop px by which the upper incisors reach below the line where teeth meet
LOWER_DROP = 6.5  # and by which lower ones stay below it: means over 70 registered stills
LOWER_DIM = 0.66  # as tier `mesh` dims lower teeth and tongue


class Teeth:
    """The generic teeth of ``mouth_atlas.png``, ready to be laid into a crop. Constants only.

    Args:
        folder: where ``mouth_atlas.png`` and ``mouth_atlas.json`` lie; the package's by default.

    Raises:
        ModelError: the atlas is missing or damaged.
    """

    def __init__(self, folder: str | Path | None = None):
        home = Path(folder) if folder else Path(__file__).parents[1] / "assets"
        try:
            about = json.loads((home / "mouth_atlas.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise ModelError(f"no readable mouth_atlas.json in {home}: {err}") from err
        sheet = cv2.imread(str(home / "mouth_atlas.png"), cv2.IMREAD_UNCHANGED)
        if sheet is None or sheet.shape[2] != 4:
            raise ModelError(f"no RGBA mouth_atlas.png in {home}; run tools/make_mouth_atlas.py")
        self._cavity = np.array(about["cavity_rgb"], np.float32) / 255
        self._zoom = 2.0  # layers are kept at twice the crop's scale and halved by the warp
        shrink = self._zoom * SIZE / SPAN / about["px_per_eye_distance"]
        self._layers = {}
        for name, layer in about["layers"].items():
            x, y, width, height = layer["rect"]
            rgba = sheet[y : y + height, x : x + width, [2, 1, 0, 3]].astype(np.float32) / 255
            rgba[..., :3] *= rgba[..., 3:]
            size = (round(width * shrink), round(height * shrink))
            rgba = cv2.resize(rgba, size, interpolation=cv2.INTER_AREA)
            anchor = (np.array(layer["anchor"]) + 0.5) * (size[0] / width, size[1] / height) - 0.5
            self._layers[name] = rgba, anchor

    def lay(
        self,
        points: np.ndarray,
        shift_x: float = 0.0,
        scale: float = 1.0,
        up_y: float = 0.0,
        low_y: float = 0.0,
    ) -> np.ndarray:
        """Upper teeth in the skull's frame, lower ones in the jaw's, ``(SIZE, SIZE, 3)`` 0..1.

        Args:
            points: ``(478, >=2)`` in crop px.
            shift_x: moves both rows, crop px.
            scale: enlarges both about their anchors.
            up_y, low_y: move the upper and the lower row down, crop px.
        """
        origin_x, skull_y, jaw_x, jaw_y = tooth_origins(points)
        out = np.broadcast_to(self._cavity, (SIZE, SIZE, 3))
        for name, at in (
            ("lower", (jaw_x, jaw_y + LOWER_DROP + low_y)),
            ("upper", (origin_x, skull_y + OVERBITE + up_y)),
        ):
            rgba, anchor = self._layers[name]
            zoom = scale / self._zoom
            shift = np.array([at[0] + shift_x, at[1]]) - zoom * anchor
            matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
            laid = cv2.warpAffine(rgba, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR)
            out = out * (1 - laid[..., 3:]) + laid[..., :3] * (
                LOWER_DIM if name == "lower" else 1.0
            )
        return out


def teeth_light(picture: np.ndarray, lips: np.ndarray) -> float:
    """How bright the generic teeth look in a picture's light, about 0.3..1.1, from its skin."""
    skin = picture.mean(2) * (1 - lips)
    return float(np.clip(skin.sum() / ((1 - lips).sum() + 1) / 150.0, 0.3, 1.1))


def mesh_shade(inner: np.ndarray, gap: float) -> np.ndarray:
    """The light that tier `mesh` lets into a mouth, ``(SIZE, SIZE, 3)``; see `visavis.teeth`."""
    depth = cv2.GaussianBlur(inner, (0, 0), 0.035 * SIZE / SPAN)
    share = min(max(gap / 0.10, 0.0), 1.0)
    shade = (0.34 + 0.41 * share) + (0.25 + 0.05 * share) * depth
    return shade[..., None] ** np.array([0.85, 1.05, 1.1], np.float32)


def register_teeth(
    teeth: Teeth, real: np.ndarray, points: np.ndarray, inner: np.ndarray
) -> tuple[float, float, float, float]:
    """Arguments of `Teeth.lay` at which the generic teeth match the real ones best.

    Only in training: so the net learns that teeth stand where tier `mesh` has put them, which at
    run time knows the person's lips at rest. Gaps between teeth find the shift and the scale, then
    light finds both heights.
    """
    if inner.sum() < 120:
        return 0.0, 1.0, 0.0, 0.0
    rows, columns = np.flatnonzero(inner.max(1) > 0.5), np.flatnonzero(inner.max(0) > 0.5)
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    light = cv2.cvtColor(real, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mask = cv2.erode(inner, np.ones((3, 3)))[box]
    target = _edges(light)[box] * mask
    best = (-1.0, 0.0, 1.0)
    for scale in (0.9, 1.0, 1.1):
        laid = cv2.cvtColor(teeth.lay(points, 0.0, scale), cv2.COLOR_RGB2GRAY)
        edges = cv2.copyMakeBorder(_edges(laid * 255), 3, 3, 6, 6, cv2.BORDER_REPLICATE)
        near = edges[box[0].start : box[0].stop + 6, box[1].start : box[1].stop + 12]
        score = cv2.matchTemplate(near, target, cv2.TM_CCORR_NORMED).max(0)
        k = int(score.argmax())
        if score[k] > best[0]:
            best = (float(score[k]), 6.0 - k, scale)
    _, shift, scale = best
    target = _centred(light[box], mask)
    height, most = (0.0, 0.0), -1.0
    for up in range(-6, 9, 4):
        for low in range(-9, 10, 6):
            laid = cv2.cvtColor(teeth.lay(points, shift, scale, up, low), cv2.COLOR_RGB2GRAY)
            score = float((_centred(laid[box], mask) * target).sum())
            if score > most:
                height, most = (float(up), float(low)), score
    return shift, scale, *height


def _centred(light: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Zero mean, unit length under the mask."""
    x = (light - (light * mask).sum() / (mask.sum() + 1e-6)) * mask
    return x / (np.linalg.norm(x) + 1e-6)


def _edges(light: np.ndarray) -> np.ndarray:
    """What is darker than its left and right: the gaps between teeth."""
    wide = cv2.blur(light, (9, 1))
    return np.maximum(cv2.blur(wide - light, (1, 3)), 0)
