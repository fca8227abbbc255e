"""Portraits that are hard to move, on one sheet to be looked at; print one JSON line.

    python benchmarks/hard_portraits.py [--sheet runs/hard.jpg] [--part whole|mouth|eyes] [--size 512]

One row a portrait (all synthetic, `sfhq`): beard, glasses, dark skin, old skin, open mouth, make-up,
painting, monochrome, 256 px; one column a motion. The figures beside it only tell gross failure:
refusals, the cosine of the face to the photo's and how far the tracker reads the opening from what
was asked. Whether a mouth looks like one, only the eye tells.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from visavis.avatar import Avatar, create_avatar
from visavis.errors import FaceError
from visavis.eval.identity import MODEL_NAME, FaceEmbedder, cosine
from visavis.facemesh import FaceMesh
from visavis.facemodel import EYES, LIP_OUTER, eye_distance, lip_gap
from visavis.render import TIERS, Renderer
from visavis.types import CHANNEL, N_CHANNELS


def painted(image: np.ndarray) -> np.ndarray:
    """An oil painting of a photo: flat patches of colour on a canvas."""
    flat = cv2.pyrMeanShiftFiltering(image, 7, 18)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    canvas = 2.5 * (np.sin(1.9 * rows) + np.sin(1.9 * columns))
    return np.clip(flat + canvas[..., None], 0, 255).astype(np.uint8)


def small(image: np.ndarray) -> np.ndarray:
    """The photo at 256 px."""
    return cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)


def as_is(image: np.ndarray) -> np.ndarray:
    return image


Treatment = Callable[[np.ndarray], np.ndarray]
CASES: dict[str, tuple[str, Treatment]] = {
    "beard": ("variability_ethnicity_302", as_is),
    "white beard": ("variability_ethnicity_108", as_is),
    "glasses": ("variability_ethnicity_509", as_is),
    "dark skin": ("variability_ethnicity_204", as_is),
    "old skin": ("variability_age_X_ethnicity_2_505", as_is),
    "open mouth": ("variability_expression_102", as_is),
    "laughing": ("variability_hair_color_207", as_is),
    "make-up": ("variability_hair_style_104", as_is),
    "painting": ("variability_ethnicity_507", painted),
    "monochrome": ("variability_expression_202", as_is),
    "256 px": ("variability_hair_color_309", small),
}
MOTIONS: dict[str, dict[str, float]] = {
    "rest": {},
    "small": {"jaw_open": 0.05, "jaw_rotation": 1.5},
    "middle": {"jaw_open": 0.11, "jaw_rotation": 4.0, "lower_lip_drop": 0.03},
    "wide": {"jaw_open": 0.24, "jaw_rotation": 9.0, "lower_lip_drop": 0.05},
    "ee": {
        "jaw_open": 0.06, "mouth_width": 0.07, "corner_pull_left": 0.03, "corner_pull_right": 0.03,
    },
    "oo": {"jaw_open": 0.04, "mouth_width": -0.07, "lip_rounding": 0.6},
    "half blink": {"eye_blink_left": 0.5, "eye_blink_right": 0.5, "jaw_open": 0.08},
    "blink": {"eye_blink_left": 1.0, "eye_blink_right": 1.0},
    "gaze": {"gaze_x": 15.0, "gaze_y": -6.0, "head_yaw": -6.0},
    "turned": {"head_yaw": 10.0, "head_pitch": 4.0, "jaw_open": 0.12, "jaw_rotation": 4.0},
}  # fmt: skip
EYE_MOTIONS: dict[str, dict[str, float]] = {
    "rest": {},
    "0.3": {"eye_blink_left": 0.3, "eye_blink_right": 0.3},
    "0.6": {"eye_blink_left": 0.6, "eye_blink_right": 0.6},
    "0.85": {"eye_blink_left": 0.85, "eye_blink_right": 0.85},
    "shut": {"eye_blink_left": 1.0, "eye_blink_right": 1.0},
    "left": {"gaze_x": 15.0},
    "right": {"gaze_x": -15.0},
    "up": {"gaze_y": -12.0},
    "down": {"gaze_y": 12.0},
    "wide": {"eye_blink_left": -0.25, "eye_blink_right": -0.25},
}
EYE_POINTS = np.concatenate([[*e["corners"], *e["upper_2"], *e["lower_1"]] for e in EYES.values()])


def motion_of(channels: dict[str, float]) -> np.ndarray:
    """``(D,)`` float32 with the named channels set."""
    row = np.zeros(N_CHANNELS, np.float32)
    for name, value in channels.items():
        row[CHANNEL[name]] = value
    return row


def drawn(avatar: Avatar, tier: str, motions: dict[str, dict[str, float]]) -> list[np.ndarray]:
    """One frame a motion, each drawn three times so that what the net remembers has settled."""
    renderer = Renderer(avatar, tier)
    frames = []
    for channels in motions.values():
        rows = np.repeat(motion_of(channels)[None, None], 3, 1)
        frames.append(renderer.step(renderer.init_state(), rows)[1][0, -1])
    return frames


def part_of(frame: np.ndarray, avatar: Avatar, part: str) -> np.ndarray:
    """The whole frame, or mouth or eyes enlarged to 288 px wide."""
    if part == "whole":
        return frame
    rows, up, down, side = (
        (LIP_OUTER, 0.28, 0.42, 0.42) if part == "mouth" else (EYE_POINTS, 0.16, 0.12, 0.58)
    )
    unit, middle = avatar.rest.scale, avatar.points[rows, :2].mean(0)
    low = np.maximum(np.round(middle - np.array([side, up]) * unit).astype(int), 0)
    high = np.round(middle + np.array([side, down]) * unit).astype(int)
    piece = frame[low[1] : high[1], low[0] : high[0]]
    tall = round(288 * (up + down) / (2 * side))
    return cv2.resize(piece, (288, tall), interpolation=cv2.INTER_CUBIC)


def judge(
    avatar: Avatar, frames: list[np.ndarray], motions: dict, mesh: FaceMesh, embed: FaceEmbedder
) -> dict[str, float]:
    """Gross failures of one portrait's frames."""
    base, cosines, off, lost = embed(avatar.image, avatar.points), [], [], 0
    for frame, channels in zip(frames, motions.values(), strict=True):
        faces = mesh.find(frame)
        if len(faces) != 1:
            lost += 1
            continue
        points = faces[0].points.astype(np.float64)
        cosines.append(cosine(embed(frame, points), base))
        gap = float(lip_gap(points / eye_distance(points)))
        off.append(abs(gap - channels.get("jaw_open", 0.0)))
    return {
        "cosine_mean": round(float(np.mean(cosines)), 3),
        "cosine_min": round(float(np.min(cosines)), 3),
        "opening_off": round(float(np.mean(off)), 3),
        "lost": lost,
    }


def labelled(picture: np.ndarray, text: str) -> np.ndarray:
    picture = picture.copy()
    for colour, thick in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, text, (5, 16), 0, 0.5, colour, thick, cv2.LINE_AA)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=os.environ.get("VISAVIS_MODELS"))
    parser.add_argument("--tier", default="patch", choices=TIERS)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--part", default="whole", choices=("whole", "mouth", "eyes"))
    parser.add_argument("--cases", help="names, comma separated; all by default")
    parser.add_argument("--motions", help="names, comma separated; all by default")
    parser.add_argument("--sheet", type=Path, default=Path("runs/hard_portraits.jpg"))
    given = parser.parse_args()
    models = Path(given.models or "../shared/models")
    mesh, embed = FaceMesh.open(models), FaceEmbedder(models / MODEL_NAME)
    motions = EYE_MOTIONS if given.part == "eyes" else MOTIONS
    chosen = given.motions.split(",") if given.motions else list(motions)
    motions = {name: motions[name] for name in chosen}
    names = given.cases.split(",") if given.cases else list(CASES)
    rows, figures, refused = [], {}, {}
    for name in names:
        stem, treat = CASES[name]
        photo = treat(cv2.imread(str(given.data / "sfhq" / f"{stem}.jpg")))
        try:
            avatar = create_avatar(photo[..., ::-1].copy(), mesh=mesh, size=given.size)
        except FaceError as error:
            refused[name] = str(error)
            continue
        frames = drawn(avatar, given.tier, motions)
        figures[name] = judge(avatar, frames, motions, mesh, embed)
        tiles = [labelled(part_of(avatar.image, avatar, given.part), name)]
        tiles += [
            labelled(part_of(f, avatar, given.part), m)
            for f, m in zip(frames, motions, strict=True)
        ]
        rows.append(np.hstack(tiles))
    given.sheet.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(given.sheet), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    print(json.dumps({"benchmark": "hard_portraits", "tier": given.tier, "size": given.size,
                      "portraits": figures, "refused": refused, "sheet": str(given.sheet)}))  # fmt: skip


if __name__ == "__main__":
    main()
