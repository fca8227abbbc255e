"""Eyes: an eyeball that turns behind the lids, shown through the opening the lids leave."""

from __future__ import annotations

import cv2
import numpy as np

from visavis.avatar import Avatar
from visavis.facemodel import EYEBALL_RADIUS, EYES, fit_affine
from visavis.matte import diffuse
from visavis.raster import opening_cover
from visavis.types import CHANNEL

SCALE = 2  # of the stored eye pictures against the frame


class EyePainter:
    """Draws both eyes of one avatar; constants only."""

    def __init__(self, avatar: Avatar):
        self._eyes = [_Eye(avatar, eye) for eye in EYES.values()]

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
    def __init__(self, avatar: Avatar, eye: dict):
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
        self._picture = big
        self._source = points
        iris = eye["iris"]
        self._iris = points[iris[0]]
        radius = np.linalg.norm(points[iris[1:]] - self._iris, axis=1).mean()
        self._radius = float(max(radius, 0.1 * width))
        self._unit = avatar.rest.scale
        self._open = float(np.linalg.norm(ring[4] - ring[12]))

    def paint(self, frame: np.ndarray, face: np.ndarray, gaze: np.ndarray) -> None:
        ring = face[self._ring, :2]
        size = frame.shape[0]
        low = np.maximum(np.floor(ring.min(0)).astype(int) - 2, 0)
        high = np.minimum(np.ceil(ring.max(0)).astype(int) + 3, size)
        if (high <= low).any():
            return
        cover = opening_cover(ring - low, (int(high[1] - low[1]), int(high[0] - low[0])))
        back = fit_affine(face[self._anchor, :2], self._source[self._anchor])
        y, x = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32)
        sx = back[0, 0] * x + back[0, 1] * y + back[0, 2]
        sy = back[1, 0] * x + back[1, 1] * y + back[1, 2]
        step = self._unit * EYEBALL_RADIUS * np.sin(np.radians(gaze))
        # the iris goes with the gaze, the white stretches between it and the corners
        away = np.hypot(sx - self._iris[0] - step[0], sy - self._iris[1] - step[1]) / self._radius
        hold = np.clip((2.6 - away) / 1.4, 0, 1)
        hold = hold * hold * (3 - 2 * hold)
        sx = (sx - step[0] * hold - self._origin[0] + 0.5) * SCALE - 0.5
        sy = (sy - step[1] * hold - self._origin[1] + 0.5) * SCALE - 0.5
        colour = cv2.remap(
            self._picture, sx.astype(np.float32), sy.astype(np.float32), cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        ).astype(np.float32)  # fmt: skip
        opening = float(np.linalg.norm(ring[4] - ring[12])) / max(self._open, 1e-3)
        colour *= _lid_shadow(y, ring, opening)[..., None]
        area = frame[low[1] : high[1], low[0] : high[0]]
        cover = cover[..., None]
        area[:] = np.round(area * (1 - cover) + colour * cover).astype(np.uint8)


def _lid_shadow(y: np.ndarray, ring: np.ndarray, opening: float) -> np.ndarray:
    """The upper lid shades the eyeball, the more the lower it hangs."""
    top = ring[1:8, 1].mean()
    height = max(float(ring[:, 1].max() - ring[:, 1].min()), 1.0)
    depth = np.clip((y - top) / (0.5 * height), 0, 1)
    strength = 0.35 * np.clip(1 - opening, 0, 1)
    return 1 - strength * (1 - depth)
