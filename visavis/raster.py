"""The CPU rasteriser: one numba kernel that turns moved triangles into a frame.

``draw`` walks every triangle's pixels, fetches each from the source picture with bilinear weights
and lays it over the still base. Nothing is stored between: a map of coordinates for the whole frame
would push everything else out of the cache. The tests hold it to a plain NumPy twin.
"""

from __future__ import annotations

import cv2
import numpy as np
from numba import njit

ATLAS_SCALE = 2  # the source picture is stored at twice the frame's scale: bilinear stays sharp
BITS = 16  # of fraction in source coordinates
OUTLINE, HARD = -1, -2  # what may lie beside a triangle other than another one
FRONT = np.float32(-1)  # sign of the area of a triangle that faces the camera
EDGE = np.float32(1e-3)  # px, by which neighbours overlap so that no pixel is missed

# unsigned throughout the inner loop: numba then leaves out its test for negative indices
_EVEN, _ODD = np.uint64(0x00FF00FF), np.uint64(0xFF00FF00)
_LANES, _HALF = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0080008000800080)
_1, _2, _3, _8, _16, _24, _32, _48 = (np.uint64(n) for n in (1, 2, 3, 8, 16, 24, 32, 48))
_127, _128, _255, _256 = (np.uint64(n) for n in (127, 128, 255, 256))


@njit(inline="always")
def _spread(pixel):
    """Four bytes to four 16-bit lanes, in the order 0, 2, 1, 3."""
    wide = np.uint64(pixel)
    return (wide & _EVEN) | ((wide & _ODD) << _24)


@njit(inline="always")
def _fetch(atlas, width, height, sx, sy):
    """Bilinear fetch at fixed-point coordinates: lanes of red, blue, green, alpha."""
    x = min(max(sx >> BITS, 0), width - 2)
    y = min(max(sy >> BITS, 0), height - 2)
    fx, fy = np.uint64((sx >> (BITS - 8)) & 255), np.uint64((sy >> (BITS - 8)) & 255)
    both = (fx * fy + _128) >> _8
    at, below = np.uint64(y * width + x), np.uint64((y + 1) * width + x)
    one, two, three, four = atlas[at], atlas[at + _1], atlas[below], atlas[below + _1]
    if not (one | two | three | four):
        return np.uint64(0)
    # the four weights add up to 256, so a flat colour stays exactly itself
    total = _spread(one) * (_256 - fx - fy + both) + _spread(two) * (fx - both)
    total += _spread(three) * (fy - both) + _spread(four) * both
    return ((total + _HALF) >> _8) & _LANES


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _row(atlas, width, height, base, out, start, count, sx, sy, step_x, step_y):
    """Draw ``count`` pixels from byte ``start`` on over the still base; all arrays are flat."""
    at = np.uint64(start)
    for _ in range(count):
        lanes = _fetch(atlas, width, height, sx, sy)
        red, green, blue = lanes & _255, (lanes >> _32) & _255, (lanes >> _16) & _255
        rest = _255 - (lanes >> _48)
        # written out: as a function of its own, numba makes it three times slower
        if rest:
            red = min(red + (np.uint64(base[at]) * rest + _127) // _255, _255)
            green = min(green + (np.uint64(base[at + _1]) * rest + _127) // _255, _255)
            blue = min(blue + (np.uint64(base[at + _2]) * rest + _127) // _255, _255)
        out[at], out[at + _1], out[at + _2] = red, green, blue
        sx += step_x
        sy += step_y
        at += _3


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _pixel(atlas, width, height, base, out, start, sx, sy, cover):
    """Draw one pixel, ``cover`` (0..1) of it."""
    red, green, blue = out[start], out[start + 1], out[start + 2]
    _row(atlas, width, height, base, out, start, 1, sx, sy, 0, 0)
    for c, was in enumerate((red, green, blue)):
        mixed = was + (np.float32(out[start + c]) - was) * cover
        out[start + c] = np.uint8(mixed + np.float32(0.5))


@njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def draw(
    target: np.ndarray,
    source: np.ndarray,
    triangles: np.ndarray,
    beside: np.ndarray,
    order: np.ndarray,
    atlas: np.ndarray,
    base: np.ndarray,
    spans: np.ndarray,
    out: np.ndarray,
) -> None:
    """Draw every triangle over the still base, later ones over earlier ones.

    An outline of the face (an edge without a neighbour, or whose neighbour is turned away) fades
    over the pixel outside it; all other edges meet without a seam.

    Args:
        target: ``(V, 2)`` float32 pixels in the frame.
        source: ``(V, 2)`` float32 pixels in the source picture.
        triangles: ``(T, 3)`` int32.
        beside: ``(T, 3)`` int32, the triangle across the edge from each corner to the next;
            `OUTLINE` where the edge is an outline, `HARD` where it never is.
        order: ``(T,)`` int64, drawing order.
        atlas: ``(h, w)`` uint32, contiguous, little-endian RGBA, colour premultiplied by alpha.
        base: ``(H, W, 3)`` uint8, contiguous, what lies behind.
        spans: ``(H, 2)`` int32, first and one past last pixel of each row that may change.
        out: ``(H, W, 3)`` uint8, contiguous, written in place.
    """
    height, width = out.shape[0], out.shape[1]
    tall, wide = atlas.shape
    flat_atlas, flat_base, flat_out = atlas.ravel(), base.ravel(), out.ravel()
    corner, sides = np.empty((3, 2), np.float32), np.empty((3, 4), np.float32)
    for k in range(order.shape[0]):
        which = order[k]
        t = triangles[which]
        for c in range(3):
            corner[c, 0], corner[c, 1] = target[t[c], 0], target[t[c], 1]
        area = _area(target, t)
        if abs(area) < 1e-6:
            continue
        # source = s0 + (x - x0) * dx + (y - y0) * dy
        x0, y0 = corner[0, 0], corner[0, 1]
        ux, uy = source[t[1], 0] - source[t[0], 0], source[t[1], 1] - source[t[0], 1]
        vx, vy = source[t[2], 0] - source[t[0], 0], source[t[2], 1] - source[t[0], 1]
        inv = np.float32(1 << BITS) / area
        dxx = (ux * (corner[2, 1] - y0) - vx * (corner[1, 1] - y0)) * inv
        dxy = (uy * (corner[2, 1] - y0) - vy * (corner[1, 1] - y0)) * inv
        dyx = (vx * (corner[1, 0] - x0) - ux * (corner[2, 0] - x0)) * inv
        dyy = (vy * (corner[1, 0] - x0) - uy * (corner[2, 0] - x0)) * inv
        begin_x = source[t[0], 0] * np.float32(1 << BITS)
        begin_y = source[t[0], 1] * np.float32(1 << BITS)
        step_x, step_y = np.int64(np.round(dxx)), np.int64(np.round(dxy))
        soft = _soft_edges(target, triangles, beside, which) if area * FRONT > 0 else 0
        grown = np.float32(1) if soft else EDGE
        _sides(corner, sides)
        leftmost = min(corner[0, 0], corner[1, 0], corner[2, 0]) - grown
        rightmost = max(corner[0, 0], corner[1, 0], corner[2, 0]) + grown
        top = max(0, int(np.ceil(sides[0, 1] - grown)))
        bottom = min(height - 1, int(np.floor(sides[0, 1] + sides[0, 3] + grown)))
        for y in range(top, bottom + 1):
            line = np.float32(y)
            if soft:
                low, high = leftmost, rightmost
            else:
                low = _on_side(sides, 0, line)
                high = _on_side(sides, 1 if line < sides[2, 1] else 2, line)
                low, high = min(low, high), max(low, high)
            first = max(spans[y, 0], int(np.ceil(low - EDGE)))
            last = min(spans[y, 1] - 1, int(np.floor(high + EDGE)))
            sx = np.int64(begin_x + (np.float32(first) - x0) * dxx + (line - y0) * dyx)
            sy = np.int64(begin_y + (np.float32(first) - x0) * dxy + (line - y0) * dyy)
            at = (y * width + first) * 3
            if not soft and last >= first:
                _row(
                    flat_atlas, wide, tall, flat_base, flat_out, at, last - first + 1,
                    sx, sy, step_x, step_y,
                )  # fmt: skip
            for x in range(first, last + 1 if soft else first):
                cover = _cover(corner, soft, np.float32(x), line)
                if cover > 0:
                    _pixel(flat_atlas, wide, tall, flat_base, flat_out, at, sx, sy, cover)
                sx += step_x
                sy += step_y
                at += 3


@njit(boundscheck=False, error_model="numpy")
def _soft_edges(target, triangles, beside, which):
    """Which edges of a triangle are outlines, one bit each."""
    soft = 0
    for e in range(3):
        other = beside[which, e]
        if other == OUTLINE or (other >= 0 and _area(target, triangles[other]) * FRONT < 0):
            soft |= 1 << e
    return soft


@njit(boundscheck=False, error_model="numpy")
def _sides(corner, sides):
    """A triangle's three sides from the upper to the lower end: ``(3, 4)`` x, y, slope, height.

    The first is the longest in y; the second lies above the third.
    """
    a, b, c = 0, 1, 2
    if corner[b, 1] < corner[a, 1]:
        a, b = b, a
    if corner[c, 1] < corner[a, 1]:
        a, c = c, a
    if corner[c, 1] < corner[b, 1]:
        b, c = c, b
    for k, (i, j) in enumerate(((a, c), (a, b), (b, c))):
        tall = corner[j, 1] - corner[i, 1]
        slope = (corner[j, 0] - corner[i, 0]) / tall if tall > EDGE else np.float32(0)
        sides[k, 0], sides[k, 1], sides[k, 2], sides[k, 3] = corner[i, 0], corner[i, 1], slope, tall


@njit(inline="always")
def _on_side(sides, k, y):
    """Where side ``k`` crosses row ``y``."""
    along = min(max(y - sides[k, 1], np.float32(0)), sides[k, 3])
    return sides[k, 0] + along * sides[k, 2]


@njit(inline="always")
def _area(points, t):
    """Twice the signed area of a triangle, px."""
    ax, ay = points[t[0], 0], points[t[0], 1]
    return (points[t[1], 0] - ax) * (points[t[2], 1] - ay) - (points[t[2], 0] - ax) * (
        points[t[1], 1] - ay
    )


@njit(inline="always")
def _cover(corner, soft, x, y):
    """How much of a pixel a triangle covers, up to 1: its soft edges fade, the others are sharp."""
    cover = np.float32(1)
    for e in range(3):
        ax, ay = corner[e, 0], corner[e, 1]
        ex, ey = corner[(e + 1) % 3, 0] - ax, corner[(e + 1) % 3, 1] - ay
        inside = FRONT * (ex * (y - ay) - ey * (x - ax)) / np.sqrt(ex * ex + ey * ey)
        if soft & (1 << e):
            cover = min(cover, inside + np.float32(1))
        elif inside < -EDGE:
            return np.float32(0)
    return cover


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
