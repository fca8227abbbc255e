"""Fixtures every test may use: synthetic sound, small files, the command line in a process."""

from __future__ import annotations

import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest


def speech_like(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """``(N,)`` float32: harmonics of a moving pitch in syllables with pauses; never clips."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(h * phase) / h for h in range(1, 12) if h * 140 < rate / 2)
    syllables = np.clip(np.sin(2 * np.pi * 3.5 * time), 0, None) * (np.sin(0.9 * time) > -0.6)
    return (0.3 * syllables * voice + 0.002 * random.standard_normal(len(time))).astype(np.float32)


def write_wav(path: Path, pcm: np.ndarray, rate: int = 16_000, width: int = 2) -> Path:
    """``(N,)`` or ``(N, C)`` float in [-1, 1] to integer PCM of ``width`` bytes."""
    pcm = pcm[:, None] if pcm.ndim == 1 else pcm
    if width == 1:
        data = np.round(pcm * 127 + 128).astype(np.uint8).tobytes()
    elif width == 3:
        data = (
            np.round(pcm * (2**23 - 1)).astype("<i4")[..., None].view(np.uint8)[..., :3].tobytes()
        )
    else:
        scale = 2 ** (8 * width - 1) - 1
        data = np.round(pcm * scale).astype(f"<i{width}").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(pcm.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


@pytest.fixture
def wav(tmp_path: Path):
    """``wav(pcm, rate, width, name) -> Path``."""

    def make(pcm, rate=16_000, width=2, name="sound.wav"):
        return write_wav(tmp_path / name, np.asarray(pcm), rate, width)

    return make


@pytest.fixture
def visavis_command():
    """Run the command line in a process of its own: ``visavis_command("render", ...)``."""

    def run(*args, timeout=300, **kwargs) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "visavis", *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **kwargs,
        )

    return run


@pytest.fixture(scope="session")
def drawn_avatar(tmp_path_factory) -> Path:
    """A 256 px ``.avatar`` file of a drawn face on the mean face's points; needs no tracker."""
    import cv2

    from visavis.avatar import Avatar, AvatarMeta
    from visavis.facemodel import FACE_OVAL, Pose, load_face_model
    from visavis.types import N_CHANNELS

    size = 256
    model = load_face_model()
    rest = Pose(np.eye(3), 70.0, np.array([size / 2, size / 2, 0.0]))
    points = rest.apply(model.template)
    oval = np.round(points[FACE_OVAL, :2]).astype(np.int32)
    rows = np.linspace(60, 120, size)[:, None, None]
    plate = np.broadcast_to(rows, (size, size, 3)).astype(np.uint8).copy()
    image, matte = plate.copy(), np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(image, oval, (205, 160, 140))
    cv2.fillConvexPoly(matte, oval, 255)
    neutral, _ = model.neutral_of(rest.remove(points))
    avatar = Avatar(
        image,
        plate,
        matte,
        points.astype(np.float32),
        neutral.astype(np.float32),
        np.zeros(N_CHANNELS, np.float32),
        rest,
        AvatarMeta(name="drawn", size=size),
    )
    return avatar.save(tmp_path_factory.mktemp("avatar") / "drawn.avatar")


TOY_RECIPE = {
    "size": "tiny", "iterations": 30, "batch": 4, "steps": 40, "checkpoint_every": 10, "quiet": 2,
    "pools": {"toy": {"corpora": ["toy"], "share": 0.9, "copies": 0}},
}  # fmt: skip
"""Of a motion training on ``toy_clips`` that takes seconds."""


def babble(seed: int, seconds: float = 2.0, corpus: str = "toy"):
    """A training clip: bursts of buzz, a mouth that opens with them, phones AA and M in turn."""
    from visavis.train.clips import Clip
    from visavis.train.phones import PHONE_INDEX
    from visavis.types import CHANNEL, N_CHANNELS

    rng = np.random.default_rng(seed)
    n = int(seconds * 100)
    open_ = np.repeat(rng.random(n // 20 + 1) > 0.5, 20)[:n]
    t = np.arange(n * 160) / 16_000
    buzz = sum(np.sin(2 * np.pi * 130 * k * t) for k in range(1, 20)) * 0.02
    pcm = buzz * np.repeat(np.where(open_, 1.0, 0.02), 160)
    motion = np.zeros((n // 2, N_CHANNELS), np.float32)
    shape = np.convolve(open_[::2], np.ones(5) / 5, "same")
    motion[:, CHANNEL["jaw_open"]] = 0.15 * shape
    motion[:, CHANNEL["mouth_width"]] = 0.02 * shape
    labels = np.where(open_, PHONE_INDEX["AA"], PHONE_INDEX["M"]).astype(np.uint8)
    return Clip(f"c{seed}", corpus, f"t{seed % 2}", (pcm * 32767).astype(np.int16), motion, labels)


@pytest.fixture(scope="session")
def toy_clips(tmp_path_factory) -> Path:
    """A folder with six clips of ``babble``, corpus ``toy``; read only."""
    from visavis.train.clips import save_clip

    out = tmp_path_factory.mktemp("toy_clips")
    for seed in range(6):
        save_clip(babble(seed), out)
    return out


SHARED = Path(__file__).resolve().parents[2] / "shared"
ASSETS = Path(__file__).resolve().parents[1] / "visavis" / "assets"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data beside the checkout; skips where it is not."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the development data at ../shared/data")
    return SHARED / "data"


@pytest.fixture(scope="session")
def mesh():
    """The face tracker on the real graphs; skips where they cannot be had without a download."""
    from visavis.errors import ModelError
    from visavis.facemesh import FaceMesh
    from visavis.modelstore import TASK_NAME

    task = SHARED / "models" / TASK_NAME
    try:
        return FaceMesh(task if task.is_file() else None, download=False)
    except ModelError as err:
        pytest.skip(f"needs the face graphs: {err}")


@pytest.fixture(scope="session")
def demo_avatar_path() -> Path:
    return ASSETS / "demo.avatar"


@pytest.fixture(scope="session")
def demo_avatar(demo_avatar_path):
    from visavis.avatar import load_avatar

    return load_avatar(demo_avatar_path)


def motion_row(**channels: float) -> np.ndarray:
    """``(D,)`` motion at rest but for the channels given."""
    from visavis.types import CHANNEL, N_CHANNELS

    motion = np.zeros(N_CHANNELS, np.float32)
    for name, value in channels.items():
        motion[CHANNEL[name]] = value
    return motion
