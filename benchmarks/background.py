"""The background never moves: pixels outside the frame's own matte (dilated 8 px) are identical.

    python benchmarks/background.py [--portraits 5] [--seconds 10]   -> one JSON line

Each frame is compared with the photo's crop outside the union of this frame's matte and the first
one's, both dilated by 8 px. Bar (issue 2): not one pixel differs from frame to frame.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import cv2
import numpy as np

from visavis.audio import read_audio
from visavis.avatar import create_avatar
from visavis.facemesh import FaceMesh
from visavis.pipeline import Pipeline, PipelineConfig
from visavis.types import MOTION_HOP


def changed(pipe: Pipeline, pcm: np.ndarray, reach: int) -> tuple[int, int, float]:
    """(frames, worst count of changed background pixels in a frame, mean share of background)."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
    state, first, count, worst, share = pipe.init_state(), None, 0, 0, []
    for start in range(0, len(pcm), 2 * MOTION_HOP):
        state, steps = pipe.hear(state, pcm[None, start : start + 2 * MOTION_HOP])
        for motion in steps[0][::2]:  # 25 frames a second, each at a motion step of its own
            mine = {k: v for k, v in state.items() if k.startswith("render/")}
            mine, images = pipe.renderer.step(mine, motion[None, None])
            state = state | mine
            person = cv2.dilate((pipe.renderer.matte(motion) > 0).astype(np.uint8), kernel) > 0
            if first is None:
                first = images[0, 0], person
            outside = ~(person | first[1])
            differs = (images[0, 0] != first[0]).any(axis=-1) & outside
            count, worst = count + 1, max(worst, int(differs.sum()))
            share.append(outside.mean())
    return count, worst, float(np.mean(share))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=os.environ.get("VISAVIS_MODELS"))
    parser.add_argument("--tier", default="patch")
    parser.add_argument("--portraits", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--reach", type=int, default=8, help="dilation of the matte, px")
    args = parser.parse_args()
    mesh = FaceMesh.open(args.models or "../shared/models")
    photos = sorted((args.data / "sfhq").glob("*.jpg"))
    photos = photos[:: max(1, len(photos) // args.portraits)][: args.portraits]
    sounds = sorted((args.data / "librispeech").glob("*.opus"))
    rows = {}
    for k, photo in enumerate(photos):
        avatar = create_avatar(photo, mesh=mesh)
        pcm = np.concatenate(list(read_audio(sounds[k])))[: round(args.seconds * 16_000)]
        rows[photo.stem] = changed(
            Pipeline(avatar, PipelineConfig.of(tier=args.tier)), pcm, args.reach
        )
    figures = {
        "benchmark": "background",
        "tier": args.tier,
        "portraits": len(rows),
        "frames": sum(r[0] for r in rows.values()),
        "worst_changed_pixels": max(r[1] for r in rows.values()),
        "worst": max(rows, key=lambda n: rows[n][1]),
        "background_share": round(float(np.mean([r[2] for r in rows.values()])), 3),
    }
    print(json.dumps(figures | {"pass": figures["worst_changed_pixels"] == 0}))


if __name__ == "__main__":
    main()
