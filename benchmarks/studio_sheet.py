"""Show what the studio has made: a sheet of its pictures, and one JSON line about all of them.

    python benchmarks/studio_sheet.py runs/studio --sheet sheet.png [--count 100] [--view mouth]

``open``: share of mouths whose lips stand apart; ``teeth`` and so on: share of the mouths' pictures
in which the class covers 20 pixels or more; ``lips_off_px``: mean distance between the inner lip
line of the points and the rim of the rendered opening, along y.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import load

from visavis.mouth import INNER_LOWER, INNER_UPPER
from visavis.train.shards import read_index, read_pictures
from visavis.train.studio import CORPUS
from visavis.train.studio_scene import CLASSES


def rows_of(folder: Path):
    """(view, picture, labels, inner, points) of every frame."""
    for entry in read_index(folder, CORPUS):
        with (folder / entry["shard"]).open("rb") as file:
            file.seek(entry["offset"])
            data = load(file.read(entry["bytes"]))
        pictures = read_pictures(folder, entry)
        for k, view in enumerate(json.loads(entry["views"])):
            picture = cv2.imdecode(np.frombuffer(pictures[k], np.uint8), cv2.IMREAD_COLOR)
            labels, inner = (
                cv2.imdecode(data[f"{n}/{k:05d}"], cv2.IMREAD_GRAYSCALE)
                for n in ("labels", "inner")
            )
            yield view, picture, labels, inner, data["points"][k]


def lips_off(points: np.ndarray, inner: np.ndarray) -> float | None:
    """Mean distance of the inner lips' points from the rim of the opening, px; None: shut."""
    away = []
    for line, end in ((INNER_UPPER, 0), (INNER_LOWER, -1)):
        for x, y in points[list(line[1:-1]), :2]:
            column = round(float(x))
            rows = np.flatnonzero(inner[:, column] > 127) if 0 <= column < inner.shape[1] else []
            if len(rows):
                away.append(abs(float(y) - float(rows[end])))
    return float(np.mean(away)) if away else None


def sheet(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures in a square."""
    side = int(np.ceil(np.sqrt(len(pictures))))
    full = pictures + [np.zeros_like(pictures[0])] * (-len(pictures) % side)
    return np.vstack([np.hstack(full[i : i + side]) for i in range(0, len(full), side)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--view", default="mouth", choices=("mouth", "eyes", "face"))
    given = parser.parse_args()
    shown, opened, off, views = [], [], [], {}
    seen = dict.fromkeys(CLASSES, 0)
    for view, picture, labels, inner, points in rows_of(given.folder):
        views[view] = views.get(view, 0) + 1
        if view == given.view and len(shown) < given.count:
            shown.append(picture)
        if view == "mouth":
            opened.append(bool((inner > 127).sum() > 20))
            off += [d] if (d := lips_off(points, inner)) is not None else []
            for k, name in enumerate(CLASSES):
                seen[name] += int((labels == k).sum() >= 20)
    count = max(len(opened), 1)
    figures = {"views": views, "open": round(sum(opened) / count, 3)}
    figures |= {n: round(c / count, 3) for n, c in seen.items() if n not in ("skin", "eyes")}
    figures["lips_off_px"] = round(float(np.mean(off)), 2) if off else None
    if given.sheet and shown:
        cv2.imwrite(str(given.sheet), sheet(shown))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
