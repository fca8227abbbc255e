"""How well the renderer can do: real motion of a film through an avatar of its first frame.

    python benchmarks/ceiling.py [--grid 20] [--tiers mesh,patch] [--size 512]   -> one JSON line

PSNR, SSIM, mouth landmark distance (LMD) on `obama_addresses` and clips of the withheld tenth of
`grid_s1`; whole frame and mouth crop. Bar (issue 2): patch better than mesh on the mouth crop in
all three. The mouth crop is one outer-eye distance wide about the real lips; LMD in pixels of the
frame.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

from visavis.errors import InputError
from visavis.eval import image, landmarks
from visavis.eval.clips import read_clip, track_frames
from visavis.eval.protocol import withheld
from visavis.eval.rows import set_stage
from visavis.facemesh import FaceMesh
from visavis.render import Renderer


def score(stage, tier: str, mesh: FaceMesh) -> dict[str, float]:
    """One clip, one tier: means over frames; the photo's own frame is left out."""
    renderer = Renderer(stage.avatar, tier)
    state, frames = renderer.init_state(), []
    for row in stage.driving:
        state, drawn = renderer.step(state, row[None, None])
        frames.append(drawn[0, 0])
    seen = track_frames(frames, stage.clip.times, mesh, None)
    real, rows = stage.real, []
    for t in range(1, len(frames)):
        if not real.seen[t]:
            continue
        box = image.mouth_box(real.points[t], frames[t].shape)
        ours, theirs = image.crop(frames[t], box), image.crop(real.frames[t], box)
        rows.append(
            (
                image.psnr(frames[t], real.frames[t]),
                image.ssim(frames[t], real.frames[t]),
                image.psnr(ours, theirs),
                image.ssim(ours, theirs),
            )
        )
    both = real.seen & seen.seen
    names = ("psnr", "ssim", "mouth_psnr", "mouth_ssim")
    figures = dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))
    figures["lmd_px"] = landmarks.lmd(
        seen.points[both].astype(float), real.points[both].astype(float)
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=os.environ.get("VISAVIS_MODELS"))
    parser.add_argument("--cache", type=Path, default=Path("runs/eval-cache"))
    parser.add_argument("--grid", type=int, default=20)
    parser.add_argument("--addresses", type=int, default=8)
    parser.add_argument("--tiers", default="mesh,patch")
    parser.add_argument("--size", type=int, default=512)
    args = parser.parse_args()
    mesh = FaceMesh.open(args.models or "../shared/models")
    grid = [p for p in sorted((args.data / "grid_s1").glob("*.mp4")) if withheld(p.stem)]
    sets = {
        "addresses": sorted((args.data / "obama_addresses").glob("*.mp4"))[: args.addresses],
        "grid_s1": grid[:: max(1, len(grid) // max(args.grid, 1))][: args.grid],
    }
    tiers, out, refused = args.tiers.split(","), {}, []
    for name, films in sets.items():
        rows: dict[str, list[dict[str, float]]] = {tier: [] for tier in tiers}
        for film in films:
            try:
                stage = set_stage(read_clip(film, mesh, args.cache), mesh, args.size, None)
            except InputError as error:
                refused.append(f"{film.stem}: {error}")
                continue
            for tier in tiers:
                rows[tier].append(score(stage, tier, mesh))
        for tier, got in rows.items():
            if got:
                means = {k: round(float(np.mean([g[k] for g in got])), 4) for k in got[0]}
                out.setdefault(name, {})[tier] = means | {"clips": len(got)}
    better = {
        name: all(
            sign * rows["patch"][key] > sign * rows["mesh"][key]
            for key, sign in (("mouth_psnr", 1), ("mouth_ssim", 1), ("lmd_px", -1))
        )
        for name, rows in out.items()
        if {"mesh", "patch"} <= set(rows)
    }
    line = {"benchmark": "ceiling", "size": args.size, **out, "refused": refused}
    print(json.dumps(line | {"patch_better_on_mouth": better}))


if __name__ == "__main__":
    main()
