"""The media WebSocket: PCM in, JPEG and PCM out, for networks without UDP.

The client sends one JSON text, ``{"rate": 16000, "mode": "speak" | "mic" | "listen"}``, then binary
16-bit little-endian mono PCM; an empty message ends an utterance. ``speak`` is finished speech, of
which every sample is said; ``mic`` a microphone, whose delay must not pile up; ``listen`` the user's
voice, which the face attends to. The server sends binary messages: a
header of 16 bytes, ``<BBHIQ``: kind (1 JPEG, 2 PCM), 0, epoch, rate (Hz; fps x 1000), pts (frames or
samples), then the JPEG or 16-bit PCM. A message of an older epoch than the last is to be thrown away.
"""

from __future__ import annotations

import asyncio
import functools
import json

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from visavis.clock import Clock
from visavis.errors import InputError
from visavis.serve.coders import HEADER, SocketCoder
from visavis.serve.config import ServeConfig
from visavis.serve.engine import LiveSession
from visavis.serve.metrics import Metrics
from visavis.serve.outlet import Outlet

MODES = ("speak", "mic", "listen")


class SocketOutlet(Outlet):
    """Ready messages; ``quality`` of the JPEGs."""

    def __init__(self, clock: Clock, margin_ms: int, metrics: Metrics, quality: int = 80):
        super().__init__(clock, margin_ms, metrics)
        self.coder = functools.partial(SocketCoder, quality)

    def silence(self, ready: bytes) -> bytes:
        """The same moment, silent."""
        return ready[: HEADER.size] + bytes(len(ready) - HEADER.size)


async def run_media(socket: WebSocket, live: LiveSession, config: ServeConfig) -> None:
    """Serve one accepted media socket to its end."""
    outlet = attach_outlet(live, config)
    tasks = [
        asyncio.ensure_future(part)
        for part in (
            send_ready(socket, outlet, "audio"),
            send_ready(socket, outlet, "video"),
            _receive(socket, live),
            live.closed.wait(),
        )
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        reason = next(
            (str(t.exception()) for t in done if isinstance(t.exception(), InputError)), ""
        )
    finally:
        live.detach(outlet)
        await end(tasks)
    try:
        await socket.close(1008 if reason else 1000, reason[:120] or live.error)
    except (RuntimeError, WebSocketDisconnect):
        return  # the client closed first


async def end(tasks: list[asyncio.Task]) -> None:
    """Cancel tasks and wait for them; what they raised is not this one's business."""
    for task in tasks:
        task.cancel()
    done, _ = await asyncio.wait(tasks)
    for task in done:
        if not task.cancelled():
            task.exception()


def attach_outlet(live: LiveSession, config: ServeConfig) -> SocketOutlet:
    """An outlet that the session sends to from now on."""
    worker = live.worker
    outlet = SocketOutlet(worker.clock, config.margin_ms, worker.metrics, config.jpeg_quality)
    live.attach(outlet)
    return outlet


async def send_ready(socket: WebSocket, outlet: Outlet, kind: str) -> None:
    """Send what leaves the outlet, ``audio`` or ``video``, until it or the socket closes."""
    try:
        while (held := await outlet.next(kind)) is not None:
            await socket.send_bytes(held.ready)
    except (WebSocketDisconnect, RuntimeError):
        return


async def _receive(socket: WebSocket, live: LiveSession) -> None:
    rate, mode = 16_000, "speak"
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if message.get("text") is not None:
            rate, mode = _start(message["text"])
            continue
        data = message.get("bytes") or b""
        if len(data) % 2:
            raise InputError(f"{len(data)} bytes; expected 16-bit samples")
        pcm = np.frombuffer(data, "<i2")
        if mode == "listen":
            await live.push_listen_audio(pcm, rate)
        elif not len(pcm):
            await live.end_of_speech()
        elif mode == "mic":
            await live.push_audio(pcm, rate, live=True)
        else:
            await _push(live, pcm, rate)


async def _push(live: LiveSession, pcm: np.ndarray, rate: int) -> None:
    """Take it all; where the buffer is full, the client's own socket fills up: backpressure."""
    epoch, start = live.epoch, 0
    while start < len(pcm) and live.epoch == epoch and not live.closed.is_set():
        start += await live.push_audio(pcm[start:], rate)
        if start < len(pcm):
            await asyncio.sleep(0.1)


def _start(text: str) -> tuple[int, str]:
    try:
        given = json.loads(text)
        rate, mode = int(given.get("rate", 16_000)), str(given.get("mode", "speak"))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError('expected {"rate": 16000, "mode": "speak"}') from error
    if not 8_000 <= rate <= 96_000 or mode not in MODES:
        raise InputError(f"rate {rate}, mode {mode[:20]!r}; expected 8000 to 96000, {MODES}")
    return rate, mode
