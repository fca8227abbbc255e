"""Cut the person out of the photo once: matte and background plate.

A small net sees the photo and where its face is. Where it is in doubt, GrabCut (Rother, Kolmogorov,
Blake 2004) draws the outline by colour; a colour guided filter (He, Sun, Tang 2010) brings it to full
size with the photo's own edge.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from visavis.backends import open_graph
from visavis.errors import ModelError
from visavis.facemodel import FACE_OVAL

MODEL_DIR = Path(__file__).parent / "assets" / "models" / "matte"

NET_SIZE = 192  # px, what the net sees
WORK_SIZE = 256  # px, where GrabCut draws the outline
SURE = 0.93  # alpha of the net from which nothing else is asked
GUARD = 0.004  # of the photo's side: what this close to the person may hold some of it
FADE = 0.08  # of the photo's side: how far the mirrored background reaches in
N_INPUTS = 6  # maps of `matte_inputs`


class MatteNet:
    """The net that tells the person from the rest; holds weights only.

    Args:
        model_dir: folder of ``model.json`` and its graph.
        threads: CPU threads.
        provider: a key of `visavis.backends.PROVIDERS`.

    Raises:
        ModelError: no readable matting net there.
    """

    def __init__(
        self, model_dir: str | Path = MODEL_DIR, threads: int = 1, provider: str = "openvino"
    ):
        folder = Path(model_dir)
        try:
            card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise ModelError(f"no readable model.json in {folder}: {err}") from err
        fits = {"kind": "matte", "size": NET_SIZE, "channels": N_INPUTS}
        if {key: card.get(key) for key in fits} != fits:
            raise ModelError(
                f"{folder} is not a matting net of {NET_SIZE} px and {N_INPUTS} channels; export again"
            )
        self.card = card
        self._graph = open_graph(folder / card["graph"], provider, threads=threads)

    def __call__(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Alpha of a picture: the mean of what is seen in it and in its mirror image, at `NET_SIZE`.

        Args:
            image: ``(S, S, 3)`` uint8 RGB, S no less than `NET_SIZE`.
            points: ``(478, 2+)`` px.

        Returns:
            ``(S, S)`` float32 in 0..1.
        """
        size = len(image)
        small = cv2.resize(image, (NET_SIZE, NET_SIZE), interpolation=cv2.INTER_AREA)
        at = (points[:, :2] + 0.5) * (NET_SIZE / size) - 0.5
        mirrored = at * [-1, 1] + [NET_SIZE - 1, 0]
        seen = self._graph({"inputs": matte_inputs(small, at)[None]})["alpha"][0, 0]
        again = self._graph({"inputs": matte_inputs(small[:, ::-1], mirrored)[None]})["alpha"]
        return cv2.resize((seen + again[0, 0, :, ::-1]) / 2, (size, size))


def person_matte(image: np.ndarray, points: np.ndarray, net: MatteNet | None = None) -> np.ndarray:
    """How much of each pixel is the person.

    Args:
        image: ``(S, S, 3)`` uint8 RGB, head-and-shoulders crop.
        points: ``(478, 2+)`` pixels.
        net: the shipped one by default.

    Returns:
        ``(S, S)`` float32 in 0..1.

    Raises:
        ModelError: the shipped net is missing.
    """
    net = net or MatteNet()
    size = image.shape[0]
    way = cv2.INTER_AREA if size > WORK_SIZE else cv2.INTER_CUBIC
    small = cv2.resize(image, (WORK_SIZE, WORK_SIZE), interpolation=way)
    at = (points[:, :2] + 0.5) * (WORK_SIZE / size) - 0.5
    hard = grabcut(small[..., ::-1], doubts(net(small, at), at), rounds=2)
    return sharpen(image, soften(small, one_piece(hard, at)))


def doubts(alpha: np.ndarray, points: np.ndarray) -> np.ndarray:
    """GrabCut labels from a net's alpha: sure where it is sure or the face is, its guess elsewhere."""
    seeds = np.where(alpha > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    seeds[alpha > SURE] = cv2.GC_FGD
    seeds[alpha < 1 - SURE] = cv2.GC_BGD
    oval = points[FACE_OVAL, :2]
    oval = oval.mean(0) + (oval - oval.mean(0)) * 0.95
    cv2.fillPoly(seeds, [np.int32(oval)], int(cv2.GC_FGD))
    cv2.fillPoly(seeds, [np.int32(_chest(points, 4 * len(alpha)))], int(cv2.GC_FGD))
    return seeds


def _chest(points: np.ndarray, bottom: float) -> np.ndarray:
    """Neck and the middle of the chest, narrower than anyone's, ``(6, 2)`` px: dark suits get lost."""
    chin = points[152, :2]
    height = float(np.linalg.norm(chin - points[10, :2]))
    width = float(np.linalg.norm(points[454, :2] - points[234, :2]))
    half = np.array([[0.28, -0.15 * height], [0.9, 0.85 * height], [0.9, bottom]]) * [width, 1]
    return np.concatenate([chin + half, (chin + half * [-1, 1])[::-1]])


def grabcut(image: np.ndarray, seeds: np.ndarray, rounds: int) -> np.ndarray:
    """``(S, S)`` uint8, 1 what GrabCut takes for the foreground.

    Args:
        image: ``(S, S, 3)`` uint8 in any colour space.
        seeds: ``(S, S)`` uint8 labels of OpenCV.
        rounds: of its optimisation.
    """
    labels = seeds.copy()
    behind = (labels == cv2.GC_BGD) | (labels == cv2.GC_PR_BGD)
    if behind.any() and not behind.all():  # else there is nothing to tell apart
        # grabCut draws its k-means start from OpenCV's global generator: pin it for this call
        cv2.setRNGSeed(7)
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        image = np.ascontiguousarray(image)
        cv2.grabCut(image, labels, None, background, foreground, rounds, cv2.GC_INIT_WITH_MASK)
    return ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)


def background_plate(image: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """The photo without the person, ``(S, S, 3)`` uint8.

    Beside the outline, where a moving head uncovers it, the background is mirrored in, so that shelves
    and flags go on; further in it fades to a smooth continuation.

    Args:
        image: ``(S, S, 3)`` uint8 RGB.
        matte: ``(S, S)`` float32.
    """
    size = len(matte)
    guard = 2 * max(2, round(GUARD * size)) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (guard, guard))
    known = 1 - cv2.dilate((matte > 0.02).astype(np.uint8), disc)
    if not known.any():
        return image.copy()
    source = image.astype(np.float32)
    deep = diffuse(_even(source, known, FADE * size / 3), known.astype(np.float32))
    near, share = _mirrored(source, cv2.erode(known, np.ones((3, 3), np.uint8)), FADE * size)
    filled = deep + (near - deep) * share[..., None]
    # a little of the photo's own grain, so that the filled part does not look airbrushed
    filled += _grain(image, known) * (1 - share[..., None])
    # in the guard band the photo stands where it is more like the background than like the person
    front = diffuse(source, (matte > 0.95).astype(np.float32))
    apart = [np.abs(source - other).sum(-1) for other in (filled, deep, front)]
    stays = (matte <= 0.02) & (np.minimum(apart[0], apart[1]) < 0.5 * apart[2])
    plate = np.where((stays | (known > 0))[..., None], source, filled)
    return np.clip(plate, 0, 255).astype(np.uint8)


def _even(image: np.ndarray, known: np.ndarray, sigma: float) -> np.ndarray:
    """Known pixels averaged with the known ones around, so that no bright dot blooms when spread."""
    known = known.astype(np.float32)
    weight = cv2.GaussianBlur(known, (0, 0), sigma)[..., None]
    return cv2.GaussianBlur(image * known[..., None], (0, 0), sigma) / np.maximum(weight, 1e-4)


def _mirrored(image: np.ndarray, known: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Unknown pixels from the known side of the nearest outline, as a mirror there would show it.

    Args:
        image: ``(S, S, 3)`` float32.
        known: ``(S, S)`` uint8.
        reach: px from the outline at which it has faded.

    Returns:
        ``(S, S, 3)`` float32 and how much it counts, ``(S, S)`` float32.
    """
    unknown = (1 - known).astype(np.uint8)
    away, labels = cv2.distanceTransformWithLabels(
        unknown, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    rows, columns = np.nonzero(known)
    at = np.zeros((labels.max() + 1, 2), np.float32)
    at[labels[rows, columns]] = np.stack([columns, rows], 1)
    y, x = np.mgrid[: len(known), : known.shape[1]].astype(np.float32)
    here = np.dstack([x, y])
    nearest = at[labels]
    # the nearest pixel jumps along a ragged outline: let the mirror turn smoothly
    step = _even(2 * (nearest - here) * unknown[..., None], unknown, max(1.0, reach / 4))
    place = here + step * unknown[..., None]
    sure = cv2.remap(known, place, None, cv2.INTER_NEAREST, borderValue=0) > 0
    place = np.where(sure[..., None], place, nearest)
    shown = cv2.remap(image, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return shown, np.clip(1.5 - 1.5 * away / reach, 0, 1)


def matte_inputs(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """What the matting net sees, ``(N_INPUTS, H, H)`` float32.

    Colour in -1..1, where each pixel lies on the face (right and down, in face heights from its
    middle, with the head's roll taken out) and the face's oval.

    Args:
        image: ``(H, H, 3)`` uint8 RGB.
        points: ``(478, 2+)`` in its pixels.
    """
    size = image.shape[0]
    top, chin = points[10, :2], points[152, :2]
    down = (chin - top).astype(np.float64)
    height = max(float(np.linalg.norm(down)), 1e-6)
    down /= height
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    x, y = columns - (top[0] + chin[0]) / 2, rows - (top[1] + chin[1]) / 2
    oval = np.zeros((size, size), np.uint8)
    cv2.fillPoly(oval, [np.int32(np.round(points[FACE_OVAL, :2]))], 1)
    maps = [(x * down[1] - y * down[0]) / height, (x * down[0] + y * down[1]) / height, oval]
    colour = image.transpose(2, 0, 1) / np.float32(127.5) - 1
    return np.concatenate([colour, np.clip(maps, -3, 3)]).astype(np.float32)


def one_piece(hard: np.ndarray, points: np.ndarray) -> np.ndarray:
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


def soften(image: np.ndarray, hard: np.ndarray) -> np.ndarray:
    """Soft edge within a narrow band around the hard one."""
    soft = _guided(image.astype(np.float32) / 255, hard.astype(np.float32), 6, 1e-3)
    inner = cv2.erode(hard, np.ones((9, 9), np.uint8))
    outer = cv2.dilate(hard, np.ones((9, 9), np.uint8))
    return np.where(inner > 0, 1, np.where(outer > 0, soft, 0)).astype(np.float32)


def sharpen(image: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """A small matte at the photo's size, its edge where the photo's is: ``(S, S)`` float32."""
    size = image.shape[0]
    full = cv2.resize(soft, (size, size), interpolation=cv2.INTER_CUBIC)
    fine = _guided(image.astype(np.float32) / 255, np.clip(full, 0, 1), max(2, size // 128), 1e-4)
    # guided filtering leaves a haze: keep the ends clean
    return np.clip((fine - 0.08) / 0.84, 0, 1).astype(np.float32)


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
