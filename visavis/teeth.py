"""The mouth's inside without a net: the photo's own teeth where it shows them, else a generic set.

The generic set is two pictures rendered from CC0 3D assets (``tools/make_mouth_atlas.py``): upper
teeth hang on the skull, lower teeth and tongue ride on the jaw. Both are dimmed to the photo's
light and shaded towards the lips; what lies behind is dark.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from visavis.avatar import Avatar
from visavis.facemodel import LIP_INNER, SEAM_LOWER, SEAM_UPPER, Pose, fit_affine, lip_gap
from visavis.raster import opening_cover
from visavis.types import CHANNEL

ASSETS = Path(__file__).parent / "assets"
SHIFT = 4  # sub-pixel bits of the polygon fill
CHIN = np.array([152, 148, 377, 199, 200, 175])
# Where the incisal edges sit behind shut lips, eye distances from the inner upper lip's middle.
UPPER_EDGE = np.array([0.0, 0.022, 0.10])
LOWER_EDGE = np.array([0.0, 0.052, 0.12])
TOOTH_LIGHT = 150.0  # cheek brightness at which the atlas is shown as it is
LOWER_DIM = 0.66  # lower teeth and tongue lie in the shade of the upper ones
SEAM_GAP = 0.02  # below this gap the line where the lips meet is drawn
OWN_TEETH_GAP = 0.04  # a photo's mouth open this far shows teeth worth keeping
SKIN = np.array([50, 280, 205, 425, 101, 330])


@dataclass(frozen=True)
class OwnTeeth:
    """The photo's own teeth in one frame.

    Attributes:
        area: ``(h, w, 3)`` view into the frame.
        picture: what was painted there.
        cover: ``(h, w, 1)`` float32, how much of each pixel is the photo's own.
    """

    area: np.ndarray
    picture: np.ndarray
    cover: np.ndarray

    def put_back(self) -> None:
        """Undo what was painted over them since."""
        mixed = self.area * (1 - self.cover) + self.picture * self.cover
        self.area[:] = np.round(mixed).astype(np.uint8)


class TeethPainter:
    """Draws the inner mouth of one avatar; constants only."""

    def __init__(self, avatar: Avatar):
        self._atlas = _load_atlas()
        size = avatar.size
        x, y = np.clip(avatar.points[SKIN, :2].astype(int), 0, size - 1).T
        skin = cv2.blur(avatar.image, (5, 5))[y, x].astype(np.float64)
        light = np.median(skin, axis=0)
        grey = max(float(light.mean()), 1.0)
        # teeth take the light's strength, and a little of its colour
        self._light = np.clip(grey / TOOTH_LIGHT, 0.3, 1.1) * (1 + 0.35 * (light / grey - 1))
        middle = avatar.neutral[13].astype(np.float64)
        self._upper = middle + UPPER_EDGE
        self._lower = middle + LOWER_EDGE
        self._chin = avatar.neutral[CHIN].astype(np.float64).mean(0)
        self._own = _own_teeth(avatar)

    def paint(
        self, frame: np.ndarray, face: np.ndarray, pose: Pose, motion: np.ndarray
    ) -> OwnTeeth | None:
        """Fill the inner mouth of a frame, in place.

        Args:
            frame: ``(S, S, 3)`` uint8 RGB with the face already drawn.
            face: ``(478, 3)`` posed pixels.
            pose: of the head.
            motion: ``(D,)``.

        Returns:
            Where the photo's own teeth were laid, for whoever paints over this.
        """
        gap = float(motion[CHANNEL["jaw_open"]])
        ring = face[LIP_INNER, :2]
        if self._own is not None and gap < SEAM_GAP:
            self._close_seam(frame, face, 1 - gap / SEAM_GAP)
        low = np.maximum(np.floor(ring.min(0)).astype(int) - 2, 0)
        high = np.minimum(np.ceil(ring.max(0)).astype(int) + 3, frame.shape[0])
        if gap <= 0 or (high <= low).any():
            return None
        shape = (int(high[1] - low[1]), int(high[0] - low[0]))
        cover = opening_cover(ring - low, shape)
        inside = np.empty((*shape, 3), np.float32)
        inside[:] = self._atlas["cavity"] * self._light
        jaw = pose.remove(face[CHIN]).mean(0) - self._chin
        for layer, place in (("lower", self._lower + jaw), ("upper", self._upper)):
            self._lay(inside, layer, place, pose, low)
        shade = _shade(cover, pose.scale, gap)
        inside *= shade
        # the photo's teeth have their light already: they only darken as the mouth shuts
        own = None if self._own is None else self._lay_own(inside, pose, low, np.sqrt(shade))
        area = frame[low[1] : high[1], low[0] : high[0]]
        cover = cover[..., None]
        area[:] = np.round(area * (1 - cover) + inside * cover).astype(np.uint8)
        return None if own is None else OwnTeeth(area, area.copy(), own * cover)

    def _close_seam(self, frame: np.ndarray, face: np.ndarray, strength: float) -> None:
        """Where a smiling photo's lips are shut, the rim of its teeth would shine between them."""
        line = (face[SEAM_UPPER, :2] + face[SEAM_LOWER, :2]) / 2
        low = np.maximum(np.floor(line.min(0)).astype(int) - 4, 0)
        high = np.minimum(np.ceil(line.max(0)).astype(int) + 5, frame.shape[0])
        if (high <= low).any():
            return
        area = frame[low[1] : high[1], low[0] : high[0]]
        mask = np.zeros(area.shape[:2], np.uint8)
        pixels = np.round((line - low) * 2**SHIFT).astype(np.int32)
        cv2.polylines(mask, [pixels], False, 255, 2, cv2.LINE_AA, SHIFT)
        cover = cv2.GaussianBlur(mask, (0, 0), 0.7).astype(np.float32)[..., None] / 255 * strength
        # the darkest of the neighbourhood: the shadow line of lips that touch
        dark = cv2.erode(area, np.ones((7, 5), np.uint8)).astype(np.float32) * 0.8
        area[:] = np.round(area * (1 - cover) + dark * cover).astype(np.uint8)

    def _lay(
        self, inside: np.ndarray, layer: str, place: np.ndarray, pose: Pose, low: np.ndarray
    ) -> None:
        picture, anchor, density = self._atlas[layer]
        axes = pose.rotation[:2, :2] * (pose.scale / density)
        centre = pose.apply(place)[:2] - low
        matrix = np.concatenate([axes, (centre - axes @ anchor)[:, None]], 1)
        size = (inside.shape[1], inside.shape[0])
        warped = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR)
        alpha = warped[..., 3:]
        inside *= 1 - alpha
        dim = LOWER_DIM if layer == "lower" else 1.0
        inside += warped[..., :3] * (dim * self._light).astype(np.float32)

    def _lay_own(
        self, inside: np.ndarray, pose: Pose, low: np.ndarray, shade: np.ndarray
    ) -> np.ndarray:
        picture, place = self._own
        matrix = fit_affine(place["pixels"], pose.apply(place["face"])[:, :2] - low)
        size = (inside.shape[1], inside.shape[0])
        warped = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR)
        alpha = warped[..., 3:]
        inside *= 1 - alpha
        inside += warped[..., :3] * shade
        return alpha


def _own_teeth(avatar: Avatar) -> tuple[np.ndarray, dict] | None:
    """The photo's inner mouth as premultiplied RGBA float32, and where it sits on the skull."""
    face = avatar.rest.remove(avatar.points.astype(np.float64))
    if float(lip_gap(face)) < OWN_TEETH_GAP:
        return None
    ring = avatar.points[LIP_INNER, :2]
    low = np.maximum(np.floor(ring.min(0)).astype(int) - 3, 0)
    high = np.minimum(np.ceil(ring.max(0)).astype(int) + 4, avatar.size)
    mask = opening_cover(ring - low, (int(high[1] - low[1]), int(high[0] - low[0])))
    soft = cv2.GaussianBlur(cv2.erode(mask, np.ones((3, 3))), (0, 0), 1.0)[..., None]
    colour = avatar.image[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    picture = np.dstack([colour * soft, soft])
    return picture, {"pixels": (ring - low).astype(np.float64), "face": face[LIP_INNER]}


def _shade(cover: np.ndarray, unit: float, gap: float) -> np.ndarray:
    """Light inside the mouth, ``(h, w, 1)``: less near the lips, less in a small opening."""
    depth = cv2.GaussianBlur(cover, (0, 0), max(0.035 * unit, 0.5))
    open_share = np.clip(gap / 0.10, 0, 1)
    shade = (0.34 + 0.41 * open_share) + (0.25 + 0.05 * open_share) * depth
    # what little light comes in has passed lips and gums: it is warm
    return shade[..., None] ** np.array([0.85, 1.05, 1.1], np.float32)


@lru_cache(maxsize=1)
def _load_atlas() -> dict:
    """Layers: premultiplied RGBA (0..255, alpha 0..1), anchor px, px per eye distance."""
    card = json.loads((ASSETS / "mouth_atlas.json").read_text())
    sheet = cv2.imread(str(ASSETS / "mouth_atlas.png"), cv2.IMREAD_UNCHANGED)
    sheet = cv2.cvtColor(sheet, cv2.COLOR_BGRA2RGBA).astype(np.float32)
    atlas: dict = {"cavity": np.array(card["cavity_rgb"], np.float32)}
    for name, layer in card["layers"].items():
        x, y, width, height = layer["rect"]
        piece = sheet[y : y + height, x : x + width]
        # halve it: closer to the size it is shown at, so that warpAffine does not alias
        piece = cv2.resize(piece, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        alpha = piece[..., 3:] / 255
        picture = np.dstack([piece[..., :3] * alpha, alpha]).astype(np.float32)
        anchor = (np.array(layer["anchor"], np.float64) + 0.5) / 2 - 0.5
        atlas[name] = (picture, anchor, card["px_per_eye_distance"] / 2)
    return atlas
