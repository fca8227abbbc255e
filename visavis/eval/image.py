"""How close the pixels are: PSNR, SSIM, perceptual distance, sharpness; whole frame, face or
mouth crop.

Images are ``(H, W, 3)`` uint8 RGB unless a docstring says otherwise.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from visavis.eval.landmarks import LIPS, OUTER_EYES, RIGID

MOUTH_SIZE = 96  # px, side of the mouth crop that sharpness and strips use


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio, dB, RGB in [0, 1]; infinite for identical images.

    Source: TalkingGaussian ``metrics.py``: ``-10 log10(mean((a - b)²))`` per frame, mean over
    frames.
    """
    error = np.mean((image.astype(np.float32) - reference.astype(np.float32)) ** 2) / 255**2
    return float(-10 * np.log10(error)) if error > 0 else float("inf")


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity of the luma, 11x11 Gaussian window of 1.5 px, no border; 1 is
    identical.

    Source: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004 (K1 0.01, K2 0.03, L 255).
    """
    a = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    b = cv2.cvtColor(reference, cv2.COLOR_RGB2GRAY).astype(np.float32)
    if min(a.shape) < 11:
        raise ValueError(f"SSIM needs at least 11x11 pixels, got {a.shape[1]}x{a.shape[0]}")

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5)[5:-5, 5:-5]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    score = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def face_box(
    points: np.ndarray, shape: tuple[int, ...], margin: float = 0.1
) -> tuple[int, int, int, int]:
    """Bounding box ``(x0, y0, x1, y1)`` of all points with a margin, clipped to the frame."""
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    pad = margin * (high - low)
    return _clip_box(low - pad, high + pad, shape)


def mouth_box(points: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Square ``(x0, y0, x1, y1)`` about the lips, one outer-eye distance wide, clipped to the
    frame.
    """
    centre = points[list(LIPS), :2].mean(axis=0)
    half = 0.5 * float(np.linalg.norm(points[OUTER_EYES[1], :2] - points[OUTER_EYES[0], :2]))
    return _clip_box(centre - half, centre + half, shape)


def _clip_box(
    low: np.ndarray, high: np.ndarray, shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
    x0, y0 = np.maximum(np.floor(low), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(high), [shape[1], shape[0]]).astype(int)
    return int(x0), int(y0), int(max(x1, x0 + 11)), int(max(y1, y0 + 11))


def crop(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The pixels of a box ``(x0, y0, x1, y1)``."""
    return image[box[1] : box[3], box[0] : box[2]]


def sharpness(image: np.ndarray) -> float:
    """Variance of the Laplacian of the luma, (grey levels)²; size-dependent: compare equal sizes.

    Source: Pech-Pacheco et al., ICPR 2000.
    """
    return float(
        cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), cv2.CV_32F).var()
    )


def onto_face(image: np.ndarray, points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The image moved so that its face's rigid points fall on ``target``'s, same shape uint8.

    A crop at a fixed place compares heads before it compares mouths; after this it compares
    mouths. The similarity (scale, roll, shift) that fits best by least squares; a turn of the head
    in depth stays. Source: Umeyama, IEEE PAMI 13(4), 1991, in complex form.

    Args:
        image: ``(H, W, 3)`` uint8.
        points, target: ``(N, 2+)`` px mesh points of the image and of the reference.
    """
    rigid = list(RIGID)
    a = points[rigid, 0].astype(float) + 1j * points[rigid, 1]
    b = target[rigid, 0].astype(float) + 1j * target[rigid, 1]
    a_mean, b_mean = a.mean(), b.mean()
    turn = np.vdot(a - a_mean, b - b_mean) / max(np.vdot(a - a_mean, a - a_mean).real, 1e-9)
    shift = b_mean - turn * a_mean
    matrix = np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )


def mouth_sharpness_ratio(
    image: np.ndarray, points: np.ndarray, photo: np.ndarray, photo_points: np.ndarray
) -> float:
    """Sharpness of the mouth crop over that of the photo's, both resized to 96x96; 1 = as sharp."""
    ours = cv2.resize(
        crop(image, mouth_box(points, image.shape)), (MOUTH_SIZE,) * 2, interpolation=cv2.INTER_AREA
    )
    theirs = crop(photo, mouth_box(photo_points, photo.shape))
    theirs = cv2.resize(theirs, (MOUTH_SIZE,) * 2, interpolation=cv2.INTER_AREA)
    return sharpness(ours) / max(sharpness(theirs), 1e-9)


class PerceptualDistance:
    """Perceptual distance (SqueezeNet 1.1): LPIPS's recipe on the Keras port of the network.

    Features of seven layers, unit length per pixel, squared difference, weighted by the LPIPS
    heads,
    mean over pixels, summed. The heads were fitted to torchvision's weights and the backbone is the
    Caffe/Keras one, so their channels do not correspond: quote it under this name, never as LPIPS.
    Source: Zhang et al., CVPR 2018; weights: rcmalli/keras-squeezenet (MIT),
    richzhang/PerceptualSimilarity (BSD-2).
    """

    def __init__(self, backbone: Path, heads: Path, size: int | None = None, threads: int = 1):
        """Compile the network (OpenVINO, fp32); ``size`` is the side that both images are resized
        to.
        """
        from visavis.eval.squeezenet import compile_distance

        self.size = size
        self._infer = compile_distance(Path(backbone), Path(heads), threads)

    def __call__(self, image: np.ndarray, reference: np.ndarray) -> float:
        """Distance of two uint8 RGB images of one shape, at least 35 px a side; 0 = identical."""
        if np.array_equal(image, reference):
            return 0.0
        if self.size and image.shape[:2] != (self.size, self.size):
            image = cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA)
            reference = cv2.resize(reference, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return self._infer(image, reference)
