"""``visavis livekit``: joins a LiveKit room as the face of an agent."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visavis.console import rate_of
from visavis.errors import ConfigError

if TYPE_CHECKING:
    from visavis.serve.livekit_worker import AvatarWorker


def livekit(
    avatar: Annotated[Path, typer.Argument(metavar="AVATAR", help="An .avatar file.")],
    url: Annotated[str, typer.Option(envvar="LIVEKIT_URL", help="wss://... of the server.")] = "",
    token: Annotated[
        str, typer.Option(envvar="LIVEKIT_TOKEN", help="Access token of the room, for this face.")
    ] = "",
    agent: Annotated[
        str, typer.Option(help="Identity of the agent; where not named, as the token says.")
    ] = "",
    size: Annotated[int, typer.Option(help="Side of the frame in pixels.")] = 512,
    fps: Annotated[str, typer.Option(help="Frames per second.")] = "30",
    tier: Annotated[str, typer.Option(help="Renderer: mesh or patch.")] = "patch",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
) -> None:
    """Be the face of a LiveKit agent (needs the package 'livekit')."""
    if importlib.util.find_spec("livekit") is None:
        raise ConfigError("livekit is not installed: pip install 'visavis[serve]' livekit")
    if not url or not token:
        raise ConfigError("--url and --token are needed, or LIVEKIT_URL and LIVEKIT_TOKEN")
    from visavis.avatar import load_avatar
    from visavis.pipeline import PipelineConfig
    from visavis.serve.face import Face
    from visavis.serve.livekit_worker import lend

    config = PipelineConfig.of(fps=rate_of(fps), size=size, tier=tier, threads=1)
    face = Face.of(load_avatar(avatar), config)
    why = asyncio.run(lend(url, token, face, agent, _ready))
    typer.echo(json.dumps({"ended": why}) if as_json else why)


def _ready(worker: AvatarWorker) -> None:
    """Leave the room on Ctrl-C and SIGTERM."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, worker.stop)
    typer.echo("the face is in the room")
