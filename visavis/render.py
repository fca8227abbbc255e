"""Motion to frames: the photo warped by its posed mesh, eyes and mouth laid into it.

Tier ``mesh`` needs no net: eyes turn under lids that fold, the mouth's inside is the photo's own
teeth or a generic set. Tier ``patch`` lets a small net paint the mouth. The background never moves.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from visavis.avatar import Avatar, resize_avatar
from visavis.errors import ConfigError
from visavis.eyes import EyePainter
from visavis.facemodel import Pose
from visavis.headmesh import HeadMesh
from visavis.mouth import (
    MouthNet,
    apply_transform,
    crop_transform,
    paste,
    warp_crop,
)
from visavis.raster import ATLAS_SCALE, compose, fill_map
from visavis.teeth import TeethPainter
from visavis.types import N_CHANNELS, State

TIERS = ("mesh", "patch")
MOUTH_DIR = Path(__file__).parent / "assets" / "models" / "mouth"


class Renderer:
    """Draws one avatar. Holds constants only; ``step`` takes and gives its memory.

    Args:
        avatar: who.
        tier: ``mesh`` or ``patch``.
        size: side of the frame in pixels; the avatar's own by default.
        mouth_dir: model folder of the mouth net, for ``patch``.
        threads: CPU threads of the net.

    Raises:
        ConfigError: unknown tier.
        ModelError: the mouth net is missing.
    """

    lookahead = 0

    def __init__(
        self,
        avatar: Avatar,
        tier: str = "patch",
        size: int | None = None,
        mouth_dir: str | Path = MOUTH_DIR,
        threads: int = 1,
    ):
        if tier not in TIERS:
            raise ConfigError(f"tier {tier!r} is unknown here; choose one of {', '.join(TIERS)}")
        self.avatar = avatar = resize_avatar(avatar, size) if size else avatar
        self.tier = tier
        self.size = avatar.size
        self.mesh = HeadMesh(avatar)
        self._atlas = _atlas(avatar)
        self._base = _base(avatar, self.mesh.spans)
        y, x = np.mgrid[: self.size, : self.size].astype(np.float32)
        self._box, self._corner, self._spans = _moving_box(self.mesh.spans)
        self._identity = _atlas_pixels(np.dstack([x, y])[self._box])
        self._source = _atlas_pixels(self.mesh.source)
        self._eyes = EyePainter(avatar)
        self._teeth = TeethPainter(avatar)
        self._net = MouthNet(mouth_dir, threads=threads) if tier == "patch" else None

    def init_state(self, batch: int = 1) -> State:
        """Memory of no previous frame."""
        if self._net is None:
            return {}
        return {f"render/{k}": v for k, v in self._net.init_state(batch).items()}

    def step(self, state: State, motion: np.ndarray) -> tuple[State, np.ndarray]:
        """Draw frames.

        Args:
            state: from ``init_state`` or the step before.
            motion: ``(B, K, D)`` float32, one row per frame.

        Returns:
            The next state and ``(B, K, S, S, 3)`` uint8 RGB.
        """
        batch, count, width = motion.shape
        assert width == N_CHANNELS, motion.shape
        frames = np.empty((batch, count, self.size, self.size, 3), np.uint8)
        for k in range(count):
            for b in range(batch):
                one = {name: value[b : b + 1] for name, value in state.items()}
                one = self._draw(one, motion[b, k], frames[b, k])
                state = one if batch == 1 else _put(state, one, b)
        return state, frames

    def flush(self, state: State) -> np.ndarray:
        """Nothing is held back: ``(B, 0, S, S, 3)``."""
        return np.empty((1, 0, self.size, self.size, 3), np.uint8)

    def matte(self, motion: np.ndarray) -> np.ndarray:
        """Where the person is at a motion ``(D,)``: ``(S, S)`` uint8, 255 inside."""
        warped = self._warp(motion)[0]
        out = np.array(self.avatar.matte)
        moving = out[self._box]
        for y, (first, last) in enumerate(self._spans):
            moving[y, first:last] = warped[y, first:last, 3]
        return out

    def _warp(self, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray, Pose]:
        """The moved person in the moving box, premultiplied RGBA; the posed face; its pose."""
        target, face, pose = self.mesh.vertices(motion)
        field = self._identity.copy()
        target -= self._corner
        fill_map(target, self._source, self.mesh.triangles, self.mesh.order(face), field)
        return cv2.remap(self._atlas, field, None, cv2.INTER_LINEAR), face, pose

    def _draw(self, state: State, motion: np.ndarray, out: np.ndarray) -> State:
        warped, face, pose = self._warp(motion)
        np.copyto(out, self._base)
        compose(warped, self._base[self._box], self._spans, out[self._box])
        self._eyes.paint(out, face, motion)
        own_teeth = self._teeth.paint(out, face, pose, motion)
        if self._net is None:
            return state
        transform = crop_transform(face)
        crop = warp_crop(out, transform)[None]
        local = apply_transform(transform, face)[None]
        memory = {k.removeprefix("render/"): v for k, v in state.items()}
        memory, rgb, alpha = self._net.step(memory, crop, local)
        paste(out, transform, rgb[0], alpha[0])
        if own_teeth is not None:
            own_teeth.put_back()
        return {f"render/{k}": v for k, v in memory.items()}


def _moving_box(spans: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """The rectangle around all spans: as slices, its corner x and y, and the spans inside it."""
    rows = np.flatnonzero(spans[:, 1] > spans[:, 0])
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(spans[rows, 0].min()), int(spans[rows, 1].max())
    inside = spans[top:bottom] - left
    inside[spans[top:bottom, 1] == spans[top:bottom, 0]] = 0
    corner = np.array([left, top], np.float32)
    return (slice(top, bottom), slice(left, right)), corner, np.ascontiguousarray(inside)


def _put(state: State, one: State, row: int) -> State:
    merged = {name: value.copy() for name, value in state.items()}
    for name, value in one.items():
        merged[name][row] = value[0]
    return merged


def _atlas_pixels(frame_pixels: np.ndarray) -> np.ndarray:
    """Frame pixel coordinates to atlas ones (pixel centres at integers), float32."""
    return ((frame_pixels + 0.5) * ATLAS_SCALE - 0.5).astype(np.float32)


def _atlas(avatar: Avatar) -> np.ndarray:
    """The person as premultiplied RGBA at ``ATLAS_SCALE``, ``(S s, S s, 4)`` uint8.

    The colour is what makes photo = person over plate hold wherever it can.
    """
    matte = avatar.matte.astype(np.float32) / 255
    own = avatar.image - (1 - matte[..., None]) * avatar.plate.astype(np.float32)
    side = avatar.size * ATLAS_SCALE
    alpha = np.clip(cv2.resize(matte, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1) * 255
    rgb = cv2.resize(own, (side, side), interpolation=cv2.INTER_LANCZOS4)
    rgb = np.clip(rgb, 0, alpha[..., None])
    return np.ascontiguousarray(np.round(np.dstack([rgb, alpha])).astype(np.uint8))


def _base(avatar: Avatar, spans: np.ndarray) -> np.ndarray:
    """What stands still: the plate where the head moves, the photo elsewhere."""
    base = avatar.image.copy()
    for y, (first, last) in enumerate(spans):
        base[y, first:last] = avatar.plate[y, first:last]
    return base
