"""Train the motion net: pools from clips, steps with checkpoints, exact resume.

Batch ``k`` depends on the seed and ``k`` alone and torch's generator is kept in the checkpoint, so
a run that was stopped and one that was not end in the same weights. What the losses are divided by is
counted over the whole batch, so neither working it off in parts (``accumulate``) nor sharing it between
processes changes the curve.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from visavis.errors import ConfigError
from visavis.models.architectures import AnyMotionNet, build_motion_net
from visavis.train.augment import crowd
from visavis.train.clips import Clip, is_withheld, load_corpus
from visavis.train.data import (
    LOG_MEL,
    Batch,
    Example,
    FrontEnd,
    Pool,
    batches,
    make_example,
    make_quiet,
)
from visavis.train.encoders import ChunkedEncoder, EncodedMotionNet
from visavis.train.losses import LossWeights, loss_counts, motion_loss
from visavis.train.parallel import ALONE, Ranks
from visavis.train.pseudo import fit_phone_motion, label
from visavis.train.recipes import MotionRecipe

Report = Callable[[str], None]


@dataclass
class Run:
    """What a checkpoint holds."""

    net: AnyMotionNet
    average: AnyMotionNet
    optimiser: torch.optim.Optimizer
    step: int = 0
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        self.shared = self.ranks.wrap(self.net)

    def hold(self, more: bool) -> AbstractContextManager:
        """Leave gradients of one part with this process while more parts of the batch follow."""
        return self.shared.no_sync() if more and self.ranks.world > 1 else nullcontext()


def training_clips(folder: str | Path, corpora: tuple[str, ...]) -> list[Clip]:
    """Clips of some corpora without those withheld for scoring."""
    return [
        clip for corpus in corpora for clip in load_corpus(folder, corpus) if not is_withheld(clip)
    ]


def build_pools(
    recipe: MotionRecipe, folder: str | Path, report: Report, front: FrontEnd = LOG_MEL
) -> list[Pool]:
    """Read clips, fit the phone teacher where it is needed, draw the recording conditions."""
    rng = np.random.default_rng(recipe.seed)
    clips = {name: training_clips(folder, p.corpora) for name, p in recipe.pools.items()}
    wanted = recipe.chatter_corpora
    every = {c.corpus + "/" + c.name: c for group in clips.values() for c in group}.values()
    voices = [c.pcm / 32768.0 for c in every if c.corpus in wanted or not wanted]
    if any(p.pseudo for p in recipe.pools.values()):
        filmed = training_clips(folder, recipe.teacher_corpora)
        report(f"teacher: {len(filmed)} filmed clips")
        teacher, talkers = fit_phone_motion(filmed, iterations=recipe.teacher_iterations)
        styles = [talkers[t] for t in recipe.teacher_talkers] or [0]
    pools = []
    for name, p in recipe.pools.items():
        group = clips[name][: p.limit or None]
        if p.pseudo:
            group = [label(teacher, [c], styles[i % len(styles)])[0] for i, c in enumerate(group)]
        pool = Pool(name, p.share)
        for clip in group:
            pool.add(make_example(clip, rng, augment=False, weight=p.weight, front=front))
            for _ in range(p.copies):
                others = crowd(voices, len(clip.pcm), rng)
                pool.add(make_example(clip, rng, chatter=others, weight=p.weight, front=front))
        report(f"pool {name}: {len(group)} clips, {len(pool.examples)} examples")
        pools.append(pool)
    quiet = Pool("quiet", recipe.quiet_share)
    for _ in range(recipe.quiet):
        quiet.add(make_quiet(rng, front=front, voices=voices))
    return [p for p in [*pools, quiet] if p.examples and p.share > 0]


def save_pools(pools: list[Pool], path: Path) -> None:
    """Keep pools, so that a run that goes on need not draw them again."""
    arrays = {}
    for i, pool in enumerate(pools):
        arrays[f"{i}.name"] = np.array(pool.name)
        arrays[f"{i}.share"] = np.array(pool.share)
        arrays[f"{i}.lengths"] = np.array([len(e.motion) for e in pool.examples])
        arrays[f"{i}.weights"] = np.array([e.weight for e in pool.examples])
        for key in ("features", "motion", "phones"):
            arrays[f"{i}.{key}"] = np.concatenate([getattr(e, key) for e in pool.examples])
    with path.with_suffix(".part").open("wb") as handle:
        np.savez(handle, **arrays)
    path.with_suffix(".part").replace(path)


def load_pools(path: Path) -> list[Pool]:
    """Take up pools of ``save_pools``."""
    pools = []
    with np.load(path) as file:
        for i in range(sum(k.endswith(".name") for k in file.files)):
            part = {k.partition(".")[2]: file[k] for k in file.files if k.startswith(f"{i}.")}
            cuts = np.cumsum(part["lengths"])[:-1]
            per_step = len(part["features"]) // len(part["motion"])
            columns = (
                np.split(part["features"], per_step * cuts), np.split(part["motion"], cuts),
                np.split(part["phones"], cuts), part["weights"].tolist(),
            )  # fmt: skip
            examples = [Example(*row) for row in zip(*columns, strict=True)]
            pools.append(Pool(str(part["name"]), float(part["share"]), examples))
    return pools


def fresh_net(
    recipe: MotionRecipe, front: FrontEnd, encoder: ChunkedEncoder | None
) -> AnyMotionNet | EncodedMotionNet:
    """The net a recipe asks for, untrained."""
    width = encoder.width if encoder else front.n_inputs
    net = build_motion_net(recipe.architecture, recipe.size, n_inputs=width, dropout=recipe.dropout)
    return EncodedMotionNet(encoder, net) if encoder else net


def start_run(
    recipe: MotionRecipe,
    pools: list[Pool],
    front: FrontEnd = LOG_MEL,
    ranks: Ranks = ALONE,
    encoder: ChunkedEncoder | None = None,
) -> Run:
    """Fresh weights, scaled to the pools' motion; around an encoder where one is tuned along."""
    torch.manual_seed(recipe.seed)
    net = fresh_net(recipe, front, encoder)
    motion = np.concatenate([e.motion for p in pools for e in p.examples if p.name != "quiet"])
    motion = motion[np.isfinite(motion[:, 0])]
    if len(motion):
        net.mean[:] = torch.from_numpy(motion.mean(0))
        net.scale[:] = torch.from_numpy(motion.std(0) + 1e-4)
    if recipe.start:
        net.load_state_dict(_weights_of(recipe.start))
    average = copy.deepcopy(net).requires_grad_(False)
    learning = [p for p in net.parameters() if p.requires_grad]
    decay = [p for p in learning if p.ndim > 1]
    plain = [p for p in learning if p.ndim <= 1]
    groups = [
        {"params": decay, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    return Run(net, average, optimiser, ranks=ranks)


def _weights_of(path: str) -> dict[str, torch.Tensor]:
    try:
        return torch.load(path, weights_only=True)["average"]
    except OSError as error:
        raise ConfigError(f"start = {path}: cannot be read; give the run.pt of a run") from error


def save_run(run: Run, path: Path) -> None:
    """Write a checkpoint; the one before stays whole until this one is."""
    parts = {
        "net": run.net.state_dict(),
        "average": run.average.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "step": run.step,
        "torch": torch.get_rng_state(),
    }
    torch.save(parts, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def load_run(run: Run, path: Path) -> Run:
    """Take up a checkpoint of ``save_run``."""
    parts = torch.load(path, weights_only=True)
    run.net.load_state_dict(parts["net"])
    run.average.load_state_dict(parts["average"])
    run.optimiser.load_state_dict(parts["optimiser"])
    run.step = parts["step"]
    torch.set_rng_state(parts["torch"])
    return run


def learning_rate(recipe: MotionRecipe, step: int) -> float:
    """A short linear start, then half a cosine down to 2 %."""
    warm = min(1.0, (step + 1) / max(1, min(200, recipe.iterations // 10)))
    return (
        recipe.learning_rate * warm * (0.51 + 0.49 * math.cos(math.pi * step / recipe.iterations))
    )


def train_step(run: Run, batch: Batch, recipe: MotionRecipe) -> dict[str, float]:
    """One update; the loss by terms, of the whole batch."""
    net, ranks = run.net.train(), run.ranks
    for group in run.optimiser.param_groups:
        group["lr"] = learning_rate(recipe, run.step)
    if ranks.world > 1:  # the checkpoint holds one generator: each process has its own by number
        torch.manual_seed(hash((recipe.seed, run.step, ranks.rank)))
    whole = [torch.from_numpy(getattr(batch, f.name)) for f in fields(Batch)]
    known = [f.name for f in fields(Batch)].index("known")
    whole[known] = whole[known] * torch.tensor(recipe.lookahead_weight)[:, None]
    # A row's four look-aheads count as four rows.
    counts = loss_counts(*(column.flatten(0, 1) for column in whole[1:]))
    mine = [column[ranks.rows(len(column))] for column in whole]
    split = min(recipe.accumulate, len(mine[0]))
    parts = list(zip(*(c.tensor_split(split) for c in mine), strict=True))
    run.optimiser.zero_grad()
    sums: dict[str, float] = {}
    for i, (features, *answers) in enumerate(parts):
        target, known, phones = (a.flatten(0, 1) for a in answers)
        with run.hold(i < len(parts) - 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                heard = run.shared(features, None, net.init_state(len(features)))
            motion, logits = (x.float().flatten(0, 1) for x in heard[:2])
            terms = motion_loss(
                motion, logits, target, known, phones, net.scale, LossWeights(**recipe.loss), counts
            )
            # Gradients are averaged over processes, and each has only its own rows' loss.
            (sum(terms.values()) * ranks.world).backward()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    run.optimiser.step()
    run.step += 1
    share = 1.0 - min(recipe.average, (1 + run.step) / (10 + run.step))
    with torch.no_grad():
        pairs = zip(run.average.parameters(), net.parameters(), strict=True)
        for kept, fresh in pairs:
            kept.lerp_(fresh, share)
    return ranks.total(sums)


def train(
    recipe: MotionRecipe,
    pools: list[Pool],
    folder: str | Path,
    report: Report,
    stop: int = 0,
    *,
    front: FrontEnd = LOG_MEL,
    ranks: Ranks = ALONE,
    encoder: ChunkedEncoder | None = None,
    board: bool = False,
) -> Run:
    """Run to the recipe's end (or to ``stop``), going on from ``folder`` where a run is there.

    Args:
        recipe: of the run.
        pools: of ``build_pools``, the same in every process.
        folder: of the checkpoint and the log; written by the leading process.
        report: called with lines of progress.
        stop: step to stop at for now, 0 for the recipe's end.
        front: what made the pools' features.
        ranks: this process among all.
        encoder: to tune along.
        board: write a TensorBoard log as well.
    """
    check_shares(recipe, ranks.world)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "run.pt"
    run = start_run(recipe, pools, front, ranks, encoder)
    if checkpoint.exists():
        run = load_run(run, checkpoint)
        report(f"resumed at step {run.step}")
    began, spent, first = time.monotonic(), time.process_time(), run.step
    sums, count = {}, 0
    source = batches(pools, recipe.batch, recipe.steps, recipe.seed, run.step, front)
    end = min(stop or recipe.iterations, recipe.iterations)
    with journal(folder, board and ranks.leads) as write:
        while run.step < end:
            for name, value in train_step(run, next(source), recipe).items():
                sums[name] = sums.get(name, 0.0) + value
            count += 1
            if run.step % recipe.checkpoint_every == 0 or run.step == end:
                line = {k: round(v / count, 4) for k, v in sums.items()}
                done = max(run.step - first, 1)
                line |= {
                    "step": run.step,
                    "seconds_per_step": round((time.monotonic() - began) / done, 3),
                    "core_seconds_per_step": round((time.process_time() - spent) / done, 3),
                }
                sums, count = {}, 0
                if ranks.leads:
                    write(line)
                    report(json.dumps(line))
                    save_run(run, checkpoint)
                ranks.wait()
    return run


def check_shares(recipe: MotionRecipe, world: int) -> None:
    """Refuse a batch that ``world`` processes cannot share evenly.

    Raises:
        ConfigError: they cannot.
    """
    if recipe.batch % world:
        raise ConfigError(f"a batch of {recipe.batch} cannot be shared evenly by {world} processes")


@contextmanager
def journal(folder: Path, board: bool) -> Iterator[Callable[[dict[str, float]], None]]:
    """What writes a line of numbers to ``log.jsonl`` and, where wanted, as TensorBoard scalars.

    Raises:
        ConfigError: tensorboard is wanted and not installed.
    """
    writer = None
    if board:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as err:
            raise ConfigError("--tensorboard needs it: pip install 'visavis[train]'") from err
        writer = SummaryWriter(str(folder / "tensorboard"))

    def write(line: dict[str, float]) -> None:
        with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        if writer:
            for name in line.keys() - {"step"}:
                writer.add_scalar(f"motion/{name}", line[name], line["step"])
            writer.flush()

    try:
        yield write
    finally:
        if writer:
            writer.close()
