"""A personal avatar on one man's film: GRID s1, clips joined by name, the last eleventh for the test.

    python benchmarks/personal.py [--clips 5] [--frames 1] [--avatar runs/personal/s1.avatar] [--minutes 0]

The film is the first 10/11 of the clips; without a ready ``--avatar`` it is learned here
(`visavis.personal.create_from_film`, about 12 ms a frame), and with ``--minutes`` the mouth net is then
fine-tuned (`visavis.train.personal`). Scored on evenly chosen clips of the rest,
at 512 px, whole frame: PSNR, SSIM, mouth landmark distance (LMD, px). Rows: ``photo`` is the same
avatar without its likeness, tier `mesh`; ``ceiling`` has the real motion; ``posed`` the lips from the
sound, the rest real. ``ms`` is core time for a frame of each. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from visavis.avatar import Avatar, load_avatar
from visavis.eval import image, landmarks
from visavis.eval.clips import Clip, read_clip, track_frames
from visavis.eval.rows import at_times, with_real_head
from visavis.eval.runner import speak
from visavis.facemesh import FaceMesh
from visavis.film import Canvas, driving_motion
from visavis.personal import learn_looks, study_film
from visavis.pipeline import Pipeline, PipelineConfig
from visavis.render import Renderer
from visavis.track import Track
from visavis.video import read_video


def joined(films: list[Path]) -> Iterable[tuple[float, np.ndarray]]:
    """Frames of films one after the other, with the time from the first."""
    start = 0.0
    for film in films:
        last = start
        for _, at, picture in read_video(film):
            last = start + float(at)
            yield last, picture
        start = last + 0.04


def whole(avatar: Avatar, film: Path) -> Canvas:
    """The film's place in the avatar's square, where the crop is all of the film."""
    _, _, picture = next(iter(read_video(film)))
    height, width = picture.shape[:2]
    assert height == width, "the crop would not be all of the film"
    return Canvas(np.full(2, avatar.size / width), np.zeros(2), avatar.size)


def learned(films: list[Path], mesh: FaceMesh, minutes: float, folder: Path) -> Avatar:
    """The avatar of all films joined, its mouth net fine-tuned for so many minutes."""
    study = study_film(lambda: joined(films), mesh=mesh, name="s1")
    avatar, _ = learn_looks(study)
    if not minutes:
        return avatar
    from visavis.train.personal import fine_tune, gather_mouths

    run = fine_tune(gather_mouths(study, avatar), folder / "run.pt", 60 * minutes, time.monotonic)
    return replace(avatar, mouth_weights=run.weights())


def score(
    avatar: Avatar, motion: np.ndarray, real: list[np.ndarray], points: np.ndarray, clip: Clip,
    mesh: FaceMesh, every: int, sheet: list[np.ndarray],
) -> dict[str, float]:  # fmt: skip
    """Means over every ``every``-th frame of one clip, and core milliseconds for a frame."""
    renderer = Renderer(avatar, "patch")
    state, _ = renderer.step(renderer.init_state(), motion[:1][None])
    picks = np.arange(1, len(real), every)
    frames, spent = [], 0.0
    for t in picks:
        begin = time.process_time()
        state, drawn = renderer.step(state, motion[t][None, None])
        spent += time.process_time() - begin
        frames.append(drawn[0, 0])
    seen = track_frames(frames, clip.times[picks], mesh, None)
    both = seen.seen & np.isfinite(points[picks, 0, 0])
    sheet.append(frames[len(frames) // 2])
    return {
        "psnr": float(
            np.mean([image.psnr(f, real[t]) for f, t in zip(frames, picks, strict=True)])
        ),
        "ssim": float(
            np.mean([image.ssim(f, real[t]) for f, t in zip(frames, picks, strict=True)])
        ),
        "lmd_px": landmarks.lmd(seen.points[both].astype(float), points[picks][both].astype(float)),
        "ms": 1000 * spent / len(picks),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=os.environ.get("VISAVIS_MODELS"))
    parser.add_argument("--cache", type=Path, default=Path("runs/eval-cache"))
    parser.add_argument("--avatar", type=Path, default=Path("runs/personal/s1.avatar"))
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="of fine-tuning, with the extra train"
    )
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--frames", type=int, default=1, help="every n-th frame")
    parser.add_argument("--rows", default="photo,ceiling,posed")
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    mesh = FaceMesh.open(given.models or "../shared/models")
    films = sorted((given.data / "grid_s1").glob("*.mp4"))
    cut = len(films) - len(films) // 11
    if not given.avatar.is_file():
        given.avatar.parent.mkdir(parents=True, exist_ok=True)
        learned(films[:cut], mesh, given.minutes, given.avatar.parent).save(given.avatar)
    avatar = load_avatar(given.avatar)
    canvas = whole(avatar, films[0])
    chosen = films[cut:][:: max(1, (len(films) - cut) // given.clips)][: given.clips]
    rows: dict[str, list[dict]] = {row: [] for row in given.rows.split(",")}
    strips = []
    for film in chosen:
        clip = read_clip(film, mesh, given.cache)
        real = [canvas.frame(f) for f in clip.frames]
        points = canvas.points(clip.track.points)
        track = Track(points, clip.times, clip.track.scores, (avatar.size,) * 2)
        driving, sheet = (
            driving_motion(track, avatar),
            [
                real[
                    np.arange(1, len(real), given.frames)[
                        len(range(1, len(real), given.frames)) // 2
                    ]
                ]
            ],
        )
        for row, got in rows.items():
            motion, who = driving, avatar
            if row == "photo":
                who = replace(avatar, likeness=None, mouth_weights=None)
            elif row == "posed":
                pipe = Pipeline(avatar, PipelineConfig.of(size=avatar.size, tier="mesh"))
                motion = with_real_head(at_times(speak(pipe, clip.pcm, 0), clip.times), driving)
            got.append(score(who, motion, real, points, clip, mesh, given.frames, sheet))
        strips.append(np.hstack(sheet))
    if given.sheet:
        cv2.imwrite(str(given.sheet), np.vstack(strips)[..., ::-1])
    line = {
        row: {k: round(float(np.mean([g[k] for g in got])), 4) for k in got[0]}
        for row, got in rows.items()
    }
    facts = {"clips": len(chosen), "every": given.frames, "bytes": given.avatar.stat().st_size}
    print(json.dumps({"benchmark": "personal", **line, **facts}))


if __name__ == "__main__":
    main()
