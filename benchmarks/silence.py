"""The face when nobody speaks: 20 s of digital silence and of -60 dB noise. One JSON line.

Run: ``python benchmarks/silence.py [--model DIR] [--seeds 8]``. The bars: lip opening stands still
(standard deviation at most 0.004 eye distances), 4 to 12 blinks, the head never frozen for 2 s,
nothing out of range.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from visavis.features import FeatureExtractor
from visavis.idle import Idle, IdleConfig
from visavis.motion import MotionNet
from visavis.smoothing import Smoother
from visavis.types import CHANNEL, RANGE_HIGH, RANGE_LOW, SAMPLE_RATE

SECONDS = 20
HEAD = [CHANNEL[c] for c in ("head_pitch", "head_yaw", "head_roll")]
FROZEN_DEG = 0.1  # less than this in 2 s is a frozen head


def perform(pcm: np.ndarray, model: str | None) -> np.ndarray:
    """``(B, N)`` sound to ``(B, m, 21)`` motion as the pipeline composes it, one seed per row."""

    def run(stage, chunk):
        state, out = stage.step(stage.init_state(len(chunk)), chunk)
        return np.concatenate([out, stage.flush(state)], axis=1)

    features = run(FeatureExtractor(), pcm)
    net = MotionNet(model)
    idle = Idle(IdleConfig.load(lookahead=net.lookahead))
    return run(Smoother(), run(net, features) + run(idle, features))


def judge(motion: np.ndarray) -> dict:
    """Figures over rows, the worst of each."""
    jaw = motion[..., CHANNEL["jaw_open"]]
    shut = motion[..., CHANNEL["eye_blink_left"]] > 0.5
    blinks = (np.diff(shut.astype(int), axis=1) == 1).sum(axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(motion[..., HEAD], 100, axis=1)
    moved = np.ptp(windows, axis=-1).max(axis=-1).min()
    return {
        "lip_opening_sd": round(float(jaw.std(axis=1).max()), 5),
        "lip_opening_max": round(float(jaw.max()), 4),
        "lip_opening_max_after_200_ms": round(float(jaw[:, 10:].max()), 4),
        "blinks": [int(blinks.min()), int(blinks.max())],
        "head_least_move_in_2_s_deg": round(float(moved), 3),
        "out_of_range": int(((motion < RANGE_LOW) | (motion > RANGE_HIGH)).sum()),
    }


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    n = SECONDS * SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal((options.seeds, n)) * 1e-3
    sounds = {"silence": np.zeros((options.seeds, n)), "noise_-60_db": noise}
    result: dict = {
        k: judge(perform(v.astype(np.float32), options.model)) for k, v in sounds.items()
    }
    result["ok"] = all(
        r["lip_opening_sd"] <= 0.004
        and r["blinks"][0] >= 4
        and r["blinks"][1] <= 12
        and r["head_least_move_in_2_s_deg"] > FROZEN_DEG
        and r["out_of_range"] == 0
        for r in result.values()
    )
    print(json.dumps({"benchmark": "silence", **result}))


if __name__ == "__main__":
    main()
