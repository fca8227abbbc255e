"""A sheet of faces: portraits down, mouth shapes across; mouth crops enlarged; a strip in time.

    python examples/contact_sheet.py PHOTO_OR_AVATAR ... -o sheet.jpg [--tier patch]
    python examples/contact_sheet.py AVATAR --speech speech.wav -o strip.jpg

Look at it at full size: swimming teeth, grey mouths, double lips, torn hair, dead eyes are defects.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from visavis.audio import read_audio
from visavis.avatar import Avatar
from visavis.errors import VisavisError
from visavis.pipeline import PipelineConfig, open_avatar, stream
from visavis.render import Renderer
from visavis.types import CHANNEL, N_CHANNELS

# Mouth shapes of eight sounds, in channel units (typical values of tracked speech).
SOUNDS: dict[str, dict[str, float]] = {
    "rest": {},
    "m": {"lip_press": 0.02},
    "f": {"jaw_open": 0.02, "lower_lip_drop": -0.03, "upper_lip_raise": 0.02, "jaw_rotation": 1},
    "s": {"jaw_open": 0.05, "mouth_width": 0.04, "jaw_rotation": 1, "lower_lip_drop": 0.03},
    "ee": {"jaw_open": 0.07, "mouth_width": 0.08, "jaw_rotation": 2, "lower_lip_drop": 0.03},
    "eh": {"jaw_open": 0.13, "mouth_width": 0.02, "jaw_rotation": 4.5, "lower_lip_drop": 0.03},
    "aa": {"jaw_open": 0.22, "jaw_rotation": 8, "lower_lip_drop": 0.05},
    "oo": {"jaw_open": 0.06, "mouth_width": -0.10, "lip_rounding": 0.3, "jaw_rotation": 2},
    "blink+turn": {"eye_blink_left": 1, "eye_blink_right": 1, "head_yaw": 8, "head_roll": 4},
    "look": {"gaze_x": -10, "head_yaw": -8, "head_pitch": 4, "jaw_open": 0.04, "jaw_rotation": 1},
}


def row(channels: dict[str, float]) -> np.ndarray:
    """Channel values as a ``(D,)`` motion row."""
    motion = np.zeros(N_CHANNELS, np.float32)
    for name, value in channels.items():
        motion[CHANNEL[name]] = value
    return motion


def mouth(renderer: Renderer, frame: np.ndarray, side: int) -> np.ndarray:
    """The mouth of a frame, enlarged to ``(side, side, 3)``."""
    x, y = renderer.avatar.points[[13, 14], :2].mean(0)
    half = 0.55 * renderer.avatar.rest.scale
    box = np.clip([x - half, x + half, y - half, y + half], 0, renderer.size - 1).astype(int)
    piece = frame[box[2] : box[3], box[0] : box[1]]
    return cv2.resize(piece, (side, side), interpolation=cv2.INTER_CUBIC)


def label(image: np.ndarray, text: str) -> np.ndarray:
    """Text in the upper left corner."""
    out = np.ascontiguousarray(image)
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(out, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.55, colour, width, cv2.LINE_AA)
    return out


def sounds_sheet(avatars: list[Avatar], tier: str, side: int) -> np.ndarray:
    """One row of faces and one of mouths per avatar, a column per sound."""
    rows = []
    for avatar in avatars:
        renderer = Renderer(avatar, tier, 512)
        state = renderer.init_state()
        faces, mouths = [], []
        for name, channels in SOUNDS.items():
            for _ in range(2):  # twice: the second frame has a past, as in a film
                state, frames = renderer.step(state, row(channels)[None, None])
            frame = frames[0, 0]
            small = cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA)
            faces.append(label(small, name))
            mouths.append(mouth(renderer, frame, side))
        rows += [np.hstack(faces), np.hstack(mouths)]
    return np.vstack(rows)


def strip(avatar: Avatar, speech: Path, tier: str, side: int, start: float) -> np.ndarray:
    """Thirty consecutive frames of real speech, mouths below."""
    config = PipelineConfig(tier=tier)
    first = round(start * 30)
    renderer = Renderer(avatar, "mesh", 512)
    faces, mouths = [], []
    for frame in stream(avatar, read_audio(speech), config):
        if frame.index < first:
            continue
        if len(faces) == 30:
            break
        small = cv2.resize(frame.image, (side, side), interpolation=cv2.INTER_AREA)
        faces.append(label(small, str(frame.index)))
        mouths.append(mouth(renderer, frame.image, side))
    rows = []
    for k in range(0, len(faces), 10):
        rows += [np.hstack(faces[k : k + 10]), np.hstack(mouths[k : k + 10])]
    return np.vstack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("who", type=Path, nargs="+", help="photos or .avatar files")
    parser.add_argument("-o", "--output", type=Path, default=Path("sheet.jpg"))
    parser.add_argument("--tier", default="patch")
    parser.add_argument("--side", type=int, default=192, help="of one picture, pixels")
    parser.add_argument("--speech", type=Path, help="make a strip in time instead")
    parser.add_argument("--start", type=float, default=1.0, help="seconds into the speech")
    args = parser.parse_args()
    avatars = []
    for path in args.who:
        try:
            avatars.append(open_avatar(path))
        except VisavisError as err:
            print(f"left out {path}: {err}")
    if args.speech:
        sheet = strip(avatars[0], args.speech, args.tier, args.side, args.start)
    else:
        sheet = sounds_sheet(avatars, args.tier, args.side)
    cv2.imwrite(str(args.output), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    print(f"{args.output}: {sheet.shape[1]}x{sheet.shape[0]}")


if __name__ == "__main__":
    main()
