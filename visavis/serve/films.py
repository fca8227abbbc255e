"""Films in a process of their own: they take what conversations leave of the processor."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from visavis.avatar import Avatar
from visavis.errors import VisavisError

if TYPE_CHECKING:
    from visavis.pipeline import PipelineConfig
    from visavis.serve.jobs import Render

NICENESS = 10
STOP_S = 5.0


class FilmFailed(VisavisError):
    """The process that made a film ended without one."""


def in_process(config: PipelineConfig) -> Render:
    """`Render` that starts a process for each film and ends it when ``progress`` raises."""

    def render(avatar: Avatar, sound: Path, film: Path, progress: Callable[[int], None]) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        arguments = (theirs, avatar, sound, film, config)
        child = context.Process(target=_make, args=arguments, daemon=True)
        child.start()
        theirs.close()
        try:
            _follow(ours, progress)
        finally:
            ours.close()
            child.join(STOP_S)
            if child.is_alive():
                child.terminate()
                child.join()
            child.close()

    return render


def _follow(pipe: Connection, progress: Callable[[int], None]) -> None:
    while True:
        try:
            news = pipe.recv()
        except EOFError as error:
            raise FilmFailed("the film's process ended; see the server's log") from error
        if news is None:
            return
        if isinstance(news, Exception):
            raise news
        progress(news)


def _make(
    pipe: Connection, avatar: Avatar, sound: Path, film: Path, config: PipelineConfig
) -> None:
    """In the child: frames done, then ``None`` or what went wrong."""
    from visavis.pipeline import render

    os.nice(NICENESS)
    try:
        render(avatar, sound, film, config, progress=pipe.send)
    except BrokenPipeError:
        return  # the client took the job back
    except VisavisError as error:
        pipe.send(error)
        return
    pipe.send(None)
