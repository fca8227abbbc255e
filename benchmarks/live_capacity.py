"""Sessions per machine: core time of a live frame (hear, draw, VP8) at three sizes. One JSON line.

python benchmarks/live_capacity.py
"""

from __future__ import annotations

import json
import os
import sys

import cv2

from visavis.pipeline import Pipeline, PipelineConfig, open_avatar
from visavis.serve.capacity import core_ms_per_frame, session_limit
from visavis.serve.config import ASSETS
from visavis.session import SessionConfig


def main() -> int:
    """Measure; prints one JSON line."""
    cv2.setNumThreads(1)  # as the server has it
    facts = {"bench": "live_capacity", "cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
    for tier in ("patch", "mesh"):
        for size in (512, 384, 256):
            config = PipelineConfig.of(size=size, tier=tier, threads=1)
            pipeline = Pipeline(open_avatar(ASSETS / "demo.avatar", size), config)
            cost = min(core_ms_per_frame((pipeline, ()), SessionConfig()) for _ in range(2))
            facts[f"{tier}_{size}"] = {
                "core_ms_per_frame": round(cost, 2),
                "sessions_per_2_cores": session_limit(cost, 30, 2),
            }
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
