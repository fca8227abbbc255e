"""One source file looked at: face track, sound, phones, a few pictures, figures of quality.

The slow part of ``prepare``, one file at a time and nothing shared, so that any number of processes
or machines can do it. What was found is kept beside the clips and taken again while the source file
has not changed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from visavis.audio import read_audio
from visavis.errors import AudioError, FaceError, VisavisError
from visavis.facemesh import FaceMesh
from visavis.facemodel import load_face_model
from visavis.photo import MIN_FACE, SECOND_FACE, check_face
from visavis.track import Track
from visavis.train.phones import Aligner, Alignment, Segment
from visavis.train.quality import speech_facts, track_facts
from visavis.types import SAMPLE_RATE
from visavis.video import read_video

VERSION = 1
LOOKS_PER_S = 2.0  # how often faces are counted and checked for hands, masks and glasses
PICTURES_PER_S = 5.0
PICTURE_SIDE = 256
PICTURE_QUALITY = 90
CLIP_ERRORS = (
    VisavisError, ValueError, RuntimeError, OSError, ArithmeticError, LookupError, MemoryError,
    cv2.error,
)  # fmt: skip
"""What a bad file may raise anywhere below: it costs that file, never the others."""


@dataclass(frozen=True)
class Source:
    """One file to look at.

    Attributes:
        path: film or sound.
        kept: the survey's file without suffix; ``.npz`` and ``.json`` are written.
        filmed: whether a face is expected.
        text: what is said, where it is known.
        phones: whether phone times are wanted.
        models: folder of the face graphs.
    """

    path: str
    kept: str
    filmed: bool = True
    text: str = ""
    phones: bool = True
    models: str | None = None


@dataclass
class Survey:
    """What was found in a file.

    Attributes:
        facts: figures of quality and ``error`` where it could not be read.
        pcm: ``(n,)`` int16 at 16 kHz.
        track: the face, None for sound files.
        alignment: words and phones.
        pictures: JPEG of the face by frame index.
        box: x0, y0, side in pixels of those pictures in the film.
    """

    facts: dict[str, Any]
    pcm: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))
    track: Track | None = None
    alignment: Alignment = field(default_factory=Alignment)
    pictures: dict[int, bytes] = field(default_factory=dict)
    box: tuple[float, float, float] = (0.0, 0.0, 0.0)


def survey(source: Source) -> dict[str, Any]:
    """Look at one file and keep what was found.

    Returns:
        The facts: figures, or ``error`` with the reason; ``name`` and ``fresh`` besides.
    """
    kept = Path(source.kept)
    facts = kept_facts(source)
    if facts:
        return facts
    try:
        found = _look(source)
    except CLIP_ERRORS as error:
        found = Survey({"error": str(error) or type(error).__name__})
    found.facts |= {"name": kept.name, "source": Path(source.path).name, "stamp": _stamp(source)}
    write_survey(found, kept)
    return found.facts | {"fresh": True}


def kept_facts(source: Source) -> dict[str, Any] | None:
    """Facts of an earlier run over the very same file, or None."""
    kept = Path(source.kept)
    facts = _facts_of(_file(kept, ".json"))
    if facts.get("stamp") == _stamp(source) and _file(kept, ".npz").exists():
        return facts | {"fresh": False}
    return None


def write_survey(found: Survey, kept: Path) -> None:
    """``KEPT.npz`` and, last, ``KEPT.json``: a stopped run leaves no half survey that counts."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    track = found.track
    arrays = {
        "pcm": found.pcm,
        "jpeg": np.frombuffer(b"".join(found.pictures.values()), np.uint8),
        "jpeg_lengths": np.array([len(p) for p in found.pictures.values()], np.int64),
        "jpeg_frames": np.array(list(found.pictures), np.int64),
        "box": np.array(found.box, np.float64),
    }
    if track is not None:
        arrays |= {
            "points": track.points, "times": track.times, "scores": track.scores,
            "size": np.array(track.size),
        }  # fmt: skip
    np.savez(_file(kept, ".npz"), **arrays)
    facts = found.facts | {"alignment": asdict(found.alignment)}
    part = _file(kept, ".part")
    part.write_text(json.dumps(facts), encoding="utf-8")
    part.replace(_file(kept, ".json"))


def read_survey(kept: str | Path) -> Survey:
    """What ``write_survey`` kept."""
    kept = Path(kept)
    facts = _facts_of(_file(kept, ".json"))
    said = facts.pop("alignment")
    with np.load(_file(kept, ".npz")) as a:
        track = None
        if "points" in a:
            track = Track(a["points"], a["times"], a["scores"], tuple(int(v) for v in a["size"]))
        parts = np.split(a["jpeg"], np.cumsum(a["jpeg_lengths"])[:-1]) if len(a["jpeg"]) else []
        pictures = {int(k): p.tobytes() for k, p in zip(a["jpeg_frames"], parts, strict=True)}
        pcm, box = a["pcm"], tuple(float(v) for v in a["box"])
    alignment = Alignment(
        said["text"],
        tuple((w, s, e) for w, s, e in said["words"]),
        tuple(Segment(**p) for p in said["phones"]),
    )
    return Survey(facts, pcm, track, alignment, pictures, box)


def read_pcm(path: str | Path) -> np.ndarray:
    """A file's sound by the runtime's own reader, ``(n,)`` int16 at 16 kHz.

    Raises:
        AudioError: no sound or unreadable.
    """
    sound = np.concatenate([*read_audio(path), np.zeros(0, np.float32)])
    return np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)


def _file(kept: Path, suffix: str) -> Path:
    """A file of a survey; a dot in the clip's own name is no suffix."""
    return kept.with_name(kept.name + suffix)


def _stamp(source: Source) -> str:
    """What a kept survey depends on."""
    try:
        stat = Path(source.path).stat()
        file = f"{stat.st_size}-{stat.st_mtime_ns}"
    except OSError:
        file = "missing"
    return f"{VERSION}-{file}-{source.filmed}-{source.phones}-{source.text}"


def _facts_of(path: Path) -> dict[str, Any]:
    """JSON of a kept survey; empty where there is none or it was cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=1)
def _mesh(models: str | None) -> FaceMesh:
    cv2.setNumThreads(1)
    return FaceMesh.open(models)


@lru_cache(maxsize=1)
def _aligner() -> Aligner:
    return Aligner()


def _look(source: Source) -> Survey:
    found = Survey({})
    if source.filmed:
        _look_at_film(source, found)
    try:
        found.pcm = read_pcm(source.path)
    except AudioError as error:
        if not source.filmed or "error" in found.facts:
            raise
        found.facts["error"] = f"no sound: {error}"
        return found
    found.facts |= speech_facts(found.pcm)
    if source.phones and len(found.pcm) > SAMPLE_RATE // 4 and found.facts["speech"] > 0:
        text = source.text
        found.alignment = _aligner().align(found.pcm, text) if text else _aligner().hear(found.pcm)
    return found


def _look_at_film(source: Source, found: Survey) -> None:
    """Track, looks and pictures in one pass over the frames."""
    mesh = _mesh(source.models)
    state = mesh.init_state()
    points, times, scores, size = [], [], [], (0, 0)
    others = hidden = looks = 0
    next_look = next_picture = 0.0
    for index, time, image in read_video(source.path):
        state, face = mesh.track(state, image)
        points.append(np.full((478, 3), np.nan, np.float32) if face is None else face.points)
        scores.append(0.0 if face is None else face.score)
        times.append(float(time))
        size = image.shape[:2]
        if face is not None and float(time) >= next_look:
            next_look = float(time) + 1.0 / LOOKS_PER_S
            looks += 1
            others += _count_faces(mesh, image, face) > 1
            hidden += _is_hidden(image, face)
        if face is not None and float(time) >= next_picture:
            next_picture = float(time) + 1.0 / PICTURES_PER_S
            if not found.pictures:
                found.box = picture_box(face.points)
            found.pictures[index] = _picture(image, found.box)
    found.track = Track(np.array(points), np.array(times), np.array(scores, np.float32), size)
    found.facts |= track_facts(found.track, load_face_model().template)
    found.facts |= {"others": others / max(looks, 1), "hidden": hidden / max(looks, 1)}
    found.facts |= {"height": size[0], "width": size[1]}


def _count_faces(mesh: FaceMesh, image: np.ndarray, face) -> int:
    """Faces of at least a third of the tracked one's size."""
    least = SECOND_FACE * float(np.ptp(face.points[:468, 0]))
    return max(1, sum(box[2] - box[0] >= least for box in mesh.detect(image)))


def _is_hidden(image: np.ndarray, face) -> bool:
    """A mask, a hand or dark glasses, or the face partly outside the picture, as for photos."""
    extent = float(np.ptp(face.points[:468, :2], axis=0).max())
    try:
        if extent >= MIN_FACE:
            check_face(image, [face])
    except FaceError as error:
        return "hidden" in str(error) or "outside" in str(error)
    return False


def picture_box(points: np.ndarray) -> tuple[float, float, float]:
    """Square round a face with room for its movements: x0, y0, side in pixels."""
    low, high = points[:468, :2].min(0), points[:468, :2].max(0)
    side = float((high - low).max()) * 1.5
    x, y = (low + high) / 2
    return float(x) - side / 2, float(y) - side / 2, side


def _picture(image: np.ndarray, box: tuple[float, float, float]) -> bytes:
    """The box as JPEG, ``PICTURE_SIDE`` square; what lies outside the film repeats its rim."""
    x, y, side = box
    scale = PICTURE_SIDE / side
    matrix = np.array([[scale, 0, -x * scale], [0, scale, -y * scale]])
    flag = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    crop = cv2.warpAffine(
        image, matrix, (PICTURE_SIDE, PICTURE_SIDE), flags=flag, borderMode=cv2.BORDER_REPLICATE
    )
    options = [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY]
    return cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), options)[1].tobytes()
