"""A server as a child process, and what it and its own children use. For the live benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HZ = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
DEMO = (
    "from visavis.serve.cli import make_app, run; from visavis.serve.config import *; "
    "c = ServeConfig.of(port=0, avatars=(ASSETS / 'demo.avatar',), requests_per_minute=1000000, "
    "sessions_per_client=100, {choices}); run(c, make_app(c))"
)


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, int]]:
    """Address and process id of ``python ARGUMENTS``, which prints the address; ended afterwards."""
    server = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1], server.pid
    finally:
        server.terminate()
        server.wait(60)


def demo(**choices: object) -> tuple[str, str]:
    """Arguments of the real server on the demo's face."""
    return "-c", DEMO.format(choices=", ".join(f"{k}={v!r}" for k, v in choices.items()))


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # it has just ended
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all that descend from it."""
    total = 0
    for one in family(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / HZ


def rss(pid: int) -> int:
    """Resident bytes of a process and all that descend from it."""
    total = 0
    for one in family(pid):
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * PAGE
        except OSError:
            continue
    return total
