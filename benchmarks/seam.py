"""No jump where chunks meet or speech and silence do. One JSON line.

Run: ``python benchmarks/seam.py CLIPS [--model DIR]``; CLIPS is the output of ``visavis prepare``.
Held-out clips of ``grid_s1`` get half a second of digital silence cut in at a random place in their
middle, so that speech breaks off and starts again in full voice. Speed per 20 ms within 100 ms of
either edge (after the look-ahead) against the 99.9th percentile of the films' own, per channel; a
share of steps above it is given too. ``chunks``: greatest difference between the answer to chunks of
random size (1 ms to 0.3 s) and the answer to the whole. The bars: no speed above, no difference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from visavis.train.clips import is_held_out, load_corpus
from visavis.train.evaluate import Voice
from visavis.types import CHANNEL, MOTION_HOP, SAMPLE_RATE

SHOWN = ("jaw_open", "mouth_width", "lip_rounding", "jaw_rotation", "lower_lip_drop")
REACH = 5  # steps either side of an edge


def in_chunks(voice: Voice, pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``(N,)`` sound through the stages in chunks of random size, ``(m, 21)``."""
    stages = voice.stages
    states = [s.init_state(1) for s in stages]
    rows, at = [], 0
    while at < len(pcm):
        size = int(rng.integers(16, 4800))
        data = pcm[None, at : at + size]
        for i, stage in enumerate(stages):
            states[i], data = stage.step(states[i], data)
        rows.append(data)
        at += size
    tail = np.zeros((1, 0), np.float32)
    for i, stage in enumerate(stages):
        states[i], out = stage.step(states[i], tail) if i else (states[i], None)
        end = stage.flush(states[i])
        tail = end if out is None else np.concatenate([out, end], axis=1)
    return np.concatenate([*rows, tail], axis=1)[0]


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--model")
    options = parser.parse_args()
    voice, rng = Voice.load(options.model), np.random.default_rng(0)
    every = load_corpus(options.clips, "grid_s1")
    natural = load_corpus(options.clips, "obama_addresses")
    real = np.concatenate([np.abs(np.diff(c.motion, axis=0)) for c in [*every, *natural]])
    bound = np.quantile(real, 0.999, axis=0)
    clips = [c for c in every if is_held_out(c.name)]
    gap = SAMPLE_RATE // 2
    cuts = [int(rng.integers(40, 90)) * MOTION_HOP for _ in clips]
    n = max(len(c.pcm) for c in clips) + gap
    pcm = np.zeros((len(clips), n), np.float32)
    for row, clip, cut in zip(pcm, clips, cuts, strict=True):
        sound = clip.pcm.astype(np.float32) / 32768.0
        row[:cut] = sound[:cut]
        row[cut + gap : len(sound) + gap] = sound[cut:]
    speed = np.abs(np.diff(voice.speak(pcm), axis=1))
    near = []
    for row, cut in zip(speed, cuts, strict=True):
        for edge in (cut // MOTION_HOP, (cut + gap) // MOTION_HOP):
            near.append(row[max(0, edge - REACH) : edge + REACH])
    near_all = np.concatenate(near)
    rows = {}
    for name in SHOWN:
        k = CHANNEL[name]
        rows[name] = {
            "greatest": round(float(near_all[:, k].max()), 4),
            "bound": round(float(bound[k]), 4),
            "share_above": round(float((near_all[:, k] > bound[k]).mean()), 5),
        }
    whole = voice.speak(pcm[:1])[0]
    parts = in_chunks(voice, pcm[0], np.random.default_rng(1))
    same = len(whole) == len(parts)
    apart = float(np.abs(whole - parts).max()) if same else None
    ok = all(r["greatest"] <= r["bound"] for r in rows.values()) and same and apart < 1e-5
    facts = {"clips": len(clips), "edges": rows, "chunks": apart, "ok": bool(ok)}
    print(json.dumps({"benchmark": "seam", **facts}))


if __name__ == "__main__":
    main()
