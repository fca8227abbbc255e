"""What coding a film anew does to the judge's lip correlation: 1 - r of lip opening. One JSON line.

    python benchmarks/recoding.py [--crf 30] [--data ../shared/data] [--cache runs/eval-cache]

Each film is compared with itself after x264 at the given CRF (the strictest case: a system whose
lips agree less loses less). Bar (issue 3): 0.03 in the mean over clips, as every figure of a table
is a mean over clips; the worst clip is stated beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from visavis.eval import lips
from visavis.eval.clips import motion_of, read_clip
from visavis.eval.protocol import withheld
from visavis.eval.stats import bootstrap
from visavis.facemesh import FaceMesh
from visavis.types import CHANNEL

SETS = {"grid_s1": 6, "grid_more": 3, "obama_addresses": 3, "presenter": 3}  # clips of each
CHANNELS = ("jaw_open", "jaw_rotation", "mouth_width")
BASE = 12_800  # ticks per second


def recode(frames: list[np.ndarray], times: np.ndarray, path: Path, crf: int) -> Path:
    """x264 at a CRF with the film's own times; RGB frames of even size."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"crf": str(crf)})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.time_base = stream.codec_context.time_base = Fraction(1, BASE)
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = round(time * BASE), Fraction(1, BASE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def films(data: Path) -> list[Path]:
    """The same clips every time: the first of each set, of GRID s1 the withheld ones."""
    picked = []
    for name, count in SETS.items():
        paths = sorted((data / name).glob("*.mp4"))
        paths = [p for p in paths if withheld(p.stem)] if name == "grid_s1" else paths
        picked += paths[:: max(1, len(paths) // count)][:count]
    return picked


def main() -> None:
    """Every film."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=os.environ.get("VISAVIS_MODELS"))
    parser.add_argument("--cache", type=Path, default=Path("runs/eval-cache"))
    parser.add_argument("--crf", type=int, default=30)
    args = parser.parse_args()
    mesh, changes = FaceMesh.open(args.models), {}
    for path in films(args.data):
        film = read_clip(path, mesh, args.cache)
        with tempfile.TemporaryDirectory() as folder:
            coded = recode(film.frames, film.times, Path(folder) / "coded.mp4", args.crf)
            a, b = motion_of(read_clip(coded, mesh)), motion_of(film)
        changes[f"{path.parent.name}/{path.stem}"] = {
            c: 1 - lips.correlation(a[:, CHANNEL[c]], b[:, CHANNEL[c]]) for c in CHANNELS
        }
    report = {}
    for channel in CHANNELS:
        values = np.array([row[channel] for row in changes.values()])
        found, worst = bootstrap(values), max(changes, key=lambda name: changes[name][channel])
        report[channel] = {
            "mean": round(found.mean, 4),
            "low": round(found.low, 4),
            "high": round(found.high, 4),
            "max": round(float(np.nanmax(values)), 4),
            "worst": worst,
        }
    ok = report["jaw_open"]["mean"] <= 0.03
    print(
        json.dumps({"bench": "recoding", "crf": args.crf, "clips": len(changes), "ok": ok} | report)
    )


if __name__ == "__main__":
    main()
