"""The tracker's 478 points on a studio head, so that rendered and filmed faces are described alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from visavis.errors import InputError
from visavis.mouth import INNER_LOWER, INNER_UPPER
from visavis.train.studio_assets import StudioAssets
from visavis.train.studio_model import Model
from visavis.train.studio_person import draw_looks
from visavis.train.studio_scene import Camera, Seen, Studio, denoise, develop


def landmark_places(assets: StudioAssets, models: str | Path | None, people: int = 6) -> dict:
    """Where the tracker's 478 points lie on the mesh: found once, on a few rendered people.

    Args:
        assets: the studio's.
        models: folder of the face graphs.
        people: how many are tracked; of each point the place nearest the median is taken.

    Returns:
        ``piece`` (0 skin, 1 eyes), ``corners (478, 3)`` into that piece's vertices, ``weights``.

    Raises:
        InputError: the tracker finds no face in the pictures.
    """
    from visavis.facemesh import FaceMesh

    tracker, found = FaceMesh.open(models), []
    for number in range(people):
        rng = np.random.default_rng((7, number))
        model = Model(
            assets, draw_looks(rng, sorted(assets.targets), [p.name for p in assets.skins])
        )
        studio = Studio(model, np.full((16, 32, 3), 1.0, np.float32))
        part = {
            f"{n}{s}": 0.35 for n in ("mouthUpperUp", "mouthLowerDown") for s in ("Left", "Right")
        }
        vertices = model.vertices(model.body({"jawOpen": 0.12} | part))
        studio.pose(vertices)
        target = vertices["eyes"].mean(0) - [0, 0.3, 0]
        camera = Camera(tuple(target + [0, 0, 20.0]), tuple(target), 8.6, 512)
        found_at = studio.look(camera)
        shot = studio.shoot(camera, np.full((512, 512), 4), number)
        picture = develop(denoise(shot, found_at.albedo, found_at.masks), 0.9)
        faces = tracker.find(picture)
        if faces:
            found.append(_touched(assets, model, found_at, faces[0].points))
    if not found:
        raise InputError("the tracker finds no face in the studio's pictures; look at its light")
    spots = np.stack([f["spot"] for f in found])
    best = np.linalg.norm(spots - np.median(spots, 0), axis=2).argmin(0)
    return {
        k: np.stack([f[k] for f in found])[best, np.arange(478)]
        for k in ("piece", "corners", "weights")
    }


def _touched(assets: StudioAssets, model: Model, found: Seen, points: np.ndarray) -> dict:
    """Triangle and weights under each tracked point, and the place on the average head."""
    over = len(found.kinds) // 512
    kinds, triangle, bary = (a[::over, ::over] for a in (found.kinds, found.triangle, found.bary))
    names = list(model.pieces)
    average = Model.average(assets)
    out = {"piece": np.zeros(478, int), "corners": np.zeros((478, 3), int),
           "weights": np.zeros((478, 3)), "spot": np.zeros((478, 3))}  # fmt: skip
    for piece, name in enumerate(("skin", "eyes")):
        rows, columns = np.nonzero(kinds == names.index(name))
        for index in range(468) if piece == 0 else range(468, 478):
            k = ((columns - points[index, 0]) ** 2 + (rows - points[index, 1]) ** 2).argmin()
            at = rows[k], columns[k]
            corners = model.pieces[name].faces[triangle[at]]
            weights = np.array([1 - bary[at].sum(), *bary[at]])
            out["piece"][index], out["corners"][index], out["weights"][index] = (
                piece,
                corners,
                weights,
            )
            out["spot"][index] = weights @ average[name][corners]
    return out


def place_landmarks(places: dict, pieces: dict, vertices: dict, camera: Camera) -> np.ndarray:
    """The 478 points ``(478, 3)`` px of a posed head."""
    at = np.zeros((478, 3))
    for piece, name in enumerate(("skin", "eyes")):
        own = places["piece"] == piece
        at[own] = (vertices[name][places["corners"][own]] * places["weights"][own][..., None]).sum(
            1
        )
    return camera.project(at)


def save_places(path: Path, places: dict) -> None:
    """Write what `landmark_places` found."""
    part = path.with_suffix(".part.npz")
    np.savez(part, **places)
    part.replace(path)


def fit_lips(points: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Points whose inner lip line is where the opening is seen.

    Args:
        points: ``(478, 3)`` px.
        inner: ``(S, S)`` cover of the inner mouth, 0..1.
    """
    out = points.copy()
    for upper, lower in zip(INNER_UPPER[1:-1], INNER_LOWER[1:-1], strict=True):
        shut = points[[upper, lower], 1].mean()
        for index, end, step in ((upper, 0, -1), (lower, -1, 1)):
            column = round(float(points[index, 0]))
            cover = inner[:, column] if 0 <= column < inner.shape[1] else np.zeros(1)
            rows = np.flatnonzero(cover > 0.5)
            if not len(rows):
                out[index, 1] = shut
                continue
            row = rows[end]
            beyond = cover[row + step] if 0 <= row + step < len(cover) else 0.0
            out[index, 1] = row + step * (0.5 + beyond)
    return out
