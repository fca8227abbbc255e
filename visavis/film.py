"""A film of the avatar's own person as the avatar sees it: the frames in its square, its motion."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from visavis.avatar import Avatar
from visavis.facemodel import angles_of, rotation_of
from visavis.track import Track, motion_of_track
from visavis.types import CHANNEL, RANGE_HIGH, RANGE_LOW

HEAD = [CHANNEL[c] for c in ("head_pitch", "head_yaw", "head_roll")]
SEAT = [CHANNEL[c] for c in ("shift_x", "shift_y", "scale")]
# Times their usual range: who sits elsewhere than in the photo, or looks elsewhere, is drawn there.
SEAT_REACH, HEAD_REACH = 4.0, 2.0


@dataclass(frozen=True)
class Canvas:
    """Axis-aligned map from film pixels to avatar pixels: ``x' = (x + 0.5) * scale + shift - 0.5``.

    Attributes:
        scale: ``(2,)`` avatar pixels per film pixel.
        shift: ``(2,)`` avatar pixels.
        size: side of the avatar's frame, px.
    """

    scale: np.ndarray
    shift: np.ndarray
    size: int

    def points(self, points: np.ndarray) -> np.ndarray:
        """Film points ``(..., 3)`` to avatar pixels (z scaled alike); NaN stays NaN."""
        moved = np.array(points, np.float64)
        moved[..., :2] = (moved[..., :2] + 0.5) * self.scale + self.shift - 0.5
        moved[..., 2] *= self.scale.mean()
        return moved.astype(np.float32)

    def frame(self, image: np.ndarray) -> np.ndarray:
        """A film frame ``(H, W, 3)`` as the avatar sees it, ``(S, S, 3)`` uint8.

        Sampled as ``create_avatar`` samples its photo: area-averaged when it shrinks, cubic when it
        grows; what lies outside the film repeats its edge.
        """
        origin = -self.shift / self.scale
        side = self.size / self.scale
        if self.scale.mean() < 1:
            x0, y0 = np.round(origin).astype(int)
            width, height = np.round(side).astype(int)
            piece = image[max(y0, 0) : y0 + height, max(x0, 0) : x0 + width]
            return cv2.resize(piece, (self.size, self.size), interpolation=cv2.INTER_AREA)
        matrix = np.diag(self.scale)
        offset = 0.5 * self.scale + self.shift - 0.5
        return cv2.warpAffine(
            image,
            np.column_stack([matrix, offset]),
            (self.size, self.size),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )


def canvas_of(avatar: Avatar, film_points: np.ndarray) -> Canvas:
    """The map that takes the face found in the film's frame to the face stored in the avatar.

    Args:
        avatar: made from that very frame.
        film_points: ``(478, 3)`` px, the points ``create_avatar`` found there (``mesh.find``).
    """
    scale, shift = np.empty(2), np.empty(2)
    for axis in (0, 1):
        x = film_points[:, axis].astype(np.float64) + 0.5
        y = avatar.points[:, axis].astype(np.float64) + 0.5
        scale[axis], shift[axis] = np.polyfit(x, y, 1)
    return Canvas(scale, shift, avatar.size)


def driving_motion(track: Track, avatar: Avatar) -> np.ndarray:
    """A film's motion for the renderer, ``(T, D)``: against the avatar's neutral and resting head.

    Measured head angles are against the camera; the renderer turns the photo's own pose, so the
    rest is divided out. All channels stay within their ranges but those of seat and head.

    Args:
        track: with points in avatar pixels.
        avatar: of the person tracked.
    """
    motion = motion_of_track(track, neutral=avatar.neutral, rest=avatar.rest).copy()
    for row in motion:
        turn = rotation_of(*map(float, row[HEAD])) @ avatar.rest.rotation.T
        row[HEAD] = angles_of(turn)
    low, high = RANGE_LOW.copy(), RANGE_HIGH.copy()
    for channels, reach in ((SEAT, SEAT_REACH), (HEAD, HEAD_REACH)):
        low[channels] *= reach
        high[channels] *= reach
    return np.clip(motion, low, high)
