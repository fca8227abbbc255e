"""What a plain net of pixels alone reaches on the stills bar, split by file or by person.

    python benchmarks/mouth_protocol.py --split person [--hide removed] [--steps 1500] [--seed 1]

The trial that set the bar: a five-level U-Net of 0.9 M parameters sees the crop without its inner
mouth, both masks and lip-relative coordinates; L1 and gradient inside the mask, nothing else. ``file``
keeps 34 random stills apart, some of whose people are trained on (``known``) under other file names;
``person`` keeps the stills of `benchmarks/mouth_stills.py` apart. ``--hide removed`` also hides the
pixel round the lips' polygon. One JSON line every 250 steps: PSNR (dB) inside the mask, of people
known and new; gradient energy over the real one's. About 0.4 core-s a step.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visavis.mouth import SIZE, mouth_masks
from visavis.train.renderer_data import MARGIN, MouthData, draw_colour, held_out, shade, warp

WIDTHS = (16, 32, 64, 96, 128)
FRAMES, STILLS = 853, 0.6  # video frames in training, and the share of stills in a batch


class PlainUNet(nn.Module):
    """``(B, 7, H, W)`` to RGB ``(B, 3, H, W)``, about -1..1."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(map(double_conv, (7, *WIDTHS[:-1]), WIDTHS))
        self.up = nn.ModuleList(double_conv(a + b, a) for a, b in pairwise(WIDTHS))
        self.colour = nn.Conv2d(WIDTHS[0], 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(reversed(self.up), reversed(skips[:-1]), strict=True):
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, x], 1))
        return self.colour(x)


def double_conv(a: int, b: int) -> nn.Sequential:
    """Two 3x3 convolutions."""
    return nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU()
    )


def sample(
    data: MouthData, row: int, hide: str, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input ``(7, S, S)``, answer ``(3, S, S)`` and mask ``(1, S, S)``; disturbed by ``rng``."""
    canvas, points = data.images[row], data.points[row].copy()
    if rng is not None:
        canvas, points = warp(canvas, points, rng)
        canvas = shade(canvas, draw_colour(rng))
    masks = mouth_masks(points)
    inner = (masks["inner"] > 0.5).astype(np.float32)
    hidden = inner if hide == "inner" else masks["removed"]
    crop = canvas[MARGIN:-MARGIN, MARGIN:-MARGIN]
    real = crop.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    half = max(float(points[308, 0] - points[78, 0]), 8.0) / 2
    u = (x - (points[78, 0] + points[308, 0]) / 2) / half
    v = (y - (points[13, 1] + points[14, 1]) / 2) / half
    seen = np.concatenate([real * (1 - hidden), inner[None], masks["lips"][None], u[None], v[None]])
    if rng is not None and rng.random() < 0.5:
        seen, real, inner = (np.ascontiguousarray(a[..., ::-1]) for a in (seen, real, inner))
        seen[5] *= -1
    return seen, real, inner[None]


def split(data: MouthData, how: str, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Rows of test stills, training stills and training frames."""
    is_still = np.isin(data.domains, ("sfhq", "official_portraits"))
    stills, frames = np.flatnonzero(is_still), np.flatnonzero(~is_still)
    if how == "file":
        test = rng.permutation(stills)[:34]
    else:
        apart = np.array([held_out(str(p)) for p in data.people])
        test, frames = stills[apart[stills]], frames[~apart[frames]]
    return test, np.setdiff1d(stills, test), rng.permutation(frames)[:FRAMES]


def evaluate(net: nn.Module, data: MouthData, rows: np.ndarray, hide: str) -> np.ndarray:
    """PSNR (dB), gradient energy painted, and real, per still."""
    table = []
    for row in rows:
        seen, real, mask = sample(data, row, hide)
        with torch.no_grad():
            painted = net(torch.from_numpy(seen)[None])[0].clamp(-1, 1).numpy()
        inside = mask[0] > 0.5
        coded = [np.rint((a + 1) * 127.5) for a in (painted, real)]
        off = np.square(coded[0] - coded[1])[:, inside].mean()
        table.append((10 * np.log10(255**2 / off), *(steepness(a, inside) for a in coded)))
    return np.array(table)


def steepness(picture: np.ndarray, inside: np.ndarray) -> float:
    """Sum of squared differences to the right and downwards, inside the mask."""
    dx, dy = np.diff(picture, axis=2)[:, :-1], np.diff(picture, axis=1)[:, :, :-1]
    return float((dx**2 + dy**2)[:, inside[:-1, :-1]].sum())


def loss_of(painted: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """L1 and half the L1 of the gradients, per picture inside its mask."""
    area = mask.sum((1, 2, 3)) + 100
    off, total = painted - real, 0.0
    for part, weight in ((off, 1.0), (torch.diff(off, dim=2), 0.5), (torch.diff(off, dim=3), 0.5)):
        inside = mask[..., : part.shape[2], : part.shape[3]]
        total = (
            total
            + weight * ((part.abs().mean(1, keepdim=True) * inside).sum((1, 2, 3)) / area).mean()
        )
    return total


def train(data: MouthData, given: argparse.Namespace) -> None:
    """Train and print as it goes."""
    rng = np.random.default_rng(given.seed)
    test, stills, frames = split(data, given.split, rng)
    known = np.isin(data.people[test], data.people[stills])
    net = PlainUNet().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    for step in range(1, given.steps + 1):
        fall = 0.05 + 0.95 * (0.5 + 0.5 * np.cos(np.pi * (step - 1) / 1500))
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, step / 50) * fall
        rows = [int(rng.choice(stills if rng.random() < STILLS else frames)) for _ in range(8)]
        drawn = zip(*(sample(data, r, given.hide, rng) for r in rows), strict=True)
        seen, real, mask = (torch.from_numpy(np.stack(d)) for d in drawn)
        with torch.autocast("cpu", torch.bfloat16):
            painted = net(seen.contiguous(memory_format=torch.channels_last)).float()
        optimiser.zero_grad()
        loss_of(painted, real, mask).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if step % 250 == 0 or step == given.steps:
            table = evaluate(net, data, test, given.hide)
            line = {"step": step, "n": len(test), "psnr_db": table[:, 0].mean()}
            line |= {
                n: table[m, 0].mean() for n, m in (("known", known), ("new", ~known)) if m.any()
            }
            line["gradient_energy"] = table[:, 1].sum() / table[:, 2].sum()
            print(json.dumps({k: round(float(v), 2) for k, v in line.items()}), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", default="person", choices=("file", "person"))
    parser.add_argument("--hide", default="inner", choices=("inner", "removed"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/patch/data.npz"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    train(MouthData.load(given.cache), given)


if __name__ == "__main__":
    main()
