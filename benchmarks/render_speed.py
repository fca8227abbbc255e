"""Speed of the whole pipeline against its bars. One JSON line.

Run: ``python benchmarks/render_speed.py [AVATAR] [--seconds 20] [--tier patch] [--size 512]``.
The bars: a whole render, encoding included, at least 1.3 times real time on 2 cores; 99 of 100
frames computed (motion, idle, smoothing, render) within 25 ms; latency at most 150 ms.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from visavis.bench import measure
from visavis.cli import DEMO_AVATAR, DEMO_SPEECH
from visavis.pipeline import PipelineConfig


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("avatar", nargs="?", type=Path, default=DEMO_AVATAR)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--tier", default="patch")
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    config = PipelineConfig.of(tier=options.tier, size=options.size)
    facts = measure(options.avatar, DEMO_SPEECH, config, options.seconds)
    ok = (
        facts["times_real_time"] >= 1.3
        and facts["frame_ms_p99"] <= 25
        and facts["latency_ms"] <= 150
    )
    bars = {"bar_times_real_time": 1.3, "bar_frame_ms_p99": 25, "bar_latency_ms": 150}
    load = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}  # others at work slow it
    print(json.dumps(facts | bars | load | {"ok": ok}))


if __name__ == "__main__":
    main()
