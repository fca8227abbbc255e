"""One head as a mesh over its photo: the face model inside, a grid of hair, ears and neck around.

Inside the face oval the vertices are those of the face model. Outside, a grid turns rigidly with
the skull, its depth falling back to the neck joint (so a silhouette stands while the face turns),
its share in the motion fading over the neck to the still torso and at the border of the picture.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np

from visavis.avatar import Avatar
from visavis.facemodel import (
    EYES,
    FACE_OVAL,
    LIP_CONTACT,
    LIP_INNER,
    PIVOT,
    FaceModel,
    Pose,
    lip_gap,
    load_face_model,
    pose_with,
)
from visavis.raster import FRONT, HARD, OUTLINE
from visavis.types import CHANNEL

GRID = 20  # cells along a side outside the face
NECK = (-0.2, 0.1)  # where the head's share fades into the torso's, face heights below the chin
TORSO = 0.4  # share of the head's shift that the torso takes (benchmarks/torso_follow.py)
BORDER = 0.06  # of the picture's side, over which motion fades to its border
FAR = 1e-3
REACH = 0.11  # how far a head can carry its outline, sides of the picture


class HeadMesh:
    """Geometry of one avatar at one size; constants only.

    Attributes:
        source: ``(V, 2)`` float32 pixels of the photo; the first 468 are face vertices.
        triangles: ``(T, 3)`` int32, the outside first; those that hold nothing of the person are
            left out.
        beside: ``(T, 3)`` int32, what lies across each edge, as `raster.draw` wants it.
        moving_outside: ``(G, 3)`` int32, all triangles outside the face that can move.
        face_triangles: ``(F, 3)`` int32, those of the face; not in the openings of eyes and mouth.
        spans: ``(S, 2)`` int32, the moving pixels of each row.
    """

    def __init__(self, avatar: Avatar, model: FaceModel | None = None):
        self.avatar = avatar
        self.model = model or load_face_model()
        self.rest = avatar.rest
        size = avatar.size
        points = avatar.points.astype(np.float64)
        outside = _outside_nodes(points, size)
        self.source = np.concatenate([points[:468, :2], outside]).astype(np.float32)
        self._build_outside(points, outside, size)
        # the eyes' and the mouth's inside are painted, not stretched
        face = self.model.triangles[~_inside_holes(self.model.triangles)]
        self.face_triangles = face.astype(np.int32)
        grid = _grid_triangles(points, outside)
        moving = np.concatenate([np.ones(468, bool), self._share > FAR])
        moving[468:] |= (self._follow.sum(1) > FAR) | (self._torso > FAR)
        grid = grid[moving[grid].any(1)]
        self.spans = _spans(self.source, np.concatenate([grid, face]), avatar.matte)
        grid, empty = _split_empty(self.source, _facing(self.source, grid), avatar.matte)
        self.moving_outside = np.concatenate([grid, empty])
        self.triangles = np.concatenate([grid, face]).astype(np.int32)
        self.beside = _beside(self.triangles, len(grid))
        self._n_grid = len(grid)
        self._rest_face = self._deform(avatar.motion)
        # what the model cannot say about this photo, given back while the mouth is as in the photo
        self._residual = avatar.rest.remove(points) - self._rest_face
        self._photo_gap = float(lip_gap(avatar.rest.remove(points)))
        self._oval_at_rest = self.rest.remove(points)[FACE_OVAL]

    def _build_outside(self, points: np.ndarray, outside: np.ndarray, size: int) -> None:
        chin, crown = points[152, :2], points[10, :2]
        height = float(np.linalg.norm(chin - crown))
        down = (chin - crown) / max(height, 1e-6)
        below = ((outside - chin) @ down) / height
        share = 1 - _smooth(below, *NECK)
        edge = np.minimum(outside, size - 1 - outside).min(1)
        pinned = _smooth(edge, 0, BORDER * size)
        self._share = share * pinned
        self._torso = TORSO * (1 - share) * pinned
        unit = self.rest.scale
        gap = outside[:, None] - points[FACE_OVAL, :2][None]
        far = np.hypot(gap[..., 0], gap[..., 1]) / unit
        near = far.min(1)
        weight = np.exp(-(((far - near[:, None]) / 0.10) ** 2))
        weight /= weight.sum(1, keepdims=True)
        face_z = self.rest.remove(points)[FACE_OVAL, 2]
        z_oval = weight @ face_z
        depth = z_oval + (PIVOT[2] - z_oval) * _smooth(near, 0.0, 0.5)
        # depth is in the face frame; solve for the pixel z that lands there
        flat = np.concatenate([outside, np.zeros((len(outside), 1))], 1)
        z_axis = self.rest.rotation[2, 2] or 1.0
        flat[:, 2] = self.rest.shift[2]
        flat[:, 2] += (depth - self.rest.remove(flat)[:, 2]) * self.rest.scale / z_axis
        self._outside = self.rest.remove(flat)
        self._follow = weight * (np.exp(-((near / 0.28) ** 2)) * pinned)[:, None]

    def _deform(self, motion: np.ndarray) -> np.ndarray:
        return self.model.deform(self.avatar.neutral.astype(np.float64), motion)

    def face(self, motion: np.ndarray) -> tuple[np.ndarray, Pose]:
        """Posed face at a motion.

        Args:
            motion: ``(D,)``.

        Returns:
            ``(478, 3)`` pixels and the pose.
        """
        shape = self._deform(motion)
        apart = abs(float(motion[CHANNEL["jaw_open"]]) - self._photo_gap)
        shape = shape + self._residual * max(0.0, 1.0 - apart / (3 * LIP_CONTACT))
        pose = pose_with(self.rest, motion)
        return pose.apply(shape), pose

    def vertices(self, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray, Pose]:
        """All mesh vertices at a motion.

        Args:
            motion: ``(D,)``.

        Returns:
            ``(V, 2)`` float32 target pixels, ``(478, 3)`` face pixels, the pose.
        """
        face, pose = self.face(motion)
        rigid = pose.apply(self._outside) - self.rest.apply(self._outside)
        # what the jaw does beyond the head's own motion pulls the skin beside it along
        own = face[FACE_OVAL] - pose.apply(self._oval_at_rest)
        moved = self.source[468:] + self._share[:, None] * rigid[:, :2] + self._follow @ own[:, :2]
        seat = pose.apply(PIVOT) - self.rest.apply(PIVOT)
        moved += self._torso[:, None] * seat[:2]
        return np.concatenate([face[:468, :2], moved]).astype(np.float32), face, pose

    def neutral_points(self) -> np.ndarray:
        """x and y of every vertex on the neutral head, ``(V, 2)`` in eye distances."""
        return np.concatenate([self.avatar.neutral[:468, :2], self._outside[:, :2]])

    def order(self, face: np.ndarray) -> np.ndarray:
        """Drawing order, ``(T,)`` int64: the outside, then the face from far to near."""
        depth = face[self.face_triangles, 2].sum(1)
        inner = np.argsort(-depth, kind="stable") + self._n_grid
        return np.concatenate([np.arange(self._n_grid), inner])


def _inside_holes(triangles: np.ndarray) -> np.ndarray:
    """Which triangles lie wholly between the lids of an eye or between the lips, ``(T,)`` bool."""
    rings = [LIP_INNER]
    rings += [np.concatenate([e["corners"], e["upper"], e["lower"]]) for e in EYES.values()]
    return np.any([np.isin(triangles, ring).all(1) for ring in rings], axis=0)


def _beside(triangles: np.ndarray, n_grid: int) -> np.ndarray:
    """The neighbour across each edge of the face's triangles, ``(T, 3)`` int32."""
    beside = np.full(triangles.shape, HARD, np.int32)
    owners: dict[frozenset[int], list[tuple[int, int]]] = {}
    for t, e in itertools.product(range(n_grid, len(triangles)), range(3)):
        edge = frozenset((int(triangles[t, e]), int(triangles[t, (e + 1) % 3])))
        owners.setdefault(edge, []).append((t, e))
    oval = set(FACE_OVAL.tolist())
    for edge, sides in owners.items():
        if len(sides) == 2:
            (a, i), (b, j) = sides
            beside[a, i], beside[b, j] = b, a
        elif edge <= oval:
            beside[sides[0]] = OUTLINE
    return beside


def _facing(source: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """The same triangles, each wound so that it faces the camera in the photo."""
    a, b, c = (source[triangles[:, k]] for k in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
    return np.where((area * FRONT < 0)[:, None], triangles[:, ::-1], triangles)


def _split_empty(
    source: np.ndarray, triangles: np.ndarray, matte: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Triangles that may hold something of the person, and those that surely do not."""
    person = cv2.dilate((matte > 0).astype(np.uint8), np.ones((5, 5), np.uint8))
    low = np.maximum(np.floor(source[triangles].min(1)).astype(int), 0)
    high = np.ceil(source[triangles].max(1)).astype(int) + 1
    pairs = zip(low, high, strict=True)
    held = np.array([person[y0:y1, x0:x1].any() for (x0, y0), (x1, y1) in pairs], bool)
    return triangles[held], triangles[~held]


def _smooth(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _outside_nodes(points: np.ndarray, size: int) -> np.ndarray:
    """Grid nodes outside the face oval, ``(N, 2)``, and two rings close to it."""
    line = np.linspace(0, size - 1, GRID + 1)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    oval = points[FACE_OVAL, :2]
    centre = oval.mean(0)
    rings = [centre + (oval - centre) * s for s in (1.13, 1.30)]
    inside = np.concatenate(rings)
    margin = 0.25 * size / GRID
    inside = inside[((inside > margin) & (inside < size - 1 - margin)).all(1)]
    contour = (centre + (oval - centre) * 1.38).astype(np.float32)
    far = np.array([cv2.pointPolygonTest(contour, tuple(map(float, p)), True) for p in grid])
    return np.concatenate([grid[far < -0.2 * size / GRID], inside])


def _grid_triangles(points: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Delaunay triangles of oval and outside nodes that lie outside the face, ``(T, 3)``."""
    nodes = np.concatenate([points[FACE_OVAL, :2], outside]).astype(np.float32)
    index = np.concatenate([FACE_OVAL, 468 + np.arange(len(outside))])
    low, high = nodes.min(0) - 8, nodes.max(0) + 8
    plane = cv2.Subdiv2D(
        (int(low[0]), int(low[1]), int(high[0] - low[0]) + 2, int(high[1] - low[1]) + 2)
    )
    where: dict[tuple[float, float], int] = {}
    for node, i in zip(nodes, index, strict=True):
        key = (float(node[0]), float(node[1]))
        if key not in where:
            where[key] = int(i)
            plane.insert(key)
    oval = nodes[: len(FACE_OVAL)]
    rows = []
    for t in plane.getTriangleList():
        corners = [(float(t[k]), float(t[k + 1])) for k in (0, 2, 4)]
        if not all(c in where for c in corners):
            continue
        middle = np.mean(corners, axis=0)
        if cv2.pointPolygonTest(oval, (float(middle[0]), float(middle[1])), False) <= 0:
            rows.append([where[c] for c in corners])
    return np.array(rows, np.int32).reshape(-1, 3)


def _spans(source: np.ndarray, triangles: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """First and one past last pixel of each row that a moving person can reach, ``(S, 2)``."""
    size = len(matte)
    cover = np.zeros((size, size), np.uint8)
    for t in triangles:
        cv2.fillConvexPoly(cover, np.round(source[t]).astype(np.int32), 1)
    reach = 2 * round(REACH * size) + 1
    cover &= cv2.dilate((matte > 0).astype(np.uint8), np.ones((reach, reach), np.uint8))
    spans = np.zeros((size, 2), np.int32)
    for y in np.flatnonzero(cover.any(1)):
        x = np.flatnonzero(cover[y])
        spans[y] = x[0], x[-1] + 1
    return spans
