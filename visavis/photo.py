"""A photo at the door: read any picture safely, and say plainly why a face cannot be animated."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from visavis.errors import FaceError, ImageError
from visavis.facemesh import FaceMesh, FaceObservation
from visavis.facemodel import fit_pose, load_face_model, measure
from visavis.types import CHANNEL

MAX_FILE_BYTES = 80 << 20
MAX_SIDE = 12_000
MAX_PIXELS = 110_000_000
MIN_SIDE = 96
MIN_FACE = 96  # pixels, the longer side of the face mesh
MAX_YAW = 35.0
MAX_PITCH = 32.0
MIN_SCORE = 0.6
SECOND_FACE = 0.35  # a second face this much of the first's extent is a second person


def read_photo(photo: str | Path | np.ndarray) -> tuple[np.ndarray, str]:
    """Any picture as upright RGB and the sha256 of what was given.

    EXIF rotation is applied, CMYK and 16 bit are converted, transparency is laid over grey.

    Args:
        photo: a JPEG, PNG, WebP, BMP or TIFF file, or ``(H, W, 3)`` uint8 RGB.

    Returns:
        ``(H, W, 3)`` uint8 RGB, hex digest.

    Raises:
        ImageError: missing, empty, not a picture, damaged, too large or too small.
    """
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise ImageError(
                f"the photo is {photo.dtype} {photo.shape}, expected uint8 (H, W, 3) RGB"
            )
        _check_size(photo.shape[1], photo.shape[0], "the photo")
        return np.ascontiguousarray(photo), hashlib.sha256(photo.tobytes()).hexdigest()
    path = Path(photo)
    if not path.is_file():
        raise ImageError(f"no photo at {path}; give a JPEG, PNG or WebP file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ImageError(
            f"{path} has {path.stat().st_size >> 20} MB, at most 80 MB are read; shrink it"
        )
    data = path.read_bytes()
    if not data:
        raise ImageError(f"{path} is empty; give a JPEG, PNG or WebP file")
    declared = declared_size(data)
    if declared is None:
        raise ImageError(
            f"{path} is not a picture this reads; give a JPEG, PNG, WebP, BMP or TIFF file"
        )
    _check_size(*declared, str(path))
    return _decode(data, path), hashlib.sha256(data).hexdigest()


def photo_of_film(
    frames: Iterable[tuple[float, np.ndarray]], mesh: FaceMesh, seconds: float = 60.0
) -> tuple[np.ndarray, float]:
    """The frame of a film that makes the best photo: frontal, eyes open, mouth shut, sharp.

    Args:
        frames: pairs of time in seconds and ``(H, W, 3)`` uint8 RGB; two a second are looked at.
        mesh: the tracker.
        seconds: how much of the film is looked at.

    Returns:
        ``(H, W, 3)`` uint8 RGB and its time in seconds.

    Raises:
        FaceError: no frame shows a face that can be animated; the message has the last reason.
    """
    template = load_face_model().template
    best: tuple[float, np.ndarray, float] | None = None
    next_look, reason = 0.0, "it has no frame"
    for time, image in frames:
        if time > seconds:
            break
        if time < next_look:
            continue
        next_look = time + 0.5
        try:
            face = check_face(image, mesh.find(image))
        except FaceError as err:
            reason = str(err)
            continue
        cost = _photo_cost(image, face.points, template)
        if best is None or cost < best[0]:
            best = (cost, image, float(time))
    if best is None:
        raise FaceError(f"no frame of the film will do as a photo: {reason}")
    return best[1], best[2]


def _photo_cost(image: np.ndarray, points: np.ndarray, template: np.ndarray) -> float:
    pose = fit_pose(points, template)
    values = measure(pose.remove(points)[None], template)[0]
    pitch, yaw, _ = pose.angles
    blink = max(values[CHANNEL["eye_blink_left"]], values[CHANNEL["eye_blink_right"]], 0.0)
    low, high = (np.clip(f(points[:, :2], axis=0), 0, None).astype(int) for f in (np.min, np.max))
    face = cv2.cvtColor(image[low[1] : high[1], low[0] : high[0]], cv2.COLOR_RGB2GRAY)
    # sharpness relative to contrast, of a face brought to one size
    face = cv2.resize(face, (128, 160), interpolation=cv2.INTER_AREA).astype(np.float32)
    sharp = float(cv2.Laplacian(face, cv2.CV_32F).std() / max(face.std(), 1.0))
    turned = (abs(yaw) + abs(pitch)) / 20
    return turned + 4 * float(values[CHANNEL["jaw_open"]]) + 1.5 * float(blink) - sharp


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the header alone, ``None`` when the kind is unknown."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return struct.unpack(">II", data[16:24])
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    if data[:2] == b"BM" and len(data) >= 26:
        width, height = struct.unpack("<ii", data[18:26])
        return abs(width), abs(height)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        return _webp_size(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff_size(data)
    return None


def check_face(image: np.ndarray, faces: list[FaceObservation]) -> FaceObservation:
    """The one face of a photo.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        faces: as ``FaceMesh.find`` gave them, largest first.

    Raises:
        FaceError: none, several, too small, turned away, or eyes or mouth hidden.
    """
    if not faces:
        raise FaceError("no face was found in the photo; give one person facing the camera")
    face = faces[0]
    extent = _extent(face)
    others = [f for f in faces[1:] if _extent(f) > SECOND_FACE * extent]
    if others:
        raise FaceError(
            f"the photo shows {1 + len(others)} faces, expected one; crop it to one person"
        )
    if extent < MIN_FACE:
        raise FaceError(
            f"the face is {extent:.0f} px tall, at least {MIN_FACE} are needed; use a larger photo"
        )
    pitch, yaw, _ = fit_pose(face.points, load_face_model().template).angles
    if abs(yaw) > MAX_YAW:
        raise FaceError(
            f"the head is turned {abs(yaw):.0f}°, at most {MAX_YAW:.0f}° work; face the camera"
        )
    if abs(pitch) > MAX_PITCH:
        raise FaceError(
            f"the head is tilted {abs(pitch):.0f}°, at most {MAX_PITCH:.0f}° work; face the camera"
        )
    if face.score < MIN_SCORE:
        raise FaceError(
            f"the face is unclear (score {face.score:.2f}); use a sharper, brighter photo"
        )
    _check_inside(image, face.points)
    _check_eyes(image, face.points)
    _check_mouth(image, face.points)
    return face


def _extent(face: FaceObservation) -> float:
    return float(np.ptp(face.points[:468, :2], axis=0).max())


def _check_size(width: int, height: int, what: str) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageError(
            f"{what} is {width}x{height} px, at most {MAX_SIDE} px a side are read; shrink it"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{what} is {width}x{height} px, at least {MIN_SIDE} px a side are needed")


def _decode(data: bytes, path: Path) -> np.ndarray:
    buffer = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR)
        raw = (
            cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED) if data[:8] == b"\x89PNG\r\n\x1a\n" else None
        )
    except cv2.error as err:
        raise ImageError(f"{path} cannot be decoded; save it again as JPEG or PNG") from err
    if image is None:
        raise ImageError(f"{path} is damaged or cut off; save it again as JPEG or PNG")
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-65536:]:
        raise ImageError(f"{path} is cut off; copy it again")
    if raw is not None and raw.ndim == 3 and raw.shape[2] == 4 and raw.shape[:2] == image.shape[:2]:
        alpha = raw[..., 3:].astype(np.float32) / np.iinfo(raw.dtype).max
        image = np.round(image * alpha + 128 * (1 - alpha)).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    order = "little" if data[:2] == b"II" else "big"
    at = int.from_bytes(data[4:8], order)
    found: dict[int, int] = {}
    count = int.from_bytes(data[at : at + 2], order)
    for i in range(min(count, 64)):
        entry = data[at + 2 + 12 * i : at + 14 + 12 * i]
        if len(entry) < 12:
            return None
        tag, kind = (int.from_bytes(entry[j : j + 2], order) for j in (0, 2))
        found[tag] = int.from_bytes(entry[8 : 10 if kind == 3 else 12], order)
    return (found[256], found[257]) if {256, 257} <= found.keys() else None


def _check_inside(image: np.ndarray, points: np.ndarray) -> None:
    height, width = image.shape[:2]
    out = (
        (points[:468, 0] < 0)
        | (points[:468, 0] >= width)
        | (points[:468, 1] < 0)
        | (points[:468, 1] >= height)
    )
    if out.mean() > 0.06:
        raise FaceError(
            f"{100 * out.mean():.0f} % of the face lies outside the photo; show the whole head"
        )


def _lightness(image: np.ndarray, points: np.ndarray, rows: list[int], radius: float) -> np.ndarray:
    """Median L of small discs around mesh points, ``(len(rows),)``."""
    values = []
    height, width = image.shape[:2]
    r = max(1, int(radius))
    for x, y in points[rows, :2]:
        x, y = int(np.clip(x, 0, width - 1)), int(np.clip(y, 0, height - 1))
        patch = image[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1]
        values.append(float(np.median(cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY))))
    return np.array(values)


def _check_eyes(image: np.ndarray, points: np.ndarray) -> None:
    """Dark glasses: lids and under-eye skin are equally dark, and far darker than the cheeks.

    A deep shadow is not refused: there the socket is much darker than the skin below it.
    """
    unit = float(np.linalg.norm(points[263, :2] - points[33, :2]))
    under = [229, 230, 231, 449, 450, 451, 119, 348, 118, 347]
    below = np.median(_lightness(image, points, under, 0.02 * unit))
    lids = np.median(_lightness(image, points, [27, 28, 257, 258, 56, 286], 0.02 * unit))
    skin = np.median(_lightness(image, points, [151, 9, 205, 425, 50, 280, 5], 0.03 * unit))
    if below < 0.46 * skin and lids > 0.5 * below:
        raise FaceError("the eyes are hidden by dark glasses; use a photo that shows them")


def _check_mouth(image: np.ndarray, points: np.ndarray) -> None:
    """A mask or a hand: chin, lips and upper lip share one colour that is not the cheeks'."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    height, width = lab.shape[:2]

    def colours(rows: list[int]) -> np.ndarray:
        x = np.clip(points[rows, 0].astype(int), 0, width - 1)
        y = np.clip(points[rows, 1].astype(int), 0, height - 1)
        return cv2.blur(lab, (5, 5))[y, x]

    lower = colours(
        [0, 17, 13, 14, 37, 267, 84, 314, 61, 291, 18, 199, 200, 164, 2, 92, 322, 202, 422]
    )
    upper = colours([151, 9, 108, 337, 69, 299, 8, 6, 197])
    spread = float(np.linalg.norm(lower[:, 1:].std(0)))
    apart = float(np.linalg.norm(np.median(lower[:, 1:], 0) - np.median(upper[:, 1:], 0)))
    if apart > 14 and spread < 4.5:
        raise FaceError("the mouth is hidden (mask or hand); use a photo that shows it")
