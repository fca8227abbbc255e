"""How far the torso should follow the head: films played again from their first frame; one JSON line.

    python benchmarks/torso_follow.py [--shares 0,0.25,0.4,0.55] [--films 3] [--frames 100] [--every 5]

First face of a film as photo, its real tracked motion, tier `mesh` at 512 px: PSNR (dB) of the whole
square for each share of the head's shift that the torso takes.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

from visavis import headmesh
from visavis.errors import InputError
from visavis.eval.image import psnr
from visavis.facemesh import FaceMesh
from visavis.render import Renderer
from visavis.train.full_data import Scene, film_scene

CORPORA = ("obama_addresses", "presenter", "grid_more", "grid_s1")


def quality(scene: Scene, share: float, every: int) -> float:
    """Mean PSNR of a scene whose torso takes ``share`` of the head's shift."""
    headmesh.TORSO, shipped = share, headmesh.TORSO
    renderer = Renderer(scene.avatar, "mesh")
    headmesh.TORSO = shipped
    picks = [t for t in range(1, len(scene.frames), every) if scene.frames[t] is not None]
    state = renderer.init_state()
    drawn = (renderer.step(state, scene.motion[t][None, None])[1][0, 0] for t in picks)
    return float(np.mean([psnr(a, scene.frames[t]) for a, t in zip(drawn, picks, strict=True)]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=os.environ.get("VISAVIS_MODELS"))
    parser.add_argument("--shares", default=f"0,0.25,{headmesh.TORSO},0.55")
    parser.add_argument("--films", type=int, default=3, help="of each corpus")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--every", type=int, default=5)
    given = parser.parse_args()
    mesh = FaceMesh.open(given.models or "../shared/models")
    shares = [float(s) for s in given.shares.split(",")]
    out, refused = {}, []
    for corpus in CORPORA:
        films, rows = sorted((given.data / corpus).rglob("*.mp4")), []
        for film in films[:: max(1, len(films) // given.films)][: given.films]:
            try:
                scene = film_scene(film, mesh, most=given.frames)
            except InputError as error:
                refused.append(f"{film.stem}: {error}")
                continue
            rows.append([quality(scene, share, given.every) for share in shares])
        means = np.mean(rows, axis=0) if rows else []
        out[corpus] = {f"{s:g}": round(float(m), 2) for s, m in zip(shares, means, strict=False)}
    print(json.dumps({"benchmark": "torso_follow", **out, "refused": refused}))


if __name__ == "__main__":
    main()
