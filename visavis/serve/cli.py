"""``visavis serve``: builds the config, loads what is served, measures, serves until told to stop."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visavis.console import rate_of
from visavis.errors import ConfigError

if TYPE_CHECKING:
    from visavis.avatar import Avatar
    from visavis.pipeline import PipelineConfig
    from visavis.serve.config import ServeConfig
    from visavis.serve.runner import Models

NEEDED = ("fastapi", "uvicorn", "aiortc", "prometheus_client", "multipart")
FIELDS = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonLines(logging.Formatter):
    """One JSON object a line; ``extra`` fields, such as the session, at the top level."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        extra = {k: v for k, v in vars(record).items() if k not in FIELDS}
        facts = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            extra["trace"] = self.formatException(record.exc_info)
        return json.dumps(facts | extra, default=str)


def serve(
    avatar: Annotated[
        list[Path] | None, typer.Option(help="An .avatar file or a folder of them; repeatable.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.")] = 8400,
    max_sessions: Annotated[int, typer.Option(help="0: measured at the start.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the frame in pixels.")] = 512,
    fps: Annotated[str, typer.Option(help="Frames per second.")] = "30",
    tier: Annotated[str, typer.Option(help="Renderer: mesh, patch or full.")] = "patch",
    articulation: Annotated[float, typer.Option(help="How far the mouth goes, 0 to 2.")] = 1.0,
    liveliness: Annotated[float, typer.Option(help="How far the head goes, 0 to 2.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Processes that draw; 0: one per core.")] = 0,
    token: Annotated[
        str, typer.Option(envvar="VISAVIS_TOKEN", help="Needed unless the host is loopback.")
    ] = "",
    tts: Annotated[
        str, typer.Option(help="Program that reads text aloud: 'espeak-ng --stdin --stdout'.")
    ] = "",
    ice: Annotated[
        list[str] | None, typer.Option(help="stun:HOST:PORT or turn:USER:PASS@HOST:PORT.")
    ] = None,
    origin: Annotated[list[str] | None, typer.Option(help="Also allow this web origin.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log as JSON lines.")] = False,
    traces: Annotated[
        str, typer.Option(help="OTLP collector that spans are sent to: http://HOST:4318.")
    ] = "",
    replicas: Annotated[
        str, typer.Option(help="Under Ray Serve, so many, or MIN:MAX (needs 'visavis\\[scale]').")
    ] = "",
) -> None:
    """Talk to a face in the browser (needs 'visavis\\[serve]')."""
    missing = [m for m in NEEDED if importlib.util.find_spec(m) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}: pip install 'visavis[serve]'")
    from visavis.serve.config import ASSETS, ServeConfig
    from visavis.serve.replicas import builder, replicas_of
    from visavis.serve.replicas import run as run_replicas

    count = replicas_of(replicas) if replicas else None
    shared = count[1] if count and not os.environ.get("RAY_ADDRESS") else 1  # of this machine
    config = ServeConfig.of(
        host=host,
        port=port,
        token=token,
        avatars=tuple(avatar or [ASSETS / "demo.avatar"]),
        fps=rate_of(fps),
        size=size,
        tier=tier,
        articulation=articulation,
        liveliness=liveliness,
        workers=workers or max(1, min((os.cpu_count() or 1) // shared, 8)),
        max_sessions=max_sessions,
        tts=tts,
        ice_servers=tuple(_ice(text) for text in ice or []),
        allowed_origins=tuple(origin or []),
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    set_up(json_log, traces)
    if count:
        run_replicas(config, builder(json_log, traces), count)
        return
    run(config, make_app(config, json_log, traces))


def _ice(text: str) -> dict[str, str]:
    scheme, _, rest = text.partition(":")
    if scheme in ("turn", "turns") and "@" in rest:
        account, _, place = rest.rpartition("@")
        user, _, password = account.partition(":")
        return {"urls": f"{scheme}:{place}", "username": user, "credential": password}
    if scheme not in ("stun", "stuns", "turn", "turns"):
        raise ConfigError(f"--ice {text[:40]}; expected stun:HOST:PORT or turn:USER:PASS@HOST:PORT")
    return {"urls": text}


def _log(as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if as_json:
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("aioice", "aiortc", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def make_models(chosen: PipelineConfig, avatar_of: Callable[[str], Avatar]) -> Models:
    """`Models` of the real pipeline."""
    from visavis.avatar import SIZES
    from visavis.pipeline import Pipeline
    from visavis.render import Renderer

    def models(name: str) -> tuple[Pipeline, tuple[Renderer, ...]]:
        avatar = avatar_of(name)
        pipeline = Pipeline(avatar, chosen)
        cheaper = [] if chosen.tier == "mesh" else [Renderer(avatar, "mesh", chosen.size)]
        if chosen.size // 2 >= SIZES[0]:  # a quarter of the pixels to draw and to encode
            cheaper.append(Renderer(avatar, "mesh", chosen.size // 4 * 2))
        return pipeline, tuple(cheaper)

    return models


def render_film(config: ServeConfig) -> Any:
    """`jobs.Render` of the real pipeline, in a process of its own that gives way to conversations."""
    from visavis.serve.films import in_process

    return in_process(_pipeline_config(config))


def _pipeline_config(config: ServeConfig, **more: object) -> PipelineConfig:
    """The server's choices as far as they are the pipeline's."""
    from visavis.pipeline import PipelineConfig

    shared = ("fps", "size", "tier", "lookahead_ms", "articulation", "liveliness")
    return PipelineConfig.of(**{name: getattr(config, name) for name in shared}, **more)


def set_up(json_log: bool, traces: str) -> None:
    """Logging and tracing of a process of the server."""
    _log(json_log)
    if traces:
        from visavis.serve.tracing import export_to

        export_to(traces)  # flushed at exit


def make_app(config: ServeConfig, json_log: bool = False, traces: str = "") -> Any:
    """The app with the real pipeline, its limit measured where none is set.

    Raises:
        VisavisError: an avatar cannot be used.
    """
    import cv2

    from visavis.serve.app import build_app
    from visavis.serve.library import Library
    from visavis.serve.process import in_process

    chosen = _pipeline_config(config, threads=1)  # one core a worker
    cv2.setNumThreads(1)
    library = Library(config.size, config.uploads_kept)
    library.open(config.avatars)
    hire = in_process(
        functools.partial(make_models, chosen),
        lambda name: library.get(name).avatar,
        set_up=functools.partial(set_up, json_log, traces),
    )
    return build_app(
        config, library=library, hire=hire, limit=config.max_sessions, render=render_film(config)
    )


def run(config: ServeConfig, app: Any) -> None:
    """Serve until SIGTERM or Ctrl-C; the first lets sessions finish, the second does not."""
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    from visavis.serve.app import drain

    class Door(AutoHTTPProtocol):
        """Shows out who does not get as far as a whole request head in time."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(config.header_timeout_s, self._look)

        def _look(self) -> None:
            mine = self.transport.get_protocol() is self  # not a WebSocket by now
            if mine and self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    sys.setswitchinterval(0.001)  # photos are made avatars on a thread beside the event loop
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        log_config=None,
        http=Door,
        ws_max_size=1 << 20,
        ws_max_queue=8,
        h11_max_incomplete_event_size=64 << 10,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        limit_concurrency=1000,
        server_header=False,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
    )

    class Server(uvicorn.Server):
        """Drains before it stops."""

        draining: asyncio.Task | None = None

        async def main_loop(self) -> None:
            if self.servers:
                address = self.servers[0].sockets[0].getsockname()
                scheme = "https" if config.ssl_certfile else "http"
                print(f"visavis is at {scheme}://{config.host}:{address[1]}", flush=True)
            self.loop = asyncio.get_running_loop()
            await super().main_loop()

        def handle_exit(self, number: int, frame: object) -> None:
            if self.draining is not None or not hasattr(self, "loop"):
                super().handle_exit(number, frame)
                return
            self.draining = self.loop.create_task(self._drain())
            self.loop.call_soon_threadsafe(lambda: None)  # wakes the loop

        async def _drain(self) -> None:
            await drain(app)
            self.should_exit = True

    Server(settings).run()
