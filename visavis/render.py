"""Motion to frames: the photo warped by its posed mesh, eyes and mouth laid into it.

Tier ``mesh`` needs no net: eyes turn under lids that fold, the mouth's inside is the photo's own
teeth or a generic set. Tier ``patch`` lets a small net paint the mouth, tier ``full`` a larger one
the whole head after it. The background never moves.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from visavis.avatar import Avatar, resize_avatar
from visavis.errors import ConfigError, ModelError
from visavis.eyes import EyePainter
from visavis.facemodel import EYES, FACE_OVAL, LIP_OUTER, Pose
from visavis.head import HeadPainter, Posed
from visavis.headmesh import HeadMesh
from visavis.likeness import LikenessPainter
from visavis.modelstore import search_path
from visavis.mouth import (
    MouthNet,
    apply_transform,
    crop_transform,
    mouth_masks,
    paste,
    warp_crop,
)
from visavis.raster import ATLAS_SCALE, HARD, draw
from visavis.softness import LEAST_BLUR, edge_blur
from visavis.teeth import TeethPainter
from visavis.types import N_CHANNELS, State

TIERS = ("mesh", "patch", "full")
MOUTH_DIR = Path(__file__).parent / "assets" / "models" / "mouth"
CRISP = 0.95  # mouth-crop px: `edge_blur` of a sharp portrait, and of what the net paints
# Of the side: the rim of the face that a head which moves away uncovers, and what stays about eyes and lips.
BAND, RIM = 0.06, 0.02
HEAD_DIR = Path(__file__).parent / "assets" / "models" / "head"


def find_head_dir(explicit: str | Path | None = None) -> Path:
    """The model folder of tier ``full``: given, ``head`` where models are looked for, or shipped.

    Raises:
        ModelError: there is none.
    """
    places = [Path(explicit)] if explicit else [*(p / "head" for p in search_path()), HEAD_DIR]
    for place in places:
        if (place / "model.json").is_file():
            return place
    raise ModelError(
        f"tier full has no weights here (looked in {', '.join(map(str, places))}); train some with"
        " `visavis train renderer full --tier full`, export them to one of these, or use tier patch"
    )


class Renderer:
    """Draws one avatar. Holds constants only; ``step`` takes and gives its memory.

    Args:
        avatar: who.
        tier: ``mesh``, ``patch`` or ``full``.
        size: side of the frame in pixels; the avatar's own by default.
        mouth_dir: model folder of the mouth net, for ``patch`` and ``full``.
        threads: CPU threads of the nets.
        head_dir: model folder of the head net, for ``full``; see `find_head_dir`.

    Raises:
        ConfigError: unknown tier.
        ModelError: a net is missing.
    """

    lookahead = 0

    def __init__(
        self,
        avatar: Avatar,
        tier: str = "patch",
        size: int | None = None,
        mouth_dir: str | Path = MOUTH_DIR,
        threads: int = 1,
        head_dir: str | Path | None = None,
    ):
        if tier not in TIERS:
            raise ConfigError(f"tier {tier!r} is unknown here; choose one of {', '.join(TIERS)}")
        self.avatar = avatar = resize_avatar(avatar, size) if size else avatar
        self.tier = tier
        self.size = avatar.size
        self.mesh = HeadMesh(avatar)
        self._atlas = _atlas(avatar)
        self._base = _base(avatar, self.mesh.spans)
        self._source = _atlas_pixels(self.mesh.source)
        self._away = _moves_away(self.mesh)
        self._still = _still(avatar, self.mesh, self._atlas, self._base, self._away)
        self._blur, frame_blur = _blur_of(avatar)
        self._eyes = EyePainter(avatar, frame_blur)
        self._teeth = TeethPainter(avatar, frame_blur)
        self._net = _mouth_net(avatar, mouth_dir, threads) if tier != "mesh" else None
        self._head = None
        if tier == "full":
            self._head = HeadPainter(avatar, self.mesh, find_head_dir(head_dir), threads)
        self._likeness = None
        if avatar.likeness is not None:
            self._likeness = LikenessPainter(avatar.likeness, self.mesh.source, self.size)

    def init_state(self, batch: int = 1) -> State:
        """Memory of no previous frame."""
        nets = [n for n in (self._net, self._head and self._head.net) if n is not None]
        return {f"render/{k}": v for n in nets for k, v in n.init_state(batch).items()}

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
            posed = []
            for b in range(batch):
                mouth = {n: v[b : b + 1] for n, v in state.items() if n.startswith("render/mouth/")}
                mouth, where = self._draw(mouth, motion[b, k], frames[b, k])
                state = state | mouth if batch == 1 else _put(state, mouth, b)
                posed.append(where)
            if self._head is not None:
                state = state | self._paint_heads(state, frames[:, k], posed, motion[:, k])
        return state, frames

    def _paint_heads(
        self, state: State, frames: np.ndarray, posed: list[Posed], motion: np.ndarray
    ) -> State:
        """Let the head net paint one frame of every session at once, in place."""
        memory = {
            k.removeprefix("render/"): v for k, v in state.items() if k.startswith("render/head/")
        }
        memory = self._head.step(memory, frames, posed, motion)
        return {f"render/{k}": v for k, v in memory.items()}

    def flush(self, state: State) -> np.ndarray:
        """Nothing is held back: ``(B, 0, S, S, 3)``."""
        return np.empty((1, 0, self.size, self.size, 3), np.uint8)

    def matte(self, motion: np.ndarray) -> np.ndarray:
        """Where the person is at a motion ``(D,)``: ``(S, S)`` uint8, 255 inside."""
        alpha = self._atlas >> np.uint32(24)
        white = np.ascontiguousarray(np.repeat(alpha[..., None].astype(np.uint8), 4, 2))
        still = np.where(self._away, 0, self.avatar.matte).astype(np.uint8)
        out = np.repeat(still[..., None], 3, 2)
        self._warp(motion, white.view(np.uint32)[..., 0], np.zeros_like(self._base), out)
        return out[..., 0].copy()

    def _warp(
        self, motion: np.ndarray, atlas: np.ndarray, base: np.ndarray, out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Pose]:
        """Draw the moved person into ``out``; the mesh's vertices, the posed face and its pose."""
        target, face, pose = self.mesh.vertices(motion)
        mesh = self.mesh
        draw(
            target, self._source, mesh.triangles, mesh.beside, mesh.order(face),
            atlas, base, mesh.spans, out,
        )  # fmt: skip
        return target, face, pose

    def _draw(self, state: State, motion: np.ndarray, out: np.ndarray) -> tuple[State, Posed]:
        np.copyto(out, self._still)
        target, face, pose = self._warp(motion, self._atlas, self._base, out)
        self._eyes.paint(out, face, motion)
        own_teeth = self._teeth.paint(out, face, pose, motion)
        if self._likeness is not None:
            mesh, crop = self.mesh, crop_transform(face)
            self._likeness.paint(out, motion, target, mesh.triangles, mesh.order(face), crop)
        posed = Posed(target, face)
        if self._net is None:
            return state, posed
        transform = crop_transform(face)
        crop = warp_crop(out, transform)[None]
        local = apply_transform(transform, face)[None]
        memory = {k.removeprefix("render/"): v for k, v in state.items()}
        memory, rgb, alpha = self._net.step(memory, crop, local)
        painted = (
            rgb[0] if self._blur < LEAST_BLUR else cv2.GaussianBlur(rgb[0], (0, 0), self._blur)
        )
        paste(out, transform, painted, alpha[0])
        if own_teeth is not None:
            own_teeth.put_back()
        return {f"render/{k}": v for k, v in memory.items()}, posed


def _mouth_net(avatar: Avatar, folder: str | Path, threads: int) -> MouthNet | None:
    """The person's own net, else the general one; none where a likeness has learned the mouth."""
    own = avatar.mouth_weights
    if own is None:
        return MouthNet(folder, threads=threads) if avatar.likeness is None else None
    return MouthNet(folder, threads=threads, keep_dark=0.0, weights=own)


def _blur_of(avatar: Avatar) -> tuple[float, float]:
    """What a painted mouth must be blurred by to be no sharper than the photo: crop and frame px."""
    transform = crop_transform(avatar.points)
    crop = warp_crop(avatar.image, transform)
    around = 1 - mouth_masks(apply_transform(transform, avatar.points))["removed"]
    blur = float(np.sqrt(max(edge_blur(crop, around) ** 2 - CRISP**2, 0)))
    return blur, blur / float(np.hypot(transform[0, 0], transform[0, 1]))


def _put(state: State, one: State, row: int) -> State:
    merged = {name: value.copy() for name, value in state.items()}
    for name, value in one.items():
        merged[name][row] = value[0]
    return merged


def _atlas_pixels(frame_pixels: np.ndarray) -> np.ndarray:
    """Frame pixel coordinates to atlas ones (pixel centres at integers), float32."""
    return ((frame_pixels + 0.5) * ATLAS_SCALE - 0.5).astype(np.float32)


def _atlas(avatar: Avatar) -> np.ndarray:
    """The person as premultiplied RGBA at ``ATLAS_SCALE``, ``(S s, S s)`` little-endian uint32.

    The colour is what makes photo = person over plate hold wherever it can.
    """
    matte = avatar.matte.astype(np.float32) / 255
    own = avatar.image - (1 - matte[..., None]) * avatar.plate.astype(np.float32)
    side = avatar.size * ATLAS_SCALE
    alpha = np.clip(cv2.resize(matte, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1) * 255
    rgb = cv2.resize(own, (side, side), interpolation=cv2.INTER_LANCZOS4)
    rgb = np.clip(rgb, 0, alpha[..., None])
    rgba = np.ascontiguousarray(np.round(np.dstack([rgb, alpha])).astype(np.uint8))
    return rgba.view("<u4")[..., 0]


def _base(avatar: Avatar, spans: np.ndarray) -> np.ndarray:
    """What stands still: the plate where the head moves, the photo elsewhere."""
    base = avatar.image.copy()
    for y, (first, last) in enumerate(spans):
        base[y, first:last] = avatar.plate[y, first:last]
    return base


def _moves_away(mesh: HeadMesh) -> np.ndarray:
    """Pixels that show something else once the person has moved, ``(S, S)`` bool.

    Of the face only a band along its oval, as much as a moving head uncovers, and nothing about eyes
    and lips: what is between them is painted through openings whose rims let a little of it through.
    """
    size = len(mesh.spans)
    moves = _covered(mesh, np.concatenate([mesh.moving_outside, mesh.face_triangles]))
    moves = cv2.morphologyEx(moves.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    oval, openings = np.zeros((2, size, size), np.uint8)
    cv2.fillPoly(oval, [np.round(mesh.source[FACE_OVAL]).astype(np.int32)], 1)
    eyes = (np.concatenate([e["corners"], e["upper"], e["lower"]]) for e in EYES.values())
    for ring in (*eyes, LIP_OUTER):
        hull = cv2.convexHull(np.round(mesh.source[ring]).astype(np.int32))
        cv2.fillConvexPoly(openings, hull, 1)
    band, rim = (np.ones((2 * round(r * size) + 1,) * 2, np.uint8) for r in (BAND, RIM))
    return (moves > 0) & (cv2.erode(oval, band) == 0) & (cv2.dilate(openings, rim) == 0)


def _still(
    avatar: Avatar, mesh: HeadMesh, atlas: np.ndarray, base: np.ndarray, away: np.ndarray
) -> np.ndarray:
    """The frame before anything is drawn: the resting person, without what moves away."""
    still, last = avatar.image.copy(), avatar.size - 1
    corners = np.array([[0, 0], [last, 0], [0, last], [last, last]], np.float32)
    sheet = np.array([[0, 1, 2], [1, 3, 2]], np.int32)
    _draw_sharp(corners, sheet, atlas, base, mesh.spans, still)
    still[away] = base[away]
    return still


def _covered(mesh: HeadMesh, triangles: np.ndarray) -> np.ndarray:
    """Pixels of some of a mesh's triangles, at rest: ``(S, S)`` bool."""
    size = len(mesh.spans)
    out = np.zeros((size, size, 3), np.uint8)
    white = np.full((2, 2), 0xFFFFFFFF, np.uint32)
    _draw_sharp(mesh.source, triangles, white, out, mesh.spans, out)
    return out[..., 0] > 0


def _draw_sharp(
    points: np.ndarray,
    triangles: np.ndarray,
    atlas: np.ndarray,
    base: np.ndarray,
    spans: np.ndarray,
    out: np.ndarray,
) -> None:
    """Triangles where they lie in the photo, in the order given, no outline softened."""
    beside, order = np.full(triangles.shape, HARD, np.int32), np.arange(len(triangles))
    triangles = triangles.astype(np.int32)
    draw(points, _atlas_pixels(points), triangles, beside, order, atlas, base, spans, out)
