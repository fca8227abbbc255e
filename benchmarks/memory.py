"""Peak memory of a whole render, one minute against thirty. One JSON line.

Run: ``python benchmarks/memory.py [--minutes 30] [--size 256] [--tier patch]``. The bar: at most
60 MB more. Each length runs in a process of its own. The size of the frames does not grow with the
length of the file, so a small one serves.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np

AVATAR = Path(__file__).parents[1] / "visavis" / "assets" / "demo.avatar"


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


def work(source: Path, size: int, tier: str) -> int:
    """Render the demo avatar to a film of that sound; peak KiB."""
    from visavis.pipeline import PipelineConfig, render

    render(AVATAR, source, source.with_suffix(".mp4"), PipelineConfig(size=size, tier=tier))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure both lengths, print the difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--tier", default="patch")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(work(options.work, options.size, options.tier))
        return
    peak = {}
    with tempfile.TemporaryDirectory() as folder:
        for minutes in (1, options.minutes):
            source = Path(folder) / f"{minutes}.wav"
            make_sound(source, minutes)
            command = [sys.executable, __file__, "--work", str(source), "--size", str(options.size)]
            command += ["--tier", options.tier]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak[minutes] = int(done.stdout.split()[-1]) / 1024
            source.unlink()
    more = peak[options.minutes] - peak[1]
    facts = {
        "bench": "memory",
        "minutes": options.minutes,
        "size": options.size,
        "tier": options.tier,
        "bar_mb": 60,
    }
    facts |= {"peak_1_min_mb": round(peak[1], 1), "more_mb": round(more, 1), "ok": more <= 60}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
