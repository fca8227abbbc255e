"""The avatar: everything about one person that is worked out once, and its ``.avatar`` file.

An ``.avatar`` file is a zip of JSON, PNG and safetensors (no pickle), read defensively: member
names, sizes, image dimensions and every number are checked before use.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from visavis.errors import AvatarError, OutputError
from visavis.facemesh import FaceMesh
from visavis.facemodel import N_VERTICES, Pose, fit_pose, load_face_model
from visavis.likeness import Likeness, likeness_from
from visavis.matte import background_plate, person_matte
from visavis.photo import check_face, read_photo
from visavis.types import N_CHANNELS

FORMAT_VERSION = 1
SIZES = (256, 1024)
DEFAULT_SIZE = 512
CROP_FACE_HEIGHTS = 2.7  # side of the crop, in heights of the face mesh
CROP_CENTRE = 0.12  # how far the crop's middle lies below the face's, in face heights
MAX_MEMBER_BYTES = 32 << 20
MEMBERS = ("avatar.json", "image.png", "plate.png", "matte.png", "geometry.safetensors")
# what a film adds; readers that know nothing of these pass them over
FILM_MEMBERS = ("likeness.safetensors", "mouth.safetensors", "style.json")
GEOMETRY = {
    "points": (N_VERTICES, 3),
    "neutral": (N_VERTICES, 3),
    "motion": (N_CHANNELS,),
    "rotation": (3, 3),
    "shift": (3,),
    "scale": (1,),
}


class AvatarMeta(BaseModel):
    """What the file says of itself; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = FORMAT_VERSION
    name: str = "avatar"
    created: str = ""
    source_sha256: str = ""
    source_licence: str = ""
    consent: str = ""
    provenance: str = ""
    tracker: str = ""
    size: int = DEFAULT_SIZE


@dataclass(frozen=True)
class Avatar:
    """One person, ready to be animated.

    Attributes:
        image: ``(S, S, 3)`` uint8 RGB crop of the photo.
        plate: ``(S, S, 3)`` uint8 RGB background without the person.
        matte: ``(S, S)`` uint8, 255 where the person is.
        points: ``(478, 3)`` float32 pixels of the photo's face in the crop.
        neutral: ``(478, 3)`` float32 face frame, mouth closed.
        motion: ``(D,)`` float32 at which the neutral reproduces the photo.
        rest: the photo's pose, which head motion starts from.
        meta: provenance.
        likeness: of a film, what the moved photo lacks at each motion.
        mouth_weights: of a film, the mouth net's weights fine-tuned on this person, by name.
        style: of a film, how the person behaves (`visavis.style`).
    """

    image: np.ndarray
    plate: np.ndarray
    matte: np.ndarray
    points: np.ndarray
    neutral: np.ndarray
    motion: np.ndarray
    rest: Pose
    meta: AvatarMeta = field(default_factory=AvatarMeta)
    likeness: Likeness | None = None
    mouth_weights: dict[str, np.ndarray] | None = None
    style: dict[str, Any] | None = None

    @property
    def size(self) -> int:
        """Side of the square crop in pixels."""
        return int(self.image.shape[0])

    def save(self, path: str | Path) -> Path:
        """Write an ``.avatar`` file (to a temporary name, then moved).

        Raises:
            OutputError: the folder cannot be written.
        """
        path = Path(path)
        data = _pack(self)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_bytes(data)
            os.replace(part, path)
        except OSError as err:
            part.unlink(missing_ok=True)
            raise OutputError(
                f"cannot write {path}: {err.strerror}; choose a writable folder"
            ) from err
        return path


def create_avatar(
    photo: str | Path | np.ndarray,
    *,
    size: int = DEFAULT_SIZE,
    mesh: FaceMesh | None = None,
    name: str | None = None,
    source_licence: str = "",
    consent: str = "",
    provenance: str = "",
) -> Avatar:
    """Make an avatar from one photo.

    Args:
        photo: an image file, or ``(H, W, 3)`` uint8 RGB.
        size: side of the crop in pixels, 256..1024.
        mesh: face tracker; opened from the model store by default.
        name: shown in lists; the file's stem by default.
        source_licence: licence of the photo.
        consent: who agreed to be animated, and how.
        provenance: where the photo comes from.

    Raises:
        ImageError: the picture cannot be read.
        FaceError: no face in it that can be animated; the message says why.
        AvatarError: the size is out of range.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise AvatarError(f"avatar size is {size}, expected {SIZES[0]} to {SIZES[1]} pixels")
    image, digest = read_photo(photo)
    mesh = mesh or FaceMesh.open()
    face = check_face(image, mesh.find(image))
    crop, points = head_crop(image, face.points, size)
    matte = person_matte(crop, points)
    plate = background_plate(crop, matte)
    model = load_face_model()
    rest = fit_pose(points, model.template)
    # the person's own bones, not the mean's, carry the pose from here on
    neutral, motion = model.neutral_of(rest.remove(points))
    stem = name or (Path(photo).stem if isinstance(photo, (str, Path)) else "avatar")
    meta = AvatarMeta(
        name=stem[:80],
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        source_sha256=digest,
        source_licence=source_licence,
        consent=consent,
        provenance=provenance,
        tracker=Path(mesh.origin).name,
        size=size,
    )
    alpha = np.round(matte * 255).astype(np.uint8)
    return Avatar(
        crop,
        plate,
        alpha,
        points.astype(np.float32),
        neutral.astype(np.float32),
        motion,
        rest,
        meta,
    )


def load_avatar(path: str | Path) -> Avatar:
    """Read an ``.avatar`` file.

    Raises:
        AvatarError: missing, not an avatar, damaged, hostile, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise AvatarError(
            f"no avatar file at {path}; make one with `visavis create PHOTO -o {path}`"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = _read_members(archive, path)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as err:
        raise AvatarError(f"{path} is not an .avatar file ({err}); make it again") from err
    return _unpack(members, path)


def resize_avatar(avatar: Avatar, size: int) -> Avatar:
    """The same avatar at another size.

    Raises:
        AvatarError: the size is out of range.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise AvatarError(f"size is {size}, expected {SIZES[0]} to {SIZES[1]} pixels")
    if size == avatar.size:
        return avatar
    ratio = size / avatar.size
    flag = cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC
    image, plate, matte = (
        cv2.resize(a, (size, size), interpolation=flag)
        for a in (avatar.image, avatar.plate, avatar.matte)
    )
    points = avatar.points.astype(np.float64) * ratio
    points[:, :2] += 0.5 * ratio - 0.5
    shift = avatar.rest.shift * ratio
    shift[:2] += 0.5 * ratio - 0.5
    rest = Pose(avatar.rest.rotation, avatar.rest.scale * ratio, shift)
    meta = avatar.meta.model_copy(update={"size": size})
    return replace(
        avatar,
        image=image,
        plate=plate,
        matte=matte,
        points=points.astype(np.float32),
        rest=rest,
        meta=meta,
    )


def head_crop(image: np.ndarray, points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Square head-and-shoulders crop, resized, and the points in it."""
    height, width = image.shape[:2]
    top, chin = points[10, :2], points[152, :2]
    face = float(np.linalg.norm(chin - top))
    side = min(CROP_FACE_HEIGHTS * face, height, width)
    centre = (top + chin) / 2 + np.array([0, CROP_CENTRE * face])
    left = float(np.clip(centre[0] - side / 2, 0, width - side))
    up = float(np.clip(centre[1] - side / 2, 0, height - side))
    ratio = size / side
    if ratio < 1:
        # whole source pixels, area-averaged: warpAffine alone would alias
        x0, y0, s = int(left), int(up), math.ceil(side)
        piece = image[y0 : y0 + s, x0 : x0 + s]
        crop = cv2.resize(piece, (size, size), interpolation=cv2.INTER_AREA)
        scale = np.array([size / piece.shape[1], size / piece.shape[0]])
        origin = np.array([x0, y0])
    else:
        matrix = np.array([[ratio, 0, -left * ratio], [0, ratio, -up * ratio]])
        matrix[:, 2] += 0.5 * ratio - 0.5
        crop = cv2.warpAffine(
            image, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        scale, origin = np.array([ratio, ratio]), np.array([left, up])
    moved = points.astype(np.float64).copy()
    moved[:, :2] = (moved[:, :2] - origin + 0.5) * scale - 0.5
    moved[:, 2] *= scale.mean()
    return np.ascontiguousarray(crop), moved


def _pack(avatar: Avatar) -> bytes:
    from safetensors.numpy import save

    geometry = {
        "points": avatar.points,
        "neutral": avatar.neutral,
        "motion": avatar.motion,
        "rotation": avatar.rest.rotation,
        "shift": avatar.rest.shift,
        "scale": np.array([avatar.rest.scale]),
    }
    arrays = {k: np.ascontiguousarray(v, np.float64) for k, v in geometry.items()}
    members = {
        "avatar.json": avatar.meta.model_dump_json(indent=1).encode(),
        "image.png": _png(cv2.cvtColor(avatar.image, cv2.COLOR_RGB2BGR)),
        "plate.png": _png(cv2.cvtColor(avatar.plate, cv2.COLOR_RGB2BGR)),
        "matte.png": _png(avatar.matte),
        "geometry.safetensors": save(arrays),
    }
    if avatar.likeness is not None:
        # safetensors writes memory as it lies, whatever the strides
        learned = {k: np.ascontiguousarray(v) for k, v in avatar.likeness.arrays().items()}
        members["likeness.safetensors"] = save(learned)
    if avatar.mouth_weights is not None:
        halves = {k: np.ascontiguousarray(v, np.float16) for k, v in avatar.mouth_weights.items()}
        members["mouth.safetensors"] = save(halves)
    if avatar.style is not None:
        members["style.json"] = json.dumps(avatar.style, indent=1).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member, (2026, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def _read_members(archive: zipfile.ZipFile, path: Path) -> dict[str, bytes]:
    """The known members, and nothing else, none larger than its limit."""
    infos = {info.filename: info for info in archive.infolist()}
    if len(archive.infolist()) > 32:
        raise AvatarError(
            f"{path} holds {len(archive.infolist())} members, expected {len(MEMBERS)}"
        )
    missing = [m for m in MEMBERS if m not in infos]
    if missing:
        raise AvatarError(f"{path} lacks {', '.join(missing)}; it is damaged or not an avatar")
    members = {}
    for name in (*MEMBERS, *(m for m in FILM_MEMBERS if m in infos)):
        if infos[name].file_size > MAX_MEMBER_BYTES:
            raise AvatarError(f"{path}: {name} unpacks to {infos[name].file_size} bytes, too large")
        with archive.open(infos[name]) as handle:
            data = handle.read(MAX_MEMBER_BYTES + 1)  # the header's size may lie
        if len(data) > MAX_MEMBER_BYTES:
            raise AvatarError(f"{path}: {name} unpacks to more than {MAX_MEMBER_BYTES} bytes")
        members[name] = data
    return members


def _unpack(members: dict[str, bytes], path: Path) -> Avatar:
    meta = _read_meta(members["avatar.json"], path)
    image = _read_png(members["image.png"], meta.size, 3, path)
    plate = _read_png(members["plate.png"], meta.size, 3, path)
    matte = _read_png(members["matte.png"], meta.size, 1, path)
    arrays = _read_geometry(members["geometry.safetensors"], path)
    scale = float(arrays["scale"][0])
    points = arrays["points"]
    rotation = arrays["rotation"]
    if not 1 < scale < meta.size or np.abs(points[:, :2]).max() > 4 * meta.size:
        raise AvatarError(f"{path}: the face lies outside the picture; the file is damaged")
    if (
        np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3
        or np.abs(arrays["neutral"]).max() > 10
    ):
        raise AvatarError(f"{path}: the face's geometry is impossible; the file is damaged")
    rest = Pose(rotation, scale, arrays["shift"])
    return Avatar(
        image,
        plate,
        matte,
        points.astype(np.float32),
        arrays["neutral"].astype(np.float32),
        arrays["motion"].astype(np.float32),
        rest,
        meta,
        *_read_film(members, path),
    )


def _read_film(members: dict[str, bytes], path: Path) -> tuple:
    """Likeness, mouth weights and style, each None where the file has none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    likeness = weights = style = None
    try:
        if "likeness.safetensors" in members:
            likeness = likeness_from(load(members["likeness.safetensors"]))
        if "mouth.safetensors" in members:
            weights = load(members["mouth.safetensors"])
            if not all(np.isfinite(w).all() and w.dtype == np.float16 for w in weights.values()):
                raise ValueError("mouth weights are not finite float16")
        if "style.json" in members:
            style = json.loads(members["style.json"])
            if not isinstance(style, dict):
                raise ValueError("style.json is not an object")
    except (SafetensorError, KeyError, ValueError, RecursionError) as err:
        raise AvatarError(f"{path}: what its film taught is damaged: {err}") from err
    return likeness, weights, style


def _read_meta(data: bytes, path: Path) -> AvatarMeta:
    try:
        raw: Any = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise AvatarError(f"{path}: avatar.json is not JSON; the file is damaged") from err
    version = raw.get("version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise AvatarError(
            f"{path} has format version {version}, this visavis reads {FORMAT_VERSION}"
        )
    try:
        meta = AvatarMeta.model_validate(raw)
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"])) or "avatar.json"
        raise AvatarError(f"{path}: {where}: {first['msg']}") from err
    if not SIZES[0] <= meta.size <= SIZES[1]:
        raise AvatarError(f"{path}: size {meta.size} is not {SIZES[0]} to {SIZES[1]}")
    return meta


def _read_png(data: bytes, size: int, channels: int, path: Path) -> np.ndarray:
    # IHDR first: a small PNG may claim a huge picture
    header = data[:24]
    if len(header) < 24 or header[:8] != b"\x89PNG\r\n\x1a\n":
        raise AvatarError(f"{path}: a picture in it is not PNG")
    width, height = (int.from_bytes(header[i : i + 4], "big") for i in (16, 20))
    if (width, height) != (size, size):
        raise AvatarError(f"{path}: a picture in it is {width}x{height}, expected {size}x{size}")
    flag = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if image is None:
        raise AvatarError(f"{path}: a picture in it is damaged")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if channels == 3 else image


def _read_geometry(data: bytes, path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
    except (SafetensorError, KeyError, ValueError) as err:
        raise AvatarError(f"{path}: geometry.safetensors is damaged") from err
    for name, shape in GEOMETRY.items():
        have = arrays.get(name)
        if have is None or have.shape != shape or have.dtype != np.float64:
            raise AvatarError(f"{path}: geometry lacks {name} of shape {shape}")
        if not np.isfinite(have).all():
            raise AvatarError(f"{path}: geometry {name} holds NaN or infinity")
    return arrays
