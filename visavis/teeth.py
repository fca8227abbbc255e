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
from visavis.facemodel import (
    LIP_INNER,
    LIP_OUTER,
    SEAM_LOWER,
    SEAM_UPPER,
    Pose,
    fit_affine,
    lip_gap,
)
from visavis.raster import opening_cover
from visavis.softness import LEAST_BLUR, soften_edge
from visavis.types import CHANNEL

ASSETS = Path(__file__).parent / "assets"
SHIFT = 4  # sub-pixel bits of the polygon fill
CHIN = np.array([152, 148, 377, 199, 200, 175])
# Where the incisal edges sit behind shut lips, eye distances from the inner upper lip's middle.
UPPER_EDGE = np.array([0.0, 0.022, 0.10])
LOWER_EDGE = np.array([0.0, 0.052, 0.12])
TOOTH_LIGHT = 150.0  # cheek brightness at which the atlas is shown as it is
LOWER_DIM = 0.66  # lower teeth and tongue lie in the shade of the upper ones
SEAM_GAP = 0.02  # below this gap the seam is drawn, and the dark between the lips fades
SEAM_LIGHT = 0.5  # of the lips about it, at least: no seam is black
OWN_TEETH_GAP = 0.04  # a photo's mouth open this far shows teeth worth keeping
SKIN = np.array([50, 280, 205, 425, 101, 330])
LIPS = np.concatenate([LIP_INNER, LIP_OUTER])
UPPER_ROW = np.array([int(np.flatnonzero(LIP_INNER == i)[0]) for i in SEAM_UPPER])  # in LIP_INNER
UPPER_LIP = np.array([38, 268, 12, 41, 271])  # on the red of it
GUM_LIGHT = 0.75  # of the upper lip's, in its shade
COLOURED = 0.16  # chroma of the cheeks below which a photo counts as monochrome by degrees
WARM = np.array([0.85, 1.05, 1.1])  # exponents: light that has passed lips and gums
OPENED = (0.015, 0.065)  # wider than the photo by this much, eye distances: only its teeth stay


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
    """Draws the inner mouth of one avatar; constants only.

    Args:
        avatar: who.
        blur: px by which what is drawn is blurred, to be no sharper than the photo.
    """

    def __init__(self, avatar: Avatar, blur: float = 0.0):
        self._atlas, self._blur = _load_atlas(), blur
        size = avatar.size
        x, y = np.clip(avatar.points[SKIN, :2].astype(int), 0, size - 1).T
        skin = cv2.blur(avatar.image, (5, 5))[y, x].astype(np.float64)
        light = np.median(skin, axis=0)
        grey = max(float(light.mean()), 1.0)
        self._colour = float(np.clip(np.ptp(light) / grey / COLOURED, 0, 1))
        # teeth take the light's strength, and a little of its colour
        self._light = np.clip(grey / TOOTH_LIGHT, 0.3, 1.1) * (1 + 0.35 * (light / grey - 1))
        middle = avatar.neutral[13].astype(np.float64)
        self._upper = middle + UPPER_EDGE
        self._lower = middle + LOWER_EDGE
        self._chin = avatar.neutral[CHIN].astype(np.float64).mean(0)
        self._own = _own_teeth(avatar)
        self._lips = _photo_lips(avatar)
        if self._own is not None:
            self._light = self._light * _tooth_tone(self._own, self._atlas["upper"], self._light)

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
        if gap < SEAM_GAP:
            mend = self._fill_seam if self._own is None else self._close_seam
            mend(frame, face, 1 - gap / SEAM_GAP)
        reach = 2 + int(np.ceil(2 * self._blur))
        low = np.maximum(np.floor(ring.min(0)).astype(int) - reach, 0)
        high = np.minimum(np.ceil(ring.max(0)).astype(int) + reach + 1, frame.shape[0])
        if gap <= 0 or (high <= low).any():
            return None
        shape = (int(high[1] - low[1]), int(high[0] - low[0]))
        cover = opening_cover(ring - low, shape) * _opened(gap)
        inside = np.empty((*shape, 3), np.float32)
        inside[:] = self._atlas["cavity"] * self._light
        jaw = pose.remove(face[CHIN]).mean(0) - self._chin
        self._lay(inside, "lower", self._lower + jaw, pose, low)
        if self._own is None or self._own.gum is None:
            self._lay(inside, "upper", self._upper, pose, low)
        else:
            self._lay_gum(inside, pose, low)
        shade = _shade(cover, pose.scale, gap) ** (1 + self._colour * (WARM - 1)).astype(np.float32)
        inside *= shade
        if self._colour < 1:
            pale = inside.mean(-1, keepdims=True)
            inside = pale + self._colour * (inside - pale)
        if self._blur > LEAST_BLUR:
            inside = cv2.GaussianBlur(inside, (0, 0), self._blur)
        # the photo's teeth have their light already: they only darken as the mouth shuts
        own = None
        if self._own is not None:
            own = self._lay_own(inside, pose, low, np.sqrt(shade), gap)
        area = frame[low[1] : high[1], low[0] : high[0]]
        cover = cover[..., None]
        mixed = np.minimum(area * (1 - cover) + inside * cover, 255)
        area[:] = np.round(mixed).astype(np.uint8)
        if self._blur > LEAST_BLUR:  # not before: what lies beneath would shine through
            soften_edge(area, cover[..., 0], self._blur)
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
        soft = cv2.GaussianBlur(mask, (0, 0), max(0.7, self._blur))
        cover = soft.astype(np.float32)[..., None] / 255 * strength
        # the darkest of the neighbourhood: the shadow line of lips that touch
        dark = cv2.erode(area, np.ones((7, 5), np.uint8)).astype(np.float32) * 0.8
        dark = np.maximum(dark, SEAM_LIGHT * cv2.blur(area, (9, 9)).astype(np.float32))
        area[:] = np.round(area * (1 - cover) + dark * cover).astype(np.uint8)

    def _fill_seam(self, frame: np.ndarray, face: np.ndarray, strength: float) -> None:
        """Where shut lips do not meet to the pixel (a turned head), the unmoved photo would glint."""
        ring = face[LIP_INNER, :2]
        low = np.maximum(np.floor(ring.min(0)).astype(int) - 2, 0)
        high = np.minimum(np.ceil(ring.max(0)).astype(int) + 3, frame.shape[0])
        if (high <= low).any():
            return
        area = frame[low[1] : high[1], low[0] : high[0]]
        mask = np.zeros(area.shape[:2], np.uint8)
        outline = np.round((ring - low) * 2**SHIFT).astype(np.int32)
        cv2.fillPoly(mask, [outline], 255, cv2.LINE_8, SHIFT)
        cover = (mask.astype(np.float32) / 255 * strength)[..., None]
        moved = fit_affine(self._lips[1], face[LIPS, :2] - low)
        size = (area.shape[1], area.shape[0])
        lips = cv2.warpAffine(self._lips[0], moved, size, borderMode=cv2.BORDER_REPLICATE)
        area[:] = np.round(area * (1 - cover) + lips * cover).astype(np.uint8)

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

    def _lay_gum(self, inside: np.ndarray, pose: Pose, low: np.ndarray) -> None:
        """A lip that rises further than in the photo bares the gum above the photo's own teeth."""
        line = pose.apply(self._own.face[UPPER_ROW])[:, :2] - low
        above = np.concatenate([line, [[line[-1, 0], -9.0], [line[0, 0], -9.0]]])
        mask = np.zeros(inside.shape[:2], np.uint8)
        pixels = np.round(above * 2**SHIFT).astype(np.int32)
        cv2.fillPoly(mask, [pixels], 255, cv2.LINE_AA, SHIFT)
        soft = cv2.GaussianBlur(mask, (0, 0), max(0.008 * pose.scale, 0.7))
        cover = soft.astype(np.float32)[..., None] / 255
        inside += cover * (self._own.gum - inside)

    def _lay_own(
        self, inside: np.ndarray, pose: Pose, low: np.ndarray, shade: np.ndarray, gap: float
    ) -> np.ndarray:
        own = self._own
        # tongue and lower lip of the photo cannot follow a jaw that drops further
        wider = (gap - own.gap - OPENED[0]) / (OPENED[1] - OPENED[0])
        wider = np.float32(np.clip(wider, 0, 1))
        picture = own.picture if wider == 0 else own.picture * (1 - wider * (1 - own.teeth))
        matrix = fit_affine(own.pixels, pose.apply(own.face)[:, :2] - low)
        size = (inside.shape[1], inside.shape[0])
        warped = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR)
        alpha = warped[..., 3:]
        inside *= 1 - alpha
        inside += warped[..., :3] * shade
        return alpha


@dataclass(frozen=True)
class _PhotoMouth:
    """The photo's inner mouth, and where it sits on the skull.

    Attributes:
        picture: ``(h, w, 4)`` float32, premultiplied RGBA (0..255, alpha 0..1).
        teeth: ``(h, w, 1)`` float32, 1 from the top down to the edge of the teeth, 0 below.
        pixels: ``(N, 2)`` inner lip line in the picture.
        face: ``(N, 3)`` the same in the face frame.
        gap: opening of the photo's mouth, eye distances.
        gum: ``(3,)`` float32 grey levels, what is above upper teeth; None where the photo shows none.
    """

    picture: np.ndarray
    teeth: np.ndarray
    pixels: np.ndarray
    face: np.ndarray
    gap: float
    gum: np.ndarray | None


def _own_teeth(avatar: Avatar) -> _PhotoMouth | None:
    """What the photo shows between its lips; None where that is too little."""
    face = avatar.rest.remove(avatar.points.astype(np.float64))
    gap = float(lip_gap(face))
    if gap < OWN_TEETH_GAP:
        return None
    ring = avatar.points[LIP_INNER, :2]
    low = np.maximum(np.floor(ring.min(0)).astype(int) - 3, 0)
    high = np.minimum(np.ceil(ring.max(0)).astype(int) + 4, avatar.size)
    mask = opening_cover(ring - low, (int(high[1] - low[1]), int(high[0] - low[0])))
    soft = cv2.GaussianBlur(cv2.erode(mask, np.ones((3, 3))), (0, 0), 1.0)[..., None]
    colour = avatar.image[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    picture = np.dstack([colour * soft, soft])
    teeth = _tooth_mask(colour, soft, avatar.rest.scale)
    gum = None
    if _shows_teeth(picture, teeth):
        x, y = avatar.points[UPPER_LIP, :2].astype(int).T
        gum = GUM_LIGHT * np.median(avatar.image[y, x], axis=0).astype(np.float32)
    return _PhotoMouth(picture, teeth, (ring - low).astype(np.float64), face[LIP_INNER], gap, gum)


def _shows_teeth(picture: np.ndarray, teeth: np.ndarray) -> bool:
    """Whether a good part of a mouth's picture is teeth."""
    return bool((teeth[picture[..., 3] > 0.9] > 0.8).mean() >= 0.1)


def _tooth_mask(colour: np.ndarray, soft: np.ndarray, unit: float) -> np.ndarray:
    """An inner mouth from its top down to the edge of the teeth (bright, hardly red).

    Returns:
        ``(h, w, 1)`` float32, 1 there, with soft edges.
    """
    sure = soft[..., 0] > 0.9
    if not sure.any():
        return soft
    light = colour.mean(-1)
    bright = float(np.quantile(light[sure], 0.92))
    redness = (colour[..., 0] - colour[..., 1]) / np.maximum(light, 1)
    usual = float(np.median(redness[sure & (light > 0.85 * bright)]))
    tooth = sure & (light > 0.55 * bright) & (redness < usual + 0.18)
    reach = max(1, round(0.012 * unit))
    opening = np.ones((reach + 1, reach + 1))
    tooth = cv2.morphologyEx(tooth.astype(np.float32), cv2.MORPH_OPEN, opening)
    tooth = cv2.dilate(tooth, np.ones((1, 4 * reach + 1)))
    # gaps and gums above the lowest edge stay with the teeth
    above = np.maximum.accumulate(tooth[::-1])[::-1]
    return cv2.GaussianBlur(above, (0, 0), max(0.008 * unit, 0.7))[..., None]


def _tooth_tone(own: _PhotoMouth, upper: tuple, light: np.ndarray) -> np.ndarray:
    """What makes generic teeth as light as the photo's own, ``(3,)``; 1 where it shows none."""
    if own.gum is None:
        return np.ones(3)
    whole = own.picture[..., 3] > 0.9
    generic = _brightest(upper[0][upper[0][..., 3] > 0.9][:, :3]) * light
    return np.clip(_brightest(own.picture[whole][:, :3]) / np.maximum(generic, 1), 0.6, 1.5)


def _brightest(colours: np.ndarray) -> np.ndarray:
    """Mean of the brighter third of ``(N, 3)``: enamel, no gaps, no gums."""
    light = colours.mean(1)
    return colours[light >= np.quantile(light, 0.67)].mean(0)


def _photo_lips(avatar: Avatar) -> tuple[np.ndarray, np.ndarray]:
    """The photo about its lips, uint8, and where the lip lines run in it, ``(40, 2)`` px."""
    line = avatar.points[LIPS, :2].astype(np.float64)
    low = np.maximum(np.floor(line.min(0)).astype(int) - 4, 0)
    high = np.minimum(np.ceil(line.max(0)).astype(int) + 5, avatar.size)
    # lips a little apart show what is between them: the dark of it is the seam
    parted = float(lip_gap(avatar.rest.remove(avatar.points.astype(np.float64)))) > 0.01
    photo = cv2.erode(avatar.image, np.ones((5, 3), np.uint8)) if parted else avatar.image
    return np.ascontiguousarray(photo[low[1] : high[1], low[0] : high[0]]), line - low


def _opened(gap: float) -> np.float32:
    """How much of the mouth's inside shows, 0..1: lips that hardly part show no black line."""
    t = min(gap / SEAM_GAP, 1.0)
    return np.float32(t * t * (3 - 2 * t))


def _shade(cover: np.ndarray, unit: float, gap: float) -> np.ndarray:
    """Light inside the mouth, ``(h, w, 1)``: less near the lips, less in a small opening."""
    depth = cv2.GaussianBlur(cover, (0, 0), max(0.035 * unit, 0.5))
    open_share = np.clip(gap / 0.10, 0, 1)
    shade = (0.34 + 0.41 * open_share) + (0.25 + 0.05 * open_share) * depth
    return shade[..., None].astype(np.float32)


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
