"""Commands that need the ``train`` extra: prepare, train, export. Torch is imported inside them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from visavis.errors import ConfigError, InputError

Threads = Annotated[int, typer.Option(help="CPU threads.", min=1)]
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, or a shipped name.")]

train_app = typer.Typer(help="Train the nets (needs pip install 'visavis\\[train]').")


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise ConfigError("this command needs torch: pip install 'visavis[train]'")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prepare(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Videos, or sound files.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of all clips.")],
    name: Annotated[str | None, typer.Option(help="Of the corpus; else the folder's.")] = None,
    talker: Annotated[
        str, typer.Option(help="What tells talkers apart: all, prefix, clip.")
    ] = "clip",
    offsets: Annotated[Path | None, typer.Option(help="JSON: clip to ms of mouth lag.")] = None,
    words: Annotated[Path | None, typer.Option(help="TSV or JSON: what is said.")] = None,
) -> None:
    """Turn a folder of films or sound files into training clips (needs 'visavis\\[train]')."""
    _need_torch()
    from visavis.train import cli

    cli.prepare(
        directory, output, name=name, talker=talker, offsets=offsets, words=words, report=_report
    )


@train_app.command("motion")
def train_motion(
    recipe: Recipe,
    clips: Annotated[Path, typer.Option(help="Folder made by visavis prepare.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    threads: Threads = 1,
    stop: Annotated[int, typer.Option(help="Step to stop at for now; 0: the recipe's end.")] = 0,
) -> None:
    """The audio-to-motion net; goes on where the run was left."""
    _need_torch()
    from visavis.train import cli

    print(cli.train_motion(recipe, clips, output, threads=threads, stop=stop, report=_report))


@train_app.command("renderer")
def train_renderer(
    recipe: Recipe,
    tier: Annotated[str, typer.Option(help="The tier the recipe is for.")] = "patch",
    steps: Annotated[int | None, typer.Option(help="Stop here, not at the recipe's end.")] = None,
) -> None:
    """The net that paints the mouth; goes on where the run was left."""
    _need_torch()
    from visavis.train import renderer

    print(renderer.train_renderer(recipe, tier, steps=steps, progress=_report))


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Model folder to write.")],
    card: Annotated[Path | None, typer.Option(help="Text of the model card.")] = None,
) -> None:
    """Turn a motion run into a model folder the runtime reads (needs 'visavis\\[train]')."""
    _need_torch()
    from visavis.train import cli

    try:
        text = card.read_text(encoding="utf-8") if card else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{card} cannot be read ({error}); expected the text of a card") from None
    print(cli.export_motion_run(run, output, text))
