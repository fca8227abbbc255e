"""A day of session time through the manual clock: no drift, flat memory. One JSON line.

    python benchmarks/live_soak.py --hours 24

The face and the net are doubles that cost nothing; the session, its queues, gate and clock are the
real ones. Speech comes and is interrupted at random, twice a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
from live_process import rss

from visavis.clock import ManualClock
from visavis.session import AudioBlock, Session, SessionConfig
from visavis.smoothing import Interpolator
from visavis.types import MOTION_HOP, N_CHANNELS

HOP_NS = 20_000_000
LATENCY_HOPS = 6


class Still:
    """A renderer of one grey picture."""

    tier, size = "mesh", 8
    picture = np.full((1, 1, 8, 8, 3), 128, np.uint8)

    def init_state(self, batch: int = 1) -> dict:
        return {}

    def step(self, state: dict, motion: np.ndarray) -> tuple[dict, np.ndarray]:
        return state, self.picture


class Mute:
    """A pipeline whose motion is rest, with the look-ahead of the real one."""

    config = SimpleNamespace(fps=Fraction(30), seed=0)
    latency_samples = LATENCY_HOPS * MOTION_HOP
    renderer, interpolator = Still(), Interpolator(30)
    row = np.zeros((1, 1, N_CHANNELS), np.float32)

    def init_state(self, batch: int, seed: int) -> dict:
        state = {"pipeline/frames": np.zeros(1, np.int64), "mute/hops": np.zeros(1, np.int64)}
        return state | self.interpolator.init_state(1)

    def hear(self, state: dict, pcm: np.ndarray, timer: object) -> tuple[dict, np.ndarray]:
        hops = state["mute/hops"] + 1
        held = hops[0] <= LATENCY_HOPS - 2
        return state | {"mute/hops": hops}, self.row[:, :0] if held else self.row

    def to_frames(self, state: dict, steps: np.ndarray, timer: object) -> tuple[dict, np.ndarray]:
        after, rows = self.interpolator.step(state, steps)
        return state | after, rows


def main() -> int:
    """Run; exit 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=24)
    options = parser.parse_args()
    clock, random = ManualClock(), np.random.default_rng(0)
    session = Session(Mute(), SessionConfig(audio_rate=16_000), clock=clock)
    list(session.advance())
    speech = random.standard_normal(16_000 * 4).astype(np.float32) * 0.1
    hops, begin = round(options.hours * 180_000), time.perf_counter()
    blocks = frames = wrong = 0
    worst = Fraction(0)
    memory = []
    for hop in range(hops):
        clock.advance(HOP_NS)
        if hop % 1500 == 0:
            session.clear_buffer()
        if hop % 1500 == 700:
            session.push_audio(speech, 16_000)
        for item in session.advance():
            if isinstance(item, AudioBlock):
                wrong += item.pts != blocks * MOTION_HOP
                blocks += 1
            else:
                wrong += item.pts != frames
                frames += 1
                if hop % 50 == 0:
                    lead = Fraction(frames, 30) - Fraction(blocks * MOTION_HOP, 16_000)
                    worst = max(worst, abs(lead))
        if hop % max(1, hops // 20) == hops // 40:
            memory.append(rss(os.getpid()))
    grown = memory[-1] / memory[2] - 1
    facts = {
        "bench": "live_soak",
        "hours": options.hours,
        "wall_s": round(time.perf_counter() - begin, 1),
        "frames": frames,
        "out_of_order": wrong,
        "worst_av_distance_ms": round(float(worst) * 1000, 2),
        "rss_growth_percent": round(grown * 100, 2),
        "bars": {"out_of_order": 0, "worst_av_distance_ms": 54, "rss_growth_percent": 1},
    }
    facts["pass"] = wrong == 0 and worst <= Fraction(54, 1000) and grown <= 0.01
    print(json.dumps(facts))
    return 0 if facts["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
