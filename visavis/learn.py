"""Learning a likeness: regress what the moved photo lacks on the motion, keep the few best maps.

For each stack: gather the differences in its own space, find their principal pictures, predict the
scores of those pictures from the motion's features by ridge regression, choose the ridge on the
held-out tail. The next stack learns from what the one before leaves on frames it did not see
(leave-one-out predictions), so that an overfitted stack does not hide its error from the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from visavis.headmesh import HeadMesh
from visavis.likeness import (
    FINE,
    LAYERS,
    POSE,
    SPEECH,
    ZERO,
    Features,
    Layer,
    Likeness,
    blend,
    carry,
    decode,
    encode,
    scale_crop,
    to_map,
)
from visavis.mouth import SIZE
from visavis.types import RANGE_HIGH, RANGE_LOW

SIDE = 256  # px of the head and still maps
MOUTH_SIDE = 96
RANKS = {"head": 84, "still": 44, "mouth": 32}  # with a mouth net an avatar stays under 30 MB
CENTRES = (1000, 400)  # typical poses, typical mouths
WIDTHS = (0.7, 1.2)
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
TAIL = 11  # the last 1/11 is held out
COARSE = 4  # times smaller are the pictures in which principal directions are found
LEAST = 40  # frames

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sample:
    """One frame of the film.

    Attributes:
        motion: ``(D,)`` float32.
        change: ``(SIDE, SIDE, 3)`` uint8 about ``ZERO``: film minus drawing.
        mouth: ``(MOUTH_SIDE, MOUTH_SIDE, 3)`` uint8 about ``ZERO``, the same in the mouth crop.
        target: ``(V, 2)`` float32 mesh vertices, map pixels.
        order: ``(T,)`` drawing order.
        crop: ``(2, 3)`` map pixels to mouth-map pixels.
    """

    motion: np.ndarray
    change: np.ndarray
    mouth: np.ndarray
    target: np.ndarray
    order: np.ndarray
    crop: np.ndarray

    @classmethod
    def of(
        cls,
        real: np.ndarray,
        drawn: np.ndarray,
        motion: np.ndarray,
        target: np.ndarray,
        order: np.ndarray,
        crop: np.ndarray,
    ) -> Sample:
        """From whole frames ``(S, S, 3)`` uint8 and their mesh, crop and motion."""
        ratio = SIDE / len(real)
        small = [cv2.resize(x, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for x in (real, drawn)]
        to_mouth = scale_crop(crop, MOUTH_SIDE / SIZE)
        size = (MOUTH_SIDE, MOUTH_SIDE)
        lips = [cv2.warpAffine(x, to_mouth, size, flags=cv2.INTER_LINEAR) for x in (real, drawn)]
        back = np.array([[1 / ratio, 0, 0.5 / ratio - 0.5], [0, 1 / ratio, 0.5 / ratio - 0.5]])
        to_mouth = to_mouth[:, :2] @ back + np.column_stack([np.zeros((2, 2)), to_mouth[:, 2]])
        return cls(
            np.asarray(motion, np.float32),
            encode(cv2.subtract(small[0], small[1], dtype=cv2.CV_16S)),
            encode(cv2.subtract(lips[0], lips[1], dtype=cv2.CV_16S)),
            to_map(target, ratio),
            order,
            to_mouth,
        )


def tail_of(count: int) -> np.ndarray:
    """``(count,)`` bool: the last eleventh."""
    held = np.zeros(count, bool)
    held[count - max(1, count // TAIL) :] = True
    return held


def learn_likeness(
    samples: list[Sample],
    mesh: HeadMesh,
    progress: Progress = lambda stage, done, total: None,
    seed: int = 0,
) -> tuple[Likeness, float, float]:
    """Learn from frames in the order of the film.

    Args:
        samples: at least ``LEAST``.
        mesh: of the avatar that drew them.
        progress: called with the stage, steps done, steps in all.
        seed: of the choice of typical motions.

    Returns:
        The likeness; PSNR (dB, maps' scale, held-out tail) of the drawings without and with it.
    """
    assert len(samples) >= LEAST, len(samples)
    held = tail_of(len(samples))
    motion = np.array([s.motion for s in samples])
    features = typical_motions(motion[~held], np.random.default_rng(seed))
    seen = features(motion)
    source = to_map(mesh.source, SIDE / mesh.avatar.size)
    triangles = mesh.triangles
    left = np.stack([s.change for s in samples])
    before = _psnr(left[held])
    layers = {}
    for step, name in enumerate(LAYERS):
        progress("learn", step, len(LAYERS))
        if name == "head":
            space = np.stack(
                [carry(s.change, s.target, source, triangles, s.order) for s in samples]
            )
        else:
            space = left if name == "still" else _mouths(samples, left)
        layers[name], guess = fit_layer(space, seen, held, RANKS[name], _mask(name, mesh))
        if name == "mouth":
            break
        for k, sample in enumerate(samples):
            change = encode(guess(k))
            if name == "head":
                change = carry(change, source, sample.target, triangles, sample.order)
            left[k] = encode(cv2.subtract(decode(left[k]), decode(change)))
    progress("learn", len(LAYERS), len(LAYERS))
    return Likeness(features, **layers), before, _psnr(left[held])


def typical_motions(motion: np.ndarray, rng: np.random.Generator) -> Features:
    """Scales and centres of the features from motions ``(T, D)``."""
    low, high = np.percentile(motion, [0.5, 99.5], axis=0)
    mean = motion.mean(0)
    # a channel that hardly moved must not be blown up into noise
    spread = np.maximum(motion.std(0), 0.01 * (RANGE_HIGH - RANGE_LOW))
    scaled = (np.clip(motion, low, high) - mean) / spread
    picks = [
        scaled[np.sort(rng.permutation(len(scaled))[:count])][:, rows]
        for count, rows in zip(CENTRES, (POSE, SPEECH), strict=True)
    ]
    rows = [np.ascontiguousarray(x, np.float32) for x in (low, high, mean, spread, *picks, WIDTHS)]
    return Features(*rows)


def fit_layer(
    space: np.ndarray, seen: np.ndarray, held: np.ndarray, rank: int, mask: np.ndarray
) -> tuple[Layer, Callable[[int], np.ndarray]]:
    """One stack.

    Args:
        space: ``(N, H, H, 3)`` uint8 about ``ZERO``.
        seen: ``(N, F)`` features.
        held: ``(N,)`` bool, frames that only choose the ridge.
        rank: how many maps beside the mean one.
        mask: ``(2, H, H)`` float32 that fades the mean map and the others.

    Returns:
        The layer, and a function from a frame's index to what the layer predicts for it, int16:
        leave-one-out where the frame was learned from.
    """
    side = space.shape[1]
    learn = np.flatnonzero(~held)
    mean = np.zeros(space[0].shape, np.float32)
    for k in learn:
        mean += space[k]
    mean = mean / len(learn) - ZERO
    small = side // COARSE
    coarse = (
        np.stack(
            [cv2.resize(x, (small, small), interpolation=cv2.INTER_AREA).ravel() for x in space]
        ).astype(np.float32)
        - ZERO
    )
    coarse -= coarse[learn].mean(0)
    scores, rank = principal_scores(coarse, learn, min(rank, len(learn) - 1))
    weights, predicted = ridge_on_tail(seen, scores, held)
    maps = np.zeros((rank, mean.size), np.float32)
    power = (scores[learn] ** 2).sum(0)
    for start in range(0, len(learn), 64):
        rows = learn[start : start + 64]
        block = space[rows].reshape(len(rows), -1).astype(np.float32) - ZERO - mean.ravel()
        maps += (scores[rows] / power).T @ block
    maps = maps.reshape(rank, side, side, 3) * mask[1][..., None]
    stack = np.concatenate([(mean * mask[0][..., None])[None], maps])
    mix = np.zeros((seen.shape[1], rank + 1), np.float32)
    mix[0, 0] = 1.0
    mix[:, 1:] = weights
    layer = quantise(stack, mix)
    unit = np.abs(stack).reshape(rank + 1, -1).max(1) / 127 + 1e-12
    kept = layer.maps.reshape(rank + 1, -1)

    def guess(k: int) -> np.ndarray:
        weights = np.rint(np.concatenate([[1.0], predicted[k]]) * unit * 2**FINE)
        out = np.empty(mean.size, np.int16)
        blend(kept, weights.astype(np.int32), out)
        return out.reshape(mean.shape)

    return layer, guess


def principal_scores(coarse: np.ndarray, learn: np.ndarray, rank: int) -> tuple[np.ndarray, int]:
    """Scores ``(N, rank)`` of centred pictures ``(N, P)`` on the principal pictures of ``learn``."""
    gram = coarse[learn] @ coarse[learn].T
    power, vectors = np.linalg.eigh(gram)
    keep = np.flatnonzero(power > 1e-6 * max(power[-1], 1e-6))[::-1][:rank]
    if not len(keep):  # a film that never differs from its drawing
        return np.zeros((len(coarse), 1), np.float32) + 1e-6, 1
    basis = coarse[learn].T @ (vectors[:, keep] / np.sqrt(power[keep])).astype(np.float32)
    return coarse @ basis, len(keep)


def ridge_on_tail(
    seen: np.ndarray, scores: np.ndarray, held: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of scores on features, the ridge chosen on the held-out tail.

    Returns:
        Weights ``(F, K)`` and predictions ``(N, K)``, leave-one-out where learned (the hat matrix's
        diagonal gives them in closed form; Allen, Technometrics 16, 1974).
    """
    x, y = seen[~held].astype(np.float64), scores[~held].astype(np.float64)
    square, cross = x.T @ x, x.T @ y
    best = None
    for ridge in RIDGES:
        penalty = np.full(len(square), ridge)
        penalty[0] = 1e-6
        inverse = np.linalg.inv(square + np.diag(penalty))
        weights = inverse @ cross
        error = float(((seen[held] @ weights - scores[held]) ** 2).sum())
        if best is None or error < best[0]:
            best = error, weights, inverse
    _, weights, inverse = best
    predicted = seen @ weights
    lever = np.minimum(np.einsum("nf,fg,ng->n", x, inverse, x, optimize=True), 0.99)
    own = predicted[~held]
    predicted[~held] = y - (y - own) / (1 - lever)[:, None]
    return weights.astype(np.float32), predicted


def quantise(stack: np.ndarray, mix: np.ndarray) -> Layer:
    """Float maps ``(K, H, H, 3)`` to int8, their scale moved into the mix."""
    most = np.abs(stack).reshape(len(stack), -1).max(1) + 1e-9
    maps = np.rint(stack * (127 / most)[:, None, None, None]).astype(np.int8)
    return Layer(maps, (mix * (most / 127)).astype(np.float32))


def _mouths(samples: list[Sample], left: np.ndarray) -> np.ndarray:
    """The mouth crops' differences, less what the stacks before have taken."""
    out = np.empty((len(samples), MOUTH_SIDE, MOUTH_SIDE, 3), np.uint8)
    for k, sample in enumerate(samples):
        taken = cv2.subtract(decode(sample.change), decode(left[k]))
        size = (MOUTH_SIDE, MOUTH_SIDE)
        there = cv2.warpAffine(taken, sample.crop, size, flags=cv2.INTER_LINEAR)
        out[k] = encode(cv2.subtract(decode(sample.mouth), there))
    return out


def _mask(name: str, mesh: HeadMesh) -> np.ndarray:
    """How much of a layer's mean map and of its other maps is kept, ``(2, H, H)`` in 0..1."""
    if name == "mouth":
        return np.stack([_window(MOUTH_SIDE)] * 2)
    whole = np.ones((SIDE, SIDE), np.float32)
    return np.stack([whole, _reach(mesh) if name == "still" else whole])


def _window(side: int) -> np.ndarray:
    """1 inside, falling to 0 at the border over an eighth of the side, ``(side, side)``."""
    edge = np.minimum(np.arange(side), np.arange(side)[::-1]) / (side / 8)
    ramp = np.clip(edge, 0, 1).astype(np.float32)
    return np.outer(ramp, ramp)


def _reach(mesh: HeadMesh) -> np.ndarray:
    """Where the person may be, ``(SIDE, SIDE)`` in 0..1: beyond, the background never moves."""
    matte = cv2.resize(mesh.avatar.matte, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    reach = 2 * (SIDE // 12) + 1
    near = cv2.dilate((matte > 8).astype(np.float32), np.ones((reach, reach), np.uint8))
    return np.clip(cv2.GaussianBlur(near, (0, 0), SIDE / 64), 0, 1)


def _psnr(changes: np.ndarray) -> float:
    """Mean PSNR (dB) of pictures of differences about ``ZERO``."""
    errors = [np.square(x.astype(np.float32) - ZERO).mean() + 1e-9 for x in changes]
    return float(np.mean(10 * np.log10(255**2 / np.array(errors))))
