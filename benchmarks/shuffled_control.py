"""What wrong words score, by kind of wrongness, without drawing: the choice of the shuffled row.

    python benchmarks/shuffled_control.py [--protocol full] [--data ../shared/data]   -> one JSON line

Lip opening as sent to the renderer against the tracked film, means over the clips of each split:
``ours`` (the clip's own sound), ``aligned`` (another clip's, begun at the same moment) and ``moved``
(another clip's, entered elsewhere: the judge's row). A still mouth has r 0 and explains 0.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

from visavis.avatar import create_avatar
from visavis.errors import InputError
from visavis.eval import lips, protocol
from visavis.eval.clips import motion_of, read_clip, read_sound
from visavis.eval.jobs import jobs_of
from visavis.eval.rows import at_times, wrong_sound
from visavis.eval.runner import speak
from visavis.eval.stats import bootstrap
from visavis.facemesh import FaceMesh
from visavis.pipeline import Pipeline, PipelineConfig
from visavis.types import CHANNEL, SAMPLE_RATE
from visavis.video import read_video


def scores(pipe: Pipeline, job, mesh: FaceMesh, cache: Path) -> dict[str, tuple[float, float]]:
    """(r, variance explained) of one clip by kind of sound."""
    seconds = job.split.seconds or None
    clip = read_clip(job.film, mesh, cache, seconds)
    other = read_sound(job.other, seconds, [])
    need = round((float(clip.times[-1]) + 0.1) * SAMPLE_RATE)
    sounds = {
        "ours": np.resize(np.pad(clip.pcm, (0, max(0, need - len(clip.pcm)))), need),
        "aligned": wrong_sound(other, need, 0.0),
        "moved": wrong_sound(other, need, job.phase),
    }
    real = motion_of(clip)[:, CHANNEL["jaw_open"]]
    found = {}
    for name, pcm in sounds.items():
        opening = at_times(speak(pipe, pcm, 0), clip.times)[:, CHANNEL["jaw_open"]]
        found[name] = lips.correlation(opening, real), lips.explained(opening, real)
    return found


def main() -> None:
    """Every film split of the protocol."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", default="full")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=os.environ.get("VISAVIS_MODELS"))
    parser.add_argument("--cache", type=Path, default=Path("runs/eval-cache"))
    args = parser.parse_args()
    mesh = FaceMesh.open(args.models)
    jobs = [j for j in jobs_of(protocol.load(args.protocol), args.data) if j.film]
    still = next(iter(read_video(jobs[0].film)))[2]
    avatar = create_avatar(still, size=256, mesh=mesh)  # nothing is drawn with it
    pipe = Pipeline(avatar, PipelineConfig.of(tier="mesh", size=256))
    splits: dict[str, list[dict]] = {}
    for job in jobs:
        try:
            splits.setdefault(job.split.name, []).append(scores(pipe, job, mesh, args.cache))
        except InputError as error:
            print(f"left out: {error}")
    report = {}
    for split, rows in splits.items():
        report[split] = {"clips": len(rows)}
        for name in rows[0]:
            for k, measure in enumerate(("r", "explained")):
                found = bootstrap(np.array([row[name][k] for row in rows]))
                report[split][f"{name}_{measure}"] = [
                    round(v, 3) for v in (found.mean, found.low, found.high)
                ]
    print(json.dumps({"bench": "shuffled_control", "protocol": args.protocol} | report))


if __name__ == "__main__":
    main()
