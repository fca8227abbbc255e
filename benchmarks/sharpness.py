"""How sharp mouth and eyes are beside the photo's own; print one JSON line.

    python benchmarks/sharpness.py [--portraits 12] [--seconds 12]

Frames of a spoken clip (one a second) of `sfhq` portraits the mouth net was never trained on. The
measure is the root of the variance of the Laplacian of the luma over the same box about the lips
(closed-mouth portraits and open ones alike) or the eyes, in the frame over in the photo. Bar
(issue 5): mean of each within 0.85 to 1.1. A mouth that opens shows teeth and a dark hole that the
photo has not, so its ratio also says how much the mouth moved: the ratio of frames with the mouth
nearly as in the photo stands beside it.
"""

from __future__ import annotations

import json

import numpy as np
from identity_minute import sampled_frames, speech_motion
from portrait_options import portrait_options

from visavis.audio import read_audio
from visavis.avatar import create_avatar
from visavis.errors import FaceError
from visavis.eval.image import crop, mouth_box, sharpness
from visavis.facemesh import FaceMesh
from visavis.facemodel import EYES, lip_gap
from visavis.pipeline import Pipeline, PipelineConfig
from visavis.train.renderer_data import held_out
from visavis.types import CHANNEL, MOTION_RATE

EYE = {side: np.concatenate([e["corners"], e["upper_1"], e["lower_1"]]) for side, e in EYES.items()}


def boxes(points: np.ndarray, shape: tuple[int, ...]) -> dict[str, tuple[int, int, int, int]]:
    """Boxes of mouth and both eyes, px."""
    found = {"mouth": mouth_box(points, shape)}
    for side, rows in EYE.items():
        low, high = points[rows, :2].min(0), points[rows, :2].max(0)
        pad = 0.15 * (high - low)
        found[side] = (*np.floor(low - pad).astype(int), *np.ceil(high + pad).astype(int))
    return found


def main() -> None:
    parser = portrait_options(__doc__, portraits=12, seconds=12.0)
    given = parser.parse_args()
    mesh = FaceMesh.open(given.models)
    photos = [p for p in sorted((given.data / "sfhq").glob("*.jpg")) if held_out(f"sfhq/{p.name}")]
    photos = photos[:: max(1, len(photos) // (given.portraits + 1))]
    sounds = sorted((given.data / "librispeech").glob("*.opus"))[::-1]
    config = PipelineConfig.of(tier=given.tier, size=given.size)
    rows = []
    for photo, sound in list(zip(photos, sounds, strict=False))[: given.portraits]:
        try:
            avatar = create_avatar(photo, mesh=mesh, size=given.size)
        except FaceError:
            continue
        pipe = Pipeline(avatar, config)
        pcm = np.resize(np.concatenate(list(read_audio(sound))), round(given.seconds * 16_000))
        motion = speech_motion(pipe, pcm)
        own = float(lip_gap(avatar.rest.remove(avatar.points.astype(np.float64))))
        base = {
            n: sharpness(crop(avatar.image, b))
            for n, b in boxes(avatar.points, avatar.image.shape).items()
        }
        for time, frame in sampled_frames(pipe, motion, 1.0):
            faces, row = mesh.find(frame), motion[round(time * MOTION_RATE)]
            if not faces:
                continue
            here = {
                n: sharpness(crop(frame, b)) for n, b in boxes(faces[0].points, frame.shape).items()
            }
            ratio = {n: np.sqrt(here[n] / max(base[n], 1e-6)) for n in here}
            blink = max(row[CHANNEL["eye_blink_left"]], row[CHANNEL["eye_blink_right"]])
            alike = abs(float(row[CHANNEL["jaw_open"]]) - own) < 0.02
            rows.append((ratio["mouth"], (ratio["left"] + ratio["right"]) / 2, alike, blink < 0.3))
    table = np.array(rows, float)
    alike, awake = table[:, 2] > 0, table[:, 3] > 0
    mouth, eyes = float(table[:, 0].mean()), float(table[awake, 1].mean())
    figures = {
        "benchmark": "sharpness", "tier": given.tier, "frames": len(table),
        "mouth": round(mouth, 3), "mouth_median": round(float(np.median(table[:, 0])), 3),
        "mouth_as_in_photo": round(float(table[alike, 0].mean()), 3) if alike.any() else None,
        "eyes": round(eyes, 3), "pass": bool(0.85 <= mouth <= 1.1 and 0.85 <= eyes <= 1.1),
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
