"""How far apart a film's picture and sound start, decoded back. One JSON line.

Run: ``python benchmarks/av_start.py``. A click and a flash are put at the same times; both come
back through FFmpeg's own decoders. The bar: 5 ms, and frames = round(duration * fps) +- 1.
"""

from __future__ import annotations

import json
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np

from visavis.audio import decode_audio
from visavis.video import FORMATS, VideoWriter, read_video

FPS, SECONDS = Fraction(25), Fraction(4)
EVENTS = (Fraction(0), Fraction(1), Fraction(2), Fraction(3))


def offsets(suffix: str, rate: int, folder: Path) -> tuple[list[float], int]:
    """Sound minus picture at each event in ms, and the number of frames read back."""
    pcm = np.zeros((int(SECONDS * rate), 1), np.float32)
    for event in EVENTS:
        start = int(event * rate)
        pcm[start : start + rate // 500] = 0.9
    path = folder / f"film{suffix}"
    dark, bright = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    with VideoWriter(path, FPS, (64, 64), sound=iter([(pcm, rate)])) as writer:
        for k in range(int(SECONDS * FPS)):
            writer.write(bright if k / FPS in EVENTS else dark)
    frames = list(read_video(path))
    flashes = [time for _, time, image in frames if image.mean() > 128]
    blocks = list(decode_audio(path))
    sound, out_rate = np.concatenate([b[:, 0] for b, _ in blocks]), blocks[0][1]
    loud = np.flatnonzero(np.abs(sound) > 0.45) / out_rate
    clicks = loud[np.insert(np.diff(loud) > 0.1, 0, True)]
    pairs = zip(clicks, flashes, strict=True)
    return [1000 * (float(c) - float(f)) for c, f in pairs], len(frames)


def main() -> None:
    """Every format, three rates."""
    worst, counts = {}, set()
    with tempfile.TemporaryDirectory() as folder:
        for suffix in FORMATS:
            found = []
            for rate in (16_000, 44_100, 48_000):
                apart, frames = offsets(suffix, rate, Path(folder))
                found += apart
                counts.add(frames)
            worst[suffix] = round(max(found, key=abs), 3)
    ok = max(map(abs, worst.values())) <= 5 and counts == {int(SECONDS * FPS)}
    print(json.dumps({"bench": "av_start", "worst_ms": worst, "bar_ms": 5, "ok": ok}))


if __name__ == "__main__":
    main()
