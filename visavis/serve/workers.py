"""Who draws the sessions, seen from the event loop: a thread here, a process in ``process``."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from visavis.clock import Clock
from visavis.errors import VisavisError
from visavis.serve.metrics import Metrics
from visavis.serve.runner import Command, Models, Runner
from visavis.session import SessionConfig

if TYPE_CHECKING:
    from visavis.serve.engine import LiveSession

log = logging.getLogger("visavis.serve")

COMMANDS = 512  # waiting per session at most: a flood is refused
NEVER_REFUSED = ("open", "drop", "attach")


class WorkerGone(VisavisError, LookupError):
    """What drew the session has ended."""


class Worker:
    """Base. Every method may be called from the event loop only.

    Attributes:
        sessions: those drawn here, by id.
    """

    def __init__(self, metrics: Metrics, clock: Clock):
        self.metrics, self.clock = metrics, clock
        self.sessions: dict[str, LiveSession] = {}
        self._replies: dict[int, asyncio.Future] = {}
        self._numbers = itertools.count(1)

    @property
    def ready(self) -> bool:
        """Whether a session may be opened here."""
        return True

    async def start(self, avatar: str) -> None:
        """Be ready for ``avatar``; slow.

        Raises:
            VisavisError: the avatar or the models cannot be used.
        """
        raise NotImplementedError

    async def prepare(self, avatar: str) -> None:
        """Have an avatar's models loaded and warm; slow, and holds up no session.

        Raises:
            VisavisError: the avatar or the models cannot be used.
        """
        raise NotImplementedError

    async def measure(self, avatar: str) -> float:
        """Core milliseconds that a frame of ``avatar`` takes here; slow."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End it."""
        raise NotImplementedError

    def _post(self, command: Command) -> None:
        raise NotImplementedError

    def do(self, live: LiveSession, verb: str, *args: object) -> None:
        """Have ``verb`` done before the session's next step; failures are the log's."""
        if self._room(live, verb):
            live.asked += 1
            with suppress(WorkerGone):
                self._post(Command(0, live.id, verb, args))

    async def ask(self, live: LiveSession, verb: str, *args: object) -> Any:
        """``do`` and wait for the answer.

        Raises:
            BufferError: too many commands wait.
            LookupError: the session has ended.
            Exception: what the session raised.
        """
        if not self._room(live, verb):
            raise BufferError("too many commands at once")
        live.asked += 1
        return await self._call(live.id, verb, *args)

    async def _call(self, name: str, verb: str, *args: object) -> Any:
        number, future = next(self._numbers), asyncio.get_running_loop().create_future()
        self._replies[number] = future
        try:
            self._post(Command(number, name, verb, args))
            return await future
        finally:
            self._replies.pop(number, None)

    @staticmethod
    def _room(live: LiveSession, verb: str) -> bool:
        return verb in NEVER_REFUSED or live.asked - live.answered < COMMANDS

    def take(self, message: tuple) -> None:
        """A message of a `Runner`."""
        kind, *rest = message
        if kind == "reply":
            self._take_reply(*rest)
            return
        live = self.sessions.get(rest[0])
        if live is None:
            return  # it ended meanwhile
        if kind == "parcel":
            live.take(*rest[1:])
        elif kind == "stats":
            live.stats.update(rest[1])
        else:
            live.crashed(rest[1])

    def _take_reply(self, call: int, name: str, value: Any, error: Exception | None) -> None:
        live = self.sessions.get(name)
        if live is not None:
            live.answered += 1
        future = self._replies.get(call)
        if future is not None and not future.done():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        elif error is not None and not isinstance(error, LookupError):
            log.warning("command failed", extra={"session": name, "error": repr(error)})


class ThreadWorker(Worker):
    """Draws on a thread of this process: for one face inside another program, and for tests.

    Args:
        models: see `Models`.
        config: of each session.
        metrics: where it is counted.
        clock: shared by all.
    """

    def __init__(self, models: Models, config: SessionConfig, metrics: Metrics, clock: Clock):
        super().__init__(metrics, clock)
        self.runner = Runner(models, config, metrics, clock, self._send)
        self._thread = threading.Thread(target=self.runner.run, name="visavis-worker", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def _post(self, command: Command) -> None:
        self.runner.inbox.put(command)

    def _send(self, message: tuple) -> None:
        assert self._loop is not None, "start first"
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self.take, message)

    async def start(self, avatar: str) -> None:
        """See `Worker`."""
        self._loop = asyncio.get_running_loop()
        await self.prepare(avatar)
        self._thread.start()

    async def prepare(self, avatar: str) -> None:
        """See `Worker`."""
        await asyncio.to_thread(self.runner.prepare, avatar)

    async def measure(self, avatar: str) -> float:
        """See `Worker`."""
        return await asyncio.to_thread(self.runner.measure, avatar)

    async def stop(self) -> None:
        """See `Worker`."""
        self._post(Command(0, "", "halt"))
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 5.0)


Hire = Callable[[Metrics, Clock], Worker]
"""Makes one worker, not yet started."""


def in_thread(models: Models, config: SessionConfig | None = None) -> Hire:
    """Workers that are threads."""
    return lambda metrics, clock: ThreadWorker(models, config or SessionConfig(), metrics, clock)
