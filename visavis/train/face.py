"""Fit the face model: mean face, mirror map and the linear expression basis.

    python -m visavis.train.face ../shared/data --tracks runs/tracks

Template: Procrustes mean of stills (``sfhq``), made symmetric. Basis: ridge regression from the
measured channels to vertex offsets over tracked clips, each frame also seen mirrored, one corpus as
heavy as the next. Topology: MediaPipe's canonical face (Apache-2.0).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import save_file

from visavis import facemodel as fm
from visavis.facemesh import FaceMesh
from visavis.track import clip_geometry
from visavis.types import CHANNEL

RIDGE = 2e-3
MIRRORED = {"corner_pull_left": "corner_pull_right", "corner_pull_right": "corner_pull_left"}


def stills(folder: Path, mesh: FaceMesh) -> np.ndarray:
    """Every single-face still, ``(N, 478, 3)``, eye midpoint at 0, eye distance 1."""
    rows = []
    for path in sorted(folder.glob("*.jpg")):
        faces = mesh.find(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))
        if len(faces) == 1:
            rows.append(_level(faces[0].points.astype(np.float64)))
    return np.array(rows)


def _level(points: np.ndarray) -> np.ndarray:
    """Remove in-plane rotation, position and size by the outer eye corners."""
    right, left = points[fm.RIGHT_EYE_OUTER], points[fm.LEFT_EYE_OUTER]
    axis = (left - right)[:2] / np.hypot(*(left - right)[:2])
    turn = np.array([[axis[0], axis[1], 0], [-axis[1], axis[0], 0], [0, 0, 1]])
    out = (points - (left + right) / 2) @ turn.T
    return out / np.linalg.norm(left - right)


def mean_face(shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric Procrustes mean ``(478, 3)`` and mirror map ``(478,)``."""
    frontal = np.abs(shapes[:, 234, 0] + shapes[:, 454, 0]) < 0.15
    mean = shapes[frontal].mean(0)
    for _ in range(4):
        flipped = mean * [-1, 1, 1]
        far = np.linalg.norm(mean[:, None] - flipped[None], axis=-1)
        mirror = far.argmin(1)
        mean = (mean + flipped[mirror]) / 2
        mean = mean - (mean[fm.LEFT_EYE_OUTER] + mean[fm.RIGHT_EYE_OUTER]) / 2
        mean /= np.linalg.norm(mean[fm.LEFT_EYE_OUTER] - mean[fm.RIGHT_EYE_OUTER])
        mean = np.mean([fm.fit_pose(s, mean).remove(s) for s in shapes], axis=0)
    flipped = (mean * [-1, 1, 1])[mirror]
    if not np.array_equal(mirror[mirror], np.arange(len(mirror))):
        raise ValueError("the mirror map is not an involution: the mean face is not symmetric")
    return (mean + flipped) / 2, mirror.astype(np.int32)


def support(template: np.ndarray) -> np.ndarray:
    """How far each channel may reach, ``(C, 478)``: lower face, or brows and forehead."""
    y = template[:, 1]
    mouth = np.clip((y - 0.12) / 0.30, 0, 1)
    # the eye ring is the lids' own; brows move what is above it
    brow = np.clip((-0.02 - y) / 0.10, 0, 1)
    for eye in fm.EYES.values():
        for key in ("upper", "lower", "upper_1", "lower_1", "lower_2", "iris"):
            if key in eye:
                mouth[eye[key]] = 0
                brow[eye[key]] = 0
    brow[fm.FACE_OVAL] *= 0.3
    rows = [brow if c.startswith("brow") else mouth for c in fm.BASIS_CHANNELS]
    return np.array(rows)


def fit_basis(
    corpora: list[list[Path]], template: np.ndarray, mirror: np.ndarray
) -> tuple[np.ndarray, dict]:
    """Ridge regression of vertex offsets on the measured channels."""
    width = len(fm.BASIS_CHANNELS)
    xtx, xty = np.zeros((width, width)), np.zeros((width, fm.N_VERTICES * 3))
    swap = [fm.BASIS_CHANNELS.index(MIRRORED.get(c, c)) for c in fm.BASIS_CHANNELS]
    openings: list[np.ndarray] = []
    total = explained = 0.0
    data = []
    for paths in corpora:
        rows = []
        for path in paths:
            points = np.load(path)["points"]
            points = points[np.isfinite(points).all((1, 2))]
            if len(points) < 20:
                continue
            _, vertices, neutral = clip_geometry(points, template)
            x = fm.measure(vertices, neutral)[:, fm.BASIS_INDEX].astype(np.float64)
            rows.append((x, vertices - neutral))
            openings.append(fm.measure(vertices, neutral))
        weight = 1 / max(1, sum(len(x) for x, _ in rows))
        data.append((weight, rows))
        for x, y in rows:
            flipped = (y * [-1, 1, 1])[:, mirror]
            for a, b in ((x, y), (x[:, swap], flipped)):
                xtx += weight * a.T @ a
                xty += weight * a.T @ b.reshape(len(b), -1)
    scale = np.sqrt(np.diag(xtx))
    normal = xtx / np.outer(scale, scale) + RIDGE * np.eye(width)
    basis = np.linalg.solve(normal, xty / scale[:, None]) / scale[:, None]
    basis = basis.reshape(width, fm.N_VERTICES, 3) * support(template)[:, :, None]
    mouth = template[:, 1] > 0.5
    for weight, rows in data:
        for x, y in rows:
            left = y - np.tensordot(x, basis, 1)
            total += weight * (y[:, mouth] ** 2).sum()
            explained += weight * (left[:, mouth] ** 2).sum()
    values = np.concatenate(openings)
    gap = values[:, CHANNEL["jaw_open"]]
    ratios = {
        c: float((values[:, CHANNEL[c]] * gap).sum() / (gap**2).sum()) for c in fm.OPEN_CHANNELS
    }
    return basis, {"mouth_variance_explained": 1 - explained / total, "per_unit_gap": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tracks", type=Path, default=Path("runs/tracks"))
    parser.add_argument("--models", type=Path, default=None)
    parser.add_argument("-o", "--out", type=Path, default=fm.MODEL_DIR)
    args = parser.parse_args()
    template, mirror = mean_face(stills(args.data / "sfhq", FaceMesh.open(args.models)))
    corpora = [
        sorted((args.tracks / c).glob("*.npz"))
        for c in ("grid_s1", "grid_more", "presenter", "obama_addresses")
    ]
    basis, report = fit_basis([c for c in corpora if c], template, mirror)
    obj = (args.data / "face3d" / "mediapipe_canonical_face_model.obj").read_text()
    faces = [
        [int(v.split("/")[0]) - 1 for v in line.split()[1:4]]
        for line in obj.splitlines()
        if line.startswith("f ")
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    arrays = {
        "template": template.astype(np.float32),
        "basis": basis.astype(np.float16),
        "triangles": np.array(faces, np.int32),
        "mirror": mirror,
    }
    meta = {"channels": json.dumps(fm.BASIS_CHANNELS), "version": "1"}
    save_file(arrays, args.out / "face.safetensors", metadata=meta)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
