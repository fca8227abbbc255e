"""Films made in the background: queued, one at a time, fetched by who has the id, then forgotten."""

from __future__ import annotations

import logging
import secrets
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visavis.avatar import Avatar
from visavis.clock import Clock
from visavis.errors import VisavisError
from visavis.serve.metrics import Metrics

log = logging.getLogger("visavis.serve")
KEPT_S = 3600
FORMATS = {"webm": "video/webm", "mp4": "video/mp4"}

Render = Callable[[Avatar, Path, Path, Callable[[int], None]], Any]
"""(avatar, sound, film to write, called with frames done)."""


@dataclass
class Job:
    """One film."""

    id: str
    format: str
    made_ns: int
    state: str = "queued"  # queued, running, done, failed, cancelled
    frames: int = 0
    error: str = ""
    folder: tempfile.TemporaryDirectory | None = field(default=None, repr=False)
    cancel: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def film(self) -> Path:
        """Where it is or will be."""
        assert self.folder is not None
        return Path(self.folder.name) / f"film.{self.format}"

    def public(self) -> dict[str, object]:
        """What a client sees."""
        return {"id": self.id, "state": self.state, "frames": self.frames, "error": self.error}


class Cancelled(Exception):
    """The client took the job back."""


class Jobs:
    """The queue.

    Args:
        render: makes a film.
        limit: jobs kept at most, waiting and finished together.
        clock: for forgetting.
        metrics: counts them by state.
    """

    def __init__(self, render: Render, limit: int, clock: Clock, metrics: Metrics):
        self._render, self._limit, self._clock, self._metrics = render, limit, clock, metrics
        self._jobs: dict[str, Job] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="visavis-render")

    def add(self, avatar: Avatar, sound: bytes, format_: str) -> Job | None:
        """Queue one; ``None`` when there is no room."""
        self._forget()
        if len(self._jobs) >= self._limit:
            return None
        job = Job(secrets.token_urlsafe(12), format_, self._clock.now())
        job.folder = tempfile.TemporaryDirectory(prefix="visavis-job-")
        source = Path(job.folder.name) / "sound"
        source.write_bytes(sound)
        self._jobs[job.id] = job
        self._pool.submit(self._run, job, avatar, source)
        self._count()
        return job

    def get(self, name: str) -> Job | None:
        """By id."""
        return self._jobs.get(name)

    def remove(self, name: str) -> bool:
        """Stop and forget one."""
        job = self._jobs.pop(name, None)
        if job is not None:
            job.cancel.set()
            if job.state in ("done", "failed") and job.folder:
                job.folder.cleanup()
        self._count()
        return job is not None

    def close(self) -> None:
        """Stop all."""
        for name in list(self._jobs):
            self.remove(name)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: Job, avatar: Avatar, source: Path) -> None:
        def progress(frames: int) -> None:
            job.frames = frames
            if job.cancel.is_set():
                raise Cancelled

        try:
            progress(0)
            job.state = "running"
            self._render(avatar, source, job.film, progress)
            job.state = "done"
        except Cancelled:
            job.state = "cancelled"
            if job.folder:
                job.folder.cleanup()
        except VisavisError as error:
            job.state, job.error = "failed", str(error).replace(str(source), "the file")
        except Exception:
            log.exception("render job failed", extra={"job": job.id})
            job.state, job.error = "failed", "the render failed; see the server's log"
        self._count()

    def _forget(self) -> None:
        old = self._clock.now() - KEPT_S * 1_000_000_000
        for name in [j.id for j in self._jobs.values() if j.made_ns < old]:
            self.remove(name)

    def _count(self) -> None:
        states = [job.state for job in list(self._jobs.values())]
        for state in ("queued", "running", "done", "failed"):
            self._metrics.jobs.labels(state).set(states.count(state))
