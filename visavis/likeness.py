"""A person's looks learned from film: what the moved photo lacks, as a function of motion.

The motion becomes features (the channels, and nearness to typical poses and mouth shapes), the
features become a few weights, and the weights mix stored pictures that are added to the frame. One
stack of pictures rides on the head's mesh, one stands still (shoulders, collar, outline), one rides
on the rigid mouth crop. It is an appearance model in the manner of Cootes, Edwards, Taylor, "Active
appearance models" (PAMI 2001), driven by motion instead of fitted to a picture.
``visavis.personal`` learns it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from visavis.mouth import SIZE
from visavis.raster import HARD, draw
from visavis.types import CHANNEL, N_CHANNELS, SPEECH_CHANNELS

LAYERS = ("head", "still", "mouth")
POSE = [CHANNEL[c] for c in ("head_pitch", "head_yaw", "head_roll", "shift_x", "shift_y", "scale")]
SPEECH = [CHANNEL[c] for c in SPEECH_CHANNELS]
MAX_MAPS = 128  # of one layer
MAX_SIDE = 512  # of a map, pixels
MAX_CENTRES = 1024
FINE = 8  # bits behind the point in the kernel's weights
ZERO = 128  # grey level that stands for no change while a picture of changes is warped
_BLOCK = 4096


@dataclass(frozen=True)
class Layer:
    """One stack of pictures.

    Attributes:
        maps: ``(K, H, W, 3)`` int8.
        mix: ``(F, K)`` float32, from features to grey levels per unit of a map.
    """

    maps: np.ndarray
    mix: np.ndarray

    def picture(self, features: np.ndarray) -> np.ndarray:
        """What is to be added at features ``(F,)``: ``(H, W, 3)`` int16 grey levels."""
        weights = np.rint(features @ self.mix * 2**FINE).astype(np.int32)
        out = np.empty(self.maps[0].size, np.int16)
        blend(self.maps.reshape(len(self.maps), -1), weights, out)
        return out.reshape(self.maps.shape[1:])


@dataclass(frozen=True)
class Features:
    """What of a motion the looks depend on; constants only.

    Attributes:
        low, high: ``(D,)`` float32, the motions seen in the film; others are clipped to them.
        mean, spread: ``(D,)`` float32, which bring channels to one scale.
        poses: ``(J, 6)`` float32 typical head poses, on that scale.
        mouths: ``(L, 9)`` float32 typical mouths.
        widths: ``(2,)`` float32, reach of a typical pose and of a typical mouth.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    poses: np.ndarray
    mouths: np.ndarray
    widths: np.ndarray

    @property
    def count(self) -> int:
        """Length of a feature vector."""
        return 1 + N_CHANNELS + len(self.poses) + len(self.mouths)

    def __call__(self, motion: np.ndarray) -> np.ndarray:
        """Motion ``(..., D)`` to ``(..., F)`` float32: one, channels, nearness to poses, mouths."""
        scaled = (np.clip(motion, self.low, self.high) - self.mean) / self.spread
        one = np.ones((*scaled.shape[:-1], 1), np.float32)
        near = (
            bells(scaled[..., rows], centres, float(width))
            for rows, centres, width in zip(
                (POSE, SPEECH), (self.poses, self.mouths), self.widths, strict=True
            )
        )
        return np.concatenate([one, scaled, *near], -1).astype(np.float32)


def bells(points: np.ndarray, centres: np.ndarray, width: float) -> np.ndarray:
    """Gaussian nearness of points ``(..., d)`` to centres ``(J, d)``: ``(..., J)`` in 0..1."""
    far = (points**2).sum(-1)[..., None] - 2 * points @ centres.T + (centres**2).sum(1)
    return np.exp(-np.maximum(far, 0) / (2 * width**2))


@dataclass(frozen=True)
class Likeness:
    """Layers and the features that drive them; constants only."""

    features: Features
    head: Layer
    still: Layer
    mouth: Layer

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything by name, as the ``.avatar`` file keeps it."""
        out = {f"features/{k}": v for k, v in vars(self.features).items()}
        for name in LAYERS:
            layer = getattr(self, name)
            out |= {f"{name}/maps": layer.maps, f"{name}/mix": layer.mix}
        return out


def likeness_from(arrays: dict[str, np.ndarray]) -> Likeness:
    """The inverse of ``Likeness.arrays``, for arrays of unknown origin.

    Raises:
        ValueError: an array is missing, of another shape or type, or not finite.
    """

    def take(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        have = arrays.get(name)
        if have is None or have.dtype != dtype or have.ndim != len(shape):
            raise ValueError(f"it lacks {name} of {len(shape)} dimensions, {np.dtype(dtype)}")
        if any(0 < want != got for want, got in zip(shape, have.shape, strict=True)):
            raise ValueError(f"{name} has shape {have.shape}, expected {shape} (0: any)")
        if not np.isfinite(have).all():
            raise ValueError(f"{name} holds NaN or infinity")
        return np.ascontiguousarray(have)

    f32 = np.float32
    shapes = {name: (N_CHANNELS,) for name in ("low", "high", "mean", "spread")}
    shapes |= {"poses": (0, len(POSE)), "mouths": (0, len(SPEECH)), "widths": (2,)}
    features = Features(**{k: take(f"features/{k}", s, f32) for k, s in shapes.items()})
    if (features.spread <= 0).any() or (features.widths <= 0).any():
        raise ValueError("its features have no width")
    if max(len(features.poses), len(features.mouths)) > MAX_CENTRES:
        raise ValueError(f"it has more than {MAX_CENTRES} centres")
    layers = {}
    for name in LAYERS:
        maps = take(f"{name}/maps", (0, 0, 0, 3), np.int8)
        mix = take(f"{name}/mix", (features.count, len(maps)), f32)
        high, wide = maps.shape[1:3]
        if not 0 < len(maps) <= MAX_MAPS or high != wide or not 2 <= high <= MAX_SIDE:
            raise ValueError(f"{name} has maps {maps.shape}, at most {MAX_MAPS} of {MAX_SIDE} px")
        layers[name] = Layer(maps, mix)
    if layers["head"].maps.shape[1:] != layers["still"].maps.shape[1:]:
        raise ValueError("its head and still maps differ in size")
    return Likeness(features, **layers)


class LikenessPainter:
    """Adds a likeness to the frames of one avatar; constants only.

    Args:
        likeness: what to add.
        source: ``(V, 2)`` mesh vertices in the photo, frame pixels.
        size: side of the frame.
    """

    def __init__(self, likeness: Likeness, source: np.ndarray, size: int):
        self._likeness = likeness
        self._ratio = likeness.head.maps.shape[1] / size
        self._source = to_map(source, self._ratio)

    def paint(
        self,
        frame: np.ndarray,
        motion: np.ndarray,
        target: np.ndarray,
        triangles: np.ndarray,
        order: np.ndarray,
        crop: np.ndarray,
    ) -> None:
        """Add what the person's film showed at this motion, in place.

        Args:
            frame: ``(S, S, 3)`` uint8 RGB.
            motion: ``(D,)``.
            target: ``(V, 2)`` float32 mesh vertices in the frame.
            triangles: ``(T, 3)`` int32, drawn in ``order``.
            order: ``(T,)`` int64.
            crop: ``(2, 3)`` from frame to mouth-crop pixels (``visavis.mouth.crop_transform``).
        """
        likeness = self._likeness
        features = likeness.features(motion)
        head = encode(likeness.head.picture(features))
        moved = carry(head, self._source, to_map(target, self._ratio), triangles, order)
        change = cv2.add(decode(moved), likeness.still.picture(features))
        change = cv2.resize(change, frame.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        cv2.add(frame, change, dst=frame, dtype=cv2.CV_8U)
        mouth = likeness.mouth.picture(features)
        add_crop(frame, mouth, scale_crop(crop, len(mouth) / SIZE))


def encode(change: np.ndarray) -> np.ndarray:
    """Changes, grey levels, as a picture ``(H, W, 3)`` uint8 about ``ZERO``; clipped."""
    return cv2.add(change, (ZERO,) * 4, dtype=cv2.CV_8U)


def decode(picture: np.ndarray) -> np.ndarray:
    """The inverse of ``encode``, int16."""
    return cv2.subtract(picture, (ZERO,) * 4, dtype=cv2.CV_16S)


def carry(
    picture: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    triangles: np.ndarray,
    order: np.ndarray,
) -> np.ndarray:
    """A picture of changes taken along by a mesh; ``ZERO`` where the mesh does not reach.

    Args:
        picture: ``(H, W, 3)`` uint8 about ``ZERO``.
        source: ``(V, 2)`` float32 vertices in it.
        target: ``(V, 2)`` float32, where they go, in pixels of the same size.
        triangles: ``(T, 3)`` int32, drawn in ``order`` ``(T,)`` int64.
    """
    side = len(picture)
    atlas = cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0]  # alpha 255
    out = np.full((side, side, 3), ZERO, np.uint8)
    spans = np.tile(np.array([[0, side]], np.int32), (side, 1))
    beside = np.full(triangles.shape, HARD, np.int32)
    draw(target, source, triangles, beside, order, atlas, out, spans, out)
    return out


def to_map(pixels: np.ndarray, ratio: float) -> np.ndarray:
    """Frame pixels (centres at integers) to pixels of a map ``ratio`` times the size, float32."""
    return ((pixels + 0.5) * ratio - 0.5).astype(np.float32)


def scale_crop(crop: np.ndarray, ratio: float) -> np.ndarray:
    """The same map ``(2, 3)`` to a crop of ``ratio`` times the size, pixel centres at integers."""
    out = crop * ratio
    out[:, 2] += 0.5 * ratio - 0.5
    return out


def add_crop(frame: np.ndarray, picture: np.ndarray, crop: np.ndarray) -> None:
    """Add ``(H, H, 3)`` int16 to the frame where ``crop`` (frame to picture pixels) puts it."""
    side = len(picture)
    corners = np.array([[0, 0], [side, 0], [0, side], [side, side]], np.float64) - 0.5
    back = cv2.invertAffineTransform(crop)
    box = corners @ back[:, :2].T + back[:, 2]
    height, width = frame.shape[:2]
    x0, y0 = np.maximum(np.floor(box.min(0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(box.max(0)).astype(int) + 1, (width, height))
    if x1 <= x0 or y1 <= y0:
        return
    local = crop.copy()
    local[:, 2] += crop[:, :2] @ (x0, y0)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    change = cv2.warpAffine(picture, local, (int(x1 - x0), int(y1 - y0)), flags=flags)
    area = frame[y0:y1, x0:x1]
    cv2.add(area, change, dst=area, dtype=cv2.CV_8U)


@njit(cache=True, nogil=True, boundscheck=False)
def blend(maps: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """``out = maps.T @ weights / 2**FINE``, rounded.

    Args:
        maps: ``(K, P)`` int8.
        weights: ``(K,)`` int32, in ``2**-FINE`` grey levels per unit.
        out: ``(P,)`` int16, written.
    """
    total = np.empty(_BLOCK, np.int32)
    for start in range(0, maps.shape[1], _BLOCK):
        count = min(_BLOCK, maps.shape[1] - start)
        total[:count] = 1 << (FINE - 1)
        for k in range(maps.shape[0]):
            weight, row = np.int32(weights[k]), maps[k, start : start + count]
            for i in range(count):
                # numba widens to 64 bits, which is ten times slower, unless told not to
                total[i] = np.int32(total[i] + weight * np.int32(row[i]))
        for i in range(count):
            out[start + i] = np.int16(total[i] >> FINE)
