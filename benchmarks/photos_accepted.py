"""Which photos `create_avatar` accepts, why it refuses the others, how long and how much memory.

    python benchmarks/photos_accepted.py [--every 1]   -> one JSON line

Bars (issue 2): >= 97 % of `sfhq` accepted, create <= 5 s wall and <= 1 GB resident memory. Each
photo's wall and processor time include reading the file, not opening the tracker (once, reported).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np

from visavis.avatar import create_avatar
from visavis.errors import ImageError
from visavis.eval.latency import peak_rss_mb
from visavis.facemesh import FaceMesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=os.environ.get("VISAVIS_MODELS"))
    parser.add_argument("--set", default="sfhq", help="folder of JPEG photos under --data")
    parser.add_argument("--every", type=int, default=1, help="only every n-th photo")
    args = parser.parse_args()
    began = time.perf_counter()
    mesh = FaceMesh.open(args.models or "../shared/models")
    opened = time.perf_counter() - began
    photos = sorted((args.data / args.set).glob("*.jpg"))[:: args.every]
    wall, cpu, refused = [], [], {}
    for photo in photos:
        start, used = time.perf_counter(), time.process_time()
        try:
            create_avatar(photo, mesh=mesh)
        except ImageError as error:
            refused[photo.stem] = str(error).replace(str(photo), photo.name)
            continue
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    reasons = Counter(re.sub(r"[\d.]+", "N", reason.split(";")[0]) for reason in refused.values())
    share = 1 - len(refused) / len(photos)
    figures = {
        "benchmark": "photos_accepted",
        "set": args.set,
        "photos": len(photos),
        "accepted_share": round(share, 4),
        "reasons": dict(reasons.most_common()),
        "refused": refused,
        "tracker_open_s": round(opened, 2),
        "create_wall_s_median": round(float(np.median(wall)), 2),
        "create_wall_s_max": round(float(np.max(wall)), 2),
        "create_cpu_s_median": round(float(np.median(cpu)), 2),
        "peak_rss_mb": round(peak_rss_mb()),
    }
    passed = share >= 0.97 and figures["create_wall_s_max"] <= 5 and figures["peak_rss_mb"] <= 1000
    print(json.dumps(figures | {"pass": bool(passed)}))


if __name__ == "__main__":
    main()
