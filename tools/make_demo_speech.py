"""Makes visavis/assets/demo_speech.opus with Debian's flite (voice slt, CMU, BSD-style licence).

Run: ``python tools/make_demo_speech.py [OUT.opus]``. Needs the ``flite`` program.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

VOICE = "slt"
SENTENCES = (
    "Hello! My name is Veeza vee.",  # spelled as it sounds
    "Somebody gave me one photo, and this voice.",
    "From the sound alone I know when to open my mouth, and when to press my lips.",
    "Now give me a picture of your own.",
)
PAUSE_S, LEAD_S, TAIL_S = 0.35, 0.15, 0.5
SILENCE = 0.01  # of full scale: below it flite is between words


def speak(sentence: str) -> tuple[np.ndarray, int]:
    """``(N,)`` float32 without the silence at its ends, and the rate."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", VOICE, "-t", sentence, "-o", file.name], check=True)
        with wave.open(file.name) as sound:
            rate = sound.getframerate()
            pcm = np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / np.float32(32768)
    loud = np.flatnonzero(np.abs(pcm) > SILENCE)
    return pcm[max(0, loud[0] - rate // 100) : loud[-1] + rate // 20], rate


def encode(pcm: np.ndarray, rate: int, path: Path) -> None:
    """Opus in Ogg, mono, 40 kbit/s."""
    with av.open(str(path), "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48_000, bit_rate=40_000)
        stream.layout = "mono"
        resampler = av.AudioResampler(stream.format, "mono", 48_000)
        frame = av.AudioFrame.from_ndarray(pcm[None].astype(np.float32), "flt", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for ready in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(ready))


def main() -> None:
    """Speak, join, level, encode."""
    default = Path(__file__).parents[1] / "visavis" / "assets" / "demo_speech.opus"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    parts = []
    for sentence in SENTENCES:
        pcm, rate = speak(sentence)
        parts += [np.zeros(round((PAUSE_S if parts else LEAD_S) * rate)), pcm]
    joined = np.concatenate([*parts, np.zeros(round(TAIL_S * rate))])
    joined *= 0.7 / np.abs(joined).max()
    encode(joined, rate, path)
    print(f"wrote {path}: {len(joined) / rate:.2f} s, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
