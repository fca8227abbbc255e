"""Does the face stay the person's: cosine between the photo and every 10th rendered frame.

    python benchmarks/identity.py [--tier patch] [--portraits 20] [--seconds 10]   -> one JSON line
    python benchmarks/identity.py --portraits 1 --seconds 600          drift over ten minutes

Bars (issue 2): mean >= 0.80, minimum >= 0.65 over 20 portraits x 10 s
(face-reidentification-retail-0095; two photos of one person give about 0.9, two people about 0.05).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from portrait_options import portrait_options

from visavis.audio import read_audio
from visavis.avatar import create_avatar
from visavis.errors import FaceError
from visavis.eval.identity import MODEL_NAME, FaceEmbedder, cosine, summarise
from visavis.facemesh import FaceMesh
from visavis.pipeline import PipelineConfig, stream


def cosines(photo: Path, sound: Path, seconds: float, config, mesh, embed) -> list[float]:
    """One portrait with one voice."""
    avatar = create_avatar(photo, mesh=mesh, size=config.size)
    base = embed(avatar.image, avatar.points)
    heard = np.concatenate(list(read_audio(sound)))
    # a short voice is repeated: `--portraits 1 --seconds 600` shows drift over ten minutes
    pcm = np.resize(heard, round(seconds * 16_000))
    got = []
    for frame in stream(avatar, [pcm], config):
        if frame.index % 10 == 0:
            faces = mesh.find(frame.image)
            got.append(cosine(embed(frame.image, faces[0].points), base) if faces else -1.0)
    return got


def main() -> None:
    parser = portrait_options(__doc__, portraits=20, seconds=10.0)
    args = parser.parse_args()
    mesh, embed = FaceMesh.open(args.models), FaceEmbedder(args.models / MODEL_NAME)
    photos = sorted((args.data / "sfhq").glob("*.jpg"))
    photos = photos[:: max(1, len(photos) // args.portraits)]
    sounds = sorted((args.data / "librispeech").glob("*.opus"))
    config = PipelineConfig.of(tier=args.tier, size=args.size)
    rows, refused = {}, []
    for k, photo in enumerate(photos):
        if len(rows) == args.portraits:
            break
        try:
            rows[photo.stem] = cosines(photo, sounds[k], args.seconds, config, mesh, embed)
        except FaceError as error:
            refused.append(f"{photo.stem}: {error}")
    every = np.concatenate(list(rows.values()))
    worst = min(rows, key=lambda name: min(rows[name]))
    drift = [summarise(np.array(v), np.arange(len(v)) / 3).slope_per_minute for v in rows.values()]
    figures = {
        "benchmark": "identity",
        "tier": args.tier,
        "portraits": len(rows),
        "seconds": args.seconds,
        "frames": len(every),
        "mean": round(float(every.mean()), 4),
        "min": round(float(every.min()), 4),
        "drift_per_minute": round(float(np.mean(drift)), 4) if args.seconds >= 20 else None,
        "worst": worst,
        "worst_mean": round(float(np.mean(rows[worst])), 4),
        "refused": refused,
        "pass": bool(every.mean() >= 0.80 and every.min() >= 0.65),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
