"""Steadiness of what is seen: rendered frames, tracked again, against the real film. One JSON line.

Run: ``python benchmarks/jitter.py ../shared/data [--clips 8] [--tier patch]``. Each clip of the
withheld tenth of ``grid_s1`` is rendered from its own first frame and its own sound at 25 fps; both
films are tracked in the same crop at the same size. Figure: RMS of the second difference in time of
the lip and jaw points, head pose removed, ours over real. Bar: at most 1.2.
"""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

import numpy as np

from visavis.audio import read_audio
from visavis.avatar import create_avatar, head_crop
from visavis.eval.protocol import withheld
from visavis.facemesh import FaceMesh
from visavis.facemodel import LIP_INNER, LIP_OUTER
from visavis.pipeline import PipelineConfig, stream
from visavis.track import clip_geometry, track_points
from visavis.video import read_video

JAW = np.array([152, 148, 377, 176, 400, 149, 378, 199, 200, 175])
POINTS = np.concatenate([LIP_INNER, LIP_OUTER, JAW])
FPS = Fraction(25)


def unsteadiness(images: list[np.ndarray], mesh: FaceMesh) -> float:
    """RMS second difference of lip and jaw points, eye distances per frame squared."""
    track = track_points(((k / 25, image) for k, image in enumerate(images)), mesh)
    vertices = clip_geometry(track.points[track.seen], _template())[1]
    second = np.diff(vertices[:, POINTS, :2], n=2, axis=0)
    return float(np.sqrt((second**2).sum(-1).mean()))


def _template() -> np.ndarray:
    from visavis.facemodel import load_face_model

    return load_face_model().template


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--tier", default="patch")
    parser.add_argument("--models", type=Path, help="folder of face_landmarker.task")
    options = parser.parse_args()
    models = options.models or options.data.parent / "models"
    mesh = FaceMesh.open(models)
    films = [p for p in sorted((options.data / "grid_s1").glob("*.mp4")) if withheld(p.stem)]
    films = films[:: max(1, len(films) // options.clips)][: options.clips]
    ratios = []
    for film in films:
        real = [image for _, _, image in read_video(film)]
        box = mesh.find(real[0])[0].points
        avatar = create_avatar(real[0], mesh=mesh)
        config = PipelineConfig(tier=options.tier, fps=FPS)
        ours = [f.image for f in stream(avatar, read_audio(film), config)][: len(real)]
        real = [head_crop(image, box, avatar.size)[0] for image in real]
        ratios.append(unsteadiness(ours, mesh) / unsteadiness(real, mesh))
    facts = {
        "tier": options.tier, "clips": len(films), "ratio": round(float(np.mean(ratios)), 3),
        "worst": round(max(ratios), 3), "ok": float(np.mean(ratios)) <= 1.2,
    }  # fmt: skip
    print(json.dumps({"benchmark": "jitter", **facts}))


if __name__ == "__main__":
    main()
