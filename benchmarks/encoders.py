"""Core-ms per 512x512 frame, size and fidelity of every film format and quality. One JSON line.

Run: ``python benchmarks/encoders.py [--frames 90]``. The picture is scikit-image's astronaut with a
swaying head and a moving mouth; PSNR is against the RGB that went in, so chroma counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from skimage import data

from visavis.video import FORMATS, QUALITIES, VideoWriter, read_video

SIZE = 512
BARS = {".mp4": 6.0, ".webm": 12.0}  # core-ms per frame at standard quality


def portrait(count: int) -> list[np.ndarray]:
    """``count`` RGB frames: still background, a head that sways, a mouth that moves."""
    still = cv2.resize(data.astronaut(), (SIZE, SIZE))
    frames = []
    for k in range(count):
        turn = cv2.getRotationMatrix2D((256, 300), 5 * np.sin(k / 15), 1 + 0.02 * np.sin(k / 7))
        frame = still.copy()
        frame[60:400, 100:420] = cv2.warpAffine(still, turn, (SIZE, SIZE))[60:400, 100:420]
        opening = max(1, int(12 * abs(np.sin(k / 2.5))))
        cv2.ellipse(frame, (225, 160), (22, opening), 0, 0, 360, (60, 20, 25), -1)
        frames.append(frame)
    return frames


def measure(suffix: str, quality: str, frames: list[np.ndarray], folder: Path) -> dict:
    """Encode with one thread, decode back."""
    path = folder / f"film{suffix}"
    begin = time.process_time()
    with VideoWriter(path, Fraction(30), (SIZE, SIZE), quality=quality, threads=1) as writer:
        for frame in frames:
            writer.write(frame)
    spent = time.process_time() - begin
    errors = [
        np.mean((image.astype(np.float32) - frames[k]) ** 2)
        for k, _, image in read_video(path)
        if k % 10 == 5
    ]
    return {
        "core_ms": round(1000 * spent / len(frames), 2),
        "kbit_s": round(path.stat().st_size * 8 * 30 / len(frames) / 1000),
        "psnr": round(float(10 * np.log10(255**2 / np.mean(errors))), 2),
    }


def main() -> None:
    """Every format and quality."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=90)
    frames = portrait(parser.parse_args().frames)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            f"{suffix[1:]} {quality}": measure(suffix, quality, frames, Path(folder))
            for suffix in FORMATS
            for quality in QUALITIES
        }
    ok = all(found[f"{suffix[1:]} standard"]["core_ms"] <= bar for suffix, bar in BARS.items())
    print(json.dumps({"bench": "encoders", "bar_core_ms": BARS, "ok": ok, **found}))


if __name__ == "__main__":
    main()
