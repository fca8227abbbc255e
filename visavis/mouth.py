"""Paint the inside of the mouth: a rigid crop, its geometry as images, and a small net.

The crop hangs on the skull (eye corners, nose), never on lips or jaw, so it stands still while the
mouth moves: in it the upper teeth have a fixed place, and the lower teeth ride with the chin. Every
map is drawn from sub-pixel polygons, so a point that moves a little changes the picture a little.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from visavis.backends import Graph
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
    observed = np.asarray(points, np.float64)[_INDEX, :3]
    weight = np.ones(len(_INDEX))
    for _ in range(4):
        scale, rotation, shift = _similarity(_MODEL, observed, weight)
        error = np.linalg.norm((observed - scale * _MODEL @ rotation.T - shift)[:, :2], axis=1) / (
            scale * _EYE_DISTANCE
        )
        weight = 1.0 / np.sqrt(1.0 + (error / 0.03) ** 2)
    nose = (observed - scale * _MODEL @ rotation.T - shift)[_NOSE_BASE].mean(0)
    centre = (scale * rotation @ _CENTRE + shift + 0.5 * nose)[:2]
    across = rotation[:2, 0] / np.linalg.norm(rotation[:2, 0])
    zoom = SIZE / (SPAN * _EYE_DISTANCE * scale)
    turn = zoom * np.array([[across[0], across[1]], [-across[1], across[0]]])
    return np.column_stack([turn, (SIZE - 1) / 2 - turn @ centre])


def _similarity(
    model: np.ndarray, observed: np.ndarray, weight: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Weighted Umeyama fit: ``observed ~ scale * model @ rotation.T + shift``."""
    w = (weight / weight.sum())[:, None]
    mean_m, mean_o = (w * model).sum(0), (w * observed).sum(0)
    m, o = model - mean_m, observed - mean_o
    u, s, vt = np.linalg.svd((w * o).T @ m)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = float((s * sign).sum() / (w * m * m).sum())
    return scale, rotation, mean_o - scale * rotation @ mean_m


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
    cover = cv2.warpAffine(alpha.astype(np.float32), local, to, flags=flags)[..., None]
    roi = frame[y0:y1, x0:x1]
    roi[:] = (roi + (colour.astype(np.float32) - roi) * cover + 0.5).astype(np.uint8)


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
    low = np.maximum(low, top).astype(np.float32)
    edge = np.arange(size, dtype=np.float32)[:, None] - np.float32(0.5)
    top, within = top.astype(np.float32), (within / over).astype(np.float32)
    cover = np.zeros((size, size), np.float32)
    for k in range(over):
        column = np.minimum(np.maximum(low[k::over] - edge, 0), 1)
        column -= np.minimum(np.maximum(top[k::over] - edge, 0), 1)
        cover += column * within[k::over]
    return cover


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
    keep = 1.0 - masks["removed"]
    for channel in range(3):
        np.multiply(crop[..., channel], np.float32(1 / 127.5), out=out[channel])
    out[:3] -= 1.0
    out[:3] *= keep
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
    removed = masks["removed"]
    for channel in range(3):
        np.multiply(crop[..., channel], removed * np.float32(1 / 255), out=out[12 + channel])
    light = crop.mean(2, dtype=np.float32) / 255
    mean = cv2.blur(light, (_TOOTH_PX, 1))
    out[15] = light * removed
    out[16] = np.clip((light - mean) / (mean + 0.1), -1.0, 1.0) * removed
    return out


def make_reference(image: np.ndarray, points: np.ndarray, least_gap: float = 0.03) -> np.ndarray:
    """The avatar's own teeth from its photo: ``(SIZE, SIZE, 4)`` uint8, RGB and where it counts.

    All zero when the photo's mouth is open less than ``least_gap`` eye distances.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        points: ``(478, 3)`` in image px.
    """
    transform = crop_transform(points)
    local = apply_transform(transform, points)
    if lip_gap(local) < least_gap:
        return np.zeros((SIZE, SIZE, 4), np.uint8)
    mask = cv2.erode(mouth_masks(local)["inner"], np.ones((3, 3), np.uint8))
    crop = warp_crop(image, transform)
    return np.dstack([crop, np.rint(mask * 255).astype(np.uint8)])


def overlay(crop: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The crop with the avatar's own teeth laid over it, in the skull's frame."""
    cover = reference[..., 3:].astype(np.float32) / 255
    return np.rint(crop + (reference[..., :3].astype(np.float32) - crop) * cover).astype(np.uint8)


def _cavity(light: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Where the laid mouth is dark beside its own teeth and far from the lips, 0..1."""
    brightest = max(float(light.max()), 0.2)
    return depth * np.minimum(np.maximum((0.5 - light / brightest) * 5.0, 0.0), 1.0)


class MouthNet:
    """The shipped mouth net on the CPU. Holds weights only; memory is the caller's `State`.

    Args:
        model_dir: folder with ``model.json`` and the graph it names.
        precision: ``f32`` or ``bf16``.
        threads: CPU threads for one call.
        smoothing: share of the previous picture kept while the lips stand still, 0..1.
        keep_dark: share of the painting withheld where the mouth is deep and was laid dark, 0..1:
            trained mostly on smiles, the net lets teeth show through the dark of an open mouth.

    Raises:
        ModelError: the folder holds no mouth net that fits this version.
    """

    def __init__(
        self,
        model_dir: str | Path,
        precision: str = "bf16",
        threads: int = 1,
        smoothing: float = 0.35,
        keep_dark: float = 0.7,
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
        self._graph = Graph(folder / card["graph"], threads=threads, precision=precision)

    def init_state(self, batch: int = 1) -> State:
        """Memory of no previous picture."""
        return {
            "mouth/rgb": np.zeros((batch, SIZE, SIZE, 3), np.float32),
            "mouth/lips": np.full((batch, len(LIPS), 2), -1e6, np.float32),
        }

    def paint(
        self, crops: np.ndarray, points: np.ndarray, reference: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Paint mouths that have no past.

        Args:
            crops: ``(B, SIZE, SIZE, 3)`` uint8 RGB, cut with `crop_transform` from a frame whose
                inner mouth tier `mesh` has filled (generic or own teeth, dimmed to the light).
            points: ``(B, 478, 2)`` or ``(B, 478, 3)`` in crop px.
            reference: ``(B, SIZE, SIZE, 4)`` uint8 from `make_reference`, where the frame does not
                show the avatar's own teeth already.

        Returns:
            colour ``(B, SIZE, SIZE, 3)`` uint8 and cover ``(B, SIZE, SIZE)`` float32 in 0..1.
        """
        _, rgb, alpha = self.step(self.init_state(len(crops)), crops, points, reference)
        return rgb, alpha

    def step(
        self,
        state: State,
        crops: np.ndarray,
        points: np.ndarray,
        reference: np.ndarray | None = None,
    ) -> tuple[State, np.ndarray, np.ndarray]:
        """As `paint`, with a little of the previous picture where the lips hardly moved."""
        batch = len(crops)
        assert crops.shape == (batch, SIZE, SIZE, 3), crops.shape
        assert crops.dtype == np.uint8, crops.dtype
        rgb = crops.astype(np.float32)
        alpha = np.zeros((batch, SIZE, SIZE), np.float32)
        show = np.array([gate(lip_gap(p)) for p in points], np.float32)
        lips = np.asarray(points, np.float32)[:, LIPS, :2]
        past = np.full_like(state["mouth/lips"], -1e6)
        rows = np.flatnonzero(show > 0)
        if len(rows):
            masks = [mouth_masks(points[i]) for i in rows]
            feeds = [
                mouth_inputs(
                    crops[i] if reference is None else overlay(crops[i], reference[i]), points[i], m
                )
                for i, m in zip(rows, masks, strict=True)
            ]
            out = self._graph({"inputs": np.stack(feeds)})["rgba"]
            moved = np.abs(lips[rows] - state["mouth/lips"][rows]).mean((1, 2))
            keep = (self.smoothing * np.exp(-((moved / 1.5) ** 2)))[:, None, None, None]
            colour = np.clip(out[:, :3].transpose(0, 2, 3, 1), -1, 1) * 127.5 + 127.5
            rgb[rows] = colour + keep * (state["mouth/rgb"][rows] - colour)
            cover = np.stack([m["limit"] for m in masks]) * out[:, 3]
            for k, mask in enumerate(masks):
                cover[k] *= 1 - self.keep_dark * _cavity(feeds[k][15], mask["depth"])
            alpha[rows] = cover * show[rows, None, None]
            past[rows] = lips[rows]
        painted = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
        return {"mouth/rgb": rgb, "mouth/lips": past}, painted, alpha
