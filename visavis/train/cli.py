"""What ``visavis prepare``, ``train motion`` and ``export`` do once their arguments are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from visavis.errors import ConfigError, InputError

if TYPE_CHECKING:
    from visavis.models.architectures import AnyMotionNet
    from visavis.train.encoders import EncodedMotionNet
    from visavis.train.recipes import MotionRecipe

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
    phones: bool = True,
    jobs: int = 1,
    ray: bool = False,
    ray_address: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """A folder of talking videos, or of sound files, to training clips in ``out/NAME``.

    Args:
        directory: the folder.
        out: folder of all clips; ``out/survey`` keeps what each file showed, for the next run.
        name: corpus name, the folder's by default.
        talker: ``all``, ``prefix``, ``dash`` or ``clip``: what in a file name tells talkers apart.
        offsets: JSON of clip name (or ``*``) -> ms the mouth lags the sound; else estimated.
        words: TSV of clip, start, end, word, or JSON of clip -> text; recognised otherwise.
        models: where the face graphs are.
        phones: whether words and phones are wanted (pocketsphinx).
        jobs: processes side by side.
        ray: run the slow part with Ray Data.
        ray_address: of a running Ray cluster.
        progress: called with files done and files in all.

    Returns:
        What ``out/NAME.json`` holds.

    Raises:
        InputError: nothing usable in the folder.
        ConfigError: ``talker`` is unknown, or Ray is not installed.
    """
    from visavis.train import prepare as job

    directory = Path(directory)
    if talker not in ("all", "prefix", "dash", "clip"):
        raise ConfigError(f"talker {talker!r} is unknown; choose one of all, prefix, dash, clip")
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder; give one of videos or sound files")
    config = job.CorpusConfig(
        name or directory.name,
        talker,
        _offsets(Path(offsets), name or directory.name) if offsets else {},
        _words(Path(words)) if words else {},
        phones=phones,
        jobs=jobs,
        ray=ray,
        ray_address=ray_address,
        models=str(models) if models else None,
    )
    if job.sources_of(directory, job.VIDEO_SUFFIXES):
        return job.prepare_videos(directory, out, config, progress)
    if job.sources_of(directory, job.AUDIO_SUFFIXES):
        return job.prepare_speech(directory, out, config, progress)
    raise InputError(f"{directory} has no videos and no sound files; give another folder")


def count_sources(directory: str | Path) -> int:
    """Files that ``prepare`` would look at: the films, or the sound files where there is no film."""
    from visavis.train import prepare as job

    if not Path(directory).is_dir():
        return 0
    films = job.sources_of(directory, job.VIDEO_SUFFIXES)
    return len(films or job.sources_of(directory, job.AUDIO_SUFFIXES))


def train_motion(
    recipe: str | Path,
    clips: str | Path,
    run: str | Path,
    *,
    threads: int = 1,
    stop: int = 0,
    changes: dict | None = None,
    accept_licence: bool = False,
    distributed: bool = False,
    board: bool = False,
    report: Report = _quiet,
) -> Path:
    """Train by a recipe, going on from ``run`` where a run is there.

    Args:
        recipe: name of a shipped recipe or path of a TOML file.
        clips: folder of ``prepare``.
        run: folder of the checkpoint and log.
        threads: CPU threads.
        stop: step to stop at for now, 0 for the recipe's end.
        changes: keys of the recipe to set otherwise; ``None`` values change nothing.
        accept_licence: use an encoder whose weights are not permissively licensed.
        distributed: torchrun started this process, one of several.
        board: write a TensorBoard log as well.
        report: called with lines of progress.

    Returns:
        The checkpoint.

    Raises:
        ConfigError: an impossible recipe, or another than the run in ``run`` was begun with.
    """
    import torch

    from visavis.train.encoders import open_front
    from visavis.train.loop import build_pools, load_pools, save_pools, train
    from visavis.train.parallel import joined
    from visavis.train.recipes import change, read_motion_recipe

    torch.set_num_threads(threads)
    config = change(read_motion_recipe(recipe), changes or {})
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    _same_net(folder, config)
    front, encoder = open_front(config, accept_licence)
    with joined(distributed) as ranks:
        report = report if ranks.leads else _quiet
        kept = folder / "pools.npz"
        if ranks.leads:
            text = config.model_dump_json(indent=1)
            (folder / "recipe.json").write_text(text, encoding="utf-8")
            if not kept.exists():
                save_pools(build_pools(config, clips, report, front), kept)
        ranks.wait()
        pools = load_pools(kept)
        for pool in pools:
            asked = config.pools.get(pool.name)
            pool.share = asked.share if asked else config.quiet_share
        train(
            config, pools, folder, report, stop,
            front=front, ranks=ranks, encoder=encoder, board=board,
        )  # fmt: skip
    return folder / "run.pt"


def _same_net(folder: Path, config: MotionRecipe) -> None:
    """Refuse to go on with weights of another shape."""
    from visavis.train.recipes import SHAPES_NET

    if not (folder / "run.pt").exists():
        return
    begun = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    for key in SHAPES_NET:
        old, new = begun.get(key, type(config).model_fields[key].default), getattr(config, key)
        if old != new:
            raise ConfigError(
                f"the run in {folder} was begun with {key} = {old!r}, not {new!r}; give another folder"
            )


def train_autoencoder(
    recipe: str | Path,
    clips: str | Path,
    run: str | Path,
    *,
    threads: int = 1,
    report: Report = _quiet,
) -> Path:
    """Train the motion autoencoder, going on from ``run`` where a run is there.

    Args:
        recipe: name of a shipped recipe or path of a TOML file.
        clips: folder of ``prepare``, whose tracks are used.
        run: folder of the checkpoint, the report and the picture.
        threads: CPU threads.
        report: called with lines of progress.

    Returns:
        The report.
    """
    import torch

    from visavis.train import autoencoder

    torch.set_num_threads(threads)
    config = autoencoder.read_autoencoder_recipe(recipe)
    return autoencoder.train_autoencoder(config, clips, run, report)


def export_run(
    run: str | Path, out: str | Path, card: str = "", recipe: str | Path | None = None
) -> Path:
    """The weights of a motion, renderer, matting or autoencoder run to a model folder.

    Args:
        run: folder of the run.
        out: the model folder.
        card: text of the model card.
        recipe: of a renderer run that does not hold its own.

    Raises:
        InputError: no checkpoint in ``run``, or no recipe of a renderer run.
    """
    if (Path(run) / "last.pt").exists():
        return _export_renderer_run(Path(run), Path(out), card, recipe)
    kept = Path(run) / "recipe.json"
    if kept.exists() and "latent" in json.loads(kept.read_text(encoding="utf-8")):
        return _export_autoencoder_run(Path(run), Path(out), card)
    return export_motion_run(run, out, card)


def _export_autoencoder_run(run: Path, out: Path, card: str) -> Path:
    from visavis.export import export_autoencoder
    from visavis.facemodel import BASIS_CHANNELS, load_face_model
    from visavis.train.autoencoder import load_net, mouth_vertices

    if not (run / "run.pt").exists():
        raise InputError(f"no checkpoint in {run}; train first")
    used = mouth_vertices(load_face_model().template).tolist()
    facts = {"channels": list(BASIS_CHANNELS), "vertices": used}
    return export_autoencoder(load_net(run), out, card, facts)


def _export_renderer_run(run: Path, out: Path, card: str, recipe: str | Path | None) -> Path:
    from visavis.train.full import FullRecipe, export_head
    from visavis.train.matte import MatteRecipe, export_matte
    from visavis.train.renderer import RendererRecipe, export_mouth, load_recipe

    kept = run / "recipe.json"
    if not (recipe or kept.exists()):
        raise InputError(f"the renderer run {run} holds no recipe.json; give --recipe RECIPE")
    told = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    kinds = {"full": (FullRecipe, export_head), "matte": (MatteRecipe, export_matte)}
    kind, export = kinds.get(told.get("tier", ""), (RendererRecipe, export_mouth))
    config = load_recipe(recipe, kind) if recipe else kind.model_validate(told)
    return export(run, config, out, card)


def export_motion_run(
    run: str | Path, out: str | Path, card: str = "", facts: dict | None = None
) -> Path:
    """The averaged weights of a motion run to a model folder, with the encoder it hears with.

    Raises:
        InputError: no checkpoint in ``run``.
    """
    from visavis.export import export_encoder, export_motion
    from visavis.train import encoders

    net, recipe = load_average(run), _recipe_of(Path(run))
    facts = (facts or {}) | {"architecture": recipe.architecture}
    if recipe.encoder == "log_mel":
        return export_motion(net, out, card, facts)
    encoder = getattr(net, "encoder", None) or encoders.load_encoder(recipe, accept_licence=True)
    front = {"front": encoders.describe_front(recipe, encoder)}
    folder = export_motion(getattr(net, "motion", net), out, card, facts | front)
    export_encoder(encoder, folder)
    return folder


def load_average(run: str | Path) -> AnyMotionNet | EncodedMotionNet:
    """The averaged weights of a run, in evaluation mode."""
    import torch

    from visavis.train.encoders import open_front
    from visavis.train.loop import fresh_net

    run = Path(run)
    if not (run / "run.pt").exists():
        raise InputError(f"no checkpoint in {run}; train first")
    recipe = _recipe_of(run)
    # The licence was seen to when the run was begun.
    net = fresh_net(recipe, *open_front(recipe, accept_licence=True))
    net.load_state_dict(torch.load(run / "run.pt", weights_only=True)["average"])
    return net.eval()


def _recipe_of(run: Path) -> MotionRecipe:
    """What a motion run was trained by."""
    from visavis.train.recipes import MotionRecipe

    return MotionRecipe(**json.loads((run / "recipe.json").read_text(encoding="utf-8")))


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
