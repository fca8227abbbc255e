"""Eyes: an eyeball that turns behind the lids, shown through the opening the lids leave."""

from __future__ import annotations

import cv2
import numpy as np
from numba import njit

from visavis.avatar import Avatar
from visavis.facemodel import EYEBALL_RADIUS, EYES, fit_affine
from visavis.matte import diffuse
from visavis.raster import opening_cover
from visavis.softness import LEAST_BLUR, soften_edge
from visavis.types import CHANNEL

SCALE = 2  # of the stored eye pictures against the frame
FINE = 4  # finer grid on which the opening between the lids is drawn
# A light's reflection moves less than the iris: the cornea's centre of curvature lies 5.6 mm in front
# of the eye's centre of rotation, the pupil 9.8 mm (Gullstrand's eye).
GLINT_SHARE = 0.57
GLINT_SIZE = 0.45  # of the iris' radius: brighter specks up to this size are reflections
GLINT_WITHIN = (0.7, 0.3)  # iris radii: this far from its middle, and this far below at most
GLINT_LEAST = 25.0  # grey levels above the iris around it


class EyePainter:
    """Draws both eyes of one avatar; constants only.

    Args:
        avatar: who.
        blur: px by which the edges of the lids are blurred, to be no sharper than the photo.
    """

    def __init__(self, avatar: Avatar, blur: float = 0.0):
        self._eyes = [_Eye(avatar, eye, blur) for eye in EYES.values()]

    def paint(self, frame: np.ndarray, face: np.ndarray, motion: np.ndarray) -> None:
        """Lay the eyes into a frame, in place.

        Args:
            frame: ``(S, S, 3)`` uint8 RGB with the face already drawn.
            face: ``(478, 3)`` posed pixels.
            motion: ``(D,)``.
        """
        gaze = np.array([motion[CHANNEL["gaze_x"]], motion[CHANNEL["gaze_y"]]], np.float64)
        for eye in self._eyes:
            eye.paint(frame, face, gaze)


class _Eye:
    def __init__(self, avatar: Avatar, eye: dict, blur: float):
        self._blur = blur
        inner, outer = eye["corners"]
        self._ring = np.concatenate([[inner], eye["upper"], [outer], eye["lower"][::-1]])
        self._anchor = np.concatenate([[inner, outer], eye["lower_1"], eye["upper_2"]])
        points = avatar.points[:, :2].astype(np.float64)
        ring = points[self._ring]
        width = float(np.linalg.norm(points[inner] - points[outer]))
        low = np.floor(ring.min(0) - 0.35 * width).astype(int)
        high = np.ceil(ring.max(0) + 0.35 * width).astype(int)
        low, high = np.maximum(low, 0), np.minimum(high, avatar.size - 1)
        self._origin = low.astype(np.float64)
        piece = avatar.image[low[1] : high[1] + 1, low[0] : high[0] + 1]
        big = cv2.resize(piece, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
        local = (ring - low + 0.5) * SCALE - 0.5
        seen = np.zeros(big.shape[:2], np.uint8)
        cv2.fillPoly(seen, [np.round(local * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
        # the lash line belongs to the lids
        rim = max(1, round(0.012 * width * SCALE))
        seen = cv2.erode(seen, np.ones((rim * 2 + 1, rim + 1), np.uint8))
        known = seen.astype(np.float32)
        if known.any():
            filled = diffuse(big.astype(np.float32), known)
            big = np.clip(filled, 0, 255).astype(np.uint8)
        self._source = points
        iris = eye["iris"]
        self._iris = points[iris[0]]
        radius = np.linalg.norm(points[iris[1:]] - self._iris, axis=1).mean()
        self._radius = float(max(radius, 0.1 * width))
        middle = (self._iris - low + 0.5) * SCALE - 0.5
        self._picture, self._glint = _lift_glint(big, middle, self._radius * SCALE)
        self._unit = avatar.rest.scale
        self._open = float(np.linalg.norm(ring[4] - ring[12]))

    def paint(self, frame: np.ndarray, face: np.ndarray, gaze: np.ndarray) -> None:
        ring = face[self._ring, :2]
        size = frame.shape[0]
        low = np.maximum(np.floor(ring.min(0)).astype(int) - 2, 0)
        high = np.minimum(np.ceil(ring.max(0)).astype(int) + 3, size)
        if (high <= low).any():
            return
        opening = float(np.linalg.norm(ring[4] - ring[12])) / max(self._open, 1e-3)
        cover = _eye_cover(ring - low, (int(high[1] - low[1]), int(high[0] - low[0])), opening)
        back = fit_affine(face[self._anchor, :2], self._source[self._anchor])
        step = self._unit * EYEBALL_RADIUS * np.sin(np.radians(gaze))
        # the upper lid shades the eyeball, the more the lower it hangs
        shade = 0.35 * min(max(1 - opening, 0.0), 1.0)
        height = max(float(ring[:, 1].max() - ring[:, 1].min()), 1.0)
        _lay_eye(
            frame, low, cover, self._picture, self._glint, back, self._origin, self._iris, step, self._radius,
            float(ring[1:8, 1].mean()), height, shade,
        )  # fmt: skip
        if self._blur > LEAST_BLUR:
            soften_edge(frame[low[1] : high[1], low[0] : high[0]], cover, self._blur)


def _eye_cover(ring: np.ndarray, shape: tuple[int, int], opening: float) -> np.ndarray:
    """How much of each pixel is eyeball, ``(h, w)`` float32 in 0..1.

    An open eye ends at its lids to a fraction of a pixel: a wider rim draws a line on the lower lid.
    Lids that nearly meet are covered as `opening_cover` does, so that no unmoved photo shows.

    Args:
        ring: ``(16, 2)`` lid line, px.
        shape: rows, columns.
        opening: of the lids, against the photo's.
    """
    apart = float(np.clip((opening - 0.15) / 0.25, 0, 1))
    wide = opening_cover(ring, shape) if apart < 1 else np.zeros(shape, np.float32)
    if apart == 0:
        return wide
    fine = np.zeros((shape[0] * FINE, shape[1] * FINE), np.uint8)
    line = [np.round(((ring + 0.5) * FINE - 0.5) * 16).astype(np.int32)]
    cv2.fillPoly(fine, line, 255, cv2.LINE_8, 4)
    cv2.polylines(fine, line, True, 0, 1, cv2.LINE_8, 4)
    area = cv2.resize(fine, shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    # a pixel whose middle lies inside holds nothing of the mesh: it is covered whole
    exact = np.minimum(area * 2.6, 1)
    return wide * (1 - apart) + exact * apart


@njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _lay_eye(
    frame: np.ndarray,
    low: np.ndarray,
    cover: np.ndarray,
    picture: np.ndarray,
    glint: np.ndarray,
    back: np.ndarray,
    origin: np.ndarray,
    iris: np.ndarray,
    step: np.ndarray,
    radius: float,
    top: float,
    height: float,
    shade: float,
) -> None:
    """Fetch an eyeball's pixels and lay them into its opening, in place.

    Args:
        frame: ``(S, S, 3)`` uint8.
        low: x and y of the opening's box in the frame.
        cover: ``(h, w)`` float32 of that box.
        picture: ``(h', w', 3)`` uint8, the eye at rest at ``SCALE``, without reflections.
        glint: ``(h', w', 3)`` uint8, the reflections, to be added.
        back: ``(2, 3)``, frame px to photo px.
        origin: x and y of the picture in the photo.
        iris: its middle in the photo.
        step: how far the gaze carries the iris, photo px.
        radius: of the iris, photo px.
        top: row of the upper lid.
        height: of the opening, px.
        shade: how dark the lid's shadow is, 0..1.
    """
    right, bottom = picture.shape[1] - 1.001, picture.shape[0] - 1.001
    for row in range(cover.shape[0]):
        y = row + low[1]
        light = 1 - shade * (1 - min(max((y - top) / (0.5 * height), 0.0), 1.0))
        for column in range(cover.shape[1]):
            share = cover[row, column]
            if share <= 0:
                continue
            x = column + low[0]
            sx = back[0, 0] * x + back[0, 1] * y + back[0, 2]
            sy = back[1, 0] * x + back[1, 1] * y + back[1, 2]
            # the iris goes with the gaze, the white stretches between it and the corners
            away = np.hypot(sx - iris[0] - step[0], sy - iris[1] - step[1]) / radius
            hold = min(max((2.6 - away) / 1.4, 0.0), 1.0)
            hold = hold * hold * (3 - 2 * hold)
            px = (sx - step[0] * hold - origin[0] + 0.5) * SCALE - 0.5
            py = (sy - step[1] * hold - origin[1] + 0.5) * SCALE - 0.5
            gx = (sx - step[0] * GLINT_SHARE - origin[0] + 0.5) * SCALE - 0.5
            gy = (sy - step[1] * GLINT_SHARE - origin[1] + 0.5) * SCALE - 0.5
            px, py = min(max(px, 0.0), right), min(max(py, 0.0), bottom)
            gx, gy = min(max(gx, 0.0), right), min(max(gy, 0.0), bottom)
            for c in range(3):
                colour = _between(picture, px, py, c) + _between(glint, gx, gy, c)
                colour = min(colour * light, 255.0)
                under = frame[y, x, c]
                frame[y, x, c] = np.uint8(under + (colour - under) * share + 0.5)


@njit(inline="always")
def _between(picture, x, y, c):
    """Bilinear fetch of one colour."""
    ix, iy = int(x), int(y)
    fx, fy = x - ix, y - iy
    upper = picture[iy, ix, c] * (1 - fx) + picture[iy, ix + 1, c] * fx
    lower = picture[iy + 1, ix, c] * (1 - fx) + picture[iy + 1, ix + 1, c] * fx
    return upper * (1 - fy) + lower * fy


def _lift_glint(
    eye: np.ndarray, middle: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Take the reflections off an iris: ``eye = bare + glint`` exactly.

    Args:
        eye: ``(h, w, 3)`` uint8.
        middle: x and y of the iris.
        radius: of the iris, px.

    Returns:
        bare and glint, both ``(h, w, 3)`` uint8.
    """
    side = 2 * max(1, round(GLINT_SIZE * radius)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    grey = cv2.cvtColor(eye, cv2.COLOR_RGB2GRAY)
    tophat = grey.astype(np.float32) - cv2.morphologyEx(grey, cv2.MORPH_OPEN, kernel)
    y, x = np.indices(grey.shape)
    x, y = (x - middle[0]) / radius, (y - middle[1]) / radius
    within = (np.hypot(x, y) < GLINT_WITHIN[0]) & (y < GLINT_WITHIN[1])
    speck = (tophat > GLINT_LEAST) & within
    speck = cv2.dilate(speck.astype(np.uint8), np.ones((3, 3), np.uint8))
    if not speck.any():
        return eye, np.zeros_like(eye)
    bare = cv2.inpaint(eye, speck, 3, cv2.INPAINT_TELEA).astype(np.int16)
    glint = np.maximum(eye.astype(np.int16) - bare, 0) * (
        speck[..., None] * (within > 0)[..., None]
    )
    return (eye - glint).astype(np.uint8), glint.astype(np.uint8)
