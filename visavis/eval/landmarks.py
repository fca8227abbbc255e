"""Landmark error on tracked faces: NME, mouth NME with pose removed, LMD of the literature, LVE,
FDD.

Points are the 478 (or 468) of the MediaPipe face mesh, ``(T, N, 2)`` or ``(T, N, 3)`` in pixels.
The index lists are the judge's own: a change in the tracker must not move the ruler.
"""

from __future__ import annotations

import numpy as np

OUTER_EYES = (33, 263)  # the person's right and left outer eye corner
RIGID = (33, 133, 362, 263, 168, 6, 197, 195, 8, 9, 151, 10, 127, 356)  # no mouth, no brow, no lid
LIPS_OUTER = (
    61,
    146,
    91,
    181,
    84,
    17,
    314,
    405,
    321,
    375,
    291,
    409,
    270,
    269,
    267,
    0,
    37,
    39,
    40,
    185,
)
LIPS_INNER = (
    78,
    95,
    88,
    178,
    87,
    14,
    317,
    402,
    318,
    324,
    308,
    415,
    310,
    311,
    312,
    13,
    82,
    81,
    80,
    191,
)
LIPS = LIPS_OUTER + LIPS_INNER
BROWS = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46, 300, 293, 334, 296, 336, 285, 295, 282, 283, 276)
LIDS = (159, 145, 158, 153, 160, 144, 386, 374, 385, 380, 387, 373)
UPPER_FACE = BROWS + LIDS + (10, 151, 9, 8, 67, 297, 109, 338)

# The 68-point scheme (iBUG 300-W) in mesh indices: the mapping in common use on public code hosts.
MESH_68 = (
    # jaw 0-16
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301),  # brows 17-26
    *(168, 197, 5, 4, 75, 97, 2, 326, 305),  # nose 27-35
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes 36-47
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),  # outer lips 48-59
    *(78, 82, 13, 312, 308, 317, 14, 87),  # inner lips 60-67
)
MOUTH_68 = MESH_68[48:68]


def eye_distance(points: np.ndarray) -> np.ndarray:
    """Distance of the outer eye corners per frame, ``(T,)``, in the unit of ``points``."""
    right, left = OUTER_EYES
    return np.linalg.norm(points[:, left, :2] - points[:, right, :2], axis=-1)


def nme(predicted: np.ndarray, real: np.ndarray) -> float:
    """Normalised mean error over all points: mean distance / outer-eye distance of the real frame.

    Args:
        predicted, real: ``(T, N, 2+)`` pixels of the same frames; only x and y are compared.

    Returns a fraction (0.05 = 5 %). Source: Sagonas et al., 300-W (2013), inter-ocular
    normalisation.
    """
    error = np.linalg.norm(predicted[..., :2] - real[..., :2], axis=-1).mean(axis=1)
    return float((error / eye_distance(real)).mean())


def remove_pose(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Each frame moved onto ``reference`` by the similarity that best fits the rigid points.

    Args:
        points: ``(T, N, D)`` with D 2 or 3 (3 removes pitch and yaw as well as roll and scale).
        reference: ``(N, D)``.

    Returns ``(T, N, D)`` in the reference's frame. Source: Umeyama, IEEE PAMI 13(4), 1991.
    """
    rigid = list(RIGID)
    source = points[:, rigid].astype(float)
    target = reference[rigid].astype(float)
    source_mean, target_mean = source.mean(axis=1, keepdims=True), target.mean(axis=0)
    a, b = source - source_mean, target - target_mean
    u, s, vt = np.linalg.svd(np.einsum("nd,tne->tde", b, a) / len(rigid))
    sign = np.ones_like(s)
    sign[:, -1] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = np.einsum("tij,tj,tjk->tik", u, sign, vt)
    variance = (a**2).sum(axis=(1, 2)) / len(rigid)
    scale = (s * sign).sum(axis=1) / np.maximum(variance, 1e-12)
    moved = np.einsum("tij,tnj->tni", rotation, points - source_mean)
    return moved * scale[:, None, None] + target_mean


def mouth_nme(predicted: np.ndarray, real: np.ndarray) -> float:
    """NME of the 40 lip points after both clips are moved onto the real clip's first frame."""
    reference = real[0]
    scale = eye_distance(reference[None])[0]
    lips = list(LIPS)
    a = remove_pose(predicted, reference)[:, lips, :2]
    b = remove_pose(real, reference)[:, lips, :2]
    return float(np.linalg.norm(a - b, axis=-1).mean() / scale)


def _centred_distance(predicted: np.ndarray, real: np.ndarray, indices: tuple[int, ...]) -> float:
    a, b = predicted[:, list(indices), :2], real[:, list(indices), :2]
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    return float(np.linalg.norm(a - b, axis=-1).mean())


def lmd(predicted: np.ndarray, real: np.ndarray) -> float:
    """Mouth landmark distance (LMD, M-LMD) of the person-specific literature, **pixels**.

    Mouth points 48-67 of the 68-point scheme, each frame's mouth centroid subtracted, mean
    Euclidean
    distance; no scale normalisation, so the frame size must be stated beside it.
    Source: LMDMeter in ER-NeRF ``nerf_triplane/utils.py`` and TalkingGaussian ``metrics.py`` (they
    use FAN landmarks; ours are the mesh's, so figures compare within this harness only).
    """
    return _centred_distance(predicted, real, MOUTH_68)


def face_lmd(predicted: np.ndarray, real: np.ndarray) -> float:
    """F-LMD: as ``lmd`` over all 68 points, the face centroid subtracted, **pixels**."""
    return _centred_distance(predicted, real, MESH_68)


def lip_vertex_error(predicted: np.ndarray, real: np.ndarray) -> float:
    """LVE: mean over frames of the largest squared distance of a lip vertex, (eye distances)².

    Args:
        predicted, real: ``(T, N, D)``; both are moved onto the real clip's first frame here.

    Source: ``main/cal_metric.py`` of CodeTalker (there on 3D scans, other units: never mix).
    """
    scale = eye_distance(real[:1])[0]
    lips = list(LIPS)
    a = remove_pose(predicted, real[0])[:, lips] / scale
    b = remove_pose(real, real[0])[:, lips] / scale
    return float(((a - b) ** 2).sum(axis=-1).max(axis=1).mean())


def upper_face_deviation(predicted: np.ndarray, real: np.ndarray) -> float:
    """FDD: mean over upper-face vertices of std(real) - std(predicted) motion, (eye distances)².

    Motion of a vertex is its squared distance from the clip's mean, pose removed. Signed: positive
    means that the prediction moves less than the real face; near 0 is best.
    Source: ``main/cal_metric.py`` of CodeTalker (there the distance from the scan's template).
    """

    def spread(points: np.ndarray) -> np.ndarray:
        still = remove_pose(points, real[0])[:, list(UPPER_FACE)] / eye_distance(real[:1])[0]
        return ((still - still.mean(axis=0)) ** 2).sum(axis=-1).std(axis=0)

    return float((spread(real) - spread(predicted)).mean())
