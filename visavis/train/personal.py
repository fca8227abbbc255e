"""Fine-tune the mouth net on one person: ``visavis create VIDEO --minutes N`` (extra: train).

The net starts from the shipped weights and sees what it will see at run time: the mouth as the
person's likeness leaves it. Every frame of the film is an example; the last eleventh is held out,
and the weights that did best there are kept. Everything that changes is in one file, written
whole, so that a run may be stopped at any time and goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visavis.avatar import Avatar, load_avatar
from visavis.errors import ModelError, VideoError
from visavis.learn import LEAST, tail_of
from visavis.models.mouth import MouthUNet
from visavis.mouth import (
    N_CHANNELS,
    apply_transform,
    crop_transform,
    lip_gap,
    mouth_inputs,
    mouth_masks,
    warp_crop,
)
from visavis.personal import Study, learn_looks, study_film
from visavis.render import MOUTH_DIR, Renderer
from visavis.train.renderer_data import LEAST_GAP
from visavis.train.renderer_losses import energy_loss, gradient_loss, pixel_loss

BATCH = 8
RATE = 2e-4
EVALUATE = 50  # steps
PATIENCE = 8  # evaluations without a gain end the run
TAIL_FRAMES = 48
WEIGHTS = {"pixel": 1.0, "gradient": 0.5, "energy": 0.02}


def _silent(stage: str, done: int, total: int) -> None:
    """Say nothing."""


def create_trained(
    film: Path,
    output: Path,
    minutes: float,
    now: Callable[[], float],
    progress: Callable[[str, int, int], None] = _silent,
    **about: object,
) -> tuple[Avatar, dict]:
    """`visavis.personal.create_from_film`, then a mouth net of the person's own.

    ``output`` is written twice: as soon as the likeness is learned, and with the net. Stopped in
    between, the same call goes on with what lies in ``output``'s ``.training`` folder.

    Args:
        film: a video file.
        output: the ``.avatar`` file.
        minutes: of training, over all calls.
        now: clock, seconds.
        progress: called with the stage, steps done, steps in all.
        about: ``size``, ``mesh``, ``name`` and so on, for `study_film`.

    Returns:
        The avatar, and facts: steps, seconds, held-out loss before and after, whether it ended
        early.
    """
    folder = output.with_suffix(".training")
    folder.mkdir(exist_ok=True)
    same = {"film": hashlib.sha256(film.read_bytes()).hexdigest(), "size": about.get("size")}
    told, examples = folder / "film.json", folder / "mouths.npz"
    if output.is_file() and told.is_file() and json.loads(told.read_text()) == same:
        avatar, mouths = load_avatar(output), Mouths.load(examples)
    else:
        (folder / "run.pt").unlink(missing_ok=True)
        study = study_film(film, progress=progress, **about)
        avatar, _ = learn_looks(study, progress)
        avatar.save(output)
        mouths = gather_mouths(study, avatar, progress)
        mouths.save(examples)
        told.write_text(json.dumps(same))
    seconds = 60 * minutes

    def tell(step: int, loss: float, spent: float) -> None:
        progress("train", round(min(spent, seconds)), round(seconds))

    run = fine_tune(mouths, folder / "run.pt", seconds, now, progress=tell)
    avatar = replace(avatar, mouth_weights=run.weights())
    avatar.save(output)
    losses = [loss for _, loss in run.history]
    facts = {"steps": run.step, "train_seconds": round(run.seconds), "ended_early": run.stale}
    return avatar, facts | {"held_out_loss": [round(losses[0], 4), round(min(losses), 4)]}


@dataclass(frozen=True)
class Mouths:
    """Examples in the order of the film.

    Attributes:
        under: ``(N, SIZE, SIZE, 3)`` uint8, the mouth as it is drawn without the net.
        real: the same of the film.
        points: ``(N, 478, 2)`` float32 crop pixels.
    """

    under: np.ndarray
    real: np.ndarray
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.real)

    def save(self, path: Path) -> None:
        """Write one ``.npz``, whole or not at all."""
        part = path.with_suffix(".part.npz")
        np.savez(part, under=self.under, real=self.real, points=self.points)
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Mouths:
        """Read what ``save`` wrote."""
        with np.load(path) as kept:
            return cls(kept["under"], kept["real"], kept["points"])


def gather_mouths(
    study: Study, avatar: Avatar, progress: Callable[[str, int, int], None] = _silent
) -> Mouths:
    """The open mouths of a studied film beside the renderer's own.

    Args:
        study: the film.
        avatar: its avatar, with likeness.
        progress: called with the stage, frames looked at, frames in all.

    Raises:
        VideoError: the mouth is hardly ever open.
    """
    renderer = Renderer(replace(avatar, mouth_weights=None), "mesh")
    wanted, parts, done = set(study.rows.tolist()), [], 0
    for k, (_, image) in enumerate(study.source()):
        if k not in wanted:
            continue
        done += 1
        progress("mouths", done, len(study.rows))
        face, _ = renderer.mesh.face(study.motion[k])
        transform = crop_transform(face)
        local = apply_transform(transform, face)
        if lip_gap(local) >= LEAST_GAP:
            _, frames = renderer.step({}, study.motion[k][None, None])
            crops = [warp_crop(x, transform) for x in (frames[0, 0], study.canvas.frame(image))]
            parts.append((*crops, local))
        if done == len(study.rows):
            break
    if len(parts) < LEAST:
        raise VideoError(
            f"the film shows {len(parts)} open mouths, at least {LEAST} are needed to train on;"
            " give a film in which the person speaks"
        )
    return Mouths(*(np.stack(column) for column in zip(*parts, strict=True)))


def shipped_net(folder: Path = MOUTH_DIR) -> MouthUNet:
    """The shipped mouth net with its weights, for training on.

    Raises:
        ModelError: the folder holds no net of this shape.
    """
    import onnx
    from onnx import numpy_helper

    card = json.loads((folder / "model.json").read_text())
    graph = onnx.load(folder / card["graph"]).graph
    weights = {
        t.name.removesuffix(".half"): torch.from_numpy(
            numpy_helper.to_array(t).astype(np.float32).copy()
        )
        for t in graph.initializer
    }
    net = MouthUNet(N_CHANNELS, tuple(card["net"]["widths"]), card["net"]["deep"])
    try:
        net.load_state_dict({k: weights[k] for k in net.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} holds no mouth net of this version: {error}") from error
    return net.to(memory_format=torch.channels_last)


def example(mouths: Mouths, k: int) -> dict[str, np.ndarray]:
    """Inputs, answer, what lies under the painting, and masks, each ``(C, SIZE, SIZE)`` float32."""
    masks = mouth_masks(mouths.points[k])
    return {
        "inputs": mouth_inputs(mouths.under[k], mouths.points[k], masks),
        "real": mouths.real[k].transpose(2, 0, 1) / np.float32(127.5) - 1,
        "under": mouths.under[k].transpose(2, 0, 1) / np.float32(127.5) - 1,
        "inner": masks["inner"][None],
        "limit": masks["limit"][None],
    }


def batch_of(mouths: Mouths, rows: np.ndarray) -> dict[str, Tensor]:
    """Examples stacked, channels last."""
    drawn = [example(mouths, int(k)) for k in rows]
    return {
        key: torch.from_numpy(np.stack([d[key] for d in drawn])).contiguous(
            memory_format=torch.channels_last
        )
        for key in drawn[0]
    }


def loss_of(net: MouthUNet, batch: dict[str, Tensor]) -> Tensor:
    """How far the painted mouths are from the film's."""
    with torch.autocast("cpu", torch.bfloat16):
        rgba = net(batch["inputs"])
    rgba = rgba.float()
    shown = batch["under"] + (rgba[:, :3] - batch["under"]) * batch["limit"] * rgba[:, 3:]
    parts = {
        "pixel": pixel_loss(shown, batch["real"], batch["limit"]),
        "gradient": gradient_loss(shown, batch["real"], batch["limit"]),
        "energy": energy_loss(shown, batch["real"], batch["inner"]),
    }
    return sum(WEIGHTS[k] * v for k, v in parts.items())


class Run:
    """Net, optimiser, best weights and counters: all that changes, in one file."""

    def __init__(self, net: MouthUNet):
        self.net = net
        self.optimiser = torch.optim.AdamW(net.parameters(), RATE, betas=(0.9, 0.99))
        self.best = {k: v.clone() for k, v in net.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.history: list[tuple[int, float]] = []  # step and held-out loss

    def save(self, path: Path) -> None:
        """Write everything; the old file stays whole until the new one is."""
        part = path.with_name(f".{path.name}.part")
        kept = {k: v for k, v in vars(self).items() if k not in ("net", "optimiser")}
        kept |= {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict()}
        torch.save(kept, part)
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Read what ``save`` wrote."""
        kept = torch.load(path, weights_only=True)
        self.net.load_state_dict(kept.pop("net"))
        self.optimiser.load_state_dict(kept.pop("optimiser"))
        vars(self).update(kept)

    @property
    def stale(self) -> bool:
        """Whether the held-out loss has stopped to fall."""
        losses = [loss for _, loss in self.history]
        return len(losses) > PATIENCE and min(losses[-PATIENCE:]) >= min(losses[:-PATIENCE])

    def weights(self) -> dict[str, np.ndarray]:
        """The best weights by name, float16, as the ``.avatar`` file keeps them."""
        return {k: v.numpy().astype(np.float16) for k, v in self.best.items()}


def fine_tune(
    mouths: Mouths,
    checkpoint: Path,
    seconds: float,
    now: Callable[[], float],
    *,
    net: MouthUNet | None = None,
    seed: int = 0,
    progress: Callable[[int, float, float], None] = lambda step, loss, spent: None,
) -> Run:
    """Train for a while, or go on where ``checkpoint`` was left.

    Args:
        mouths: the examples.
        checkpoint: file of the run, read when it is there.
        seconds: of training in all, over every call on the same checkpoint.
        now: clock, seconds.
        net: to start from; the shipped one by default.
        seed: step k draws its batch from the generator seeded by (seed, k).
        progress: called after every step with its number, the last held-out loss and the seconds
            spent so far.

    Returns:
        The run; ``stale`` tells that it ended because the held-out tail had stopped to gain.
    """
    run = Run(net if net is not None else shipped_net())
    if checkpoint.is_file():
        run.load(checkpoint)
    held = tail_of(len(mouths))
    tail = np.flatnonzero(held)
    tail = tail[np.linspace(0, len(tail) - 1, min(TAIL_FRAMES, len(tail))).round().astype(int)]
    learn = np.flatnonzero(~held)
    if not run.history:
        run.history.append((0, evaluate(run.net, mouths, tail)))
    begin, before = now(), run.seconds
    while before + now() - begin < seconds and not run.stale:
        rows = np.random.default_rng((seed, run.step)).choice(learn, BATCH)
        loss = loss_of(run.net, batch_of(mouths, rows))
        run.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.net.parameters(), 1.0)
        run.optimiser.step()
        run.step += 1
        if run.step % EVALUATE == 0:
            _judge(run, mouths, tail)
            run.seconds = before + now() - begin
            run.save(checkpoint)
        progress(run.step, run.history[-1][1], before + now() - begin)
    if run.step % EVALUATE:
        _judge(run, mouths, tail)
    run.seconds = before + now() - begin
    run.save(checkpoint)
    return run


def _judge(run: Run, mouths: Mouths, tail: np.ndarray) -> None:
    loss = evaluate(run.net, mouths, tail)
    if loss < min(value for _, value in run.history):
        run.best = {k: v.clone() for k, v in run.net.state_dict().items()}
    run.history.append((run.step, loss))


def evaluate(net: MouthUNet, mouths: Mouths, rows: np.ndarray) -> float:
    """Mean loss over examples."""

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, len(rows), BATCH):
            yield rows[start : start + BATCH]

    with torch.no_grad():
        losses = [float(loss_of(net, batch_of(mouths, p))) * len(p) for p in parts()]
    return sum(losses) / len(rows)
