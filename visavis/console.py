"""What every command shares: a bar on the terminal, one line of answer, a clean stop."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

from visavis.errors import ConfigError

_received: list[int] = []  # signals; an exception raised inside a compiler's callback gets lost


def watch_signals() -> None:
    """Have Ctrl-C and SIGTERM stop the command at its next step."""
    _received.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)


def _on_signal(number: int, frame: object) -> None:
    _received.append(number)
    stop_if_told()


def stop_if_told() -> None:
    """Unwind, so that no half-written file stays; called again with every frame."""
    if signal.SIGINT in _received:
        raise KeyboardInterrupt
    if _received:
        raise SystemExit(128 + _received[0])


def complain(text: str) -> None:
    """One line on stderr."""
    print("visavis: " + " ".join(text.split()), file=sys.stderr)


def say(as_json: bool, facts: dict, text: str) -> None:
    """One JSON object, or one line for people."""
    print(json.dumps(facts, default=str) if as_json else text, flush=True)


@contextmanager
def progress_bar(label: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal; call with the steps done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)

        def advance(done: int) -> None:
            stop_if_told()
            bar.update(task, completed=done)

        yield advance


def rate_of(fps: str) -> Fraction:
    """Frames per second as typed: ``30``, ``29.97``, ``30000/1001``.

    Raises:
        ConfigError: it is no number.
    """
    try:
        return Fraction(fps)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--fps {fps[:20]}; expected a number such as 30") from error
