"""What ``visavis prepare``, ``train motion`` and ``export`` do once their arguments are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from visavis.errors import ConfigError, InputError

Report = Callable[[str], None]


def _quiet(_: str) -> None:
    """Say nothing."""


def prepare(
    directory: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    talker: str = "clip",
    offsets: str | Path | None = None,
    words: str | Path | None = None,
    models: str | Path | None = None,
    report: Report = _quiet,
) -> dict:
    """A folder of talking videos, or of sound files, to training clips in ``out/NAME``.

    Args:
        directory: the folder.
        out: folder of all clips; tracks are kept in ``out/tracks`` and used again.
        name: corpus name, the folder's by default.
        talker: ``all``, ``prefix`` or ``clip``: what in a file name tells talkers apart.
        offsets: JSON of clip name (or ``*``) -> ms the mouth lags the sound.
        words: TSV of clip, start, end, word, or JSON of clip -> text; recognised otherwise.
        models: where the face graphs are.
        report: called with lines of progress.

    Raises:
        InputError: nothing usable in the folder.
        ConfigError: ``talker`` is unknown.
    """
    from visavis.facemesh import FaceMesh
    from visavis.train import prepare as job

    directory = Path(directory)
    if talker not in ("all", "prefix", "clip"):
        raise ConfigError(f"talker {talker!r} is unknown; choose one of all, prefix, clip")
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder; give one of videos or sound files")
    suffixes = {p.suffix.lower() for p in directory.iterdir()}
    config = job.CorpusConfig(
        name or directory.name,
        talker,
        _offsets(Path(offsets), name or directory.name) if offsets else {},
        _words(Path(words)) if words else {},
    )

    def progress(done: int, total: int) -> None:
        report(f"{config.name}: {done} of {total}")

    if suffixes & set(job.VIDEO_SUFFIXES):
        return job.prepare_videos(directory, out, config, FaceMesh.open(models), progress)
    if suffixes & set(job.AUDIO_SUFFIXES):
        return job.prepare_speech(directory, out, config, progress)
    raise InputError(f"{directory} has no videos and no sound files; give another folder")


def train_motion(
    recipe: str | Path,
    clips: str | Path,
    run: str | Path,
    *,
    threads: int = 1,
    stop: int = 0,
    report: Report = _quiet,
) -> Path:
    """Train by a recipe, going on from ``run`` where a run is there.

    Args:
        recipe: name of a shipped recipe or path of a TOML file.
        clips: folder of ``prepare``.
        run: folder of the checkpoint and log.
        threads: CPU threads.
        stop: step to stop at for now, 0 for the recipe's end.
        report: called with lines of progress.

    Returns:
        The checkpoint.
    """
    import torch

    from visavis.train.loop import build_pools, load_pools, save_pools, train
    from visavis.train.recipes import read_motion_recipe

    torch.set_num_threads(threads)
    config = read_motion_recipe(recipe)
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(config.model_dump_json(indent=1), encoding="utf-8")
    if (folder / "pools.npz").exists():
        pools = load_pools(folder / "pools.npz")
        for pool in pools:
            kept = config.pools.get(pool.name)
            pool.share = kept.share if kept else config.quiet_share
    else:
        pools = build_pools(config, clips, report)
        save_pools(pools, folder / "pools.npz")
    train(config, pools, folder, report, stop)
    return folder / "run.pt"


def export_motion_run(
    run: str | Path, out: str | Path, card: str = "", facts: dict | None = None
) -> Path:
    """The averaged weights of a run to a model folder.

    Raises:
        InputError: no checkpoint in ``run``.
    """
    from visavis.export import export_motion

    net = load_average(run)
    return export_motion(net, out, card, facts)


def load_average(run: str | Path):
    """The averaged weights of a run, in evaluation mode."""
    import torch

    from visavis.models.motion import SIZES, MotionNet

    run = Path(run)
    if not (run / "run.pt").exists():
        raise InputError(f"no checkpoint in {run}; train first")
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    net = MotionNet(SIZES[recipe["size"]])
    net.load_state_dict(torch.load(run / "run.pt", weights_only=True)["average"])
    return net.eval()


def _offsets(path: Path, corpus: str) -> dict[str, float]:
    """Clip -> ms, also from a file that holds several corpora by name."""
    table = json.loads(path.read_text(encoding="utf-8"))
    return table.get(corpus, {}) if any(isinstance(v, dict) for v in table.values()) else table


def _words(path: Path) -> dict[str, str]:
    """Text by clip from a TSV with columns clip and word, or from JSON."""
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    head = {name: i for i, name in enumerate(rows[0])}
    texts: dict[str, list[str]] = {}
    for row in rows[1:]:
        if row[head["word"]] not in ("sil", "sp"):
            texts.setdefault(row[head["clip"]], []).append(row[head["word"]])
    return {clip: " ".join(words) for clip, words in texts.items()}
