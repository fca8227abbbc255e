"""Find a model file by its hash: explicit path, ``models`` folders, cache, then download.

The face graphs are Google's ``face_landmarker.task`` (Apache-2.0), a zip of plain TFLite files.
Where its download is impossible, the two graphs inside the ``mediapipe==0.10.21`` wheel serve: the
same code runs them with 468 points and no blendshapes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from visavis.errors import ModelError

TASK_NAME = "face_landmarker.task"
TASK_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
TASK_URL = (
    "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/"
    "float16/1/face_landmarker.task"
)
WHEEL = "mediapipe==0.10.21"
WHEEL_GRAPHS = {
    "face_detector.tflite": "face_detection_short_range.tflite",
    "face_landmarks_detector.tflite": "face_landmark.tflite",
}


@dataclass(frozen=True)
class FaceGraphs:
    """The bytes of the face graphs. ``blendshapes`` is ``None`` when the wheel served them."""

    detector: bytes
    landmarks: bytes
    blendshapes: bytes | None
    origin: str


def cache_dir() -> Path:
    """The per-user cache folder (not created)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "visavis"


def search_path(explicit: str | Path | None = None) -> list[Path]:
    """Where face models are looked for, in order: explicit path, ``$VISAVIS_MODELS``, cache."""
    places = [Path(explicit)] if explicit else []
    if os.environ.get("VISAVIS_MODELS"):
        places.append(Path(os.environ["VISAVIS_MODELS"]))
    return [*places, cache_dir()]


def find_task(explicit: str | Path | None = None) -> Path | None:
    """The verified task file, or ``None`` when it is nowhere on the search path.

    Raises:
        ModelError: an explicit file is missing, or a file of that name has the wrong hash.
    """
    for place in search_path(explicit):
        path = place / TASK_NAME if place.is_dir() else place
        if path.is_file() and path.name.endswith(".task"):
            if sha256(path) != TASK_SHA256:
                raise ModelError(
                    f"{path} has sha256 {sha256(path)[:12]}…, expected {TASK_SHA256[:12]}…; "
                    "delete it and run `visavis models pull`"
                )
            return path
        if explicit and place == Path(explicit) and not place.exists():
            raise ModelError(f"no model file or folder at {explicit}")
    return None


def face_graphs(explicit: str | Path | None = None, *, download: bool = True) -> FaceGraphs:
    """The face graphs from the first source that has them.

    Args:
        explicit: a task file, or a folder that holds one; ``None`` searches.
        download: whether the network may be used.

    Raises:
        ModelError: found nowhere; the message lists what was tried.
    """
    path = find_task(explicit)
    if path is not None:
        return _read_task(path)
    folder = cache_dir() / "mediapipe-0.10.21"
    if all((folder / name).is_file() for name in WHEEL_GRAPHS.values()):
        return _read_wheel(folder)
    tried = [str(p) for p in search_path(explicit)]
    if download:
        for pull in (pull_task, pull_wheel):
            try:
                got = pull()
            except ModelError as err:
                tried.append(str(err))
                continue
            return _read_task(got) if got.is_file() else _read_wheel(got)
    raise ModelError(
        f"the face graphs were not found (tried {'; '.join(tried)}); "
        f"set VISAVIS_MODELS to a folder that holds {TASK_NAME}"
    )


def pull_task() -> Path:
    """Download the task file into the cache, verify it, return its path.

    Raises:
        ModelError: no network, or the hash differs.
    """
    target = cache_dir() / TASK_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(TASK_URL, timeout=20) as reply:
            data = reply.read(64 << 20)
    except (urllib.error.URLError, OSError) as err:
        raise ModelError(f"download of {TASK_NAME} failed: {err}") from err
    digest = hashlib.sha256(data).hexdigest()
    if digest != TASK_SHA256:
        raise ModelError(f"downloaded {TASK_NAME} has sha256 {digest[:12]}…, refused")
    _write(target, data)
    return target


def pull_wheel() -> Path:
    """Fetch the mediapipe wheel through pip, unpack its two graphs into the cache.

    Raises:
        ModelError: pip cannot get the wheel.
    """
    folder = cache_dir() / "mediapipe-0.10.21"
    with tempfile.TemporaryDirectory() as tmp:
        for pip in _pips():
            command = [
                *pip, "download", "-q", "--no-deps", "--only-binary=:all:",
                "--python-version", "3.11", "-d", tmp, WHEEL,
            ]  # fmt: skip
            subprocess.run(command, capture_output=True, timeout=300, check=False)
            wheels = list(Path(tmp).glob("*.whl"))
            if wheels:
                break
        else:
            raise ModelError(f"pip could not fetch {WHEEL}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            members = {Path(n).name: n for n in wheel.namelist()}
            for name in WHEEL_GRAPHS.values():
                if name not in members:
                    raise ModelError(f"the {WHEEL} wheel holds no {name}")
                _write(folder / name, wheel.read(members[name]))
    return folder


def _pips() -> list[list[str]]:
    """Ways to call pip: this Python's own, else (a venv without pip) one on the PATH."""
    own = [[sys.executable, "-m", "pip"]] if importlib.util.find_spec("pip") else []
    return own + [[found] for name in ("pip3", "pip") if (found := shutil.which(name))]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _read_task(path: Path) -> FaceGraphs:
    with zipfile.ZipFile(path) as task:
        return FaceGraphs(
            task.read("face_detector.tflite"),
            task.read("face_landmarks_detector.tflite"),
            task.read("face_blendshapes.tflite"),
            str(path),
        )


def _read_wheel(folder: Path) -> FaceGraphs:
    detector, landmarks = (folder / name for name in WHEEL_GRAPHS.values())
    return FaceGraphs(detector.read_bytes(), landmarks.read_bytes(), None, str(folder))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)
