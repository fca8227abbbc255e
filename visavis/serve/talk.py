"""The one WebSocket ``/talk``: place, control, files and, without UDP, media on one connection.

For servers where each request may reach another replica: the conversation stays where the socket is.
The client speaks first; then ``signalling``'s protocol holds, with more beside it.

===========================  ====================================================================
JSON in                      what follows
===========================  ====================================================================
``open`` (avatar, seed,      ``opened`` (id, avatar, ice_servers), or the socket is closed with a
token); the first message    reason: 4401 token, 4408 said nothing, 4422 not understood, 4503 full
``file`` (bytes)             pieces of a sound file of this size, as binary messages, are taken
``file_end``                 the file is spoken: ``said`` (seconds)
``media`` (rate)             JPEG and PCM come as on the media WebSocket, and PCM of ``rate`` Hz is
                             taken as binary messages: it goes where ``mic`` (mode) last said
===========================  ====================================================================

A binary message in is one byte, 2 for PCM (16 bits, little endian, mono) or 3 for a piece of a file,
and then at most 256 KiB.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from visavis.errors import InputError, VisavisError
from visavis.serve import speech
from visavis.serve.coders import PCM
from visavis.serve.engine import LiveSession
from visavis.serve.guard import right_token
from visavis.serve.media import SocketOutlet, attach_outlet, end, send_ready
from visavis.serve.signalling import PROTOCOL, Control
from visavis.voice import LIVE_RATES

if TYPE_CHECKING:
    from visavis.serve.app import Hall

PIECE = 3
PIECE_BYTES = 256 << 10
OPEN_CHARACTERS = 4096


class NoPlace(Exception):
    """No session can be opened now; ``reason`` is its label in the metrics."""

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


class Opening(BaseModel):
    """The first message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["open"]
    avatar: str | None = Field(None, max_length=100)
    seed: int = Field(0, ge=0, lt=2**32)
    token: str = ""


async def run_talk(socket: WebSocket, hall: Hall) -> None:
    """Serve one socket from its first message to the end of its session."""
    await socket.accept(PROTOCOL if PROTOCOL in socket.scope.get("subprotocols", []) else None)
    try:
        live = await _admit(socket, hall)
        if live is not None:
            await Talk(socket, hall, live).run()
    except WebSocketDisconnect:
        return  # before it was let in


async def _admit(socket: WebSocket, hall: Hall) -> LiveSession | None:
    """The session asked for, or None when the client was shown out."""

    async def refuse(code: int, why: str) -> None:
        hall.metrics.requests.labels(str(code - 4000)).inc()
        await socket.close(code, why.encode()[:120].decode(errors="ignore"))

    patience = hall.config.header_timeout_s
    try:
        text = await asyncio.wait_for(_first(socket), patience)
        opening = Opening.model_validate_json(text)
    except TimeoutError:
        return await refuse(4408, f'nothing was said within {patience:g} s; expected type "open"')
    except (ValidationError, InputError):
        return await refuse(
            4422, 'expected {"type": "open", "avatar": ..., "seed": ..., "token": ...}'
        )
    if hall.config.token and not right_token(opening.token, hall.config.token):
        return await refuse(4401, "a token is needed: its value in the first message")
    owner = socket.client.host if socket.client else "?"
    try:
        return await hall.place(opening.avatar, opening.seed, owner)
    except NoPlace as error:
        await socket.close(4503, str(error)[:120])  # counted with the sessions refused
        return None
    except InputError as error:
        return await refuse(4422, str(error))
    except VisavisError:
        return await refuse(4500, "the server cannot do this; see its log")


async def _first(socket: WebSocket) -> str:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    text = message.get("text")
    if text is None or len(text) > OPEN_CHARACTERS:
        raise InputError("expected a short text")
    return text


class Talk(Control):
    """A socket that was let in; see `Control`."""

    def __init__(self, socket: WebSocket, hall: Hall, live: LiveSession):
        super().__init__(socket, hall, live)
        self._file: bytearray | None = None
        self._file_bytes = 0  # as announced
        self._rate = 0  # Hz of the client's PCM; 0: none was announced
        self._mode = "off"
        self._outlet: SocketOutlet | None = None
        self._senders: list[asyncio.Task] = []

    async def run(self) -> None:
        """See `Control`."""
        live = self.live
        ice = [s.model_dump(exclude_none=True) for s in self.hall.config.ice_servers]
        opened = {"type": "opened", "id": live.id, "avatar": live.avatar, "ice_servers": ice}
        try:
            await self.socket.send_json(opened)
        except (WebSocketDisconnect, RuntimeError):
            await self.hall.close(live, "the client left before it was let in")
            return
        try:
            await super().run()
        finally:
            await self._detach()

    async def obey(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """See `Control`."""
        kind = message.get("type")
        if kind == "file":
            return self._begin(message.get("bytes"))
        if kind == "file_end":
            return await self._speak()
        if kind == "media":
            return await self._attach(message.get("rate"))
        answer = await super().obey(message)
        if kind == "mic":
            self._mode = str(message["mode"])
        return answer

    async def take(self, data: bytes) -> dict[str, Any] | None:
        """See `Control`."""
        kind, body = data[:1], data[1:]
        if kind not in (bytes([PCM]), bytes([PIECE])) or len(body) > PIECE_BYTES:
            raise InputError(f"expected {PCM} or {PIECE}, one byte, then at most {PIECE_BYTES}")
        if kind == bytes([PIECE]):
            self._gather(body)
        else:
            await self._hear(body)
        return None

    def _begin(self, size: object) -> None:
        limit = self.hall.config.upload_mb << 20
        if type(size) is not int or not 0 < size <= limit:
            raise InputError(f"a file of {str(size)[:20]} bytes; expected 1 to {limit}")
        self._file, self._file_bytes = bytearray(), size

    def _gather(self, piece: bytes) -> None:
        if self._file is None:
            raise InputError('a piece of no file; say {"type": "file", "bytes": ...} first')
        if len(self._file) + len(piece) > self._file_bytes:
            self._file = None
            raise InputError(f"the file is longer than the {self._file_bytes} bytes announced")
        self._file += piece

    async def _speak(self) -> dict[str, Any]:
        data, self._file = self._file, None
        if data is None or len(data) != self._file_bytes:
            came = 0 if data is None else len(data)
            raise InputError(f"{came} bytes of a file came; expected {self._file_bytes}")
        live, epoch = self.live, self.live.epoch
        limit_s = self.hall.config.sound_limit_s
        pcm, rate = await asyncio.to_thread(speech.decode, bytes(data), limit_s)
        if live.epoch == epoch:
            self.hall.spawn(live.say(pcm, rate))
        return {"type": "said", "seconds": len(pcm) / rate}

    async def _attach(self, rate: object) -> None:
        low, high = LIVE_RATES
        if type(rate) is not int or not low <= rate <= high:
            raise InputError(f"rate {str(rate)[:20]}; expected {low} to {high}")
        self._rate = rate
        if self._outlet is None or self.live.outlet is not self._outlet:
            await self._detach()
            self._outlet = attach_outlet(self.live, self.hall.config)
            self._senders = [
                asyncio.ensure_future(send_ready(self.socket, self._outlet, kind))
                for kind in ("audio", "video")
            ]

    async def _detach(self) -> None:
        if self._outlet is not None:
            self.live.detach(self._outlet)
            await end(self._senders)
            self._outlet = None

    async def _hear(self, data: bytes) -> None:
        if not self._rate or len(data) % 2:
            raise InputError('expected 16-bit samples, after {"type": "media", "rate": ...}')
        pcm = np.frombuffer(data, "<i2")
        if self._mode == "speak":
            await self.live.push_audio(pcm, self._rate, live=True)
        elif self._mode == "listen":
            await self.live.push_listen_audio(pcm, self._rate)
