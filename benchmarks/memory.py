"""Peak memory of reading sound and writing a film, one minute against thirty. One JSON line.

Run: ``python benchmarks/memory.py [--minutes 30] [--size 256]``. The bar: at most 60 MB more.
Each length runs in a process of its own; frames are synthetic, so only audio.py and video.py count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np


def make_sound(path: Path, minutes: int, rate: int = 48_000) -> None:
    """Stereo noise in bursts, written second by second."""
    random = np.random.default_rng(0)
    second = (random.standard_normal((rate, 2)) * 2000).astype("<i2")
    second[rate // 2 :] //= 50
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        for _ in range(60 * minutes):
            file.writeframes(second.tobytes())


def work(source: Path, size: int) -> int:
    """Read the sound at 16 kHz, write a film as long with the sound in it; peak KiB."""
    from visavis.audio import decode_audio, read_audio
    from visavis.clock import frame_count
    from visavis.video import VideoWriter

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (8, size, size, 3), np.uint8)
    images = np.sort(images, axis=1)  # smooth enough to encode fast
    fps, samples, frames = Fraction(30), 0, 0
    with VideoWriter(
        source.with_suffix(".mp4"), fps, (size, size), sound=decode_audio(source), quality="draft"
    ) as writer:
        for chunk in read_audio(source):
            samples += len(chunk)
            while frames < frame_count(samples, fps):
                writer.write(images[frames % 8])
                frames += 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure both lengths, print the difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(work(options.work, options.size))
        return
    peak = {}
    with tempfile.TemporaryDirectory() as folder:
        for minutes in (1, options.minutes):
            source = Path(folder) / f"{minutes}.wav"
            make_sound(source, minutes)
            command = [sys.executable, __file__, "--work", str(source), "--size", str(options.size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak[minutes] = int(done.stdout.split()[-1]) / 1024
            source.unlink()
    more = peak[options.minutes] - peak[1]
    facts = {"bench": "memory", "minutes": options.minutes, "size": options.size, "bar_mb": 60}
    facts |= {"peak_1_min_mb": round(peak[1], 1), "more_mb": round(more, 1), "ok": more <= 60}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
