"""Paint the whole head: tier `full`'s fixed crop, its geometry as images, and a recurrent net.

The crop is a square of the frame about the resting head and never moves, so the previous picture in
the state lies where the next one will. The net says how much of another colour to lay over what the mesh has
drawn, which stands where that is nothing, as it does everywhere away from the person.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numba import njit

from visavis.avatar import Avatar
from visavis.backends import Graph
from visavis.errors import ModelError
from visavis.facemodel import EYES
from visavis.headmesh import HeadMesh
from visavis.mouth import INNER_LOWER, INNER_UPPER, OUTER_LOWER, OUTER_UPPER, between
from visavis.raster import HARD, draw
from visavis.types import N_CHANNELS as N_MOTION
from visavis.types import State

SIZE = 256  # px, side of what the net sees
SPAN = 1.6  # side of the crop in face heights
RAISE = 0.10  # how far the crop's middle lies above the face's, in face heights
REACH = 2.0  # eye distances that a coordinate picture spans to either side of the eyes' middle
N_INPUTS = 13  # maps of `head_inputs`
IDENTITY_INPUTS = 6  # maps of `identity_inputs`
FEATHER = 10  # px at the crop's rim over which the painting fades

_LIDS = tuple(  # image left to right
    [(corners[0], *eye[side][::step], corners[1]) for side in ("upper", "lower")]
    for eye, corners, step in (
        (EYES["right"], EYES["right"]["corners"][::-1], -1),
        (EYES["left"], EYES["left"]["corners"], 1),
    )
)


def head_box(points: np.ndarray, size: int) -> tuple[int, int, int]:
    """The crop about a resting head: left, top and side in frame px, wholly inside the frame.

    Args:
        points: ``(478, 3)`` px of the photo.
        size: side of the frame.
    """
    crown, chin = points[10, :2].astype(np.float64), points[152, :2].astype(np.float64)
    height = float(np.linalg.norm(chin - crown))
    side = min(round(SPAN * height), size)
    middle = (crown + chin) / 2 + (crown - chin) * RAISE
    left, top = (int(np.clip(round(m - side / 2), 0, size - side)) for m in middle)
    return left, top, side


def to_crop(points: np.ndarray, box: tuple[int, int, int]) -> np.ndarray:
    """Frame px ``(N, >=2)`` to px of the net's picture, ``(N, 2)`` float32 (centres at integers)."""
    left, top, side = box
    moved = (np.asarray(points)[:, :2] - (left, top) + 0.5) * (SIZE / side) - 0.5
    return moved.astype(np.float32)


def cut(frame: np.ndarray, box: tuple[int, int, int]) -> np.ndarray:
    """The crop of a frame ``(S, S, C)`` uint8 at the net's size, ``(SIZE, SIZE, C)``."""
    left, top, side = box
    piece = frame[top : top + side, left : left + side]
    flag = cv2.INTER_AREA if side > SIZE else cv2.INTER_LINEAR
    return cv2.resize(piece, (SIZE, SIZE), interpolation=flag)


class HeadView:
    """An avatar's head as its net sees it; constants only.

    Attributes:
        box: see `head_box`.
        photo: ``(SIZE, SIZE, 3)`` uint8 crop of the photo.
        rest: ``(SIZE, SIZE, 3)`` uint8, `coordinates` of the photo itself.
    """

    def __init__(self, avatar: Avatar, mesh: HeadMesh):
        self.box = head_box(avatar.points, avatar.size)
        self.photo = cut(avatar.image, self.box)
        self._mesh = mesh
        self._spans = np.tile(np.array([[0, SIZE]], np.int32), (SIZE, 1))
        self._black = np.zeros((SIZE, SIZE, 3), np.uint8)
        self._atlas = _coordinate_atlas(avatar, mesh)
        self.rest = self.coordinates(mesh.source, avatar.points)

    def coordinates(self, target: np.ndarray, face: np.ndarray) -> np.ndarray:
        """Where on the neutral head each pixel of the moved person comes from.

        Args:
            target: ``(V, 2)`` float32 frame px of the mesh's vertices.
            face: ``(478, 3)`` of the posed face.

        Returns:
            ``(SIZE, SIZE, 3)`` uint8: x and y in the neutral face's frame (-REACH..REACH eye
            distances to 0..255), times the third, the cover of the person.
        """
        mesh, out = self._mesh, self._black.copy()
        draw(
            to_crop(target, self.box), mesh.source, mesh.triangles, mesh.beside, mesh.order(face),
            self._atlas, self._black, self._spans, out,
        )  # fmt: skip
        return out


def _coordinate_atlas(avatar: Avatar, mesh: HeadMesh) -> np.ndarray:
    """The photo's pixels as coordinates on the neutral head, premultiplied by the matte.

    Returns:
        ``(S, S)`` little-endian uint32, as `raster.draw` wants it.
    """
    ramp = np.zeros((256, 256, 4), np.uint8)
    ramp[..., 0], ramp[..., 1], ramp[..., 3] = np.arange(256)[None], np.arange(256)[:, None], 255
    neutral = np.clip((mesh.neutral_points() + REACH) / (2 * REACH), 0, 1).astype(np.float32) * 255
    size = avatar.size
    drawn = np.zeros((size, size, 3), np.uint8)
    order = np.arange(len(mesh.triangles))
    hard = np.full(mesh.triangles.shape, HARD, np.int32)
    spans = np.tile(np.array([[0, size]], np.int32), (size, 1))
    atlas = ramp.view("<u4")[..., 0]
    draw(mesh.source, neutral, mesh.triangles, hard, order, atlas, drawn.copy(), spans, drawn)
    matte = avatar.matte.astype(np.float32)[..., None] / 255
    colour = np.round(np.dstack([drawn[..., :2], np.full((size, size), 255.0)]) * matte)
    rgba = np.dstack([colour, avatar.matte]).astype(np.uint8)
    return np.ascontiguousarray(rgba).view("<u4")[..., 0]


def head_masks(points: np.ndarray, cover: np.ndarray) -> dict[str, np.ndarray]:
    """Masks of one head, each ``(SIZE, SIZE)`` float32 in 0..1.

    ``mouth``: between the lips. ``lips``: within the outer lip line. ``eyes``: between the lids.
    ``limit``: the person and about 4 px around, fading at the crop's rim; nothing else is painted.

    Args:
        points: ``(478, >=2)`` px of the crop.
        cover: ``(SIZE, SIZE)`` of the person, 0..1.
    """
    mouth, lips = (
        between(points[list(upper)][:, :2], points[list(lower)][:, :2], SIZE)
        for upper, lower in ((INNER_UPPER, INNER_LOWER), (OUTER_UPPER, OUTER_LOWER))
    )
    lids = [
        between(points[list(upper)][:, :2], points[list(lower)][:, :2], SIZE)
        for upper, lower in _LIDS
    ]
    eyes = np.maximum(*lids)
    near = cv2.blur(np.maximum(np.maximum(cover, lips), eyes), (5, 5))
    limit = np.minimum(3.0 * near, 1.0) * _rim()
    return {"mouth": mouth, "lips": lips, "eyes": eyes, "limit": limit.astype(np.float32)}


def _rim() -> np.ndarray:
    """1 inside the crop, 0 at its rim, ``(SIZE, SIZE)`` float32."""
    line = np.arange(SIZE)
    fade = np.clip(np.minimum(line, SIZE - 1 - line) / FEATHER, 0, 1).astype(np.float32)
    return fade[:, None] * fade[None]


def head_inputs(
    under: np.ndarray, photo: np.ndarray, coordinates: np.ndarray, masks: dict[str, np.ndarray]
) -> np.ndarray:
    """What the net sees of one frame: ``(N_INPUTS, SIZE, SIZE)`` float32.

    0-2 the frame as drawn so far and 3-5 the photo, -1..1; 6-7 coordinates on the neutral head, -1..1
    times 8, the cover of the person; 9 between the lips, 10 lips, 11 between the lids, 12 the limit.

    Args:
        under, photo, coordinates: ``(SIZE, SIZE, 3)`` uint8, see `HeadView`.
        masks: of `head_masks`.
    """
    out = np.empty((N_INPUTS, SIZE, SIZE), np.float32)
    out[:3], out[3:6] = planes(under), planes(photo)
    cover = coordinates[..., 2] * np.float32(1 / 255)
    for c in (0, 1):
        out[6 + c] = coordinates[..., c] * np.float32(2 / 255) - cover
    out[8] = cover
    for channel, name in enumerate(("mouth", "lips", "eyes", "limit"), 9):
        out[channel] = masks[name]
    return out


def identity_inputs(photo: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """What the identity encoder sees: ``(IDENTITY_INPUTS, SIZE, SIZE)`` float32, photo and place."""
    cover = rest[..., 2] * np.float32(1 / 255)
    place = [rest[..., c] * np.float32(2 / 255) - cover for c in (0, 1)]
    return np.concatenate([planes(photo), np.stack([*place, cover])])


def planes(image: np.ndarray) -> np.ndarray:
    """``(H, W, 3)`` uint8 to ``(3, H, W)`` float32 in -1..1."""
    return image.transpose(2, 0, 1) * np.float32(1 / 127.5) - np.float32(1)


class HeadNet:
    """A head net and its identity encoder on the CPU. Holds weights only.

    Args:
        model_dir: folder with ``model.json`` and the two graphs it names.
        precision: ``f32`` or ``bf16``.
        threads: CPU threads for one call.

    Raises:
        ModelError: the folder holds no head net that fits this version.
    """

    def __init__(self, model_dir: str | Path, precision: str = "bf16", threads: int = 1):
        folder = Path(model_dir)
        try:
            card = json.loads((folder / "model.json").read_text())
        except (OSError, ValueError) as err:
            raise ModelError(f"no readable model.json in {folder}: {err}") from err
        fits = {"kind": "head", "size": SIZE, "inputs": N_INPUTS, "motion": N_MOTION}
        if {key: card.get(key) for key in fits} != fits:
            raise ModelError(
                f"{folder} is not a head net of {SIZE} px and {N_INPUTS} maps; export again"
            )
        self.card = card
        self._graph = Graph(folder / card["graph"], threads=threads, precision=precision)
        self._encoder = Graph(folder / card["encoder"], threads=threads)

    def encode(self, view: HeadView) -> np.ndarray:
        """The identity's code, ``(1, K)`` float32: worked out once, constant after."""
        return self._encoder({"photo": identity_inputs(view.photo, view.rest)[None]})["code"]

    def init_state(self, batch: int = 1) -> State:
        """Memory of no previous frame."""
        side = SIZE // self.card["memory_stride"]
        return {
            "head/rgb": np.zeros((batch, 4, SIZE, SIZE), np.float32),
            "head/memory": np.zeros((batch, self.card["memory"], side, side), np.float32),
        }

    def step(
        self, state: State, inputs: np.ndarray, code: np.ndarray, motion: np.ndarray
    ) -> tuple[State, np.ndarray]:
        """Paint one frame of each of B sessions in one call.

        Args:
            state: from ``init_state`` or the step before; the sessions may show different people.
            inputs: ``(B, N_INPUTS, SIZE, SIZE)`` of `head_inputs`.
            code: ``(B, K)`` of ``encode``.
            motion: ``(B, D)`` float32.

        Returns:
            The next state and ``(B, 3, SIZE, SIZE)`` float32: what to add, in units of 127.5.
        """
        feeds = {"inputs": inputs, "code": code, "motion": motion}
        feeds |= {"rgb": state["head/rgb"], "memory": state["head/memory"]}
        out = self._graph({k: np.ascontiguousarray(v, np.float32) for k, v in feeds.items()})
        return {"head/rgb": out["next_rgb"], "head/memory": out["next_memory"]}, out["paint"]


@dataclass(frozen=True)
class Posed:
    """Where a frame's person is: mesh vertices ``(V, 2)`` and face ``(478, 3)``, frame px."""

    target: np.ndarray
    face: np.ndarray


class HeadPainter:
    """A head net set to one avatar: frames as drawn so far become frames as painted.

    Args:
        avatar: who.
        mesh: of that avatar.
        model_dir: see `HeadNet`.
        threads: CPU threads of the net.
    """

    def __init__(self, avatar: Avatar, mesh: HeadMesh, model_dir: str | Path, threads: int = 1):
        self.net = HeadNet(model_dir, threads=threads)
        self.view = HeadView(avatar, mesh)
        self.code = self.net.encode(self.view)

    def inputs(self, frame: np.ndarray, posed: Posed) -> np.ndarray:
        """`head_inputs` of one frame ``(S, S, 3)`` uint8."""
        view = self.view
        seen = view.coordinates(posed.target, posed.face)
        points = to_crop(posed.face, view.box)
        masks = head_masks(points, seen[..., 2] * np.float32(1 / 255))
        return head_inputs(cut(frame, view.box), view.photo, seen, masks)

    def step(
        self, state: State, frames: Sequence[np.ndarray], posed: Sequence[Posed], motion: np.ndarray
    ) -> State:
        """Paint one frame of each of B sessions, in place.

        Args:
            state: of `HeadNet`.
            frames: B of ``(S, S, 3)`` uint8.
            posed: B of them.
            motion: ``(B, D)`` float32.
        """
        inputs = np.stack([self.inputs(f, p) for f, p in zip(frames, posed, strict=True)])
        code = np.repeat(self.code, len(inputs), axis=0)
        state, paint = self.net.step(state, inputs, code, motion)
        for frame, painted in zip(frames, paint, strict=True):
            lay(frame, self.view.box, painted)
        return state


def lay(frame: np.ndarray, box: tuple[int, int, int], paint: np.ndarray) -> None:
    """Add a painting ``(3, SIZE, SIZE)`` to its box of a frame ``(S, S, 3)`` uint8, in place.

    What the frame shows finer than the net sees stays.
    """
    left, top, side = box
    grown = np.stack([cv2.resize(p, (side, side), interpolation=cv2.INTER_LINEAR) for p in paint])
    _add(frame[top : top + side, left : left + side], grown)


@njit(cache=True, nogil=True, boundscheck=False)
def _add(area: np.ndarray, paint: np.ndarray) -> None:
    """``(3, h, w)`` float32 in units of 127.5 onto ``(h, w, 3)`` uint8, in place."""
    half, unit = np.float32(0.5), np.float32(127.5)
    low, high = np.float32(0), np.float32(255)
    for y in range(area.shape[0]):
        for x in range(area.shape[1]):
            for c in range(3):
                value = np.float32(area[y, x, c]) + paint[c, y, x] * unit
                area[y, x, c] = np.uint8(min(max(value, low), high) + half)
