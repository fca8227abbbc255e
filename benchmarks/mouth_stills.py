"""Repaint the inner mouths of stills whose people were never trained on; print one JSON line.

    python benchmarks/mouth_stills.py [--weights visavis/assets/models/mouth] [--sheet sheet.png]

PSNR (dB) and gradient energy (painted over real) are taken inside the inner-lip mask only; the
perceptual distance (SqueezeNet 1.1, smaller is nearer) over the mouth window of the crop. ``dark``
is a dark hole, ``mesh`` is
the generic teeth that the net starts from. The sheet shows mesh | painted | real, enlarged.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from visavis.facemesh import FaceMesh
from visavis.mouth import MouthNet, lip_gap, mouth_masks
from visavis.train.renderer import WINDOW
from visavis.train.renderer_data import MARGIN, MouthData, held_out, stack, still_rows
from visavis.train.renderer_losses import Perceptual, gradient_energy
from visavis.train.renderer_teeth import Teeth, mesh_shade, teeth_light

DARK = np.array([34, 14, 14], np.float32)
TEETH = Teeth()


def held_out_stills(data: Path, models: Path, cache: Path) -> MouthData:
    """Stills of people never trained on; from the training cache when there is one."""
    if cache.is_file():
        found = MouthData.load(cache)
    else:
        found = stack(still_rows(data, models, FaceMesh.open(models)))
    still = np.isin(found.domains, ("sfhq", "official_portraits"))
    apart = np.array([held_out(str(p)) for p in found.people])
    return found.subset(np.flatnonzero(still & apart))


def repaint(net: MouthNet, image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, ...]:
    """(dark, mesh, painted, inner): a dark hole, generic teeth, the net's painting, the mask."""
    masks = mouth_masks(points)
    inner = masks["inner"][..., None]
    light = 255 * teeth_light(image * (1 - inner), masks["lips"])
    laid = TEETH.lay(points) * mesh_shade(masks["inner"], lip_gap(points)) * light
    dark, mesh = (
        np.rint(image + (fill - image) * inner).astype(np.uint8)
        for fill in (DARK, np.clip(laid, 0, 255))
    )
    rgb, alpha = net.paint(mesh[None], points[None])
    painted = mesh + (rgb[0].astype(np.float32) - mesh) * alpha[0][..., None]
    return dark, mesh, np.rint(painted).astype(np.uint8), masks["inner"]


def true_tone(painted: np.ndarray, real: np.ndarray, inside: np.ndarray) -> float:
    """PSNR (dB) of the painting with the best gain and offset per colour: no error of tone left."""
    ours, theirs = painted[inside].astype(np.float64), real[inside].astype(np.float64)
    fits = [np.polyfit(ours[:, c], theirs[:, c], 1) for c in range(3)]
    toned = np.stack([np.polyval(f, ours[:, c]) for c, f in enumerate(fits)], 1)
    return float(10 * np.log10(255**2 / np.square(toned - theirs).mean()))


def measure(net: MouthNet, data: MouthData, models: Path) -> tuple[dict, list[np.ndarray]]:
    """Figures over all stills, and for each the strip mesh | painted | real."""
    distance = Perceptual(models)
    rows, strips, toned = [], [], []
    for canvas, points in zip(data.images, data.points, strict=True):
        real = canvas[MARGIN:-MARGIN, MARGIN:-MARGIN]
        dark, mesh, painted, inner = repaint(net, real, points)
        inside = inner > 0.5
        off = [((x.astype(np.float64) - real)[inside] ** 2).mean() for x in (painted, mesh, dark)]
        tensors = [
            torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)
            for x in (painted, mesh, dark, real)
        ]
        mask = torch.from_numpy(inside.astype(np.float32))[None, None]
        energy = [float(gradient_energy(t, mask)) for t in tensors]
        with torch.no_grad():
            far = [float(distance(t[WINDOW], tensors[-1][WINDOW])) for t in tensors[:3]]
        rows.append([*(10 * np.log10(255**2 / o) for o in off), *energy, *far])
        toned.append(true_tone(painted, real, inside))
        strips.append(np.hstack([mesh, painted, real]))
    table = np.array(rows)  # PSNR, energy (with the real one), distance: painted, mesh, dark
    ratio = table[:, 3:6] / table[:, 6:7]
    figures = {
        "psnr_db": table[:, 0].mean(),
        "psnr_db_true_tone": np.mean(toned),
        "psnr_db_mesh": table[:, 1].mean(),
        "psnr_db_dark": table[:, 2].mean(),
        "gradient_energy": table[:, 3].sum() / table[:, 6].sum(),
        "gradient_energy_median": np.median(ratio[:, 0]),
        "gradient_energy_mesh": table[:, 4].sum() / table[:, 6].sum(),
        "perceptual": table[:, 7].mean(),
        "perceptual_mesh": table[:, 8].mean(),
        "perceptual_dark": table[:, 9].mean(),
    }
    return {k: round(float(v), 4) for k, v in figures.items()} | {"n": len(table)}, strips


def sheet(strips: list[np.ndarray], zoom: int = 3, columns: int = 2) -> np.ndarray:
    """Strips enlarged and stacked in columns."""
    big = [cv2.resize(s, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC) for s in strips]
    big += [np.zeros_like(big[0])] * (-len(big) % columns)
    return np.vstack([np.hstack(big[i : i + columns]) for i in range(0, len(big), columns)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=Path("visavis/assets/models/mouth"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--cache", type=Path, default=Path("runs/patch/data.npz"))
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = held_out_stills(given.data, given.models, given.cache)
    net = MouthNet(given.weights, given.precision)
    figures, strips = measure(net, data, given.models)
    if given.sheet:
        cv2.imwrite(str(given.sheet), sheet(strips)[..., ::-1])
    print(json.dumps({"benchmark": "mouth_stills", **figures, "precision": given.precision}))


if __name__ == "__main__":
    main()
