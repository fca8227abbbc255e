"""Is it still the same person after a minute of speech: cosine of the face to the photo's.

    python benchmarks/identity_minute.py [--portraits 20] [--seconds 60] [--step 1.5]   -> one JSON line

Portraits of `sfhq`, each with another talker of `librispeech`. The whole minute of motion is made
(speech, idle and smoothing as in a session), only one frame in ``--step`` seconds is drawn and
compared. Bars (issue 5): mean cosine >= 0.85, slope over the minute not negative (judged at two
standard errors over the portraits).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
from portrait_options import portrait_options

from visavis.audio import read_audio
from visavis.avatar import create_avatar
from visavis.errors import FaceError
from visavis.eval.identity import MODEL_NAME, FaceEmbedder, cosine, summarise
from visavis.facemesh import FaceMesh
from visavis.pipeline import Pipeline, PipelineConfig
from visavis.types import MOTION_RATE

SETTLE = 3  # frames drawn before one is judged: the net remembers a little


def speech_motion(pipe: Pipeline, pcm: np.ndarray) -> np.ndarray:
    """What a session would do to this sound, ``(T, D)`` at 50 Hz."""
    state, first = pipe.hear(pipe.init_state(), pcm[None])
    _, rest = pipe.hear_rest(state)
    return np.concatenate([first, rest], axis=1)[0]


def sampled_frames(
    pipe: Pipeline, motion: np.ndarray, step_s: float
) -> Iterator[tuple[float, np.ndarray]]:
    """One drawn frame in ``step_s`` seconds, with its time; the first is the photo, and left out."""
    renderer, step = pipe.renderer, max(1, round(step_s * MOTION_RATE))
    for k in range(step, len(motion), step):
        rows = motion[max(k - SETTLE + 1, 0) : k + 1]
        yield k / MOTION_RATE, renderer.step(renderer.init_state(), rows[None])[1][0, -1]


def main() -> None:
    parser = portrait_options(__doc__, portraits=20, seconds=60.0)
    parser.add_argument("--step", type=float, default=1.5)
    given = parser.parse_args()
    mesh, embed = FaceMesh.open(given.models), FaceEmbedder(given.models / MODEL_NAME)
    photos = sorted((given.data / "sfhq").glob("*.jpg"))
    photos = photos[3 :: max(1, len(photos) // (given.portraits + 1))]
    sounds = sorted((given.data / "librispeech").glob("*.opus"))
    config = PipelineConfig.of(tier=given.tier, size=given.size)
    rows, refused = {}, []
    for photo, sound in zip(photos, sounds, strict=False):
        if len(rows) == given.portraits:
            break
        try:
            avatar = create_avatar(photo, mesh=mesh, size=given.size)
        except FaceError as error:
            refused.append(f"{photo.stem}: {error}")
            continue
        base, pipe = embed(avatar.image, avatar.points), Pipeline(avatar, config)
        pcm = np.resize(np.concatenate(list(read_audio(sound))), round(given.seconds * 16_000))
        times, got = [], []
        for time, frame in sampled_frames(pipe, speech_motion(pipe, pcm), given.step):
            faces = mesh.find(frame)
            times.append(time)
            got.append(cosine(embed(frame, faces[0].points), base) if faces else -1.0)
        rows[photo.stem] = summarise(np.array(got), np.array(times))
    slopes = np.array([r.slope_per_minute for r in rows.values()])
    mean = float(np.mean([r.mean for r in rows.values()]))
    error = float(slopes.std(ddof=1) / np.sqrt(len(slopes))) if len(slopes) > 1 else float("nan")
    worst = min(rows, key=lambda name: rows[name].mean)
    figures = {
        "benchmark": "identity_minute", "tier": given.tier, "portraits": len(rows),
        "seconds": given.seconds, "frames": sum(r.count for r in rows.values()),
        "mean": round(mean, 4), "min": round(min(r.minimum for r in rows.values()), 4),
        "worst": worst, "worst_mean": round(rows[worst].mean, 4),
        "slope_per_minute": round(float(slopes.mean()), 4), "slope_error": round(error, 4),
        "refused": refused, "pass": bool(mean >= 0.85 and slopes.mean() >= -2 * error),
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
