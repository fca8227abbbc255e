"""Mattes without a net: colour keys of plain walls, and cuts of stills whose agreement can be asked.

GrabCut (Rother, Kolmogorov, Blake 2004) seeded by the face mesh is what avatars were cut out with
before the net; it makes labels and is what the net is measured against.
"""

from __future__ import annotations

import cv2
import numpy as np

from visavis.facemodel import FACE_OVAL
from visavis.matte import WORK_SIZE, diffuse, grabcut, one_piece, sharpen, soften


def grabcut_matte(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The person by GrabCut and guided filter, ``(S, S)`` float32 in 0..1.

    Args:
        image: ``(S, S, 3)`` uint8 RGB, head-and-shoulders crop.
        points: ``(478, 2+)`` px.
    """
    ratio = WORK_SIZE / image.shape[0]
    small = cv2.resize(image, (WORK_SIZE, WORK_SIZE), interpolation=cv2.INTER_AREA)
    points = points[:, :2] * ratio
    hard = grabcut(small[..., ::-1], mesh_seeds(points, WORK_SIZE), rounds=4)
    return sharpen(image, soften(small, one_piece(hard, points)))


def mesh_seeds(points: np.ndarray, size: int) -> np.ndarray:
    """grabCut labels from the mesh: face and chest are the person, the upper corners are not."""
    oval = points[FACE_OVAL]
    centre = (points[10] + points[152]) / 2
    height = float(np.linalg.norm(points[152] - points[10]))
    width = float(np.linalg.norm(points[454] - points[234]))
    down = (points[152] - points[10]) / max(height, 1e-6)
    seeds = np.full((size, size), cv2.GC_PR_BGD, np.uint8)
    crown = tuple(np.float64(centre - down * 0.22 * height))
    turn = float(np.degrees(np.arctan2(down[1], down[0]))) - 90
    hair = (crown, (2 * 0.92 * width, 2 * 1.0 * height), turn)
    cv2.ellipse(seeds, hair, int(cv2.GC_PR_FGD), -1)
    chin = points[152]
    chest = np.array(
        [[chin[0] - 0.55 * width, chin[1] - 0.1 * height],
         [chin[0] + 0.55 * width, chin[1] - 0.1 * height],
         [chin[0] + 1.7 * width, chin[1] + 0.75 * height], [chin[0] + 1.9 * width, size * 2],
         [chin[0] - 1.9 * width, size * 2], [chin[0] - 1.7 * width, chin[1] + 0.75 * height]]
    )  # fmt: skip
    cv2.fillPoly(seeds, [np.int32(chest)], int(cv2.GC_PR_FGD))
    rows, columns = np.mgrid[:size, :size]
    # beside the hair, well above the shoulders: never the person, if the crop shows such a place
    away = np.hypot((columns - crown[0]) / (1.15 * width), (rows - crown[1]) / (1.15 * height))
    seeds[(away > 1) & (rows < centre[1] + 0.2 * height)] = cv2.GC_BGD
    cv2.fillPoly(seeds, [np.int32(centre + (oval - centre) * 0.97)], int(cv2.GC_FGD))
    neck = np.array(
        [[chin[0] - 0.28 * width, chin[1] - 0.15 * height],
         [chin[0] + 0.28 * width, chin[1] - 0.15 * height],
         [chin[0] + 0.5 * width, chin[1] + 0.7 * height], [chin[0] + 0.6 * width, size * 2],
         [chin[0] - 0.6 * width, size * 2], [chin[0] - 0.5 * width, chin[1] + 0.7 * height]]
    )  # fmt: skip
    cv2.fillPoly(seeds, [np.int32(neck)], int(cv2.GC_FGD))
    if not (seeds == cv2.GC_BGD).any():
        seeds[0, [0, -1]] = cv2.GC_BGD
    return seeds


def blue_key(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Alpha ``(S, S)`` before a blue wall: how much bluer than red, relative to the wall's own.

    A share of the brightness, so that a shadow on the wall counts as wall.
    """
    smooth = cv2.GaussianBlur(image, (0, 0), 0.7).astype(np.float32)
    blue = (smooth[..., 2] - smooth[..., 0]) / (smooth[..., 2] + 12)
    wall = float(np.percentile(blue[: len(blue) // 5], 80))
    known = cv2.erode((blue > 0.75 * wall).astype(np.float32), np.ones((5, 5)))
    level = diffuse(np.repeat(blue[..., None], 3, 2), known)[..., 0]
    alpha = np.clip(1.45 * (1 - blue / np.maximum(level, 1e-3)) - 0.2, 0, 1)
    return _solid(alpha, points)


def white_key(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Alpha ``(S, S)`` before a white wall: how much darker or more coloured than it."""
    least = cv2.GaussianBlur(image, (0, 0), 0.6).min(-1).astype(np.float32)
    wall = float(np.percentile(least[: len(least) // 10], 50))
    return _solid(np.clip((wall - least - 4) / 60, 0, 1), points)


def _solid(alpha: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Alpha with the inside filled and whatever does not hang on the face taken away."""
    piece = one_piece((alpha > 0.5).astype(np.uint8), points)
    inside = cv2.erode(piece, np.ones((7, 7), np.uint8), borderValue=1)
    near = cv2.dilate(piece, np.ones((9, 9), np.uint8))
    return np.where(inside > 0, 1, alpha * near).astype(np.float32)


def still_cuts(image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, ...]:
    """Three independent hard cuts of a square, each ``(S, S)`` uint8 0 or 1."""
    size = len(image)
    plain = grabcut(image, mesh_seeds(points, size), rounds=3)
    lab = cv2.cvtColor(cv2.bilateralFilter(image, 5, 25, 4), cv2.COLOR_RGB2LAB)
    other = grabcut(lab, _open_seeds(points, size), rounds=3)
    grown = 1 - _smooth_background(image, points)
    return tuple(one_piece(cut, points) for cut in (plain, other, grown))


def _open_seeds(points: np.ndarray, size: int) -> np.ndarray:
    """Labels that know less than `mesh_seeds`: a small face, the rim beside the head, all else open."""
    top, chin = points[10, :2], points[152, :2]
    width, centre = float(np.linalg.norm(points[454, :2] - points[234, :2])), (top + chin) / 2
    height = float(np.linalg.norm(chin - top))
    rows, columns = np.mgrid[:size, :size]
    far = np.hypot(columns - centre[0], rows - (centre[1] - 0.15 * height)) / width
    seeds = np.full((size, size), cv2.GC_PR_FGD, np.uint8)
    seeds[(far > 0.85) & (rows < chin[1] + 0.1 * height)] = cv2.GC_PR_BGD
    beside = np.abs(columns - centre[0]) > 1.3 * width
    seeds[beside & (rows < chin[1] + 0.5 * height)] = cv2.GC_PR_BGD
    rim = (rows < 4) | (((columns < 4) | (columns > size - 5)) & (rows < centre[1]))
    seeds[rim & (far > 1)] = cv2.GC_BGD
    oval = centre + (points[FACE_OVAL, :2] - centre) * 0.9
    cv2.fillPoly(seeds, [np.int32(oval)], int(cv2.GC_FGD))
    return seeds


def _smooth_background(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``(S, S)`` uint8, 1 where the colour runs on smoothly from the rim above the shoulders."""
    size = len(image)
    lab = cv2.cvtColor(cv2.bilateralFilter(image, 5, 20, 3), cv2.COLOR_RGB2LAB).astype(np.float32)
    rows, columns = np.mgrid[:size, :size]
    top, chin = points[10, :2], points[152, :2]
    height, centre = float(np.linalg.norm(chin - top)), (top + chin) / 2
    far = np.hypot(columns - centre[0], rows - (centre[1] - 0.1 * height)) / height
    rim = (rows < 6) | (columns < 6) | (columns > size - 7)
    found = (rim & (rows < chin[1]) & (far > 0.8)).astype(np.uint8)
    never = np.zeros((size, size), np.uint8)
    cv2.fillPoly(never, [np.int32(points[FACE_OVAL, :2])], 1)
    for _ in range(6):
        if not found.any():
            break
        away = np.linalg.norm(
            (lab - diffuse(lab, found.astype(np.float32))) * [0.7, 1.3, 1.3], axis=2
        )
        limit = max(5.0, 3 * float(np.median(away[found > 0]))) + 4
        near = cv2.dilate(found, np.ones((25, 25), np.uint8))
        alike = ((away < limit) & (near > 0) & (never == 0)).astype(np.uint8)
        alike = cv2.morphologyEx(alike, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        _, labels = cv2.connectedComponents(np.maximum(alike, found))
        found = (np.isin(labels, np.unique(labels[found > 0])) & (labels > 0)).astype(np.uint8)
    return found


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    a, b = a > 0, b > 0
    return float((a & b).sum() / max(1, (a | b).sum()))


def lopsided(mask: np.ndarray, points: np.ndarray) -> float:
    """How unevenly a cut reaches out left and right of the face, worst height between brow and chin.

    In face widths; a flag taken for an ear makes it large, as does hair on one side only.
    """
    width = float(np.linalg.norm(points[454, :2] - points[234, :2]))
    first, last = points[10], points[152]
    reach = []
    for y in range(max(0, int(first[1] - 0.2 * width)), min(len(mask) - 1, int(last[1]))):
        across = first[0] + (last[0] - first[0]) * (y - first[1]) / max(last[1] - first[1], 1)
        taken = np.flatnonzero(mask[y])
        if len(taken):
            reach.append((across - taken[0] - (taken[-1] - across)) / width)
    return float(np.abs(np.array(reach) - np.median(reach)).max()) if reach else 9.0
