"""Paint the inside of the mouth: a rigid crop, its geometry as images, and a small net.

The crop hangs on the skull (eye corners, nose), never on lips or jaw, so it stands still while the
mouth moves: in it the upper teeth have a fixed place, and the lower teeth ride with the chin. Every
map is drawn from sub-pixel polygons, so a point that moves a little changes the picture a little.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
from numba import njit

from visavis.backends import open_graph
from visavis.errors import ModelError
from visavis.types import State

SIZE = 128  # px, side of the crop
SPAN = 1.0  # side of the crop in eye distances (outer corners)
N_CHANNELS = 17  # of the maps `mouth_inputs` makes
GAP_OFF, GAP_ON = 0.006, 0.020  # eye distances: below, nothing is painted; above, all of it

INNER_UPPER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)  # image left to right
INNER_LOWER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
OUTER_UPPER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
OUTER_LOWER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
CHIN = (152, 148, 377, 176, 400, 175, 199, 200, 171, 396)
LIPS = INNER_UPPER + INNER_LOWER[1:-1] + OUTER_UPPER + OUTER_LOWER[1:-1]

# Rigid points of MediaPipe's canonical face (Apache-2.0): index -> (x, y up, z toward the viewer).
_RIGID = {
    33: (-4.445859, 2.663991, 3.173422), 133: (-1.856432, 2.585245, 3.757904),
    263: (4.445859, 2.663991, 3.173422), 362: (1.856432, 2.585245, 3.757904),
    168: (0.0, 3.271027, 5.236015), 6: (0.0, 2.473255, 5.788627),
    197: (0.0, 1.728369, 6.316750), 195: (0.0, 1.059413, 6.774605),
    5: (0.0, 0.365669, 7.242870), 1: (0.0, -1.126865, 7.475604),
    94: (0.0, -1.724003, 6.601390), 2: (0.0, -2.089024, 6.058267),
    98: (-1.405627, -1.714196, 5.241087), 327: (1.405627, -1.714196, 5.241087),
}  # fmt: skip
_INDEX = np.array(list(_RIGID))
_MODEL = np.array(list(_RIGID.values())) * (1.0, -1.0, -1.0)  # y down, z away from the viewer
_NOSE_BASE = np.isin(_INDEX, (94, 2, 98, 327))
_EYE_DISTANCE = 8.891718  # canonical units
_CENTRE = np.array([0.0, 5.9, -5.0])  # middle of the crop: top at the nose base, then one span down
_CHIN_REST = 2.79  # canonical units from the centre down to the mean of CHIN, mouth shut
_TEETH_REST = -1.63  # from the centre to where the teeth meet
_TOOTH_PX = 11  # crop px, about one incisor


def crop_transform(points: np.ndarray) -> np.ndarray:
    """The affine map from image pixels to the mouth crop, fitted on rigid points only.

    A robust 3D similarity of the canonical face gives roll, scale and where the middle of the crop
    lands under yaw and pitch; half of the position comes from the nose base, next to the teeth.

    Args:
        points: ``(478, 3)`` or ``(468, 3)`` float px (x, y, z; z negative toward the camera).

    Returns:
        ``(2, 3)`` float64, image px to crop px (pixel centres at integers).
    """
    observed = np.ascontiguousarray(points, np.float64)[_INDEX, :3]
    scale, rotation, shift = _robust_similarity(_MODEL, observed)
    nose = (observed - scale * _MODEL @ rotation.T - shift)[_NOSE_BASE].mean(0)
    centre = (scale * rotation @ _CENTRE + shift + 0.5 * nose)[:2]
    across = rotation[:2, 0] / np.linalg.norm(rotation[:2, 0])
    zoom = SIZE / (SPAN * _EYE_DISTANCE * scale)
    turn = zoom * np.array([[across[0], across[1]], [-across[1], across[0]]])
    return np.column_stack([turn, (SIZE - 1) / 2 - turn @ centre])


@njit(cache=True, nogil=True, error_model="numpy")
def _robust_similarity(
    model: np.ndarray, observed: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """``observed ~ scale * model @ rotation.T + shift``, distant points counting less.

    Umeyama's fit, reweighted four times. The rotation is the polar factor of the covariance, by
    Newton's iteration (Higham 1986), which never gives a mirror image of a face.
    """
    weight = np.ones(len(model))
    scale, rotation, shift = 1.0, np.eye(3), np.zeros(3)
    for _ in range(4):
        total = weight.sum()
        mean_m, mean_o = np.zeros(3), np.zeros(3)
        for i in range(len(model)):
            mean_m += weight[i] / total * model[i]
            mean_o += weight[i] / total * observed[i]
        cov, spread = np.zeros((3, 3)), 0.0
        for i in range(len(model)):
            m, o, w = model[i] - mean_m, observed[i] - mean_o, weight[i] / total
            for r in range(3):
                spread += w * m[r] * m[r]
                for c in range(3):
                    cov[r, c] += w * o[r] * m[c]
        rotation = _polar(cov)
        scale = (rotation * cov).sum() / spread
        for r in range(3):
            shift[r] = mean_o[r] - scale * (rotation[r] * mean_m).sum()
        for i in range(len(model)):
            away = 0.0
            for r in range(2):
                away += (observed[i, r] - scale * (rotation[r] * model[i]).sum() - shift[r]) ** 2
            away /= (scale * _EYE_DISTANCE * 0.03) ** 2
            weight[i] = 1.0 / np.sqrt(1.0 + away)
    return scale, rotation, shift


@njit(cache=True, nogil=True, error_model="numpy")
def _polar(matrix: np.ndarray) -> np.ndarray:
    """The rotation nearest to a 3x3 matrix of positive determinant."""
    q = matrix / np.sqrt((matrix * matrix).sum() / 3)
    for _ in range(60):
        inverse_t = np.empty((3, 3))
        for r in range(3):
            a, b = q[(r + 1) % 3], q[(r + 2) % 3]
            for c in range(3):
                d, e = (c + 1) % 3, (c + 2) % 3
                inverse_t[r, c] = a[d] * b[e] - a[e] * b[d]
        inverse_t /= (q[0] * inverse_t[0]).sum()
        size, other = np.sqrt((q * q).sum()), np.sqrt((inverse_t * inverse_t).sum())
        gain = np.sqrt(other / size)
        following = 0.5 * (gain * q + inverse_t / gain)
        moved = np.abs(following - q).max()
        q = following
        if moved < 1e-14:
            break
    return q


def apply_transform(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points ``(N, >=2)`` in image px to ``(N, 2)`` float32 in crop px."""
    xy = np.asarray(points, np.float64)[:, :2]
    return (xy @ transform[:, :2].T + transform[:, 2]).astype(np.float32)


def warp_crop(image: np.ndarray, transform: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Cut ``(size, size, C)`` from an image; reduced images are blurred first against aliasing."""
    zoom = float(np.hypot(transform[0, 0], transform[0, 1]))
    if zoom < 0.7:
        image = cv2.GaussianBlur(image, (0, 0), 0.4 / zoom)
    return cv2.warpAffine(
        image, transform, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def paste(frame: np.ndarray, transform: np.ndarray, rgb: np.ndarray, alpha: np.ndarray) -> None:
    """Blend a painted crop into ``frame`` ``(H, W, 3)`` uint8, in place."""
    corners = np.array([[0, 0], [SIZE, 0], [0, SIZE], [SIZE, SIZE]], np.float64) - 0.5
    back = cv2.invertAffineTransform(transform)
    box = corners @ back[:, :2].T + back[:, 2]
    height, width = frame.shape[:2]
    x0, y0 = np.maximum(np.floor(box.min(0)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(box.max(0)).astype(int) + 1, (width, height))
    if x1 <= x0 or y1 <= y0 or not alpha.any():
        return
    local = transform.copy()
    local[:, 2] += transform[:, :2] @ (x0, y0)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    to = (int(x1 - x0), int(y1 - y0))
    colour = cv2.warpAffine(rgb, local, to, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.warpAffine(alpha.astype(np.float32), local, to, flags=flags)
    _blend(frame[y0:y1, x0:x1], colour, cover)


@njit(cache=True, nogil=True, boundscheck=False)
def _blend(area: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> None:
    """``colour`` over ``area``, both ``(h, w, 3)`` uint8, as far as ``cover`` (0..1) says; in place."""
    for y in range(area.shape[0]):
        for x in range(area.shape[1]):
            if cover[y, x] > 0:
                for c in range(3):
                    under = np.float32(area[y, x, c])
                    mixed = under + (np.float32(colour[y, x, c]) - under) * cover[y, x]
                    area[y, x, c] = np.uint8(mixed + np.float32(0.5))


def lip_gap(points: np.ndarray) -> float:
    """Inner-lip opening in eye distances: the mean of three pairs; crossed lips count 0."""
    drop = points[[87, 14, 317], 1] - points[[82, 13, 312], 1]
    return float(np.maximum(drop, 0.0).mean()) * SPAN / SIZE


def between(upper: np.ndarray, lower: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Coverage of the area between two lines, ``(size, size)`` float32 in 0..1.

    Exact along y and four times oversampled along x, so that it changes smoothly with every vertex
    (OpenCV's antialiased polygons move in quarter pixels). Where the lines cross it is empty.

    Args:
        upper: ``(N, 2)`` crop px, from left to right; points that go back are pushed along.
        lower: likewise, with the same end points.
    """
    over = 4
    x = (np.arange(size * over) + 0.5) / over - 0.5
    top, low = (
        np.interp(x, np.maximum.accumulate(line[:, 0]), line[:, 1]) for line in (upper, lower)
    )
    left, right = max(upper[0, 0], lower[0, 0]), min(upper[-1, 0], lower[-1, 0])
    within = np.clip((x - left) * over + 0.5, 0, 1) * np.clip((right - x) * over + 0.5, 0, 1)
    cover = np.zeros((size, size), np.float32)
    _fill_columns(top, np.maximum(low, top), within / over, cover)
    return cover


@njit(cache=True, nogil=True, boundscheck=False)
def _fill_columns(top: np.ndarray, low: np.ndarray, within: np.ndarray, cover: np.ndarray) -> None:
    """Add to each pixel what strips of a column cover of it.

    Args:
        top: ``(over * W,)`` px, upper end of each strip.
        low: likewise its lower end.
        within: how much of a pixel's width each strip counts.
        cover: ``(H, W)`` float32, added to in place.
    """
    over = len(top) // cover.shape[1]
    for k in range(len(top)):
        first, last = max(int(top[k]), 0), min(int(low[k]) + 1, cover.shape[0] - 1)
        for y in range(first, last + 1 if within[k] > 0 else first):
            below, above = (
                min(max(low[k] - y + 0.5, 0.0), 1.0),
                min(max(top[k] - y + 0.5, 0.0), 1.0),
            )
            cover[y, k // over] += np.float32((below - above) * within[k])


def mouth_masks(points: np.ndarray, size: int = SIZE) -> dict[str, np.ndarray]:
    """The masks of one mouth, each ``(size, size)`` float32 in 0..1.

    ``inner``: between the lips. ``removed``: that, about 1 px larger; its photo pixels are not
    shown to the net. ``limit``: about 5 px larger and fading; nothing
    outside is painted. ``depth``: 0 at the lips, 1 well inside. ``lips``: within the outer lip
    line. All vanish as the lips meet.
    """
    inner = between(points[list(INNER_UPPER)], points[list(INNER_LOWER)], size)
    near = cv2.GaussianBlur(inner, (0, 0), 1.0)
    far = cv2.GaussianBlur(inner, (0, 0), 2.5)
    removed = np.maximum(np.minimum(3.0 * near, 1.0), inner)
    return {
        "inner": inner,
        "removed": removed,
        "limit": np.maximum(np.minimum(4.0 * far, 1.0), removed),
        "depth": np.minimum(np.maximum(2.0 * far - 1.0, 0.0), 1.0),
        "lips": between(points[list(OUTER_UPPER)], points[list(OUTER_LOWER)], size),
    }


def tooth_origins(points: np.ndarray) -> tuple[float, float, float, float]:
    """x and y of the place where the teeth meet, in the skull's and in the jaw's frame, crop px."""
    middle = (SIZE - 1) / 2
    px = SIZE / (SPAN * _EYE_DISTANCE)
    chin = points[list(CHIN), :2].mean(0)
    jaw_y = float(chin[1]) + (_TEETH_REST - _CHIN_REST) * px
    return middle, middle + _TEETH_REST * px, float(chin[0]), jaw_y


def gate(gap: float) -> float:
    """How much of the painting shows, 0..1, smooth in the opening (eye distances)."""
    t = min(max((gap - GAP_OFF) / (GAP_ON - GAP_OFF), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


def mouth_inputs(
    crop: np.ndarray, points: np.ndarray, masks: dict[str, np.ndarray] | None = None
) -> np.ndarray:
    """What the net sees of one mouth: ``(N_CHANNELS, SIZE, SIZE)`` float32.

    0-2 the crop in -1..1, 0 in the inner mouth, 3 inner, 4 removed, 5 lips, 6-7 x and y in the
    skull's frame, 8-9 in the jaw's, 10-11 y from the upper and the lower lip (all in half eye
    distances), 12-14 the teeth that tier `mesh` has laid into the crop, 0..1, 15 their light, 16 its
    relative change along x: the gaps between teeth, which the net may add as they are.

    Args:
        crop: ``(SIZE, SIZE, 3)`` uint8 RGB, its inner mouth filled as tier `mesh` does.
        points: ``(478, >=2)`` in crop px.
        masks: from `mouth_masks`, when already at hand.
    """
    masks = masks or mouth_masks(points)
    out = np.empty((N_CHANNELS, SIZE, SIZE), np.float32)
    out[3], out[4], out[5] = masks["inner"], masks["removed"], masks["lips"]
    middle, skull_y, jaw_x, jaw_y = tooth_origins(points)
    ramp = np.arange(SIZE, dtype=np.float32)
    rows, columns = ramp[:, None], ramp[None, :]
    origins = (
        (columns, middle), (rows, skull_y), (columns, jaw_x),
        (rows, jaw_y), (rows, points[13, 1]), (rows, points[14, 1]),
    )  # fmt: skip
    for channel, (axis, origin) in enumerate(origins, 6):
        out[channel] = (axis - np.float32(origin)) * np.float32(2.0 * SPAN / SIZE)
    planes = np.empty((4, SIZE, SIZE), np.float32)
    for channel, plane in enumerate(cv2.split(np.ascontiguousarray(crop))):
        planes[channel] = plane
    cv2.transform(crop.astype(np.float32), np.full((1, 3), 1 / 765), planes[3])
    mean = cv2.blur(planes[3], (_TOOTH_PX, 1))
    _fill_inputs(planes.reshape(4, -1), masks["removed"].ravel(), mean.ravel(), out.reshape(17, -1))
    return out


@njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _fill_inputs(
    planes: np.ndarray, removed: np.ndarray, mean: np.ndarray, out: np.ndarray
) -> None:
    """Channels 0-2 and 12-16 of `mouth_inputs` from colours 0..255 and light, in place."""
    one, tenth = np.float32(1), np.float32(0.1)
    for c in range(3):
        for i in range(len(removed)):
            out[c, i] = (planes[c, i] * np.float32(1 / 127.5) - one) * (one - removed[i])
            out[12 + c, i] = planes[c, i] * np.float32(1 / 255) * removed[i]
    for i in range(len(removed)):
        light = planes[3, i]
        out[15, i] = light * removed[i]
        change = (light - mean[i]) / (mean[i] + tenth)
        out[16, i] = min(max(change, -one), one) * removed[i]


@njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _finish(
    painted: np.ndarray,
    limit: np.ndarray,
    depth: np.ndarray,
    light: np.ndarray,
    show: float,
    dark: float,
    keep: float,
    rgb: np.ndarray,
    alpha: np.ndarray,
    shown: np.ndarray,
) -> None:
    """What the net gave to what is shown.

    Args:
        painted: ``(4, S, S)`` float32, colour about -1..1 and alpha 0..1.
        limit: ``(S, S)`` float32, outside nothing is painted.
        depth: ``(S, S)`` float32, 1 well inside the mouth.
        light: ``(S, S)`` float32 of the teeth laid before, 0..1.
        show: gate of the whole painting, 0..1.
        dark: share withheld where the laid mouth is dark beside its own teeth and deep.
        keep: share of the previous picture.
        rgb: ``(S, S, 3)`` float32, the previous picture, replaced in place.
        alpha: ``(S, S)`` float32, written in place.
        shown: ``(S, S, 3)`` uint8, written in place.
    """
    brightest = max(light.max(), np.float32(0.2))
    show, dark, keep = np.float32(show), np.float32(dark), np.float32(keep)
    zero, one, half = np.float32(0), np.float32(1), np.float32(0.5)
    for y in range(limit.shape[0]):
        for x in range(limit.shape[1]):
            cavity = min(max((half - light[y, x] / brightest) * np.float32(5), zero), one)
            cover = limit[y, x] * painted[3, y, x] * (one - dark * depth[y, x] * cavity)
            alpha[y, x] = cover * show
            for c in range(3):
                value = min(max(painted[c, y, x], -one), one) * np.float32(127.5)
                value += np.float32(127.5)
                value += keep * (rgb[y, x, c] - value)
                rgb[y, x, c] = value
                shown[y, x, c] = np.uint8(value + half)


class MouthNet:
    """The shipped mouth net on the CPU. Holds weights only; memory is the caller's `State`.

    Args:
        model_dir: folder with ``model.json`` and the graph it names.
        precision: ``f32`` or ``bf16``.
        threads: CPU threads for one call.
        smoothing: share of the previous picture kept while the lips stand still, 0..1.
        keep_dark: share of the painting withheld where the mouth is deep and was laid dark, 0..1:
            trained mostly on smiles, the net lets teeth show through the dark of an open mouth.
        weights: of one person, by name, instead of the shipped ones.
        provider: what runs the net, a key of `backends.PROVIDERS` or ``auto``.

    Raises:
        ConfigError: the provider is not there.
        ModelError: the folder holds no mouth net that fits this version.
    """

    def __init__(
        self,
        model_dir: str | Path,
        precision: str = "bf16",
        threads: int = 1,
        smoothing: float = 0.35,
        keep_dark: float = 0.7,
        weights: dict[str, np.ndarray] | None = None,
        provider: str = "openvino",
    ):
        folder = Path(model_dir)
        try:
            card = json.loads((folder / "model.json").read_text())
        except (OSError, ValueError) as err:
            raise ModelError(f"no readable model.json in {folder}: {err}") from err
        fits = {"kind": "mouth", "size": SIZE, "channels": N_CHANNELS}
        if {key: card.get(key) for key in fits} != fits:
            raise ModelError(
                f"{folder} is not a mouth net of {SIZE} px and {N_CHANNELS} channels; export again"
            )
        self.card = card
        self.smoothing, self.keep_dark = smoothing, keep_dark
        self._graph = open_graph(
            folder / card["graph"], provider,
            threads=threads, precision=precision, constants=weights,
        )  # fmt: skip

    def init_state(self, batch: int = 1) -> State:
        """Memory of no previous picture."""
        return {
            "mouth/rgb": np.zeros((batch, SIZE, SIZE, 3), np.float32),
            "mouth/lips": np.full((batch, len(LIPS), 2), -1e6, np.float32),
        }

    def paint(self, crops: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Paint mouths that have no past.

        Args:
            crops: ``(B, SIZE, SIZE, 3)`` uint8 RGB, cut with `crop_transform` from a frame whose
                inner mouth tier `mesh` has filled (generic or own teeth, dimmed to the light).
            points: ``(B, 478, 2)`` or ``(B, 478, 3)`` in crop px.

        Returns:
            colour ``(B, SIZE, SIZE, 3)`` uint8 and cover ``(B, SIZE, SIZE)`` float32 in 0..1.
        """
        _, rgb, alpha = self.step(self.init_state(len(crops)), crops, points)
        return rgb, alpha

    def step(
        self, state: State, crops: np.ndarray, points: np.ndarray
    ) -> tuple[State, np.ndarray, np.ndarray]:
        """As `paint`, with a little of the previous picture where the lips hardly moved."""
        batch = len(crops)
        assert crops.shape == (batch, SIZE, SIZE, 3), crops.shape
        assert crops.dtype == np.uint8, crops.dtype
        shown = crops.copy()
        rgb, alpha = crops.astype(np.float32), np.zeros((batch, SIZE, SIZE), np.float32)
        lips = np.asarray(points, np.float32)[:, LIPS, :2]
        past = np.full_like(state["mouth/lips"], -1e6)
        shows = [gate(lip_gap(p)) for p in points]
        rows = [i for i in range(batch) if shows[i] > 0]
        masks = {i: mouth_masks(points[i]) for i in rows}
        feeds = [mouth_inputs(crops[i], points[i], masks[i]) for i in rows]
        for i, feed, painted in zip(rows, feeds, self._run(feeds), strict=True):
            past[i], rgb[i] = lips[i], state["mouth/rgb"][i]
            moved = float(np.abs(lips[i] - state["mouth/lips"][i]).mean())
            keep = self.smoothing * math.exp(-((moved / 1.5) ** 2))
            _finish(
                painted, masks[i]["limit"], masks[i]["depth"], feed[15], shows[i],
                self.keep_dark, keep, rgb[i], alpha[i], shown[i],
            )  # fmt: skip
        return {"mouth/rgb": rgb, "mouth/lips": past}, shown, alpha

    def _run(self, feeds: list[np.ndarray]) -> list[np.ndarray]:
        """The net on each mouth: together where the provider gains by it."""
        if self._graph.batched and feeds:
            return list(self._graph({"inputs": np.stack(feeds)})["rgba"])
        return [self._graph({"inputs": feed[None]})["rgba"][0] for feed in feeds]
