"""Steadiness in time: tLP, tOF, warping error, jitter, flicker, frame variance.

Clips are ``(T, H, W, 3)`` uint8 RGB (or a list of such frames), points ``(T, N, D)`` pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from visavis.eval.landmarks import eye_distance, remove_pose

Frames = Sequence[np.ndarray] | np.ndarray
Distance = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class RealMotion:
    """What the flow measures need of the real clip; made once, used for every row.

    Attributes:
        frames: the T real frames.
        ahead: T - 1 flows ``(H, W, 2)`` from frame t - 1 to t.
        back: T - 1 flows from frame t to t - 1.
    """

    frames: Frames
    ahead: list[np.ndarray]
    back: list[np.ndarray]


def real_motion(real: Frames) -> RealMotion:
    """Flows of the real clip, both ways."""
    pairs = list(pairwise(real))
    return RealMotion(real, [flow(a, b) for a, b in pairs], [flow(b, a) for a, b in pairs])


def step_distances(frames: Frames, distance: Distance) -> np.ndarray:
    """``distance`` of each frame to the one before, two frames dropped at each end, ``(T - 5,)``."""
    inside = range(3, len(frames) - 2)
    return np.array([distance(frames[t - 1], frames[t]) for t in inside])


def tlp(predicted: Frames, real_steps: np.ndarray, distance: Distance) -> float:
    """100 · mean |d(real[t-1], real[t]) - d(out[t-1], out[t])|, two frames dropped at each end.

    ``distance`` is LPIPS-Alex in the source and our perceptual distance here: name it beside the
    figure. Source: TecoGAN ``metrics.py`` (Chu et al., SIGGRAPH 2020). NaN under 6 frames.

    Args:
        real_steps: ``(T - 5,)`` of ``step_distances(real, distance)``.
    """
    steps = np.abs(step_distances(predicted, distance) - real_steps)
    return float(100 * steps.mean()) if len(steps) else float("nan")


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Farneback flow from the first to the second frame, ``(H, W, 2)`` px (TecoGAN's
    parameters).
    """
    a, b = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (first, second))
    return cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)


def tof(predicted: Frames, real: RealMotion) -> float:
    """Mean length of the difference of the two clips' optical flows, px per frame.

    Source: TecoGAN ``metrics.py``; two frames dropped at each end as there. NaN under 6 frames.
    """
    inside = range(3, len(predicted) - 2)
    errors = [
        np.linalg.norm(real.ahead[t - 1] - flow(predicted[t - 1], predicted[t]), axis=-1).mean()
        for t in inside
    ]
    return float(np.mean(errors)) if errors else float("nan")


def warping_error(predicted: Frames, real: RealMotion) -> float:
    """Mean squared error, RGB in [0, 1], between a frame and its predecessor moved by the real
    flow.

    Flow of the *real* clip, forward-backward test: pixels whose two flows disagree by more than
    0.01·(|f|²+|b|²) + 0.5 are occluded and left out, as are those that came from outside the
    frame. Source: Lai et al., ECCV 2018,
    ``phoenix104104/fast_blind_video_consistency`` (FlowNet2 there, Farneback here). NaN for 1
    frame.
    """
    errors = []
    for t in range(1, len(predicted)):
        back, ahead = real.back[t - 1], real.ahead[t - 1]
        height, width = back.shape[:2]
        grid = (
            np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
            + back
        )
        returned = cv2.remap(ahead, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR)
        limit = 0.01 * ((back**2).sum(-1) + (returned**2).sum(-1)) + 0.5
        seen = ((back + returned) ** 2).sum(-1) < limit
        seen &= ((grid >= 0) & (grid <= [width - 1, height - 1])).all(-1)
        moved = cv2.remap(predicted[t - 1], grid[..., 0], grid[..., 1], cv2.INTER_LINEAR)
        error = ((moved.astype(np.float32) - predicted[t].astype(np.float32)) / 255) ** 2
        if seen.any():
            errors.append(error[seen].mean())
    return float(np.mean(errors)) if errors else float("nan")


def second_difference(points: np.ndarray, indices: Sequence[int]) -> float:
    """Standard deviation of the second difference of the points, pose removed, outer-eye distances.

    Args:
        points: ``(T, N, D)``; moved onto its own first frame. NaN under 3 frames.
    """
    if len(points) < 3:
        return float("nan")
    still = remove_pose(points, points[0])[:, list(indices)] / eye_distance(points[:1])[0]
    return float(np.diff(still, n=2, axis=0).std())


def jitter_ratio(predicted: np.ndarray, real: np.ndarray, indices: Sequence[int]) -> float:
    """Second difference of the predicted points over the real ones'; 1 = as steady as the real
    video.

    Over 1 trembles, far under 1 is frozen or over-smoothed. NaN when the real points do not move.
    """
    base = second_difference(real, indices)
    return second_difference(predicted, indices) / base if base > 1e-9 else float("nan")


def log_dimensionless_jerk(signal: np.ndarray, rate: float) -> float:
    """Smoothness of a movement, higher (nearer 0) is smoother; NaN when it does not move.

    ``-ln(T⁵ / A² · ∫ jerk² dt)``. Source: Hogan & Sternad 2009; Balasubramanian et al. 2012.
    """
    amplitude = float(np.ptp(signal))
    if amplitude < 1e-6 or len(signal) < 4:
        return float("nan")
    jerk = np.diff(signal, n=3) * rate**3
    seconds = len(signal) / rate
    return float(-np.log(seconds**5 / amplitude**2 * np.sum(jerk**2) / rate + 1e-300))


def flicker(frames: Frames, static: np.ndarray) -> float:
    """Mean absolute change per frame of the pixels that should not move, grey levels 0..255.

    Args:
        static: ``(H, W)`` bool, true outside the person.
    """
    if len(frames) < 2 or not static.any():
        return float("nan")
    where, steps = np.flatnonzero(static), []
    last = frames[0].reshape(-1, 3)[where].astype(np.int16)
    for frame in frames[1:]:
        now = frame.reshape(-1, 3)[where].astype(np.int16)
        steps.append(np.abs(now - last).mean())
        last = now
    return float(np.mean(steps))


def frame_variance(frames: Frames) -> float:
    """Mean over pixels of the variance in time, (grey levels)²; 0 for a frozen video."""
    total = np.zeros(frames[0].shape, np.float64)
    square = np.zeros_like(total)
    for frame in frames:
        total += frame
        square += frame.astype(np.float64) ** 2
    n = len(frames)
    return float(np.maximum(square / n - (total / n) ** 2, 0).mean())
