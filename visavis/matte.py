"""Cut the person out of the photo once: matte and background plate.

GrabCut (Rother, Kolmogorov, Blake 2004) seeded by the face mesh, then a colour guided filter (He,
Sun, Tang 2010) for the hair edge. It works on a square crop and takes well under two seconds.
"""

from __future__ import annotations

import cv2
import numpy as np

from visavis.facemodel import FACE_OVAL

WORK_SIZE = 256
GRABCUT_ROUNDS = 4


def person_matte(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How much of each pixel is the person.

    Args:
        image: ``(S, S, 3)`` uint8 RGB, head-and-shoulders crop.
        points: ``(478, 3)`` pixels.

    Returns:
        ``(S, S)`` float32 in 0..1.
    """
    size = image.shape[0]
    ratio = WORK_SIZE / size
    small = cv2.resize(image, (WORK_SIZE, WORK_SIZE), interpolation=cv2.INTER_AREA)
    seeds = _seeds(points[:, :2] * ratio, WORK_SIZE)
    work = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    # grabCut draws its k-means start from OpenCV's global generator: pin it for this call
    cv2.setRNGSeed(7)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(work, seeds, None, background, foreground, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    hard = ((seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD)).astype(np.uint8)
    hard = _one_piece(hard, points[:, :2] * ratio)
    soft = _refine(small, hard)
    full = cv2.resize(soft, (size, size), interpolation=cv2.INTER_CUBIC)
    fine = _guided(image.astype(np.float32) / 255, np.clip(full, 0, 1), max(2, size // 128), 1e-4)
    # guided filtering leaves a haze: keep the ends clean
    return np.clip((fine - 0.08) / 0.84, 0, 1).astype(np.float32)


def background_plate(image: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """The photo without the person, ``(S, S, 3)`` uint8: smooth continuation of what is seen.

    Args:
        image: ``(S, S, 3)`` uint8 RGB.
        matte: ``(S, S)`` float32.
    """
    known = 1 - cv2.dilate((matte > 0.02).astype(np.float32), np.ones((5, 5)))
    filled = diffuse(image.astype(np.float32), known)
    known = known[..., None]
    plate = image * known + filled * (1 - known)
    # a little of the photo's own grain, so that the filled part does not look airbrushed
    grain = _grain(image, known[..., 0])
    return np.clip(plate + grain * (1 - known), 0, 255).astype(np.uint8)


def _seeds(points: np.ndarray, size: int) -> np.ndarray:
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


def _one_piece(hard: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Only the piece that holds the nose, without holes or whiskers."""
    hard = cv2.morphologyEx(hard, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels = cv2.connectedComponents(hard)
    x, y = np.clip(points[1].astype(int), 0, hard.shape[0] - 1)
    piece = (labels == labels[y, x]).astype(np.uint8)
    framed = cv2.copyMakeBorder(piece, 1, 0, 1, 1, cv2.BORDER_CONSTANT, value=0)
    outside = framed.copy()
    cv2.floodFill(outside, None, (0, 0), 2)
    holes = (outside != 2)[1:, 1:-1]
    return cv2.morphologyEx(holes.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))


def _refine(image: np.ndarray, hard: np.ndarray) -> np.ndarray:
    """Soft edge within a narrow band around the hard one."""
    soft = _guided(image.astype(np.float32) / 255, hard.astype(np.float32), 6, 1e-3)
    inner = cv2.erode(hard, np.ones((9, 9), np.uint8))
    outer = cv2.dilate(hard, np.ones((9, 9), np.uint8))
    return np.where(inner > 0, 1, np.where(outer > 0, soft, 0)).astype(np.float32)


def _guided(guide: np.ndarray, mask: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Colour guided filter; the 3x3 systems are solved in closed form by numpy."""
    box = (2 * radius + 1,) * 2

    def mean(a: np.ndarray) -> np.ndarray:
        return cv2.blur(a, box)

    mu, m = mean(guide), mean(mask)
    cov = mean(guide * mask[..., None]) - mu * m[..., None]
    size = guide.shape[:2]
    sigma = np.empty((*size, 3, 3), np.float32)
    for i in range(3):
        for j in range(i, 3):
            sigma[..., i, j] = mean(guide[..., i] * guide[..., j]) - mu[..., i] * mu[..., j]
            sigma[..., j, i] = sigma[..., i, j]
    sigma += eps * np.eye(3, dtype=np.float32)
    a = np.linalg.solve(sigma, cov[..., None])[..., 0]
    b = m - (a * mu).sum(-1)
    return (mean(a) * guide).sum(-1) + mean(b)


def diffuse(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill unknown pixels smoothly from known ones: pull-push over an image pyramid."""
    if min(known.shape) <= 4:
        total = known.sum()
        mean = (image * known[..., None]).sum((0, 1)) / total if total > 0 else image.mean((0, 1))
        return np.broadcast_to(mean, image.shape).astype(np.float32)
    weighted = np.dstack([image * known[..., None], known])
    half = cv2.resize(weighted, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    weight = half[..., 3]
    colour = half[..., :3] / np.maximum(weight, 1e-6)[..., None]
    coarse = diffuse(colour, np.minimum(1.0, weight * 4) * (weight > 1e-3))
    up = cv2.resize(coarse, known.shape[::-1], interpolation=cv2.INTER_LINEAR)
    up = cv2.GaussianBlur(up, (0, 0), 1.2)
    return image * known[..., None] + up * (1 - known[..., None])


def _grain(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Noise as strong as the background's own, ``(S, S, 1)``, the same on every run."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    rough = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 1.5))[known > 0.5]
    level = float(np.median(rough)) * 1.2 if rough.size else 0.0
    noise = np.random.default_rng(7).standard_normal(grey.shape).astype(np.float32)
    return (level * cv2.GaussianBlur(noise, (0, 0), 0.7) * 1.6)[..., None]
