"""The CPU rasteriser: numba kernels that turn moved triangles into a frame.

``fill_map`` writes, for every pixel a triangle covers, where in the source picture it comes from;
OpenCV fetches that colour; ``compose`` lays it over the still base. The tests hold both to plain
NumPy twins.
"""

from __future__ import annotations

import cv2
import numpy as np
from numba import njit

ATLAS_SCALE = 2  # the source picture is stored at twice the frame's scale: bilinear stays sharp


@njit(cache=True, nogil=True, boundscheck=False)
def fill_map(
    target: np.ndarray,
    source: np.ndarray,
    triangles: np.ndarray,
    order: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write source coordinates for every covered pixel, later triangles over earlier ones.

    Args:
        target: ``(V, 2)`` float32 pixels in the frame.
        source: ``(V, 2)`` float32 pixels in the source picture.
        triangles: ``(T, 3)`` int32.
        order: ``(T,)`` int64, drawing order.
        out: ``(H, W, 2)`` float32, written in place.
    """
    height, width = out.shape[0], out.shape[1]
    edge = np.float32(1e-3)
    for k in range(order.shape[0]):
        i0, i1, i2 = triangles[order[k], 0], triangles[order[k], 1], triangles[order[k], 2]
        x0, y0 = target[i0, 0], target[i0, 1]
        x1, y1 = target[i1, 0], target[i1, 1]
        x2, y2 = target[i2, 0], target[i2, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if abs(area) < 1e-6:
            continue
        inv = np.float32(1.0) / area
        # source = s0 + (x - x0) * dx + (y - y0) * dy
        ux, uy = source[i1, 0] - source[i0, 0], source[i1, 1] - source[i0, 1]
        vx, vy = source[i2, 0] - source[i0, 0], source[i2, 1] - source[i0, 1]
        dxx = (ux * (y2 - y0) - vx * (y1 - y0)) * inv
        dxy = (uy * (y2 - y0) - vy * (y1 - y0)) * inv
        dyx = (vx * (x1 - x0) - ux * (x2 - x0)) * inv
        dyy = (vy * (x1 - x0) - uy * (x2 - x0)) * inv
        top = max(0, int(np.ceil(min(y0, y1, y2) - edge)))
        bottom = min(height - 1, int(np.floor(max(y0, y1, y2) + edge)))
        for y in range(top, bottom + 1):
            low, high = np.float32(1e9), np.float32(-1e9)
            for e in range(3):
                ax, ay, bx, by = x0, y0, x1, y1
                if e == 1:
                    ax, ay, bx, by = x1, y1, x2, y2
                elif e == 2:
                    ax, ay, bx, by = x2, y2, x0, y0
                if (ay <= y + edge and by >= y - edge) or (by <= y + edge and ay >= y - edge):
                    if abs(by - ay) < 1e-6:
                        low, high = min(low, ax, bx), max(high, ax, bx)
                    else:
                        t = min(max((y - ay) / (by - ay), np.float32(0.0)), np.float32(1.0))
                        x = ax + t * (bx - ax)
                        low, high = min(low, x), max(high, x)
            first = max(0, int(np.ceil(low - edge)))
            last = min(width - 1, int(np.floor(high + edge)))
            sx = source[i0, 0] + (first - x0) * dxx + (y - y0) * dyx
            sy = source[i0, 1] + (first - x0) * dxy + (y - y0) * dyy
            for x in range(first, last + 1):
                out[y, x, 0] = sx
                out[y, x, 1] = sy
                sx += dxx
                sy += dxy


@njit(cache=True, nogil=True, boundscheck=False)
def compose(warped: np.ndarray, base: np.ndarray, spans: np.ndarray, out: np.ndarray) -> None:
    """Lay a premultiplied picture over the still base.

    Args:
        warped: ``(H, W, 4)`` uint8, colour premultiplied by its alpha.
        base: ``(H, W, 3)`` uint8.
        spans: ``(H, 2)`` int32, first and one past last moving pixel of each row.
        out: ``(H, W, 3)`` uint8, written inside the spans only.
    """
    for y in range(warped.shape[0]):
        for x in range(spans[y, 0], spans[y, 1]):
            rest = np.int32(255) - np.int32(warped[y, x, 3])
            for c in range(3):
                # (v * 257 + 257) >> 16 is v / 255 rounded down, exact for 16 bits
                under = (np.int32(base[y, x, c]) * rest + np.int32(127)) * np.int32(257)
                value = np.int32(warped[y, x, c]) + ((under + np.int32(257)) >> np.int32(16))
                out[y, x, c] = min(value, np.int32(255))


def opening_cover(ring: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How much of each pixel lies in an opening of the mesh (between lips or lids).

    Nothing is drawn in the opening by the mesh itself, so pixels inside count whole; outside, the
    cover fades over a pixel.

    Args:
        ring: ``(N, 2)`` outline in pixels.
        shape: rows, columns.

    Returns:
        ``(h, w)`` float32 in 0..1.
    """
    bits = 4
    outline = [np.round(ring * 2**bits).astype(np.int32)]
    hard, soft = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    cv2.fillPoly(hard, outline, 255, cv2.LINE_8, bits)
    cv2.fillPoly(soft, outline, 255, cv2.LINE_AA, bits)
    soft = cv2.GaussianBlur(soft, (0, 0), 0.7)
    # a lone line of a shut opening is no opening
    hard = cv2.min(hard, cv2.convertScaleAbs(soft, alpha=4.0, beta=-160))
    return np.maximum(soft, hard).astype(np.float32) / 255
