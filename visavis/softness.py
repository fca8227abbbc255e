"""How soft a photo is: the blur of its sharpest edges, so that what is painted in is no sharper.

The gradient of an edge before and after one more known blur tells the blur it had (Zhuo and Sim,
"Defocus map estimation from a single image", Pattern Recognition 44, 2011).
"""

from __future__ import annotations

import cv2
import numpy as np

AGAIN = 1.0  # px, the known blur
STRONG = 0.9  # quantile of the gradient above which a pixel is an edge
SHARPEST = 0.75  # quantile of the edges' ratios that is believed: most edges in a face are soft
LEAST_EDGES = 40  # pixels
WIDEST = 3.0  # px
LEAST_BLUR = 0.3  # px; below, nobody sees it


def edge_blur(image: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of the blur of the sharpest edges.

    Args:
        image: ``(H, W, 3)`` uint8.
        mask: ``(H, W)``, where above 0.5 edges are looked for.

    Returns:
        Pixels, 0 to `WIDEST`; 0 where there are too few edges to tell.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    steep, less = _steepness(grey), _steepness(cv2.GaussianBlur(grey, (0, 0), AGAIN))
    inside = mask > 0.5
    if inside.sum() < 10 * LEAST_EDGES:
        return 0.0
    edge = inside & (steep >= max(float(np.quantile(steep[inside], STRONG)), 2.0))
    if edge.sum() < LEAST_EDGES:
        return 0.0
    ratio = float(np.quantile(steep[edge] / np.maximum(less[edge], 1e-3), SHARPEST))
    return float(min(AGAIN / np.sqrt(max(ratio**2 - 1, 1e-6)), WIDEST))


def soften_edge(area: np.ndarray, cover: np.ndarray, blur: float) -> None:
    """Blur a picture along the edge of a mask, and nowhere else; in place.

    Args:
        area: ``(h, w, 3)`` uint8.
        cover: ``(h, w)`` float32 in 0..1.
        blur: standard deviation, px.
    """
    soft = cv2.GaussianBlur(cover, (0, 0), blur)
    near = (4 * soft * (1 - soft))[..., None]
    blurred = cv2.GaussianBlur(area, (0, 0), blur)
    area[:] = np.rint(area + near * (blurred.astype(np.float32) - area)).astype(np.uint8)


def _steepness(grey: np.ndarray) -> np.ndarray:
    dx, dy = (cv2.Sobel(grey, cv2.CV_32F, x, 1 - x, ksize=3, scale=1 / 8) for x in (1, 0))
    return cv2.magnitude(dx, dy)
