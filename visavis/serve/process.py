"""A worker in a process of its own: drawing never waits for the event loop's hold on the interpreter.

Parent and child hold the two ends of a socket pair. Messages both ways are a length (4 bytes, little
endian) and a pickle; the first is a `Job`. Pictures are coded in the child, so what travels is small.
The child ends when its socket does; when the child ends, its sessions do, and another is started.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from visavis.avatar import Avatar
from visavis.clock import Clock, MonotonicClock
from visavis.serve.metrics import Ledger, Metrics
from visavis.serve.runner import AVATARS_KEPT, Command, Models, Runner
from visavis.serve.workers import Hire, Worker, WorkerGone
from visavis.session import SessionConfig

log = logging.getLogger("visavis.serve")

LENGTH = struct.Struct("<I")
BUFFER = 1 << 20  # bytes of the socket: a picture or two never wait
STOP_S = 5.0
AGAIN_S = 1.0  # before a fallen worker is replaced
SLOW = ("give", "prepare", "measure")  # done beside the sessions, one at a time

MakeModels = Callable[[Callable[[str], Avatar]], Models]
"""Avatars by id to `Models`; a function that can be pickled."""


@dataclass(frozen=True)
class Job:
    """What a child is for."""

    make: MakeModels
    config: SessionConfig
    set_up: Callable[[], None] | None = None


class ProcessWorker(Worker):
    """Draws in a child process.

    Args:
        job: of the child.
        avatar_of: by id.
        metrics: where it is counted.
        clock: of the event loop; the child has the machine's.
    """

    def __init__(
        self, job: Job, avatar_of: Callable[[str], Avatar], metrics: Metrics, clock: Clock
    ):
        super().__init__(metrics, clock)
        self._job, self._avatar_of = job, avatar_of
        self._first = ""
        self._child: subprocess.Popen | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._living: asyncio.Task | None = None
        self._stopping = False

    @property
    def ready(self) -> bool:
        """See `Worker`."""
        return self._writer is not None and not self._writer.is_closing()

    @property
    def pid(self) -> int:
        """Of the child."""
        assert self._child is not None, "start first"
        return self._child.pid

    async def start(self, avatar: str) -> None:
        """See `Worker`."""
        self._first = avatar
        reader = await self._spawn()
        self._living = asyncio.ensure_future(self._live(reader))
        await self.prepare(avatar)

    async def prepare(self, avatar: str) -> None:
        """See `Worker`."""
        if not await self._call("", "prepare", avatar):
            await self._call("", "give", avatar, self._avatar_of(avatar))

    async def measure(self, avatar: str) -> float:
        """See `Worker`."""
        return await self._call("", "measure", avatar)

    async def stop(self) -> None:
        """See `Worker`."""
        self._stopping = True
        if self._writer is not None:
            self._writer.close()
        if self._living is not None:
            await self._living

    def take(self, message: tuple) -> None:
        """See `Worker`."""
        if message[0] == "notes":
            self.metrics.replay(message[1])
        else:
            super().take(message)

    def _post(self, command: Command) -> None:
        if not self.ready:
            raise WorkerGone("the drawing process is being started again")
        assert self._writer is not None
        self._writer.write(packed(tuple(command)))

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            self._child = subprocess.Popen(
                [sys.executable, "-m", "visavis.serve.process", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        self.metrics.children.add(self._child.pid)
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=BUFFER)
        self._writer.write(packed(self._job))
        return reader

    async def _live(self, reader: asyncio.StreamReader) -> None:
        """Take what the child sends; when it falls, raise another."""
        while True:
            await self._read(reader)
            await self._bury()
            if self._stopping:
                return
            self.metrics.workers_lost.inc()
            await asyncio.sleep(AGAIN_S)
            if self._stopping:
                return
            reader = await self._spawn()
            warm = asyncio.ensure_future(self.prepare(self._first))
            warm.add_done_callback(_note_failure)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                message = pickle.loads(await reader.readexactly(length))
                try:
                    self.take(message)
                except Exception:  # one session's transport; the others go on
                    log.exception("message not taken")

    async def _bury(self) -> None:
        assert self._child is not None and self._writer is not None
        self._writer.close()
        try:
            code = await asyncio.to_thread(self._child.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = await asyncio.to_thread(self._child.wait)
        self.metrics.children.discard(self._child.pid)
        if not self._stopping:
            log.error("a drawing process ended", extra={"pid": self._child.pid, "code": code})
        for future in self._replies.values():
            if not future.done():
                future.set_exception(WorkerGone("the drawing process has ended"))
        for live in list(self.sessions.values()):
            live.crashed("the drawing process has ended")


def _note_failure(task: asyncio.Task) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a drawing process is not ready", extra={"error": repr(task.exception())})


def in_process(
    make: MakeModels,
    avatar_of: Callable[[str], Avatar],
    *,
    config: SessionConfig | None = None,
    set_up: Callable[[], None] | None = None,
) -> Hire:
    """Workers that are processes.

    Args:
        make: makes the child's models.
        avatar_of: by id; called here.
        config: of each session.
        set_up: called first thing in the child (logging, tracing); can be pickled.
    """
    job = Job(make, config or SessionConfig(), set_up)
    return lambda metrics, clock: ProcessWorker(job, avatar_of, metrics, clock)


def packed(message: Any) -> bytes:
    """With its length."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


# --- in the child --------------------------------------------------------------------------------


class Child:
    """The other end of a `ProcessWorker`."""

    def __init__(self, end: socket.socket):
        self._end, self._file = end, end.makefile("rb")
        self._lock = threading.Lock()
        self._ledger = Ledger()
        self._avatars: dict[str, Avatar] = {}
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="visavis-prepare")

    def run(self) -> None:
        """Until the parent is gone."""
        job: Job = self._receive()
        if job.set_up is not None:
            job.set_up()
        models = job.make(self._avatars.__getitem__)
        clock = MonotonicClock()
        self._runner = Runner(models, job.config, self._ledger, clock, self._send)
        threading.Thread(target=self._listen, name="visavis-listen", daemon=True).start()
        self._runner.run()

    def _receive(self) -> Any:
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        return pickle.loads(self._exactly(length))

    def _exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def _listen(self) -> None:
        try:
            while True:
                command = Command(*self._receive())
                if command.verb in SLOW:
                    self._beside.submit(self._slowly, command)
                else:
                    self._runner.inbox.put(command)
        except (EOFError, OSError):
            self._runner.inbox.put(Command(0, "", "halt"))

    def _slowly(self, command: Command) -> None:
        value, error = None, None
        try:
            value = self._prepare(command.verb, *command.args)
        except Exception as fault:  # noqa: BLE001 - handed to the one who asked, whatever it is
            error = fault
        self._send(("reply", command.call, "", value, error))

    def _prepare(self, verb: str, name: str, avatar: Avatar | None = None) -> float | bool:
        avatar = avatar or self._avatars.pop(name, None)
        if avatar is not None:
            self._avatars[name] = avatar  # the latest last
            while len(self._avatars) > AVATARS_KEPT:
                del self._avatars[next(iter(self._avatars))]
        if avatar is None:
            return False
        if verb == "measure":
            return self._runner.measure(name)
        self._runner.prepare(name)
        gc.collect()
        gc.freeze()  # or the first full collection would walk through all that was loaded
        return True

    def _send(self, message: tuple) -> None:
        try:
            data = packed(message)
        except Exception:  # noqa: BLE001 - an error that cannot be pickled
            data = packed((*message[:-1], RuntimeError(repr(message[-1]))))
        if message[0] == "stats":
            data += packed(("notes", self._ledger.take()))
        with self._lock, suppress(OSError):  # the parent is gone; `_listen` sees that too
            self._end.sendall(data)


def main() -> None:
    """``python -m visavis.serve.process FD``: started by `ProcessWorker` only."""
    import cv2

    for number in (signal.SIGINT, signal.SIGTERM):  # the parent drains, then closes the socket
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)  # one core a worker
    sys.setswitchinterval(0.001)
    Child(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
