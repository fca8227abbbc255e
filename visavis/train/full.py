"""Train and export the head net of tier ``full``: loop, losses and evaluation.

Batches are short runs of frames through which the net carries its own picture and memory. Under
torchrun every process draws the whole batch and works off its rows; gradients are averaged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from visavis.errors import ConfigError
from visavis.eval.identity import REFERENCE, five_points
from visavis.head import IDENTITY_INPUTS, N_INPUTS, SIZE
from visavis.models.head import MEMORY_STRIDE, HeadTalker, HeadUNet, IdentityEncoder
from visavis.models.mouth import MouthCritic, multiply_adds
from visavis.mouth import LIPS
from visavis.train import renderer_losses as losses
from visavis.train.full_data import HeadData, HeadSampler, build_head_data, films_of
from visavis.train.modelfolder import digest, learned, write_folder, write_graph
from visavis.train.parallel import ALONE, Ranks, joined
from visavis.train.renderer import (
    Frozen,
    Learner,
    Progress,
    begin,
    descend,
    load_recipe,
    run_steps,
    set_rates,
    side_at,
    trained,
)
from visavis.types import N_CHANNELS as N_MOTION

MOUTH_SIDE = 96  # px of the mouth crop that critic and perceptual distance see
CRITIC_MAPS = slice(6, 10)  # of the inputs: place on the head, cover, mouth


class HeadNetConfig(Frozen):
    """Arguments of `HeadUNet` and `IdentityEncoder`."""

    widths: tuple[int, ...] = (24, 48, 96, 128)
    deep: int = 2
    memory: int = 16
    code: int = 32


class HeadLossConfig(Frozen):
    """Weights of the losses; see `head_loss`."""

    pixel: float = 1.0
    gradient: float = 0.5
    perceptual: float = 0.3
    mouth: float = 0.3
    identity: float = 0.1
    temporal: float = 0.3
    critic: float = 0.02
    thrift: float = 0.01


class FullRecipe(Frozen):
    """A training run of the head net; paths are relative to the working folder.

    Attributes:
        sizes: pairs of a step and the side in px trained at from then on.
        length: frames of a run.
        films: corpus to how many of its films.
        runs, run_length: of consecutive frames kept of each film.
        stills: folder to how many of its pictures.
        people: ``corpus/film`` to whom it shows, where the name does not tell.
        withheld: people never trained on; the evaluation shows them.
        mix: corpus to its share of a batch.
        identity_every: steps from one identity loss to the next; it costs as much as all else.
    """

    tier: str = "full"
    seed: int = 0
    run: Path = Path("runs/full")
    data: Path = Path("../shared/data")
    models: Path = Path("../shared/models")
    steps: int = 2000
    batch: int = 6
    length: int = 2
    sizes: tuple[tuple[int, int], ...] = ((0, 128), (1200, 256))
    learning_rate: float = 6e-4
    critic_rate: float = 3e-4
    warm_up: int = 1000
    ema: float = 0.995
    threads: int = 1
    bf16: bool = True
    save_every: int = 50
    evaluate_every: int = 200
    identity_every: int = 4
    net: HeadNetConfig = HeadNetConfig()
    loss: HeadLossConfig = HeadLossConfig()
    films: dict[str, int] = Field(default_factory=dict)
    runs: int = 4
    run_length: int = 3
    stills: dict[str, int] = Field(default_factory=dict)
    people: dict[str, str] = Field(default_factory=dict)
    withheld: tuple[str, ...] = ()
    mix: dict[str, float] = Field(default_factory=dict)


def head_nets(recipe: FullRecipe) -> tuple[nn.Module, nn.Module]:
    """Encoder and head net in one, and the critic, untrained."""
    config = recipe.net
    net = HeadUNet(N_INPUTS, N_MOTION, config.code, config.widths, config.deep, config.memory)
    return HeadTalker(IdentityEncoder(IDENTITY_INPUTS, config.code), net), MouthCritic(7)


def train_full(
    recipe_path: str | Path,
    *,
    steps: int | None = None,
    board: bool = False,
    distributed: bool = False,
    progress: Progress = lambda text: None,
) -> Path:
    """Train (or go on training) the head net of a recipe; see `renderer.train_renderer`.

    Raises:
        ConfigError: unreadable recipe, no training data, or a batch that cannot be shared.
    """
    recipe = load_recipe(recipe_path, FullRecipe, "full")
    with joined(distributed) as ranks:
        if recipe.batch % ranks.world:
            raise ConfigError(
                f"a batch of {recipe.batch} cannot be shared by {ranks.world} processes"
            )
        if ranks.leads:
            _build(recipe, progress)
        ranks.wait()
        data = HeadData.load(recipe.run / "data.npz")
        kept = recipe.run / "held.npz"
        held = HeadData.load(kept) if kept.is_file() else None
        fit_full(recipe, data, held, stop=steps, board=board, ranks=ranks, progress=progress)
    return recipe.run


def _build(recipe: FullRecipe, progress: Progress) -> None:
    """Training and held-out data of a run, where they are not there yet."""
    recipe.run.mkdir(parents=True, exist_ok=True)
    if (recipe.run / "data.npz").is_file():
        return
    if not recipe.data.is_dir():
        raise ConfigError(f"no training data at {recipe.data}; see the data README")
    films = list(films_of(recipe.data, recipe.films, recipe.people, recipe.withheld))
    everyone = dict.fromkeys({p.partition("/")[0] for p in recipe.withheld}, 10**6)
    shown: dict[str, tuple[Path, str]] = {}
    for film, person in films_of(recipe.data, everyone, recipe.people, ()):
        if person in recipe.withheld:
            shown.setdefault(person, (film, person))
    options = {"length": recipe.run_length, "progress": progress}
    if shown:
        held = build_head_data(
            recipe.data, recipe.models, list(shown.values()), {}, runs=1, **options
        )
        held.save(recipe.run / "held.npz")
    data = build_head_data(
        recipe.data, recipe.models, films, recipe.stills, runs=recipe.runs, **options
    )
    data.save(recipe.run / "data.npz")


class Judges:
    """The fixed nets of the losses; absent where their weight is zero."""

    def __init__(self, recipe: FullRecipe):
        weight = recipe.loss
        seen = weight.perceptual or weight.mouth
        self.seen = losses.Perceptual(recipe.models) if seen else None
        self.who = losses.Identity(recipe.models) if weight.identity else None


def fit_full(
    recipe: FullRecipe,
    data: HeadData,
    held: HeadData | None = None,
    *,
    stop: int | None = None,
    board: bool = False,
    ranks: Ranks = ALONE,
    progress: Progress = lambda text: None,
) -> int:
    """The training loop; returns the step it stopped at."""
    learner = begin(recipe, head_nets, ranks.leads)
    ranks.wait()
    judges, shared = Judges(recipe), ranks.wrap(learner.net)
    end = min(recipe.steps, stop or recipe.steps)
    source = _batches(recipe, HeadSampler(data, recipe.mix, recipe.length), learner.step, end)
    with _board(recipe, held, learner, board and ranks.leads, progress) as after:
        return run_steps(
            recipe, learner, source,
            lambda batch: head_step(recipe, learner, judges, batch, shared, ranks),
            end, progress, leads=ranks.leads, after=after,
        )  # fmt: skip


def _batches(
    recipe: FullRecipe, sampler: HeadSampler, start: int, end: int
) -> Iterator[dict[str, Tensor]]:
    for step in range(start, end):
        drawn = sampler.batch(np.random.default_rng((recipe.seed, step)), recipe.batch)
        yield shrink({k: torch.from_numpy(v) for k, v in drawn.items()}, side_at(recipe, step))


def shrink(batch: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """Pictures and maps of a batch at another side; flows are scaled along."""
    factor = SIZE // side
    if factor == 1:
        return batch

    def pooled(x: Tensor) -> Tensor:
        flat = F.avg_pool2d(x.reshape(-1, 1, *x.shape[-2:]), factor)
        return flat.reshape(*x.shape[:-2], side, side)

    small = {k: pooled(batch[k]) for k in ("photo", "inputs", "real", "rgb", "steady")}
    flow = pooled(batch["flow"].movedim(-1, 2)).movedim(2, -1) / factor
    return batch | small | {"flow": flow}


def head_step(
    recipe: FullRecipe,
    learner: Learner,
    judges: Judges,
    batch: dict[str, Tensor],
    shared: nn.Module,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """One step of both nets; returns the losses of the whole batch as floats."""
    set_rates(recipe, learner)
    batch = {k: v[ranks.rows(len(v))] for k, v in batch.items()}
    adversarial = learner.step >= recipe.warm_up and recipe.loss.critic > 0
    report: dict[str, float] = {}
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
        paint, shown = shared(batch["photo"], batch["inputs"], batch["motion"], batch["rgb"])
        views = mouth_views(batch, shown)
        if adversarial:
            report = _train_critic(learner, views, ranks)
        loss, parts = head_loss(recipe, learner, judges, batch, paint, shown, views, adversarial)
    descend(recipe, learner, loss)
    report = report | parts
    return {k: v / ranks.world for k, v in ranks.total(report).items()}


def mouth_views(batch: dict[str, Tensor], shown: Tensor) -> dict[str, Tensor]:
    """Mouth crops of the last frame: ``ours`` and ``real`` ``(B, 3, h, h)``, ``maps`` for the critic."""
    place = mouth_place(batch["points"][:, -1])
    maps = batch["inputs"][:, -1, CRITIC_MAPS]
    cropped = {"ours": shown[:, -1], "real": batch["real"][:, -1], "maps": maps}
    return {k: losses.crop_at(v, place, MOUTH_SIDE) for k, v in cropped.items()}


def mouth_place(points: Tensor) -> Tensor:
    """Affine place ``(B, 2, 3)`` of a square one outer-eye distance wide about the lips."""
    xy = (points + 0.5) * (2 / SIZE) - 1
    half = (xy[:, 263] - xy[:, 33]).norm(dim=1) / 2
    place = torch.eye(2, 3).repeat(len(points), 1, 1) * half[:, None, None]
    place[:, :, 2] = xy[:, list(LIPS)].mean(1)
    return place


def face_place(points: Tensor) -> Tensor:
    """Affine place ``(B, 2, 3)`` of the crop that the identity embedding wants."""
    rows = []
    for face in points.numpy():
        a = (five_points(face) + 0.5) * (2 / SIZE) - 1
        b = REFERENCE * 2 - 1
        z, w = (p[:, 0] + 1j * p[:, 1] for p in (a.astype(np.float64), b.astype(np.float64)))
        turn = np.vdot(w - w.mean(), z - z.mean()) / np.vdot(w - w.mean(), w - w.mean()).real
        shift = z.mean() - turn * w.mean()
        rows.append([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])
    return torch.tensor(rows, dtype=torch.float32)


def _train_critic(learner: Learner, views: dict[str, Tensor], ranks: Ranks) -> dict[str, float]:
    learner.critic.requires_grad_(True)
    pairs = [torch.cat([views[k].detach(), views["maps"]], 1) for k in ("real", "ours")]
    logits, _ = learner.critic(torch.cat(pairs))
    real, fake = logits.float().chunk(2)
    loss = losses.critic_loss(real, fake, torch.ones_like(real))
    learner.critic_optimiser.zero_grad()
    loss.backward()
    if ranks.world > 1:
        for weight in learner.critic.parameters():
            torch.distributed.all_reduce(weight.grad)
            weight.grad /= ranks.world
    learner.critic_optimiser.step()
    learner.critic.requires_grad_(False)
    return {"critic_own": float(loss.detach())}


def head_loss(
    recipe: FullRecipe,
    learner: Learner,
    judges: Judges,
    batch: dict[str, Tensor],
    paint: Tensor,
    shown: Tensor,
    views: dict[str, Tensor],
    adversarial: bool,
) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum and its parts.

    Pixels and gradients count where the net may paint, most about lips and eyes; ``perceptual`` is
    of the whole crop's last frame, ``mouth`` of the mouth's; ``thrift`` is the mean change.
    """
    maps = batch["inputs"].flatten(0, 1)
    mask = importance(maps)
    ours, real = shown.flatten(0, 1), batch["real"].flatten(0, 1)
    parts = {
        "pixel": losses.pixel_loss(ours, real, mask),
        "gradient": losses.gradient_loss(ours, real, mask),
        "temporal": temporal_loss(batch, shown),
        "thrift": paint.abs().mean(),
    }
    if judges.seen is not None:
        parts["perceptual"] = judges.seen(shown[:, -1], batch["real"][:, -1]).mean()
        parts["mouth"] = judges.seen(views["ours"], views["real"]).mean()
    if judges.who is not None and learner.step % recipe.identity_every == 0:
        place = face_place(batch["points"][:, -1])
        faces = [losses.crop_at(x[:, -1], place, 128) for x in (shown, batch["real"])]
        parts["identity"] = judges.who(*faces).mean()
    if adversarial:
        logits, _ = learner.critic(torch.cat([views["ours"], views["maps"]], 1))
        parts["critic"] = losses.fooling_loss(logits.float(), torch.ones_like(logits))
    total = sum(getattr(recipe.loss, k) * v for k, v in parts.items())
    if "identity" in parts:
        parts["identity"] = (
            parts["identity"] * recipe.identity_every
        )  # the log's mean is of all steps
    return total, {k: float(v.detach()) for k, v in parts.items()}


def importance(maps: Tensor) -> Tensor:
    """How much each pixel counts, ``(N, 1, H, H)``: the limit, and more about lips and lids."""
    near = F.avg_pool2d(maps[:, 10:12], 9, 1, 4, count_include_pad=False)
    return maps[:, 12:13] * (0.5 + 4 * near[:, :1] + 2 * near[:, 1:])


def temporal_loss(batch: dict[str, Tensor], shown: Tensor) -> Tensor:
    """Difference of every frame from the one before moved along the real film's flow."""
    if shown.shape[1] < 2:
        return shown.sum() * 0
    flow, steady = batch["flow"][:, 1:].flatten(0, 1), batch["steady"][:, 1:].flatten(0, 1)
    before = losses.moved_back(shown[:, :-1].flatten(0, 1), flow)
    mask = steady * batch["inputs"][:, 1:, 12:13].flatten(0, 1)
    return losses.masked_l1(shown[:, 1:].flatten(0, 1), before, mask, 150.0)


def _board(
    recipe: FullRecipe,
    held: HeadData | None,
    learner: Learner,
    wanted: bool,
    progress: Progress,
) -> AbstractContextManager[Callable[[dict | None], None]]:
    """What writes TensorBoard scalars and, every so often, the same held-out portraits."""
    if not wanted:
        return nullcontext(lambda line: None)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise ConfigError("--tensorboard needs it: pip install 'visavis[train]'") from err
    return _Board(SummaryWriter(str(recipe.run / "tensorboard")), recipe, held, learner, progress)


class _Board(AbstractContextManager):
    def __init__(self, writer, recipe, held, learner, progress) -> None:
        self._writer, self._recipe, self._learner = writer, recipe, learner
        self._held, self._progress = held, progress

    def __enter__(self) -> Callable[[dict | None], None]:
        return self._after

    def __exit__(self, *_) -> None:
        self._writer.close()

    def _after(self, line: dict | None) -> None:
        step = self._learner.step
        for name in (line or {}).keys() - {"step"}:
            self._writer.add_scalar(f"full/{name}", line[name], step)
        if self._held is not None and step % self._recipe.evaluate_every == 0:
            side = side_at(self._recipe, step)
            figures, grid = evaluate(self._learner.average, self._held, self._recipe.length, side)
            for name, value in figures.items():
                self._writer.add_scalar(f"held/{name}", value, step)
            self._writer.add_image("held/under_ours_real", grid, step, dataformats="HWC")
            self._progress(json.dumps({"step": step} | figures))
        self._writer.flush()


def evaluate(
    talker: HeadTalker, held: HeadData, length: int, side: int = SIZE
) -> tuple[dict[str, float], np.ndarray]:
    """The last frame of every held-out scene.

    Returns:
        PSNR (dB) of the crop before and after painting, and the pictures side by side, one row a
        scene: as drawn beneath, as painted, as it really was; ``(H, W, 3)`` uint8.
    """
    sampler = HeadSampler(
        held, dict.fromkeys({str(p).partition("/")[0] for p in held.people}, 1), length
    )
    rows, errors = [], []
    for scene in range(len(held.people)):
        last = int(np.flatnonzero(held.scene == scene)[-1])
        drawn = {k: torch.from_numpy(v)[None] for k, v in sampler.run(last).items()}
        drawn = shrink(drawn, side)
        with torch.no_grad():
            _, shown = talker(drawn["photo"], drawn["inputs"], drawn["motion"], drawn["rgb"])
        under, real = drawn["inputs"][0, -1, :3], drawn["real"][0, -1]
        ours = shown[0, -1].clamp(-1, 1)
        errors.append([float((x - real).square().mean()) / 4 for x in (under, ours)])
        rows.append(torch.cat([under, ours, real], -1))
    under_db, ours_db = (-10 * np.log10(np.array(errors))).mean(0)
    grid = ((torch.cat(rows, 1).permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    return {"psnr_under": round(under_db, 3), "psnr": round(ours_db, 3)}, grid


def export_head(run: Path, recipe: FullRecipe, out: Path, card: str) -> Path:
    """Write the averaged nets of a run as a model folder: two graphs, ``model.json``, card.

    Raises:
        ConfigError: the run holds no checkpoint.
    """
    learner = trained(run, recipe, head_nets)
    talker = learner.average.eval().to(memory_format=torch.contiguous_format)
    out.mkdir(parents=True, exist_ok=True)
    rgb, memory = talker.net.first(2, SIZE)
    example = {
        "inputs": torch.zeros(2, N_INPUTS, SIZE, SIZE),
        "code": torch.zeros(2, recipe.net.code),
        "motion": torch.zeros(2, N_MOTION),
        "rgb": rgb,
        "memory": memory,
    }
    graph, encoder = out / "head.onnx", out / "identity.onnx"
    write_graph(talker.net, example, ["paint", "next_rgb", "next_memory"], graph)
    photo = torch.zeros(2, IDENTITY_INPUTS, SIZE, SIZE)
    write_graph(talker.encoder, {"photo": photo}, ["code"], encoder)
    about = {
        "kind": "head",
        "graph": graph.name,
        "encoder": encoder.name,
        "size": SIZE,
        "inputs": N_INPUTS,
        "motion": N_MOTION,
        "memory": recipe.net.memory,
        "memory_stride": MEMORY_STRIDE,
        "net": recipe.net.model_dump(),
        "mega_multiply_adds": round(head_multiply_adds(talker.net) / 1e6, 1),
    } | learned(talker, recipe, learner.step)
    about["sha256"] = {g.name: digest(g) for g in (graph, encoder)}
    return write_folder(out, about, card)


def head_multiply_adds(net: HeadUNet) -> int:
    """Multiply-adds of all convolutions for one frame."""

    class OneFrame(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, inputs: Tensor) -> Tensor:
            code = net.modulate[0].both.in_features - N_MOTION
            still = torch.zeros(len(inputs), code), torch.zeros(len(inputs), N_MOTION)
            return net(inputs, *still, *net.first(len(inputs), SIZE))[0]

    return multiply_adds(OneFrame(), (N_INPUTS, SIZE, SIZE))
