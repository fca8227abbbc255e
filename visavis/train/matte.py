"""Train and export the matting net of `visavis.models.matte`: people cut out of films and stills,
half of them as photographed, half set in other rooms.

A run is a folder: ``data.npz`` (people cut out once), ``last.pt`` (everything that changes),
``log.jsonl``. Step k draws its batch from the generator seeded by (seed, k), so a run that was stopped
goes on exactly as if it had not been.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from visavis.errors import ConfigError
from visavis.matte import N_INPUTS, NET_SIZE, matte_inputs
from visavis.models.matte import MatteUNet
from visavis.models.mouth import multiply_adds
from visavis.train.matte_data import CANVAS, MatteData, build_matte_data
from visavis.train.matte_scenes import room
from visavis.train.modelfolder import digest, learned, write_folder, write_graph
from visavis.train.renderer import (
    Frozen,
    Learner,
    Progress,
    as_tensors,
    begin,
    descend,
    load_recipe,
    run_steps,
    set_rates,
    side_at,
    trained,
)


class MatteNetConfig(Frozen):
    """Arguments of `MatteUNet`."""

    widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    deep: int = 1


class MatteRecipe(Frozen):
    """A training run of the matting net; paths are relative to the working folder."""

    tier: str = "matte"
    seed: int = 3
    run: Path = Path("runs/matte")
    data: Path = Path("../shared/data")
    models: Path = Path("../shared/models")
    steps: int = 3000
    batch: int = 8
    learning_rate: float = 1.5e-3
    ema: float = 0.99
    threads: int = 1
    bf16: bool = True
    save_every: int = 100
    edge: float = 4.0  # how much more a pixel by the outline counts
    gradient: float = 1.0  # weight of the outline's slope
    elsewhere: float = 0.65  # share of people set in another room
    drawn_rooms: int = 200  # see `MatteSampler`
    sizes: tuple[tuple[int, int], ...] = ((0, NET_SIZE),)  # from which step, px
    net: MatteNetConfig = MatteNetConfig()
    mix: dict[str, float] = Field(default_factory=dict)


def train_matte(
    recipe_path: str | Path, *, steps: int | None = None, progress: Progress = lambda text: None
) -> Path:
    """Train (or go on training) the matting net.

    Args:
        recipe_path: a TOML file or a shipped name.
        steps: stop at this step instead of the recipe's.
        progress: called with one line every 50 steps.

    Returns:
        The run folder.

    Raises:
        ConfigError: unreadable recipe, or no training data.
    """
    recipe = load_recipe(recipe_path, MatteRecipe, tier="matte")
    last = fit(recipe, _cut_out(recipe, progress), stop=steps, progress=progress)
    progress(f"step {last}: done")
    return recipe.run


def _cut_out(recipe: MatteRecipe, progress: Progress) -> MatteData:
    """The people of the run, cut out now if they have not been."""
    cache = recipe.run / "data.npz"
    if cache.is_file():
        return MatteData.load(cache)
    if not recipe.data.is_dir():
        raise ConfigError(f"no training data at {recipe.data}; see the data README")
    return build_matte_data(recipe.data, recipe.models, cache, progress=progress)


def build_nets(recipe: MatteRecipe) -> tuple[MatteUNet, None]:
    """The net, untrained; there is no critic."""
    return MatteUNet(N_INPUTS, recipe.net.widths, recipe.net.deep), None


def fit(
    recipe: MatteRecipe,
    data: MatteData,
    *,
    stop: int | None = None,
    progress: Progress = lambda text: None,
) -> int:
    """Train on the people that are not held out; returns the step it stopped at."""
    learner = begin(recipe, build_nets)
    kept = data.part(held=False)
    sampler = MatteSampler(kept, dict(recipe.mix), recipe.elsewhere, recipe.drawn_rooms)
    end = min(recipe.steps, stop or recipe.steps)
    source = _batches(recipe, sampler, learner.step, end)
    return run_steps(
        recipe, learner, source, lambda b: train_step(recipe, learner, b), end, progress
    )


def _batches(
    recipe: MatteRecipe, sampler: MatteSampler, start: int, end: int
) -> Iterator[dict[str, Tensor]]:
    for step in range(start, end):
        side = side_at(recipe, step)
        drawn = sampler.batch(np.random.default_rng((recipe.seed, step)), recipe.batch, side)
        yield as_tensors(drawn)


def train_step(recipe: MatteRecipe, learner: Learner, batch: dict[str, Tensor]) -> dict[str, float]:
    """One step; returns the losses as floats."""
    set_rates(recipe, learner)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
        logits = learner.net.logits(batch["inputs"]).float()
    loss, parts = matte_loss(recipe, logits, batch["alpha"], batch["rim"])
    descend(recipe, learner, loss)
    return parts


def matte_loss(
    recipe: MatteRecipe, logits: Tensor, alpha: Tensor, rim: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy, more of it at the rim, and the difference of slopes; ``(B, 1, H, H)`` each."""
    weight = 1 + recipe.edge * rim
    entropy = F.binary_cross_entropy_with_logits(logits, alpha, reduction="none")
    parts = {"entropy": (entropy * weight).sum() / weight.sum()}
    shown = torch.sigmoid(logits)
    slope = sum((torch.diff(shown, dim=d) - torch.diff(alpha, dim=d)).abs().sum() for d in (2, 3))
    parts["gradient"] = slope / rim.sum().clamp(min=1.0)
    total = parts["entropy"] + recipe.gradient * parts["gradient"]
    off = (shown.detach() - alpha).abs().mean()
    return total, {k: float(v.detach()) for k, v in (parts | {"off": off}).items()}


@dataclass(frozen=True)
class Placing:
    """How a canvas comes to lie in the net's square: ``matrix`` ``(2, 3)`` from canvas px."""

    matrix: np.ndarray
    mirrored: bool

    def picture(self, canvas: np.ndarray, size: int) -> np.ndarray:
        """Warped to the square, the rim carried on."""
        shrink = 1 / float(np.hypot(*self.matrix[:, 0]))
        canvas = cv2.GaussianBlur(canvas, (0, 0), 0.4 * shrink) if shrink > 1.2 else canvas
        return cv2.warpAffine(
            canvas,
            self.matrix,
            (size, size),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def points(self, points: np.ndarray) -> np.ndarray:
        """Of the face in the square; only its outline is right in a mirrored one."""
        moved = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        return moved.astype(np.float32)


class MatteSampler:
    """Draws training samples; every draw is a function of its random generator.

    Args:
        data: people and rooms.
        shares: corpus (the first part of a person's name) to its share of a batch.
        elsewhere: share of people set in another room.
        drawn_rooms: how many rooms to draw beside those of the data.

    Raises:
        ConfigError: the mix names no corpus of the data.
    """

    def __init__(
        self,
        data: MatteData,
        shares: dict[str, float],
        elsewhere: float = 0.65,
        drawn_rooms: int = 200,
    ):
        self.data, self.elsewhere = data, elsewhere
        self._drawn = [room(np.random.default_rng((11, k)), CANVAS) for k in range(drawn_rooms)]
        corpora = np.array([str(p).partition("/")[0] for p in data.people])
        self._rows: dict[str, list[np.ndarray]] = {}
        for corpus, share in shares.items():
            people = np.unique(data.people[corpora == corpus])
            if share > 0 and len(people):
                self._rows[corpus] = [np.flatnonzero(data.people == p) for p in people]
        if not self._rows:
            raise ConfigError(f"the mix {json.dumps(shares)} names none of {sorted(set(corpora))}")
        odds = np.array([shares[c] for c in self._rows])
        self._odds = odds / odds.sum()

    def batch(
        self, rng: np.random.Generator, count: int, side: int = NET_SIZE
    ) -> dict[str, np.ndarray]:
        """``count`` samples of ``side`` px, stacked: ``inputs (B, N_INPUTS, H, H)``,
        ``alpha`` and ``rim`` ``(B, 1, H, H)``, float32.
        """
        corpora = list(self._rows)
        drawn = []
        for pick in rng.choice(len(corpora), count, p=self._odds):
            people = self._rows[corpora[pick]]
            row = int(rng.choice(people[rng.integers(len(people))]))
            drawn.append(self.sample(rng, row, side))
        return {
            "inputs": np.stack([matte_inputs(image, points) for image, points, _ in drawn]),
            "alpha": np.stack([alpha[None] for *_, alpha in drawn]),
            "rim": np.stack([rim_of(alpha)[None] for *_, alpha in drawn]),
        }

    def sample(
        self, rng: np.random.Generator, row: int, side: int = NET_SIZE
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One picture ``(H, H, 3)`` uint8, its points ``(478, 2)`` and alpha ``(H, H)`` float32."""
        data, size = self.data, side
        away = rng.random() < self.elsewhere
        alpha = data.alphas[row]
        placing = place(rng, alpha, data.points[row], size, away)
        cover = placing.picture(alpha, size).astype(np.float32) / 255
        if away:
            front = placing.picture(data.fronts[row], size)
            if rng.random() < 0.3:
                cover = cv2.GaussianBlur(cover, (0, 0), rng.uniform(0.4, 1.2))
            behind = self._room(rng, front, cover)
            picture = behind + (front - behind) * cover[..., None]
        else:
            picture = placing.picture(data.images[row], size).astype(np.float32)
        cover = np.clip(cover, 0, 1)  # a blur may round to more than 1
        picture = disturb(rng, picture)
        points = placing.points(data.points[row]) + rng.normal(0, size / NET_SIZE, 2)
        if placing.mirrored:
            picture, cover = picture[:, ::-1], cover[:, ::-1]
            points = points * [-1, 1] + [size - 1, 0]
        return np.ascontiguousarray(picture), points, np.ascontiguousarray(cover)

    def _room(self, rng: np.random.Generator, front: np.ndarray, cover: np.ndarray) -> np.ndarray:
        """What to set a person before, ``(H, H, 3)`` float32."""
        size, kind = len(front), rng.random()
        if kind < 0.35 and len(self.data.rooms):
            behind = _window(rng, self.data.rooms, size)
        elif kind < 0.47:  # cloth, hair or skin of someone else, much enlarged
            row = int(rng.integers(len(self.data)))
            side = int(rng.uniform(0.1, 0.4) * CANVAS)
            x, y = rng.integers(0, CANVAS - side, 2)
            piece = self.data.images[row][y : y + side, x : x + side]
            behind = cv2.resize(piece, (size, size), interpolation=cv2.INTER_CUBIC)
        else:
            behind = _window(rng, self._drawn, size)
        behind = np.ascontiguousarray(behind[:, :: int(rng.choice([-1, 1]))]).astype(np.float32)
        if rng.random() < 0.6:
            behind = cv2.GaussianBlur(behind, (0, 0), rng.uniform(0.3, 4))
        if rng.random() < 0.45:
            behind = toned(rng, behind, front, cover)
        return behind + rng.uniform(0, 6) * rng.standard_normal(behind.shape, np.float32)


def rim_of(alpha: np.ndarray) -> np.ndarray:
    """How near each pixel is to the outline, 1 within a few pixels of it, ``(H, H)`` float32."""
    reach = np.ones((9, 9), np.uint8)
    return cv2.dilate(alpha, reach) - cv2.erode(alpha, reach)


def _window(rng: np.random.Generator, rooms: Sequence[np.ndarray], size: int) -> np.ndarray:
    """A part of one of the rooms."""
    picture = rooms[int(rng.integers(len(rooms)))]
    side = int(rng.uniform(0.6, 1.0) * len(picture))
    x, y = rng.integers(0, len(picture) - side + 1, 2)
    return cv2.resize(picture[y : y + side, x : x + side], (size, size))


def toned(
    rng: np.random.Generator, behind: np.ndarray, front: np.ndarray, cover: np.ndarray
) -> np.ndarray:
    """The room in the colours of some part of the person: dark before dark, light before light."""
    rows, columns = np.nonzero(cover > 0.9)
    pick = int(rng.integers(len(rows))) if len(rows) else 0
    tone = front[rows[pick], columns[pick]].astype(np.float32) if len(rows) else behind.mean((0, 1))
    contrast = rng.uniform(0.1, 1.0)
    share = rng.uniform(0.6, 1.0)
    middle = behind.mean((0, 1))
    return np.clip(middle + (tone - middle) * share + (behind - middle) * contrast, 0, 255)


def place(
    rng: np.random.Generator, alpha: np.ndarray, points: np.ndarray, size: int, away: bool
) -> Placing:
    """Where the person lies in the square: never cut off where the photo's rim does not cut too.

    Args:
        rng: draws it.
        alpha: ``(C, C)`` uint8 of the canvas.
        points: ``(478, 2)`` px of the canvas.
        size: of the square.
        away: another room is set behind, so that it may reach beyond the canvas.
    """
    canvas = len(alpha)
    top, chin = points[10], points[152]
    face = float(np.linalg.norm(chin - top))
    free = away & np.array([alpha[:, 0].max() < 20, alpha[0].max() < 20, alpha[:, -1].max() < 20])
    want = face / rng.uniform(0.27, 0.48)  # side of the window in canvas px
    side = min(want, 1.25 * canvas if free.all() else canvas)
    centre = (top + chin) / 2 + face * (np.array([0, 0.12]) + rng.normal(0, 0.1, 2))
    low = np.array([-canvas if free[0] else 0, -canvas if free[1] else 0], float)
    high = np.array([canvas if free[2] else max(0, canvas - side), canvas - side], float)
    corner = np.clip(centre - side / 2, np.minimum(low, high), high)
    ratio = size / side
    turn, squeeze = np.radians(rng.normal(0, 3)), np.exp(rng.normal(0, 0.04))
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * [squeeze, 1]
    middle = np.array([size / 2, 0.75 * size])
    shift = -corner * ratio - middle
    matrix = np.column_stack([spin * ratio, spin @ shift + middle])
    return Placing(matrix, bool(rng.random() < 0.5))


def disturb(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Light, colour, blur, noise and compression of other cameras; uint8."""
    picture = np.clip(picture, 0, 255).astype(np.float32) / 255
    picture = picture ** np.float32(np.exp(rng.normal(0, 0.3)))
    grey = picture.mean(-1, keepdims=True)
    saturation = 0.0 if rng.random() < 0.07 else rng.uniform(0.5, 1.3)
    picture = grey + (picture - grey) * saturation
    gain = np.float32(np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.08, 3)))
    picture = np.clip(picture * gain + np.float32(rng.normal(0, 0.03)), 0, 1) * np.float32(255)
    if rng.random() < 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.6))
    if rng.random() < 0.5:
        picture = picture + rng.uniform(1, 7) * rng.standard_normal(picture.shape, np.float32)
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 92))]
        picture = cv2.imdecode(cv2.imencode(".jpg", picture, quality)[1], cv2.IMREAD_COLOR)
    return picture


def export_matte(run: Path, recipe: MatteRecipe, out: Path, card: str) -> Path:
    """Write the averaged net of a run as a model folder: ``matte.onnx``, ``model.json``, card.

    Args:
        run: folder with ``last.pt``.
        recipe: the run's recipe.
        out: the model folder, created.
        card: text of ``card.md``.

    Raises:
        ConfigError: the run holds no checkpoint.
    """
    learner = trained(run, recipe, build_nets)
    net = learner.average.eval().to(memory_format=torch.contiguous_format)
    out.mkdir(parents=True, exist_ok=True)
    graph = out / "matte.onnx"
    write_graph(net, {"inputs": torch.zeros(2, N_INPUTS, NET_SIZE, NET_SIZE)}, ["alpha"], graph)
    shape = (N_INPUTS, NET_SIZE, NET_SIZE)
    about = {
        "kind": "matte",
        "graph": graph.name,
        "size": NET_SIZE,
        "channels": N_INPUTS,
        "net": recipe.net.model_dump(mode="json"),
        "mega_multiply_adds": round(multiply_adds(net, shape) / 1e6, 1),
    } | learned(net, recipe, learner.step)
    about["sha256"] = digest(graph)
    return write_folder(out, about, card)
