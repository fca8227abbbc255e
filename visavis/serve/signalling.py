"""The control WebSocket: open for the life of a session. JSON texts both ways.

In: ``offer`` (sdp), ``candidate`` (candidate), ``say`` (text), ``clear``, ``end_of_speech``,
``mic`` (mode), ``avatar`` (id), ``ping``, ``end``. Out: ``answer``, ``stats`` every half second, ``said``,
``cleared``, ``avatar``, ``error`` (reason), ``closed`` (reason).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from visavis.errors import InputError, VisavisError
from visavis.serve import speech
from visavis.serve.engine import LiveSession
from visavis.serve.media import end
from visavis.serve.rtc import MIC_MODES

if TYPE_CHECKING:
    from visavis.serve.app import Hall

PROTOCOL = "visavis.v1"
STATS_S = 0.5


async def accept(socket: WebSocket, hall: Hall, name: str, kind: str) -> LiveSession | None:
    """Let a socket in that shows a ticket: subprotocols ``visavis.v1, ticket.<ticket>``."""
    offered = socket.scope.get("subprotocols", [])
    ticket = next((p.removeprefix("ticket.") for p in offered if p.startswith("ticket.")), "")
    live = hall.engine.sessions.get(name)
    if not hall.tickets.use(ticket, f"{kind} {name}") or live is None or PROTOCOL not in offered:
        hall.metrics.requests.labels("ticket").inc()
        await socket.close(4401, "the ticket is not good, or was used")
        return None
    await socket.accept(PROTOCOL)
    return live


class Control:
    """One accepted control socket; its end lets the session go.

    Args:
        socket: accepted.
        hall: of the server.
        live: the session it controls.
    """

    def __init__(self, socket: WebSocket, hall: Hall, live: LiveSession):
        self.socket, self.hall, self.live = socket, hall, live

    async def run(self) -> None:
        """Until the client goes or the session ends."""
        live = self.live
        tasks = [
            asyncio.ensure_future(self._read()),
            asyncio.ensure_future(self._report()),
            asyncio.ensure_future(live.closed.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if live.closed.is_set():
                await self.socket.send_json({"type": "closed", "reason": live.error})
                await self.socket.close(1000)
        except (WebSocketDisconnect, RuntimeError):
            pass  # the client went first
        finally:
            await end(tasks)
            await self.hall.close(live, "the control socket closed")

    async def _report(self) -> None:
        live = self.live
        while True:
            await asyncio.sleep(STATS_S)
            outlet = live.outlet
            facts = {"av_offset_ms": 0.0, "sent": 0}
            if outlet is not None:
                facts = {"av_offset_ms": round(outlet.offset_ms, 2), "sent": outlet.sent["video"]}
            stats = {"type": "stats", "epoch": live.epoch} | facts | live.stats
            await self.socket.send_json(stats)

    async def _read(self) -> None:
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                answer = await self._answer(message)
            except (ValueError, RecursionError, KeyError):
                answer = {"type": "error", "reason": "expected a JSON object with a type"}
            except LookupError:
                return  # the session has ended
            except InputError as error:
                answer = {"type": "error", "reason": str(error)}
            except (VisavisError, BufferError):
                answer = {"type": "error", "reason": "the server cannot do this now"}
            if answer:
                await self.socket.send_json(answer)

    async def _answer(self, message: MutableMapping[str, Any]) -> dict[str, Any] | None:
        if message.get("text") is None:
            return await self.take(message.get("bytes") or b"")
        told = json.loads(message["text"])
        if not isinstance(told, dict):
            raise InputError("expected a JSON object")
        return await self.obey(told)

    async def take(self, data: bytes) -> dict[str, Any] | None:
        """A binary message; the answer, if there is one.

        Raises:
            InputError: it cannot be used.
        """
        raise InputError("expected a JSON object, not bytes")

    async def obey(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Do what ``message`` says; the answer, if there is one.

        Raises:
            InputError: it cannot be done, and why.
        """
        return await _obey(self.hall, self.live, message)


async def _obey(hall: Hall, live: LiveSession, message: dict[str, Any]) -> dict[str, Any] | None:
    kind = message.get("type")
    if kind == "offer":
        return {"type": "answer", "sdp": await hall.connect(live, str(message.get("sdp", "")))}
    if kind == "candidate":
        peer, given = hall.peers.get(live.id), message.get("candidate")
        if peer is not None:
            await peer.candidate(given if isinstance(given, dict) else {})
        return None
    if kind == "clear":
        live.clear_buffer()
        return {"type": "cleared", "epoch": live.epoch}
    if kind == "end_of_speech":
        await live.end_of_speech()
        return None
    if kind == "say":
        epoch = live.epoch
        pcm, rate = await speech.speak_text(
            str(message.get("text", "")),
            hall.config.tts_command,
            hall.config.tts_timeout_s,
            hall.config.sound_limit_s,
        )
        if live.epoch == epoch:
            hall.spawn(live.say(pcm, rate))
        return {"type": "said", "seconds": len(pcm) / rate}
    if kind == "mic":
        return _mic(hall, live, str(message.get("mode", "")))
    if kind == "avatar":
        entry = await asyncio.to_thread(hall.library.get, str(message.get("id", "")))
        await live.change_avatar(entry.id)
        return {"type": "avatar", "id": entry.id}
    if kind == "ping":
        return {"type": "pong"}
    if kind == "end":
        await hall.close(live, "ended by the client")
        return None
    raise InputError(f"type {str(kind)[:30]!r} is unknown")


def _mic(hall: Hall, live: LiveSession, mode: str) -> dict[str, Any]:
    if mode not in MIC_MODES:
        raise InputError(f"mic {mode[:20]!r}; expected {', '.join(MIC_MODES)}")
    peer = hall.peers.get(live.id)
    if peer is not None:
        peer.mic = mode
    return {"type": "mic", "mode": mode}
