"""The matting net beside GrabCut: print one JSON line and draw a sheet to be looked at.

    python benchmarks/matte.py [--run runs/matte] [--sheet runs/matte_sheet.jpg] [--figures-only]

Figures: people never trained on (GRID talkers s4 and s34, a presenter, held-out stills whose cuts
agree), as photographed and set before backgrounds never trained on (scikit-image's photographs and
what stands beside held-out people). `mad` is the mean absolute difference of alpha, `iou` that of the
halves, `slope` the mean difference of the outline's gradient, a pixel of outline each; `failed` the
share of pictures with an iou below 0.95. The truth is made without a net (`visavis.train.matte_cuts`);
of stills it is what GrabCut does well, so that as photographed GrabCut is right by definition.

Sheet: photo, GrabCut, net, plate; first frames of the weekly addresses, held-out official portraits
and the hard portraits.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from hard_portraits import CASES

from visavis.avatar import head_crop
from visavis.facemesh import FaceMesh
from visavis.matte import MODEL_DIR, MatteNet, background_plate, person_matte
from visavis.train.matte import place
from visavis.train.matte_cuts import grabcut_matte, overlap
from visavis.train.matte_data import MatteData, is_held_out
from visavis.video import read_video

SIZE = 320
MOST_OF_ONE = 4  # pictures of one person
PHOTOGRAPHS = ("coffee", "chelsea", "rocket", "motorcycle_left", "hubble_deep_field",
               "brick", "gravel", "grass")  # fmt: skip
Cut = Callable[[np.ndarray, np.ndarray], np.ndarray]


def backgrounds(data: MatteData) -> list[np.ndarray]:
    """Rooms of held-out people and scikit-image's photographs, each ``(SIZE, SIZE, 3)`` uint8."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    found = [cv2.resize(room, (SIZE, SIZE)) for room in data.rooms]
    for name in PHOTOGRAPHS:
        path = next(iter(sorted(folder.glob(f"{name}.*"))), None)
        if path is not None:
            photo = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
            side = min(photo.shape[:2])
            found.append(
                cv2.resize(photo[:side, -side:], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            )
    return found


def pictures(data: MatteData) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Kind, picture, points and true alpha of every test."""
    rooms, seen = backgrounds(data), {}
    for row in range(len(data)):
        person = str(data.people[row])
        seen[person] = seen.get(person, 0) + 1
        if seen[person] > MOST_OF_ONE:
            continue
        corpus = "stills" if person.startswith(("sfhq", "official")) else "talkers"
        for away in (False, True):
            rng = np.random.default_rng((row, away))
            placing = place(rng, data.alphas[row], data.points[row], SIZE, away)
            alpha = placing.picture(data.alphas[row], SIZE).astype(np.float32) / 255
            picture = placing.picture(data.images[row], SIZE).astype(np.float32)
            if away:
                front = placing.picture(data.fronts[row], SIZE).astype(np.float32)
                behind = rooms[int(rng.integers(len(rooms)))].astype(np.float32)
                picture = behind + (front - behind) * alpha[..., None]
            picture = np.clip(picture, 0, 255).astype(np.uint8)
            kind = f"{corpus} {'elsewhere' if away else 'as photographed'}"
            yield kind, picture, placing.points(data.points[row]), alpha


def score(found: np.ndarray, alpha: np.ndarray) -> dict[str, float]:
    """Errors of one matte."""
    outline = max(
        1, int((cv2.morphologyEx(alpha, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0.1).sum())
    )
    slope = sum(np.abs(np.diff(found, axis=a) - np.diff(alpha, axis=a)).sum() for a in (0, 1))
    iou = overlap(found > 0.5, alpha > 0.5)
    return {
        "mad": float(np.abs(found - alpha).mean()),
        "iou": iou,
        "slope": float(slope / outline),
        "failed": float(iou < 0.95),
    }


def measure(data: MatteData, cuts: dict[str, Cut]) -> dict[str, dict]:
    """Mean errors by kind of picture and cut, and the time of one cut on this machine's core."""
    rows: dict[str, dict[str, list]] = {}
    spent = dict.fromkeys(cuts, 0.0)
    for kind, picture, points, alpha in pictures(data):
        for name, cut in cuts.items():
            start = time.process_time()
            found = cut(picture, points)
            spent[name] += time.process_time() - start
            rows.setdefault(kind, {}).setdefault(name, []).append(score(found, alpha))
    count = sum(len(next(iter(r.values()))) for r in rows.values())
    out: dict[str, dict] = {
        kind: {"pictures": len(next(iter(by.values())))}
        | {
            n: {k: round(float(np.mean([s[k] for s in ss])), 4) for k in ss[0]}
            for n, ss in by.items()
        }
        for kind, by in rows.items()
    }
    return out | {"core_s": {k: round(v / max(count, 1), 3) for k, v in spent.items()}}


def portraits(data: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and photo of everything on the sheet."""
    for path in sorted((data / "obama_addresses").glob("*.mp4")):
        yield f"address {path.stem}", next(iter(read_video(path)))[-1]
    for path in sorted((data / "official_portraits").glob("*.jpg")):
        if is_held_out(f"official_portraits/{path.name}"):
            yield path.stem, cv2.imread(str(path))[..., ::-1].copy()
    for name, (stem, treat) in CASES.items():
        photo = treat(cv2.imread(str(data / "sfhq" / f"{stem}.jpg")))
        yield name, photo[..., ::-1].copy()


def sheet_row(photo: np.ndarray, mesh: FaceMesh, net: MatteNet, size: int) -> np.ndarray | None:
    """Photo, both cuts before magenta, and the plate; None where no face is found."""
    faces = mesh.find(photo)
    if not faces:
        return None
    crop, points = head_crop(photo, faces[0].points, size)
    old, new = grabcut_matte(crop, points), person_matte(crop, points, net)
    before = np.array([255, 0, 255], np.float32)
    cut = [before + (crop - before) * m[..., None] for m in (old, new)]
    return np.hstack([crop, *(c.astype(np.uint8) for c in cut), background_plate(crop, new)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=os.environ.get("VISAVIS_MODELS"))
    parser.add_argument("--net", type=Path, default=MODEL_DIR, help="model folder")
    parser.add_argument("--run", type=Path, default=Path("runs/matte"), help="holds data.npz")
    parser.add_argument("--sheet", type=Path, default=Path("runs/matte_sheet.jpg"))
    parser.add_argument("--size", type=int, default=256, help="of a picture on the sheet")
    parser.add_argument("--figures-only", action="store_true")
    given = parser.parse_args()
    net = MatteNet(given.net)
    data = MatteData.load(given.run / "data.npz").part(held=True)
    cuts: dict[str, Cut] = {"grabcut": grabcut_matte, "net": lambda i, p: person_matte(i, p, net)}
    figures = measure(data, cuts)
    if not given.figures_only:
        mesh = FaceMesh.open(given.models or "../shared/models")
        rows = (sheet_row(photo, mesh, net, given.size) for _, photo in portraits(given.data))
        tiles = [row for row in rows if row is not None]
        tiles += [np.zeros_like(tiles[0])] * (len(tiles) % 2)
        sheet = np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)])
        given.sheet.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(given.sheet), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    print(json.dumps({"benchmark": "matte", **figures, "sheet": str(given.sheet)}))


if __name__ == "__main__":
    main()
