"""The mouth net in float32, bfloat16 and int8: what it loses, costs and weighs; one JSON line.

    python benchmarks/patch_precision.py [--weights visavis/assets/models/mouth] [--also runs/distill/model]

The task's figures are those of `mouth_stills.py` on the same held-out stills. ``core_ms`` is of one call
of the net on one thread: least and median of 120 (the least is nearest to a quiet machine). int8 is made
here from the weights (`visavis.train.compress`), its ranges from stills that are not held out; what it
leaves in floats runs in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from mouth_stills import held_out_stills, measure

from visavis.mouth import N_CHANNELS, SIZE, MouthNet
from visavis.train.compress import calibration, quantise
from visavis.train.renderer_data import MouthData, held_out

CALLS = 120


def core_ms(net: MouthNet) -> tuple[float, float]:
    """Least and median processor time of one call, ms."""
    feed = np.random.default_rng(0).normal(0, 0.5, (1, N_CHANNELS, SIZE, SIZE)).astype(np.float32)
    spent = []
    for _ in range(CALLS + 10):
        begin = time.process_time_ns()
        net._graph({"inputs": feed})
        spent.append((time.process_time_ns() - begin) / 1e6)
    return float(np.min(spent[10:])), float(np.median(spent[10:]))


def learned_stills(cache: Path) -> MouthData:
    """Stills whose people are not held out."""
    data = MouthData.load(cache)
    still = np.isin(data.domains, ("sfhq", "official_portraits"))
    apart = np.array([held_out(str(p)) for p in data.people])
    return data.subset(np.flatnonzero(still & ~apart))


def row(folder: Path, precision: str, data: MouthData, models: Path) -> dict[str, float]:
    """Figures of one net at one precision."""
    net = MouthNet(folder, precision)
    figures, _ = measure(net, data, models)
    least, median = core_ms(net)
    kept = {k: figures[k] for k in ("psnr_db", "gradient_energy", "perceptual", "n")}
    size = (folder / net.card["graph"]).stat().st_size
    return kept | {"core_ms": round(least, 2), "core_ms_median": round(median, 2), "bytes": size}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=Path("visavis/assets/models/mouth"))
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="further model folders")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--cache", type=Path, default=Path("runs/patch/data.npz"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    stills = held_out_stills(given.data, given.models, given.cache)
    feeds = calibration(learned_stills(given.cache))
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for weights in (given.weights, *given.also):
            name = "" if weights == given.weights else f"{weights.parent.name}/{weights.name} "
            for precision in ("f32", "bf16"):
                out[name + precision] = row(weights, precision, stills, given.models)
            small = quantise(weights, Path(folder) / f"int8{len(out)}", feeds)
            out[f"{name}int8"] = row(small, "bf16", stills, given.models)
    print(json.dumps({"benchmark": "patch_precision", **out}))


if __name__ == "__main__":
    main()
