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
