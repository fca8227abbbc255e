"""Commands that need the ``train`` extra: prepare, train, export. Torch is imported inside them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from visavis.console import progress_bar, say
from visavis.errors import ConfigError, InputError

Threads = Annotated[int, typer.Option(help="CPU threads.", min=1)]
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, or a shipped name.")]
Clips = Annotated[Path, typer.Option(help="Folder made by visavis prepare.")]
RunFolder = Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")]

train_app = typer.Typer(help="Train the nets (needs pip install 'visavis\\[train]').")


def need_torch() -> None:
    """Refuse, with what to install, where there is no torch."""
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("this command needs torch: pip install 'visavis[train]'")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prepare(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Videos, or sound files.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of all clips.")],
    name: Annotated[str | None, typer.Option(help="Of the corpus; else the folder's.")] = None,
    talker: Annotated[
        str, typer.Option(help="What tells talkers apart: all, prefix (_), dash (-), clip.")
    ] = "clip",
    offsets: Annotated[
        Path | None, typer.Option(help="JSON: clip to ms of mouth lag; else estimated.")
    ] = None,
    words: Annotated[Path | None, typer.Option(help="TSV or JSON: what is said.")] = None,
    phones: Annotated[bool, typer.Option(help="Find words and phones.")] = True,
    jobs: Annotated[int, typer.Option(help="Processes side by side.", min=1)] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Look at the files with Ray Data.")] = False,
    ray_address: Annotated[str, typer.Option(help="Of a running Ray cluster.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report.")] = False,
) -> None:
    """Turn a folder of films or sound files into training clips (needs 'visavis\\[train]')."""
    need_torch()
    from visavis.train import cli

    with progress_bar("prepare", cli.count_sources(directory)) as bar:
        report = cli.prepare(
            directory, output, name=name, talker=talker, offsets=offsets, words=words,
            phones=phones, jobs=jobs, ray=ray, ray_address=ray_address,
            progress=lambda done, _: bar(done),
        )  # fmt: skip
    page = output / f"{report['corpus']}.html"
    say(
        as_json,
        report,
        f"{report['clips']} of {report['files']} files used, {report['seconds']:.0f} s; see {page}",
    )


@train_app.command("motion")
def train_motion(
    recipe: Recipe,
    clips: Clips,
    output: RunFolder,
    threads: Threads = 1,
    stop: Annotated[int, typer.Option(help="Step to stop at for now; 0: the recipe's end.")] = 0,
    size: Annotated[
        str | None, typer.Option(help="tiny, small, base or large; else the recipe's.")
    ] = None,
    architecture: Annotated[str | None, typer.Option(help="tcn_gru or transformer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and dropout.")] = None,
    bf16: Annotated[
        bool | None, typer.Option("--bf16/--no-bf16", help="Forward pass in bfloat16.")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts each batch is worked off in, to save memory.", min=1)
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="log_mel, hubert, wav2vec2 or wavlm.")] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(help="Folder or hub name of the encoder.")
    ] = None,
    encoder_layers: Annotated[
        int | None, typer.Option(help="Uppermost layers to tune along; 0: frozen.", min=0)
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Use weights that are not permissive.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for it too.")] = False,
) -> None:
    """The audio-to-motion net; goes on where the run was left.

    For several processes start it with torchrun -m visavis train motion.
    """
    need_torch()
    from visavis.train import cli

    changes = {
        "size": size, "architecture": architecture, "seed": seed, "bf16": bf16,
        "accumulate": accumulate, "encoder": encoder, "encoder_weights": encoder_weights,
        "encoder_layers": encoder_layers,
    }  # fmt: skip
    done = cli.train_motion(
        recipe, clips, output, threads=threads, stop=stop, changes=changes, board=tensorboard,
        accept_licence=accept_licence, distributed="TORCHELASTIC_RUN_ID" in os.environ,
        report=_report,
    )  # fmt: skip
    print(done)


@train_app.command("autoencoder")
def train_autoencoder(
    recipe: Recipe, clips: Clips, output: RunFolder, threads: Threads = 1
) -> None:
    """The motion autoencoder, from tracked films; writes a report and a picture of its code."""
    need_torch()
    from visavis.train import cli

    print(cli.train_autoencoder(recipe, clips, output, threads=threads, report=_report))


@train_app.command("studio")
def train_studio(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the shards.")],
    crops: Annotated[int, typer.Option(help="Pictures of mouths and eyes.", min=0)] = 5000,
    sequences: Annotated[int, typer.Option(help="Short takes of speech.", min=0)] = 200,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes side by side.", min=1)] = 1,
    assets: Annotated[Path, typer.Option(help="3D assets: face3d/mpfb of the data.")] = Path(
        "../shared/data/face3d/mpfb"
    ),
    models: Annotated[Path | None, typer.Option(help="Where the face graphs are.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts.")] = False,
) -> None:
    """Render people who do not exist (needs 'visavis\\[studio]'); goes on where it was left."""
    from visavis.train.studio import count_units, make_studio

    with progress_bar("studio", count_units(crops, sequences)) as bar:
        facts = make_studio(
            output, crops=crops, sequences=sequences, seed=seed, workers=workers,
            assets=assets, models=models, progress=lambda done, _: bar(done),
        )  # fmt: skip
    for name, reason in facts["failed"].items():
        _report(f"{name}: {reason}")
    text = f"{facts['crops']} crops, {facts['sequences']} takes in {output}"
    say(as_json, facts, f"{text}; {len(facts['failed'])} failed")


@train_app.command("renderer")
def train_renderer(
    recipe: Recipe,
    tier: Annotated[str, typer.Option(help="The tier the recipe is for.")] = "patch",
    steps: Annotated[int | None, typer.Option(help="Stop here, not at the recipe's end.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log for it too, with pictures (tier full).")
    ] = False,
) -> None:
    """The net that paints the mouth (patch) or the head (full); goes on where the run was left.

    For several processes (tier full) start it with torchrun -m visavis train renderer.
    """
    need_torch()
    from visavis.train import renderer

    done = renderer.train_renderer(
        recipe, tier, steps=steps, board=tensorboard,
        distributed="TORCHELASTIC_RUN_ID" in os.environ, progress=_report,
    )  # fmt: skip
    print(done)


@train_app.command("matte")
def train_matte(
    recipe: Recipe,
    steps: Annotated[int | None, typer.Option(help="Stop here, not at the recipe's end.")] = None,
) -> None:
    """The net that cuts the person out of a photo; goes on where the run was left."""
    need_torch()
    from visavis.train import matte

    print(matte.train_matte(recipe, steps=steps, progress=_report))


@train_app.command("distill")
def train_distill(
    recipe: Recipe,
    steps: Annotated[int | None, typer.Option(help="Stop here, not at the recipe's end.")] = None,
) -> None:
    """Teach the mouth net what tier full knows, prune it, make it int8, judge what was lost."""
    need_torch()
    from visavis.train import distill

    print(distill.train_distill(recipe, steps=steps, progress=_report))


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model folder to write.")],
    card: Annotated[Path | None, typer.Option(help="Text of the model card.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Of a renderer run that does not hold its own.")
    ] = None,
) -> None:
    """Turn a run into a model folder the runtime reads (needs 'visavis\\[train]')."""
    need_torch()
    from visavis.train import cli

    try:
        text = card.read_text(encoding="utf-8") if card else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{card} cannot be read ({error}); expected the text of a card") from None
    print(cli.export_run(run, output, text, recipe=recipe))
