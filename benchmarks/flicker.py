"""Does the mouth flicker more than a filmed one: warping error and perceptual steps; one JSON line.

    python benchmarks/flicker.py [--clips 4] [--frames 60]

Clips of `grid_more` (talkers the nets never saw) and the withheld tenth of `grid_s1`, played again
by their own tracked motion. Mouth crops of a fixed box. ``warping``: error between a frame and the
one before moved by that film's *own* optical flow, ours over the real film's (1 = as steady).
``step``: mean perceptual distance of neighbouring frames, ours over real. ``tlp``: TecoGAN's
100 |d(real) - d(ours)|, beside what a frozen picture would get. Bar (issue 5): warping <= 1.1, and
steps <= 1.1.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

from visavis.errors import InputError
from visavis.eval import temporal
from visavis.eval.clips import read_clip
from visavis.eval.image import crop, mouth_box
from visavis.eval.protocol import withheld
from visavis.eval.rows import set_stage
from visavis.eval.squeezenet import compile_distance
from visavis.facemesh import FaceMesh
from visavis.render import Renderer


def mouths(stage, tier: str, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Mouth crops of ``count`` frames, ours and the film's, in one fixed box."""
    renderer = Renderer(stage.avatar, tier)
    state, ours = renderer.init_state(), []
    for row in stage.driving[:count]:
        state, drawn = renderer.step(state, row[None, None])
        ours.append(drawn[0, 0])
    box = mouth_box(stage.real.points[:count][stage.real.seen[:count]].mean(0), ours[0].shape)
    return [crop(f, box) for f in ours], [crop(f, box) for f in stage.real.frames[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=os.environ.get("VISAVIS_MODELS"))
    parser.add_argument("--cache", type=Path, default=Path("runs/eval-cache"))
    parser.add_argument("--tier", default="patch")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--clips", type=int, default=4, help="of each of the two sets")
    parser.add_argument("--frames", type=int, default=60)
    given = parser.parse_args()
    models = Path(given.models or "../shared/models")
    mesh, distance = (
        FaceMesh.open(models),
        compile_distance(
            models / "squeezenet_v1.1_notop.h5", models / "lpips_lin_squeeze_v0.1.pth"
        ),
    )
    more = sorted((given.data / "grid_more").rglob("*.mp4"))
    own = [p for p in sorted((given.data / "grid_s1").glob("*.mp4")) if withheld(p.stem)]
    films = [
        f for s in (more, own) for f in s[:: max(1, len(s) // max(given.clips, 1))][: given.clips]
    ]
    rows, refused = [], []
    for film in films:
        try:
            stage = set_stage(read_clip(film, mesh, given.cache), mesh, given.size, None)
        except InputError as error:
            refused.append(f"{film.stem}: {error}")
            continue
        ours, real = mouths(stage, given.tier, given.frames)
        steps = temporal.step_distances(real, distance)
        rows.append((
            temporal.warping_error(ours, temporal.real_motion(ours)),
            temporal.warping_error(real, temporal.real_motion(real)),
            temporal.step_distances(ours, distance).mean(), steps.mean(),
            temporal.tlp(ours, steps, distance), 100 * steps.mean(),
        ))  # fmt: skip
    table = np.array(rows)
    warping, step = (table[:, k].mean() / table[:, k + 1].mean() for k in (0, 2))
    figures = {
        "benchmark": "flicker", "tier": given.tier, "clips": len(rows), "frames": given.frames,
        "warping": round(float(warping), 3),
        "warping_worst_clip": round(float((table[:, 0] / table[:, 1]).max()), 3),
        "step": round(float(step), 3), "tlp": round(float(table[:, 4].mean()), 3),
        "tlp_frozen": round(float(table[:, 5].mean()), 3), "refused": refused,
        "pass": bool(warping <= 1.1 and step <= 1.1),
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
