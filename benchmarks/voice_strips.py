"""Mouths of several portraits under the spectrogram of sentences never trained on: sheets to look at.

    python benchmarks/voice_strips.py CLIPS --corpus librispeech --portraits a.jpg b.jpg -o runs/strips

CLIPS is the output folder of ``visavis prepare``. Of each sentence 1.6 s around its loudest moment are
shown, a mouth every 100 ms, the lip opening drawn over the sound. One PNG; prints its path and the names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from visavis.eval.figures import spectrogram_db
from visavis.pipeline import Pipeline, PipelineConfig, open_avatar, stream
from visavis.serve.config import ASSETS
from visavis.train.clips import Clip, is_withheld, load_corpus
from visavis.types import CHANNEL, MOTION_HOP, SAMPLE_RATE

SHOWN_S, EVERY = 1.6, 3  # seconds shown; frames of 30 a second between two mouths
CELL, SOUND = (96, 72), 72  # px of a mouth; height of the sound
OPEN = 0.3  # eye distances at the top of the sound


def sentences(folder: str, corpus: str, talker: str, count: int) -> list[Clip]:
    """Withheld clips of a voice (of any where none is named), one of each talker first."""
    clips = [c for c in load_corpus(folder, corpus) if is_withheld(c)]
    clips = [c for c in clips if c.talker.startswith(talker)]
    seen: dict[str, int] = {}
    order = []
    for clip in clips:
        order.append(seen.get(clip.talker, 0))
        seen[clip.talker] = order[-1] + 1
    return [clips[i] for i in np.argsort(order, kind="stable")[:count]]


def loudest(pcm: np.ndarray) -> int:
    """Sample at which ``SHOWN_S`` seconds of most energy begin, on a motion step."""
    energy = np.cumsum(np.square(pcm.astype(float)))
    length = min(len(pcm) - 1, round(SHOWN_S * SAMPLE_RATE))
    return int(np.argmax(energy[length:] - energy[:-length])) // MOTION_HOP * MOTION_HOP


def mouths(pipeline: Pipeline, pcm: np.ndarray, begin: int) -> tuple[np.ndarray, np.ndarray]:
    """One row of mouths, and the lip opening at 50 Hz."""
    avatar = pipeline.renderer.avatar
    middle = avatar.points[[13, 14, 61, 291], :2].mean(0)
    span = 0.75 * np.linalg.norm(avatar.points[263, :2] - avatar.points[33, :2])
    scale = CELL[0] / (2 * span)
    place = np.array([[scale, 0, CELL[0] / 2], [0, scale, CELL[1] / 2]])
    place[:, 2] -= scale * middle
    steps: list[np.ndarray] = []
    frames = [f.image for f in stream(avatar, [pcm], pipeline=pipeline, on_motion=steps.append)]
    first = round(begin / SAMPLE_RATE * 30)
    shown = frames[first : first + round(SHOWN_S * 30) : EVERY]
    row = [cv2.warpAffine(f, place, CELL, flags=cv2.INTER_AREA) for f in shown]
    return np.hstack(row), np.concatenate(steps)[:, CHANNEL["jaw_open"]]


def sound(pcm: np.ndarray, opening: np.ndarray, begin: int, width: int) -> np.ndarray:
    """The spectrogram in grey, lip opening over it."""
    part = pcm[begin : begin + round(SHOWN_S * SAMPLE_RATE)]
    level = spectrogram_db(part)
    grey = np.clip((level.T[::-1] - level.max() + 70) / 70, 0, 1)
    picture = cv2.resize(255 - (200 * grey).astype(np.uint8), (width, SOUND))
    picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    curve = opening[begin // MOTION_HOP :][: len(part) // MOTION_HOP]
    x = np.arange(len(curve)) * MOTION_HOP / SAMPLE_RATE / SHOWN_S * width
    y = SOUND - 2 - np.clip(curve / OPEN, 0, 1) * (SOUND - 6)
    line = np.stack([x, y], 1).astype(np.int32)
    return cv2.polylines(picture, [line], False, (200, 30, 30), 2, cv2.LINE_AA)


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips")
    parser.add_argument("--corpus", default="librispeech")
    parser.add_argument("--talker", default="", help="names that begin so")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--portraits", nargs="+", default=[str(ASSETS / "demo.avatar")])
    parser.add_argument("--motion", help="model folder; the shipped one by default")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/strips"))
    options = parser.parse_args()
    config = PipelineConfig(size=384)
    pipelines = [
        Pipeline(open_avatar(p, config.size), config, motion_dir=options.motion)
        for p in options.portraits
    ]
    chosen = sentences(options.clips, options.corpus, options.talker, options.count)
    blocks = []
    for clip in chosen:
        pcm = clip.pcm / np.float32(32768)
        begin = loudest(pcm)
        pcm = pcm[max(0, begin - SAMPLE_RATE) : begin + 2 * SAMPLE_RATE]
        begin = min(begin, SAMPLE_RATE)
        rows, curves = zip(*(mouths(p, pcm, begin) for p in pipelines), strict=True)
        blocks.append(np.vstack([sound(pcm, curves[0], begin, rows[0].shape[1]), *rows]))
    width = max(b.shape[1] for b in blocks)
    blocks = [np.pad(b, ((0, 8), (0, width - b.shape[1]), (0, 0))) for b in blocks]
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{options.corpus}{options.talker}.png"
    cv2.imwrite(str(path), cv2.cvtColor(np.vstack(blocks), cv2.COLOR_RGB2BGR))
    names = [f"{c.talker}/{c.name}" for c in chosen]
    print(json.dumps({"benchmark": "voice_strips", "sheet": str(path), "sentences": names}))


if __name__ == "__main__":
    main()
