"""What tier `patch` costs: multiply-adds of its net, time of a whole frame; print one JSON line.

    python benchmarks/patch_cost.py [--frames 150] [--precisions bf16,f32] [--size 512]

Frames of the demo avatar moved by a made-up speech (jaw at 4 Hz, head and blinks), after a warm-up,
without sound or encoding. Bars (issue 5): net <= 0.5 GMAC, whole frame <= 12 ms wall on two cores
and <= 25 core-ms. Wall time only counts on an idle machine: the load stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np

from visavis.avatar import load_avatar
from visavis.cli import DEMO_AVATAR
from visavis.mouth import SIZE, MouthNet
from visavis.render import MOUTH_DIR, Renderer
from visavis.types import CHANNEL, N_CHANNELS


def gmac() -> float:
    """Multiply-adds of the mouth net's convolutions for one picture, in thousand millions."""
    import openvino as ov

    card = MouthNet(MOUTH_DIR).card
    model = ov.Core().read_model(str(MOUTH_DIR / card["graph"]))
    model.reshape([1, card["channels"], SIZE, SIZE])
    total = 0
    for op in model.get_ops():
        if op.get_type_name() == "Convolution":
            kernel = list(op.input(1).get_shape())
            total += int(np.prod(op.output(0).get_shape())) * int(np.prod(kernel[1:]))
    return total / 1e9


def babble(count: int) -> np.ndarray:
    """``(count, D)`` float32 at 30 frames a second: a mouth that never rests."""
    t = np.arange(count) / 30
    rows = np.zeros((count, N_CHANNELS), np.float32)
    rows[:, CHANNEL["jaw_open"]] = 0.09 + 0.08 * np.sin(2 * np.pi * 4 * t)
    rows[:, CHANNEL["head_yaw"]] = 5 * np.sin(2 * np.pi * 0.3 * t)
    rows[:, CHANNEL["eye_blink_left"]] = rows[:, CHANNEL["eye_blink_right"]] = np.maximum(
        0, np.sin(2 * np.pi * 0.4 * t) ** 21
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--precisions", default="bf16,f32")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    avatar, rows = load_avatar(DEMO_AVATAR), babble(given.frames)
    out: dict[str, dict[str, float]] = {}
    for precision in given.precisions.split(","):
        renderer = Renderer(avatar, "patch", given.size, threads=given.threads)
        renderer._net = MouthNet(MOUTH_DIR, precision, threads=given.threads)
        state, walls, cores = renderer.init_state(), [], []
        for k in range(-10, given.frames):
            wall, core = time.perf_counter(), time.process_time()
            state, _ = renderer.step(state, rows[k][None, None])
            if k >= 0:
                walls.append(1e3 * (time.perf_counter() - wall))
                cores.append(1e3 * (time.process_time() - core))
        out[precision] = {
            "wall_ms_median": round(float(np.median(walls)), 2),
            "wall_ms_p99": round(float(np.quantile(walls, 0.99)), 2),
            "core_ms_mean": round(float(np.mean(cores)), 2),
        }
    best = out[given.precisions.split(",")[0]]
    net = gmac()
    figures = {
        "benchmark": "patch_cost", "size": given.size, "gmac": round(net, 3), **out,
        "load": round(os.getloadavg()[0], 2),
        "pass": bool(net <= 0.5 and best["wall_ms_median"] <= 12 and best["core_ms_mean"] <= 25),
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
