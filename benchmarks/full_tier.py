"""Tier `full` beside `mesh` and `patch` on people it was not trained on; print one JSON line.

    python benchmarks/full_tier.py --head runs/full/model [--frames 90] [--every 3] [--sheet out.png]

First face of a film as photo, its real tracked motion, 512 px. PSNR (dB) of the whole avatar crop, of
the head crop and of the mouth crop (one outer-eye distance about the real lips); perceptual distance
(SqueezeNet 1.1 with LPIPS heads, smaller is nearer) of the mouth crop at 96 px and of the head crop;
flicker, how much more the mouth crop changes from frame to frame than the real one (mean absolute
difference, ratio). The sheet shows mesh | patch | full | real.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from visavis.errors import InputError
from visavis.eval.image import crop, mouth_box, psnr
from visavis.facemesh import FaceMesh
from visavis.head import HeadNet, head_box, planes
from visavis.render import Renderer, find_head_dir
from visavis.train.full import FullRecipe
from visavis.train.full_data import Scene, film_scene, films_of
from visavis.train.renderer import load_recipe
from visavis.train.renderer_losses import Perceptual

TIERS = ("mesh", "patch", "full")


def drawn(scene: Scene, tier: str, head: Path) -> tuple[list[np.ndarray], float]:
    """Every frame of a scene, and the core-ms of one."""
    renderer = Renderer(scene.avatar, tier, head_dir=head if tier == "full" else None)
    state, frames = renderer.init_state(), []
    state, _ = renderer.step(state, scene.motion[:1][None])  # compiled, and in the cache
    state, begin = renderer.init_state(), time.process_time()
    for row in scene.motion:
        state, out = renderer.step(state, row[None, None])
        frames.append(out[0, 0])
    return frames, 1e3 * (time.process_time() - begin) / len(frames)


def distance(judge: Perceptual, ours: np.ndarray, real: np.ndarray, side: int) -> float:
    """Perceptual distance of two pictures brought to ``side`` px."""
    pair = [cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA) for x in (ours, real)]
    with torch.no_grad():
        return float(judge(*(torch.from_numpy(planes(x))[None] for x in pair)))


def mouth_at(face: np.ndarray) -> tuple[int, int, int, int]:
    """Mouth box of the posed face, so that every tier is judged at the same place."""
    return mouth_box(face, (512, 512))


def score(
    scene: Scene, frames: list[np.ndarray], every: int, judge: Perceptual
) -> dict[str, float]:
    """Means over every so many frames; the photo's own is left out."""
    mesh = Renderer(scene.avatar, "mesh").mesh
    left, top, side = head_box(scene.avatar.points, scene.avatar.size)
    head = (left, top, left + side, top + side)
    rows, change = [], []
    for t in range(1, len(frames)):
        real = scene.frames[t]
        if real is None:
            continue
        box = mouth_at(mesh.face(scene.motion[t])[0])
        if scene.frames[t - 1] is not None:
            moved = [
                np.abs(crop(a, box).astype(int) - crop(b, box)).mean()
                for a, b in ((frames[t], frames[t - 1]), (real, scene.frames[t - 1]))
            ]
            change.append(moved)
        if t % every == 0:
            pairs = [(crop(frames[t], b), crop(real, b)) for b in (head, box)]
            rows.append(
                (
                    psnr(frames[t], real),
                    psnr(*pairs[0]),
                    psnr(*pairs[1]),
                    distance(judge, *pairs[1], 96),
                    distance(judge, *pairs[0], 256),
                )
            )
    names = ("psnr", "head_psnr", "mouth_psnr", "mouth_distance", "head_distance")
    ours, theirs = np.mean(change, axis=0)
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True)) | {
        "flicker": ours / theirs
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", type=Path)
    parser.add_argument("--recipe", default="full")
    parser.add_argument("--films", type=int, default=2, help="of each person withheld")
    parser.add_argument("--frames", type=int, default=90)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(given.recipe, FullRecipe, "full")
    head = find_head_dir(given.head)
    corpora = dict.fromkeys({p.partition("/")[0] for p in recipe.withheld}, 10**6)
    films: dict[str, list[Path]] = {p: [] for p in recipe.withheld}
    for film, person in films_of(recipe.data, corpora, recipe.people, ()):
        if person in films and len(films[person]) < given.films:
            films[person].append(film)
    mesh, judge = FaceMesh.open(recipe.models), Perceptual(recipe.models)
    out, strips, refused = {}, [], []
    for person, paths in films.items():
        rows: dict[str, list[dict]] = {t: [] for t in TIERS}
        for path in paths:
            try:
                scene = film_scene(path, mesh, most=given.frames)
            except InputError as error:
                refused.append(f"{path.stem}: {error}")
                continue
            shown = {}
            for tier in TIERS:
                shown[tier], cost = drawn(scene, tier, head)
                rows[tier].append(score(scene, shown[tier], given.every, judge) | {"core_ms": cost})
            strips += [_strip(scene, shown, k) for k in (len(scene.motion) // 2, -1)]
        out[person] = {t: _means(r) for t, r in rows.items() if r}
    if given.sheet:
        cv2.imwrite(str(given.sheet), np.vstack(strips)[..., ::-1])
    means = {t: _means([p[t] for p in out.values()]) for t in TIERS}
    cost = {k: HeadNet(head).card[k] for k in ("mega_multiply_adds", "parameters", "steps")}
    line = {"benchmark": "full_tier", **cost, "mean": means, **out, "refused": refused}
    print(json.dumps(line))


def _means(rows: list[dict]) -> dict[str, float]:
    return {k: round(float(np.mean([r[k] for r in rows])), 4) for k in rows[0]}


def _strip(scene: Scene, shown: dict[str, list[np.ndarray]], k: int) -> np.ndarray:
    """The head crop of one frame, by every tier and as it really was."""
    left, top, side = head_box(scene.avatar.points, scene.avatar.size)
    real = scene.frames[k] if scene.frames[k] is not None else np.zeros_like(scene.avatar.image)
    area = (left, top, left + side, top + side)
    pictures = [crop(x, area) for x in (*(shown[t][k] for t in TIERS), real)]
    return np.hstack([cv2.resize(p, (320, 320), interpolation=cv2.INTER_LINEAR) for p in pictures])


if __name__ == "__main__":
    main()
