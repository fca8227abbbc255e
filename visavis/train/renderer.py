"""Train and export the renderer nets. Here: what all share, and tier ``patch``, the mouth net of
`visavis.models.mouth`; tier ``full`` is in `visavis.train.full`.

A run is a folder: ``data.npz`` (crops, built once), ``last.pt`` (everything that changes, written
whole), ``log.jsonl``. Step k draws its batch from the generator seeded by (seed, k), so a run that
was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import copy
import json
import math
import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from visavis.errors import ConfigError
from visavis.models.mouth import MouthCritic, MouthUNet, multiply_adds
from visavis.mouth import N_CHANNELS, SIZE, SPAN
from visavis.train import renderer_losses as losses
from visavis.train.modelfolder import digest, learned, write_folder, write_graph
from visavis.train.recipes import FOLDER
from visavis.train.renderer_data import (
    MouthData,
    MouthSampler,
    Sampling,
    build_cache,
    held_out,
    joined,
    studio_data,
)

WINDOW = (slice(None), slice(None), slice(14, 94), slice(8, 120))  # where mouths are, 80 x 112
WANDER = 4  # px by which the window's corner walks, lest strided losses leave a pattern
CRITIC_COLUMNS = slice(6, 8)  # of the inputs: the skull's x and y, shown to the critic


Progress = Callable[[str], None]


class Frozen(BaseModel):
    """A config that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NetConfig(Frozen):
    """Arguments of `MouthUNet`."""

    widths: tuple[int, ...] = (24, 48, 96, 128)
    deep: int = 1


class LossConfig(Frozen):
    """Weights of the losses; see `generator_loss`."""

    pixel: float = 1.0
    gradient: float = 0.5
    perceptual: float = 0.6
    energy: float = 0.02
    critic: float = 0.03
    features: float = 0.1
    steady: float = 0.3


class RendererRecipe(Frozen):
    """A training run of one renderer net; paths are relative to the working folder."""

    tier: str = "patch"
    seed: int = 0
    run: Path = Path("runs/patch")
    data: Path = Path("../shared/data")
    models: Path = Path("../shared/models")
    steps: int = 5000
    batch: int = 12
    learning_rate: float = 4e-4
    critic_rate: float = 2e-4
    warm_up: int = 1200
    ema: float = 0.997
    threads: int = 1
    bf16: bool = True
    save_every: int = 100
    net: NetConfig = NetConfig()
    loss: LossConfig = LossConfig()
    mix: dict[str, float] = {"sfhq": 1.0}
    torn: float = 0.4  # see `Sampling`
    registered: float = 1.0  # see `Sampling`
    start: Path | None = None  # run whose averaged weights are gone on with
    studio: Path = Path("runs/studio")


def load_recipe(
    path: str | Path, kind: type[Frozen] | None = None, tier: str | None = None
) -> Frozen:
    """Read a recipe.

    Args:
        path: a TOML file, or the name of a shipped recipe.
        kind: what it must be; a `RendererRecipe` by default.
        tier: which its own must be.

    Raises:
        ConfigError: not a recipe, or of another tier; the message names the key.
    """
    path = Path(path) if Path(path).suffix else FOLDER / f"{path}.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        if tier is not None and raw.get("tier", tier) != tier:
            raise ConfigError(f"recipe {path} trains tier {raw['tier']!r}, asked for {tier!r}")
        return (kind or RendererRecipe)(**raw)
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as err:
        raise ConfigError(f"{path} is not a renderer recipe: {err}") from err


def train_renderer(
    recipe_path: str | Path,
    tier: str = "patch",
    *,
    steps: int | None = None,
    board: bool = False,
    distributed: bool = False,
    progress: Progress = lambda text: None,
) -> Path:
    """Train (or go on training) the net of a recipe.

    Args:
        recipe_path: a TOML file such as ``visavis/train/recipes/patch.toml``, or a shipped name.
        tier: must be the recipe's.
        steps: stop at this step instead of the recipe's.
        board: write a TensorBoard log as well (tier ``full``).
        distributed: torchrun started this process, one of several (tier ``full``).
        progress: called with one line every 50 steps.

    Returns:
        The run folder.

    Raises:
        ConfigError: unreadable recipe, another tier, or no training data.
    """
    if tier == "full":
        from visavis.train.full import train_full

        return train_full(
            recipe_path, steps=steps, board=board, distributed=distributed, progress=progress
        )
    recipe = load_recipe(recipe_path, tier=tier)
    if tier != "patch":
        raise ConfigError(f"tier {tier!r} has no net to train; choose one of patch, full")
    if board or distributed:
        raise ConfigError("tier patch trains in one process and writes no TensorBoard log")
    cache = recipe.run / "data.npz"
    if cache.is_file():
        data = MouthData.load(cache)
    elif recipe.data.is_dir():
        data = build_cache(recipe.data, recipe.models, cache, progress=progress)
    else:
        raise ConfigError(f"no training data at {recipe.data}; see the data README")
    if recipe.mix.get("studio"):
        data = joined(data, studio_data(recipe.studio))
    last = fit(recipe, data, stop=steps, progress=progress)
    progress(f"step {last}: done")
    return recipe.run


def mouth_nets(recipe: RendererRecipe) -> tuple[nn.Module, nn.Module]:
    """The mouth net and its critic, untrained."""
    return MouthUNet(N_CHANNELS, recipe.net.widths, recipe.net.deep), MouthCritic()


class Learner:
    """Everything that changes during training, in one place that can be saved whole.

    Args:
        recipe: of the run.
        build: makes net and critic (or None) from the recipe.
    """

    def __init__(self, recipe: Frozen, build: Callable = mouth_nets):
        torch.manual_seed(recipe.seed)
        form = {"memory_format": torch.channels_last}
        net, critic = build(recipe)
        self.net = net.to(**form)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), recipe.learning_rate, betas=(0.8, 0.99), weight_decay=1e-3
        )
        self.critic = self.critic_optimiser = None
        if critic is not None:
            self.critic = critic.to(**form)
            self.critic_optimiser = torch.optim.Adam(
                self.critic.parameters(), recipe.critic_rate, betas=(0.5, 0.99)
            )
        self.step = 0

    @property
    def _parts(self) -> dict:
        names = ("net", "average", "critic", "optimiser", "critic_optimiser")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    def save(self, path: Path) -> None:
        """Write everything; the old file stays whole until the new one is."""
        part = path.with_name(f".{path.name}.part")
        kept = {name: part.state_dict() for name, part in self._parts.items()}
        torch.save(kept | {"step": self.step}, part)
        os.replace(part, path)

    def start_from(self, path: Path) -> None:
        """The averaged weights of another run; steps and optimisers begin anew.

        Raises:
            ConfigError: there is no such run, or of another net.
        """
        try:
            weights = torch.load(path, weights_only=True)["average"]
            self.net.load_state_dict(weights)
            self.average.load_state_dict(weights)
        except (OSError, KeyError, RuntimeError) as err:
            raise ConfigError(f"{path} holds no net of this recipe to start from: {err}") from err

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        kept = torch.load(path, weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(kept[name])
        self.step = kept["step"]


def begin(recipe: Frozen, build: Callable = mouth_nets, leads: bool = True) -> Learner:
    """A fresh run in its folder, or the one that was left there."""
    torch.set_num_threads(recipe.threads)
    if leads:
        recipe.run.mkdir(parents=True, exist_ok=True)
        (recipe.run / "recipe.json").write_text(recipe.model_dump_json(indent=1), encoding="utf-8")
    learner = Learner(recipe, build)
    last, start = recipe.run / "last.pt", getattr(recipe, "start", None)
    if last.is_file():
        learner.load(last)
    elif start is not None:
        learner.start_from(start / "last.pt")
    return learner


def run_steps(
    recipe: Frozen,
    learner: Learner,
    source: Iterator[dict[str, Tensor]],
    take: Callable[[dict[str, Tensor]], dict[str, float]],
    end: int,
    progress: Progress,
    *,
    leads: bool = True,
    after: Callable[[dict[str, float] | None], None] = lambda line: None,
) -> int:
    """Every batch of ``source`` once, with a log and checkpoints; returns the step it stopped at.

    Args:
        recipe: of the run.
        learner: what learns.
        source: batches from the learner's step on.
        take: one step on a batch; the losses by name.
        end: the last step.
        progress: called with each line of the log.
        leads: whether this process writes.
        after: called after every step with the line of the log that was due, or None.
    """
    totals: dict[str, float] = {}
    for batch in source:
        report = take(batch)
        learner.step += 1
        line = None
        for key, value in report.items():
            totals[key] = totals.get(key, 0.0) + value
        if learner.step % 50 == 0 or learner.step == end:
            count = (learner.step - 1) % 50 + 1
            line = {"step": learner.step} | {k: round(v / count, 4) for k, v in totals.items()}
            totals = {}
            if leads:
                with (recipe.run / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
                progress(json.dumps(line))
        after(line)
        if leads and (learner.step % recipe.save_every == 0 or learner.step == end):
            learner.save(recipe.run / "last.pt")
    return learner.step


def fit(
    recipe: RendererRecipe,
    data: MouthData,
    *,
    stop: int | None = None,
    progress: Progress = lambda text: None,
) -> int:
    """Train the mouth net; returns the step it stopped at."""
    learner = begin(recipe)
    keep = np.array([not held_out(str(p)) for p in data.people])
    sampling = Sampling(dict(recipe.mix), torn=recipe.torn, registered=recipe.registered)
    sampler = MouthSampler(data.subset(np.flatnonzero(keep)), sampling)
    seen = losses.Perceptual(recipe.models) if recipe.loss.perceptual else None
    end = min(recipe.steps, stop or recipe.steps)
    source = _batches(recipe, sampler, learner.step, end)
    return run_steps(
        recipe, learner, source, lambda b: train_step(recipe, learner, seen, b), end, progress
    )


def _batches(
    recipe: RendererRecipe, sampler: MouthSampler, start: int, end: int
) -> Iterator[dict[str, Tensor]]:
    for step in range(start, end):
        again = recipe.batch // 3 if step >= recipe.warm_up else 0
        drawn = sampler.batch(np.random.default_rng((recipe.seed, step)), recipe.batch, again)
        yield as_tensors(drawn)


def side_at(recipe: Frozen, step: int) -> int:
    """Side in px that a step trains at: small pictures teach what a thing is, large ones its edges."""
    return [side for first, side in recipe.sizes if first <= step][-1]


def as_tensors(drawn: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """A batch of pictures ``(B, C, H, W)`` as the nets take it."""
    return {
        k: torch.from_numpy(v).contiguous(memory_format=torch.channels_last)
        for k, v in drawn.items()
    }


def wandering(step: int) -> tuple[slice, ...]:
    """`WINDOW`, its corner moved by up to `WANDER` px."""
    down, right = step * 7 % WANDER, step * 11 // WANDER % WANDER
    rows, columns = WINDOW[2:]
    return (
        *WINDOW[:2],
        slice(rows.start + down, rows.stop + down),
        slice(columns.start + right - WANDER // 2, columns.stop + right - WANDER // 2),
    )


def compose(rgba: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """What the viewer sees: the painting over what lies beneath."""
    cover = batch["limit"] * rgba[:, 3:]
    return batch["under"] + (rgba[:, :3] - batch["under"]) * cover


def critic_view(picture: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Picture, mask and place in the skull, over the window of mouths."""
    place = batch["inputs"][:, CRITIC_COLUMNS]
    return torch.cat([picture, batch["limit"], place], 1)


def train_step(
    recipe: RendererRecipe, learner: Learner, seen: nn.Module | None, batch: dict[str, Tensor]
) -> dict[str, float]:
    """One step of both nets; returns the losses as floats."""
    adversarial = learner.step >= recipe.warm_up and recipe.loss.critic > 0
    set_rates(recipe, learner)
    report: dict[str, float] = {}
    window = wandering(learner.step)
    inputs, jittered = batch["inputs"], batch.get("jittered")
    natural = batch.pop("natural")
    batch = {k: v[window] for k, v in batch.items()} | {"natural": natural}
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
        rgba = learner.net(inputs)[window].float()
        if adversarial:
            batch["again"] = learner.net(jittered)[window].float()
        shown = compose(rgba, batch)
        if adversarial:
            report |= _train_critic(learner, shown.detach(), batch)
        loss, parts = generator_loss(recipe, learner, seen, batch, rgba, shown, adversarial)
    descend(recipe, learner, loss)
    return report | parts


def set_rates(recipe: Frozen, learner: Learner) -> None:
    """Learning rates of this step: a linear start, then half a cosine; the critic's is constant."""
    fall = 0.5 * (1 + math.cos(math.pi * min(learner.step / recipe.steps, 1.0)))
    rate = recipe.learning_rate * min(1.0, (learner.step + 1) / 100) * (0.05 + 0.95 * fall)
    for group in learner.optimiser.param_groups:
        group["lr"] = rate
    if learner.critic_optimiser is not None:
        for group in learner.critic_optimiser.param_groups:
            group["lr"] = recipe.critic_rate


def descend(recipe: Frozen, learner: Learner, loss: Tensor) -> None:
    """One update of the net and of its running average."""
    learner.optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(learner.net.parameters(), 1.0)
    learner.optimiser.step()
    decay = min(recipe.ema, (learner.step + 1) / (learner.step + 20))
    with torch.no_grad():
        for slow, fast in zip(learner.average.parameters(), learner.net.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


def _train_critic(learner: Learner, shown: Tensor, batch: dict[str, Tensor]) -> dict[str, float]:
    learner.critic.requires_grad_(True)
    views = torch.cat([critic_view(batch["real"], batch), critic_view(shown, batch)])
    logits, _ = learner.critic(views)
    real, fake = logits.float().chunk(2)
    mask = F.adaptive_max_pool2d(batch["limit"], real.shape[-2:]) * batch["natural"]
    loss = losses.critic_loss(real, fake, mask)
    learner.critic_optimiser.zero_grad()
    loss.backward()
    learner.critic_optimiser.step()
    learner.critic.requires_grad_(False)
    return {"critic": float(loss.detach())}


def generator_loss(
    recipe: RendererRecipe,
    learner: Learner,
    seen: nn.Module | None,
    batch: dict[str, Tensor],
    rgba: Tensor,
    shown: Tensor,
    adversarial: bool,
) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum and its parts."""
    weight, real = recipe.loss, batch["real"]
    parts = {
        "pixel": losses.pixel_loss(shown, real, batch["limit"]),
        "gradient": losses.gradient_loss(shown, real, batch["limit"]),
        "energy": losses.energy_loss(shown, real, batch["inner"]),
    }
    if seen is not None:
        parts["perceptual"] = seen(shown, real).mean()
    if adversarial:
        logits, features = learner.critic(critic_view(shown, batch))
        mask = F.adaptive_max_pool2d(batch["limit"], logits.shape[-2:]) * batch["natural"]
        parts["critic"] = losses.fooling_loss(logits.float(), mask)
        with torch.no_grad():
            _, wanted = learner.critic(critic_view(real, batch))
        parts["features"] = torch.stack(
            [(a - b).abs().mean().float() for a, b in zip(features, wanted, strict=True)]
        ).mean()
        again, few = batch["again"], len(batch["again"])
        parts["steady"] = losses.masked_l1(again, rgba[:few], batch["inner"][:few], 150.0)
    total = sum(getattr(weight, k) * v for k, v in parts.items())
    return total, {("fool" if k == "critic" else k): float(v.detach()) for k, v in parts.items()}


def export_mouth(run: Path, recipe: RendererRecipe, out: Path, card: str) -> Path:
    """Write the averaged net of a run as a model folder: ``mouth.onnx``, ``model.json``, card.

    Weights are stored as float16 and widened when the graph is read.

    Args:
        run: folder with ``last.pt``.
        recipe: the run's recipe.
        out: the model folder, created.
        card: text of ``card.md``.

    Raises:
        ConfigError: the run holds no checkpoint.
    """
    learner = trained(run, recipe)
    return write_mouth(learner.average, recipe, learner.step, out, card)


def trained(run: Path, recipe: Frozen, build: Callable = mouth_nets) -> Learner:
    """What a run has learned so far.

    Raises:
        ConfigError: the run holds no checkpoint.
    """
    last = run / "last.pt"
    if not last.is_file():
        raise ConfigError(f"no checkpoint at {last}; train first")
    learner = Learner(recipe, build)
    learner.load(last)
    return learner


def write_mouth(net: MouthUNet, recipe: Frozen, steps: int, out: Path, card: str) -> Path:
    """A mouth net as a model folder.

    Args:
        net: of any widths; ``model.json`` tells those it has.
        recipe: that it was made by.
        steps: that it was trained for.
        out: the model folder, created.
        card: text of ``card.md``.
    """
    net = net.eval().to(memory_format=torch.contiguous_format)
    out.mkdir(parents=True, exist_ok=True)
    graph = out / "mouth.onnx"
    write_graph(net, {"inputs": torch.zeros(2, N_CHANNELS, SIZE, SIZE)}, ["rgba"], graph)
    widths = [m.out_channels for m in (net.stem, *net.down)]
    about = {
        "kind": "mouth",
        "graph": graph.name,
        "size": SIZE,
        "span": SPAN,
        "channels": N_CHANNELS,
        "net": {"widths": widths, "deep": len(net.middle)},
        "mega_multiply_adds": round(multiply_adds(net, (N_CHANNELS, SIZE, SIZE)) / 1e6, 1),
    } | learned(net, recipe, steps)
    about["sha256"] = digest(graph)
    return write_folder(out, about, card)
