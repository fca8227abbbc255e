"""Teach the mouth net what the head net knows, make it smaller, and let it pass a gate.

``visavis train distill RECIPE``: the mouth net, its channels pruned if the recipe says so, learns from
real pixels and from what tier ``full`` paints at the same place; then it is exported, in int8 as well.
Without a teacher the recipe only compresses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from visavis.avatar import create_avatar
from visavis.errors import ConfigError, InputError
from visavis.facemesh import FaceMesh
from visavis.models.mouth import MouthUNet
from visavis.mouth import apply_transform, crop_transform, lip_gap, mouth_masks, warp_crop
from visavis.render import MOUTH_DIR, Renderer
from visavis.train import renderer_losses as losses
from visavis.train.compress import calibration, gate, pruned, quantise
from visavis.train.full_data import Scene, film_scene, films_of, runs_of, still_scene
from visavis.train.personal import Mouths, example, shipped_net
from visavis.train.renderer import (
    Frozen,
    Learner,
    Progress,
    as_tensors,
    begin,
    compose,
    descend,
    load_recipe,
    run_steps,
    set_rates,
    write_mouth,
)
from visavis.train.renderer_data import LEAST_GAP, MARGIN, MouthData, held_out


class DistillLossConfig(Frozen):
    """Weights of the losses; ``teacher`` is of the distance from the teacher's painting."""

    pixel: float = 1.0
    gradient: float = 0.5
    energy: float = 0.02
    teacher: float = 1.0


class DistillRecipe(Frozen):
    """Distillation and compression of the mouth net; paths are relative to the working folder.

    Attributes:
        teacher: model folder of a head net; empty for none.
        student: model folder of the mouth net to start from; the shipped one by default.
        widths: to prune to; empty for as they are.
        int8: whether to quantise at the end.
        most_db: what pruning and int8 together may lose, and int8 alone.
        films, people, withheld, stills: as in `visavis.train.full.FullRecipe`.
    """

    tier: str = "distill"
    seed: int = 0
    run: Path = Path("runs/distill")
    data: Path = Path("../shared/data")
    models: Path = Path("../shared/models")
    teacher: str = ""
    student: str = ""
    widths: tuple[int, ...] = ()
    int8: bool = True
    most_db: float = 0.3
    steps: int = 400
    batch: int = 8
    learning_rate: float = 2e-4
    critic_rate: float = 0.0
    ema: float = 0.99
    threads: int = 1
    bf16: bool = True
    save_every: int = 50
    loss: DistillLossConfig = DistillLossConfig()
    films: dict[str, int] = Field(default_factory=dict)
    frames: int = 24
    stills: dict[str, int] = Field(default_factory=dict)
    people: dict[str, str] = Field(default_factory=dict)
    withheld: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lessons:
    """Open mouths, each ``(N, SIZE, SIZE, 3)`` uint8, and ``points`` ``(N, 478, 2)`` crop px.

    Attributes:
        under: as tier ``mesh`` draws them.
        real: as they were.
        taught: as the teacher paints them; where there is none, as they were.
        points: of the posed face.
        seen: ``(N,)`` bool, False for people kept for the gate.
    """

    under: np.ndarray
    real: np.ndarray
    taught: np.ndarray
    points: np.ndarray
    seen: np.ndarray

    def __len__(self) -> int:
        return len(self.under)

    def save(self, path: Path) -> None:
        """Write one ``.npz``, whole or not at all."""
        part = path.with_suffix(".part.npz")
        np.savez(part, **{f: getattr(self, f) for f in self.__dataclass_fields__})
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Lessons:
        """Read what `save` wrote."""
        with np.load(path) as z:
            return cls(**{f: z[f] for f in cls.__dataclass_fields__})

    def crops(self, rows: np.ndarray) -> MouthData:
        """Real mouths with their margin, as the gate and the calibration read them."""
        pad = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
        images = np.pad(self.real[rows], pad, mode="edge")
        names = np.array([f"lesson/{k}" for k in rows])
        ones = np.ones(len(rows), np.float32)
        return MouthData(images, self.points[rows], ones, ones, names, names, names)


def lessons_of(scene: Scene, teacher: str, wanted: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Rows of `Lessons` (without ``seen``) of the frames ``wanted`` whose mouth is open."""
    plain = Renderer(scene.avatar, "mesh")
    better = Renderer(scene.avatar, "full", head_dir=teacher) if teacher else None
    state, rows = better.init_state() if better else {}, []
    for k in wanted:
        if scene.frames[k] is None:
            continue
        motion = scene.motion[k][None, None]
        face, _ = plain.mesh.face(scene.motion[k])
        transform = crop_transform(face)
        local = apply_transform(transform, face)
        shown = scene.frames[k]
        if better:  # also of shut mouths: the teacher has a memory
            state, frames = better.step(state, motion)
            shown = frames[0, 0]
        if lip_gap(local) < LEAST_GAP:
            continue
        _, drawn = plain.step({}, motion)
        pictures = (drawn[0, 0], scene.frames[k], shown)
        rows.append((*(warp_crop(p, transform) for p in pictures), local))
    return rows


def build_lessons(recipe: DistillRecipe, progress: Progress) -> Lessons:
    """Watch the films and stills of a recipe.

    Raises:
        ConfigError: no open mouth in any of them.
    """
    mesh, rows, seen = FaceMesh.open(recipe.models), [], []
    for path, person in films_of(recipe.data, recipe.films, recipe.people, ()):
        try:
            scene = film_scene(path, mesh, most=160)
        except InputError as error:
            progress(f"{path.stem}: {error}")
            continue
        got = lessons_of(scene, recipe.teacher, runs_of(len(scene.frames), 1, recipe.frames))
        rows += got
        seen += [person not in recipe.withheld] * len(got)
        progress(f"{path.stem}: {len(rows)} mouths")
    for folder, most in recipe.stills.items():
        pictures = sorted((recipe.data / folder).glob("*.jpg"))
        picks = np.linspace(0, len(pictures) - 1, min(most, len(pictures))).round().astype(int)
        for i in picks:
            try:
                avatar = create_avatar(pictures[i], mesh=mesh)
            except InputError:
                continue
            scene = still_scene(avatar, np.random.default_rng(int(i)))
            got = lessons_of(scene, recipe.teacher, np.arange(1))
            rows += got
            seen += [not held_out(f"{folder}/{pictures[i].name}")] * len(got)
        progress(f"{folder}: {len(rows)} mouths")
    if not rows or not any(seen) or all(seen):
        raise ConfigError(
            f"{recipe.data} gave {sum(seen)} mouths to learn from and {len(seen) - sum(seen)} to judge"
            " by; name films of people withheld and of others"
        )
    columns = [np.stack(c) for c in zip(*rows, strict=True)]
    return Lessons(*columns, np.array(seen))


def train_distill(
    recipe_path: str | Path, *, steps: int | None = None, progress: Progress = lambda text: None
) -> Path:
    """Distil and compress by a recipe, going on where the run was left.

    Args:
        recipe_path: a TOML file or a shipped name.
        steps: stop at this step instead of the recipe's; nothing is exported then.
        progress: called with lines of progress.

    Returns:
        The run's folder: ``model`` and, in int8, ``model_int8``, with ``report.json`` of the gate.

    Raises:
        ConfigError: unreadable recipe or no data.
        ModelError: the compressed net has lost too much.
    """
    recipe = load_recipe(recipe_path, DistillRecipe, "distill")
    kept = recipe.run / "lessons.npz"
    if not kept.is_file():
        recipe.run.mkdir(parents=True, exist_ok=True)
        build_lessons(recipe, progress).save(kept)
    lessons = Lessons.load(kept)
    learner = fit_distill(recipe, lessons, stop=steps, progress=progress)
    if learner.step < recipe.steps:
        return recipe.run
    report = compress(recipe, learner, lessons)
    (recipe.run / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    progress(json.dumps(report))
    return recipe.run


def student_nets(recipe: DistillRecipe) -> tuple[MouthUNet, None]:
    """The mouth net to start from, pruned if the recipe says so; no critic."""
    net = shipped_net(Path(recipe.student) if recipe.student else MOUTH_DIR)
    return (pruned(net, recipe.widths) if recipe.widths else net), None


def fit_distill(
    recipe: DistillRecipe,
    lessons: Lessons,
    *,
    stop: int | None = None,
    progress: Progress = lambda text: None,
) -> Learner:
    """The training loop."""
    learner = begin(recipe, student_nets)
    end = min(recipe.steps, stop or recipe.steps)
    source = _batches(recipe, lessons, learner.step, end)
    run_steps(recipe, learner, source, lambda b: distill_step(recipe, learner, b), end, progress)
    return learner


def _batches(
    recipe: DistillRecipe, lessons: Lessons, start: int, end: int
) -> Iterator[dict[str, Tensor]]:
    learn = np.flatnonzero(lessons.seen)
    for step in range(start, end):
        rows = np.random.default_rng((recipe.seed, step)).choice(learn, recipe.batch)
        drawn = [_example(lessons, int(k)) for k in rows]
        yield as_tensors({key: np.stack([d[key] for d in drawn]) for key in drawn[0]})


def _example(lessons: Lessons, k: int) -> dict[str, np.ndarray]:
    taught = lessons.taught[k].transpose(2, 0, 1) / np.float32(127.5) - 1
    return example(lessons, k) | {"taught": taught}


def distill_step(
    recipe: DistillRecipe, learner: Learner, batch: dict[str, Tensor]
) -> dict[str, float]:
    """One step on pixels and on the teacher's painting."""
    set_rates(recipe, learner)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
        shown = compose(learner.net(batch["inputs"]).float(), batch)
        real, taught, limit = batch["real"], batch["taught"], batch["limit"]
        parts = {
            "pixel": losses.pixel_loss(shown, real, limit),
            "gradient": losses.gradient_loss(shown, real, limit),
            "energy": losses.energy_loss(shown, real, batch["inner"]),
        }
        if recipe.teacher:
            parts["teacher"] = losses.pixel_loss(shown, taught, limit)
            parts["teacher"] = parts["teacher"] + losses.gradient_loss(shown, taught, limit)
        loss = sum(getattr(recipe.loss, k) * v for k, v in parts.items())
    descend(recipe, learner, loss)
    return {k: float(v.detach()) for k, v in parts.items()}


def compress(recipe: DistillRecipe, learner: Learner, lessons: Lessons) -> dict:
    """Export, pass the gate, quantise, pass the gate again; what was measured.

    Raises:
        ModelError: too much was lost; the folders of what was refused stay for a look.
    """
    start = Path(recipe.student) if recipe.student else MOUTH_DIR
    card = (start / "card.md").read_text(encoding="utf-8")
    card += f"\nDistilled and compressed from `{start.name}` ({recipe.steps} steps).\n"
    model = write_mouth(learner.average, recipe, learner.step, recipe.run / "model", card)
    kept = ~lessons.seen & [bool((mouth_masks(p)["inner"] > 0.5).any()) for p in lessons.points]
    judged = Mouths(lessons.under[kept], lessons.real[kept], lessons.points[kept])
    report = {"model": gate(start, model, judged, recipe.most_db)}
    if recipe.int8:
        feeds = calibration(lessons.crops(np.flatnonzero(lessons.seen)))
        small = quantise(model, recipe.run / "model_int8", feeds)
        report["int8"] = gate(model, small, judged, recipe.most_db)
    for name, folder in (("model", model), ("int8", recipe.run / "model_int8")):
        if name in report:
            graph = folder / "mouth.onnx"
            report[name] |= {
                "bytes": graph.stat().st_size,
                "sha256": hashlib.sha256(graph.read_bytes()).hexdigest(),
            }
    return report
