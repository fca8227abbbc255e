"""Faces in pictures: detector and 478-point mesh, run directly from Google's TFLite graphs.

The decode follows MediaPipe's published graph constants (short-range BlazeFace anchors, region of
interest 1.5 times the box, rotated to level the eyes); no mediapipe package is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from visavis.backends import Graph
from visavis.modelstore import face_graphs
from visavis.types import State

DETECTOR_SIZE = 128
MESH_SIZE = 256
MESH_SIZE_WHEEL = 192
ROI_SCALE = 1.5
LEFT_EYE_OUTER, RIGHT_EYE_OUTER = 263, 33  # the person's left and right

# The 146 of 478 points that the blendshape graph reads (MediaPipe face_blendshapes_graph.cc).
BLENDSHAPE_POINTS = np.array(
    [0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65,
     66, 67, 70, 78, 80, 81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136,
     144, 145, 146, 148, 149, 150, 152, 153, 154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172,
     173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249, 251, 263, 267, 269, 270, 276, 282, 283,
     284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318, 321, 323, 324,
     332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385,
     386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472,
     473, 474, 475, 476, 477]
)  # fmt: skip


@dataclass(frozen=True)
class FaceObservation:
    """One face in one image.

    Attributes:
        points: ``(478, 3)`` float32 pixels; x right, y down, z on the scale of x, smaller is nearer
            the camera. With the wheel's graphs the irises (468..477) are guessed from the lids.
        score: presence probability from the mesh graph, 0..1.
        irises: whether the iris points were measured.
    """

    points: np.ndarray
    score: float
    irises: bool = True


class FaceMesh:
    """Detector + mesh. Holds graphs only; the track lives in the caller's ``State``."""

    def __init__(
        self, models: str | Path | None = None, *, threads: int = 1, download: bool = True
    ):
        graphs = face_graphs(models, download=download)
        self.origin = graphs.origin
        self._detector = Graph(graphs.detector, threads=threads)
        self._mesh = Graph(graphs.landmarks, threads=threads)
        self._blendshapes = (
            Graph(graphs.blendshapes, threads=threads) if graphs.blendshapes else None
        )
        self._mesh_input = next(iter(self._mesh.inputs))
        self._mesh_size = MESH_SIZE if graphs.blendshapes else MESH_SIZE_WHEEL
        self._anchors = _anchors()

    @classmethod
    def open(cls, models: str | Path | None = None, *, threads: int = 1) -> FaceMesh:
        """Find the graphs (see ``modelstore``) and compile them.

        Raises:
            ModelError: no source of the graphs is reachable.
        """
        return cls(models, threads=threads)

    def detect(self, image: np.ndarray, min_score: float = 0.5) -> np.ndarray:
        """Boxes by the short-range detector on the whole image.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.

        Returns:
            ``(N, 17)`` float32 pixels: x0, y0, x1, y1, six keypoints (right eye, left eye, nose,
            mouth, right ear, left ear) and the score; best first, overlaps removed.
        """
        height, width = image.shape[:2]
        side = max(height, width)
        scale = DETECTOR_SIZE / side
        pad = np.array([(side - width) / 2, (side - height) / 2])
        matrix = np.array([[scale, 0, pad[0] * scale], [0, scale, pad[1] * scale]])
        matrix[:, 2] += 0.5 * scale - 0.5
        flag = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        if scale < 0.5:
            # warpAffine does not average: shrink with INTER_AREA, then place
            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            square = np.zeros((DETECTOR_SIZE, DETECTOR_SIZE, 3), np.uint8)
            top, left = ((np.array(square.shape[:2]) - small.shape[:2]) // 2).clip(0)
            small = small[:DETECTOR_SIZE, :DETECTOR_SIZE]
            square[top : top + small.shape[0], left : left + small.shape[1]] = small
        else:
            square = cv2.warpAffine(image, matrix, (DETECTOR_SIZE, DETECTOR_SIZE), flags=flag)
        feed = (square.astype(np.float32) / 127.5 - 1.0)[None]
        out = self._detector({next(iter(self._detector.inputs)): feed})
        raw = next(v for v in out.values() if v.shape[-1] == 16)[0]
        logits = next(v for v in out.values() if v.shape[-1] == 1)[0, :, 0]
        scores = 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
        keep = scores >= min_score
        raw, scores, anchors = raw[keep], scores[keep], self._anchors[keep]
        points = raw.reshape(-1, 8, 2) / DETECTOR_SIZE
        centre, size = points[:, 0] + anchors, points[:, 1]
        marks = points[:, 2:] + anchors[:, None]
        rows = np.concatenate([centre - size / 2, centre + size / 2, marks.reshape(-1, 12)], 1)
        rows = rows * side - np.tile(pad, 8)
        rows = np.concatenate([rows, scores[:, None]], 1).astype(np.float32)
        return _merge(rows)

    def find(self, image: np.ndarray, min_score: float = 0.5) -> list[FaceObservation]:
        """Every face in a still, largest first.

        Looks at the whole image, then, where that finds nothing, at a padded one (faces that fill
        the picture) and at overlapping tiles (small faces).

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
        """
        for look in (self.detect, self._detect_padded, self._detect_tiles):
            found = [self._refine(image, _roi_from_box(box)) for box in look(image, min_score)]
            faces = [face for face in found if face is not None]
            if faces:
                return _distinct(sorted(faces, key=lambda o: -float(np.ptp(o.points[:, 0]))))
        return []

    def init_state(self) -> State:
        """A track that has seen nothing."""
        return {"facemesh/roi": np.zeros(5, np.float32)}

    def track(self, state: State, image: np.ndarray) -> tuple[State, FaceObservation | None]:
        """One video frame: follow the face of the frame before, or look for the largest one.

        Args:
            state: from ``init_state`` or the frame before.
            image: ``(H, W, 3)`` uint8 RGB.

        Returns:
            The next state and the face, ``None`` where there is none.
        """
        roi = state["facemesh/roi"]
        seen = self.mesh(image, roi) if roi[2] > 0 else None
        if seen is None:
            faces = self.find(image)
            seen = faces[0] if faces else None
        if seen is None:
            return self.init_state(), None
        return {"facemesh/roi": roi_from_points(seen.points)}, seen

    def mesh(
        self, image: np.ndarray, roi: np.ndarray, min_score: float = 0.5
    ) -> FaceObservation | None:
        """The mesh in one region.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            roi: ``(5,)`` centre x, centre y, side in pixels, cos and sin of the rotation.
        """
        matrix = _roi_matrix(roi, self._mesh_size)
        crop = cv2.warpAffine(
            image, matrix, (self._mesh_size, self._mesh_size), flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        out = self._mesh({self._mesh_input: crop.astype(np.float32)[None] / 255.0})
        raw = max(out.values(), key=lambda v: v.size).reshape(-1, 3)
        logit = float(next(v for k, v in out.items() if v.size == 1).ravel()[0])
        score = 1 / (1 + np.exp(-np.clip(logit, -60, 60)))
        if score < min_score:
            return None
        inverse = cv2.invertAffineTransform(matrix)
        points = np.empty_like(raw)
        points[:, :2] = raw[:, :2] @ inverse[:, :2].T + inverse[:, 2]
        points[:, 2] = raw[:, 2] * roi[2] / self._mesh_size
        if len(points) == 468:
            return FaceObservation(_with_irises(points), float(score), irises=False)
        return FaceObservation(points.astype(np.float32), float(score))

    def blendshapes(self, points: np.ndarray) -> np.ndarray | None:
        """The 52 ARKit-style coefficients, ``(52,)`` float32, ``None`` without their graph."""
        if self._blendshapes is None:
            return None
        name = next(iter(self._blendshapes.inputs))
        out = self._blendshapes({name: points[None, BLENDSHAPE_POINTS, :2].astype(np.float32)})
        return next(iter(out.values()))

    def _refine(self, image: np.ndarray, roi: np.ndarray) -> FaceObservation | None:
        """Two passes: the detector's box is loose, the mesh's own region fits."""
        first = self.mesh(image, roi)
        if first is None:
            return None
        return self.mesh(image, roi_from_points(first.points)) or first

    def _detect_padded(self, image: np.ndarray, min_score: float) -> np.ndarray:
        pad = max(image.shape[:2]) // 2
        wide = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        boxes = self.detect(wide, min_score)
        boxes[:, :16] -= pad
        return boxes

    def _detect_tiles(self, image: np.ndarray, min_score: float) -> np.ndarray:
        height, width = image.shape[:2]
        side = max(DETECTOR_SIZE, min(height, width) // 2)
        rows = []
        for top in range(0, max(1, height - side // 2), side // 2):
            for left in range(0, max(1, width - side // 2), side // 2):
                boxes = self.detect(image[top : top + side, left : left + side], min_score)
                boxes[:, :16] += np.tile(np.array([left, top], np.float32), 8)
                rows.append(boxes)
        return _merge(np.concatenate(rows))


def roi_from_points(points: np.ndarray) -> np.ndarray:
    """The next frame's region from this frame's mesh, ``(5,)`` float32 (see ``FaceMesh.mesh``)."""
    axis = points[LEFT_EYE_OUTER, :2] - points[RIGHT_EYE_OUTER, :2]
    axis = axis / max(float(np.hypot(*axis)), 1e-6)
    turn = np.array([[axis[0], axis[1]], [-axis[1], axis[0]]])
    local = points[:468, :2] @ turn.T
    low, high = local.min(0), local.max(0)
    centre = ((low + high) / 2) @ turn
    side = float((high - low).max()) * ROI_SCALE
    return np.array([*centre, side, *axis], np.float32)


def _roi_from_box(box: np.ndarray) -> np.ndarray:
    axis = box[6:8] - box[4:6]
    axis = axis / max(float(np.hypot(*axis)), 1e-6)
    side = float(max(box[2] - box[0], box[3] - box[1])) * ROI_SCALE
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, side, *axis], np.float32)


def _roi_matrix(roi: np.ndarray, size: int) -> np.ndarray:
    """Image pixels to crop pixels, ``(2, 3)`` float64."""
    cx, cy, side, cos, sin = (float(v) for v in roi)
    scale = size / side
    linear = scale * np.array([[cos, sin], [-sin, cos]])
    shift = np.array([size / 2, size / 2]) - linear @ np.array([cx, cy])
    return np.concatenate([linear, shift[:, None]], 1)


def _anchors() -> np.ndarray:
    """Anchor centres of the short-range detector, ``(896, 2)`` in 0..1: strides 8 (x2), 16 (x6)."""
    rows = []
    for cells, per_cell in ((16, 2), (8, 6)):
        y, x = np.divmod(np.arange(cells * cells), cells)
        centre = (np.stack([x, y], 1) + 0.5) / cells
        rows.append(np.repeat(centre, per_cell, axis=0))
    return np.concatenate(rows).astype(np.float32)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low = np.maximum(a[:2], b[:, :2])
    high = np.minimum(a[2:4], b[:, 2:4])
    inner = np.prod(np.clip(high - low, 0, None), axis=1)
    area = np.prod(a[2:4] - a[:2]) + np.prod(b[:, 2:4] - b[:, :2], axis=1) - inner
    return inner / np.maximum(area, 1e-6)


def _merge(rows: np.ndarray, limit: float = 0.3) -> np.ndarray:
    """Weighted non-maximum suppression, as BlazeFace uses it: overlapping boxes are averaged."""
    rows = rows[np.argsort(-rows[:, 16])] if len(rows) else rows
    merged = []
    while len(rows):
        same = _overlap(rows[0], rows) > limit
        same[0] = True
        weight = rows[same, 16:17]
        box = (rows[same] * weight).sum(0) / weight.sum()
        box[16] = rows[0, 16]
        merged.append(box)
        rows = rows[~same]
    return np.array(merged, np.float32).reshape(-1, 17)


def _distinct(faces: list[FaceObservation]) -> list[FaceObservation]:
    """Drop second sightings of one face: centres nearer than half a face width."""
    kept: list[FaceObservation] = []
    for face in faces:
        centre = face.points[:, :2].mean(0)
        near = [
            np.hypot(*(centre - k.points[:, :2].mean(0))) < 0.5 * np.ptp(k.points[:, 0])
            for k in kept
        ]
        if not any(near):
            kept.append(face)
    return kept


def _with_irises(points: np.ndarray) -> np.ndarray:
    """Append ten iris points guessed from the lid corners (the wheel's mesh has 468)."""
    rows = [points]
    for inner, outer in ((133, 33), (362, 263)):
        centre = (points[inner] + points[outer]) / 2
        radius = 0.2 * np.linalg.norm(points[inner, :2] - points[outer, :2])
        ring = np.array([[0, 0, 0], [1, 0, 0], [0, -1, 0], [-1, 0, 0], [0, 1, 0]])
        rows.append(centre + ring * radius)
    return np.concatenate(rows).astype(np.float32)
