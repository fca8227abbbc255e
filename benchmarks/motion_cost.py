"""Core time and memory of one motion step, by model folder. One JSON line.

Run: ``python benchmarks/motion_cost.py [MODEL ...] [--steps 2000]``; the shipped model by default.
``core_ms`` is processor time of this process per step of 20 ms, one session, one thread, by the
runtime's own path; ``state_kb`` what a session keeps. Bars: 1 core-ms and 1 MB.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from visavis.motion import DEFAULT_MODEL, MotionNet
from visavis.types import N_FEATURES


def measure(folder: Path, steps: int) -> dict:
    """Figures of one model folder."""
    stage = MotionNet(folder)
    features = np.random.default_rng(0).standard_normal((1, 2, N_FEATURES)).astype(np.float32)
    state = stage.init_state()
    for _ in range(100):
        state, _ = stage.step(state, features)
    began = time.process_time()
    for _ in range(steps):
        state, _ = stage.step(state, features)
    spent = time.process_time() - began
    return {
        "core_ms": round(1000 * spent / steps, 3),
        "state_kb": round(sum(v.nbytes for v in state.values()) / 1000, 1),
        "graph_mb": round((folder / stage.card["graph"]).stat().st_size / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="*", default=[DEFAULT_MODEL])
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    print(json.dumps({str(m): measure(m, args.steps) for m in args.models}))


if __name__ == "__main__":
    main()
