"""Fit the judge's listener and validate it: shifts of ±1..±15 frames put into real clips.

    python benchmarks/sync_scorer.py [--data ../shared/data] [--fit]   -> one JSON line

Fitting takes clips outside the withheld tenth; validation takes the withheld ones only. A clip's
own offset (found films lag by up to 200 ms) is estimated and corrected in two rounds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from visavis.errors import VideoError
from visavis.eval import listener, sync
from visavis.eval.clips import read_clip
from visavis.eval.protocol import withheld
from visavis.facemesh import FaceMesh
from visavis.track import motion_of_track, resample
from visavis.types import MOTION_RATE

SETS = {"grid_s1": 4, "grid_more": 1, "obama_addresses": 1, "presenter": 1}  # every n-th clip
GRID_LAG_MS = (
    40.0  # ../shared/data/README.md: the re-encoded GRID lags by about one frame of 25 fps
)


def load(data: Path, cache: Path) -> list[dict]:
    """Per clip: set, name, lip channels at 50 Hz, context features."""
    mesh, rows = FaceMesh.open(), []
    for name, stride in SETS.items():
        paths = sorted((data / name).glob("*.mp4"))
        kept = paths[::stride] + [p for p in paths if withheld(p.stem)]
        for path in sorted(set(kept)):
            try:
                clip = read_clip(path, mesh, cache)
            except VideoError as error:
                print(f"left out: {error}")
                continue
            values = resample(motion_of_track(clip.track), clip.times)
            heard = listener.context_features(clip.pcm)
            n = min(len(values), len(heard))
            lips = listener.lip_columns(values[:n])
            rows.append({"set": name, "name": path.stem, "lips": lips, "x": heard[:n], "lag": 0.0})
    return rows


def fit(rows: list[dict]) -> listener.Listener:
    """Two rounds: fit, estimate each clip's lag, fit on lips moved back by it."""
    for row in rows:
        row["lag"] = GRID_LAG_MS if row["set"].startswith("grid") else 0.0
    for _ in range(3):
        moved = [sync.shift_signal(r["lips"], -round(r["lag"] * MOTION_RATE / 1000)) for r in rows]
        model = listener.fit([r["x"] for r in rows], moved)
        for row in rows:
            guess = row["x"] @ model.weight + model.bias
            found = sync.offset(row["lips"], guess, MOTION_RATE, 300.0)
            row["lag"] = found.offset_ms if found.peak > 0.3 else row["lag"]
        # only differences between clips are known; GRID's mean is pinned to the measured lag
        drift = np.mean([r["lag"] for r in rows if r["set"] == "grid_s1"]) - GRID_LAG_MS
        for row in rows:
            row["lag"] -= drift
    return model


def validate(rows: list[dict], model: listener.Listener) -> dict:
    """Shift errors in frames of 25 fps (40 ms) over ±15 frames, per set."""
    report: dict = {}
    for name in [*SETS, "all"]:
        errors, peaks, own = [], [], []
        for row in (r for r in rows if name in ("all", r["set"])):
            guess = row["x"] @ model.weight + model.bias
            shifts = range(-30, 31, 2)  # 50 Hz steps: ±15 frames of 25 fps
            errors.append(sync.shift_errors(row["lips"], guess, MOTION_RATE, shifts) / 2)
            found = sync.offset(row["lips"], guess, MOTION_RATE)
            peaks.append(found.peak)
            own.append(found.offset_ms)
        if errors:
            flat = np.abs(np.concatenate(errors))
            report[name] = {
                "clips": len(errors),
                "within_1_frame": round(float(np.mean(flat <= 1)), 4),
                "mean_peak_r": round(float(np.mean(peaks)), 3),
                "median_own_offset_ms": round(float(np.median(own)), 1),
            }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("runs/eval-cache"))
    parser.add_argument("--fit", action="store_true", help="fit and write listener.safetensors")
    args = parser.parse_args()
    rows = load(args.data, args.cache)
    held = [r for r in rows if withheld(r["name"])]
    if args.fit:
        model = fit([r for r in rows if not withheld(r["name"])])
        facts = {
            "sources": "GRID s1 s3 s4 s30 s31 s33 s34 (CC BY 4.0); Azure presenter clips (MIT); "
            "White House addresses (US government)",
            "channels": ",".join(listener.HEARD),
            "fitted_by": "benchmarks/sync_scorer.py --fit",
        }
        model.save(listener.DEFAULT, facts)
    print(json.dumps({"benchmark": "sync_scorer", "withheld": validate(held, listener.load())}))


if __name__ == "__main__":
    main()
