"""Sound for a session from a file or from text: decoded in full, bounded, off the event loop."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from visavis.audio import decode_audio, to_mono
from visavis.errors import AudioError, ConfigError
from visavis.voice import LIVE_RATES

TEXT_LIMIT = 2000
TTS_BYTES = 64 << 20


def decode(data: bytes, limit_s: int) -> tuple[np.ndarray, int]:
    """A sound or video file to ``(N,)`` float32 and its rate; slow, not for the event loop.

    Raises:
        AudioError: it cannot be used, or lasts longer than ``limit_s``.
    """
    with tempfile.TemporaryDirectory(prefix="visavis-") as folder:
        path = Path(folder) / "sound"
        path.write_bytes(data)
        return _decode(path, limit_s)


def _decode(path: Path, limit_s: int) -> tuple[np.ndarray, int]:
    pieces, samples, first = [], 0, 0
    try:
        for block, rate in decode_audio(path):
            first = first or rate
            if rate != first or not LIVE_RATES[0] <= rate <= LIVE_RATES[1]:
                raise AudioError(f"sound at {rate} Hz; expected one rate, 8000 to 96000")
            pieces.append(to_mono(block))
            samples += len(block)
            if samples > limit_s * rate:
                raise AudioError(f"the sound is longer than {limit_s} s; cut it")
    except AudioError as error:
        raise AudioError(str(error).replace(str(path), "the file")) from error
    return np.concatenate(pieces), first


async def speak_text(
    text: str, command: list[str], timeout_s: float, limit_s: int
) -> tuple[np.ndarray, int]:
    """Have the configured program read ``text``; it gets it on stdin, never as an argument.

    Raises:
        ConfigError: no program is configured, or it fails.
        AudioError: nothing to say, or what came is no sound.
    """
    if not command:
        raise ConfigError(
            "no text-to-speech; start the server with --tts 'espeak-ng --stdin --stdout'"
        )
    text = " ".join(text.split())
    if not text or len(text) > TEXT_LIMIT:
        raise AudioError(f"the text has {len(text)} characters; expected 1 to {TEXT_LIMIT}")
    with tempfile.TemporaryDirectory(prefix="visavis-") as folder:
        path = Path(folder) / "speech.wav"
        words = [w.replace("{out}", str(path)) for w in command]
        data = await _run(words, text.encode() + b"\n", timeout_s)
        if "{out}" not in " ".join(command):
            path.write_bytes(data)
        if not path.is_file() or path.stat().st_size > TTS_BYTES:
            raise ConfigError(f"{command[0]} made no sound, or too much")
        return await asyncio.to_thread(_decode, path, limit_s)


async def _run(words: list[str], text: bytes, timeout_s: float) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise ConfigError(f"{words[0]} cannot be run: {error.strerror}") from error
    try:
        out, _ = await asyncio.wait_for(process.communicate(text), timeout_s)
    except TimeoutError as error:
        raise ConfigError(f"{words[0]} took longer than {timeout_s:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ConfigError(f"{words[0]} failed with status {process.returncode}")
    return out
