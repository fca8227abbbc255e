"""A LiveKit room without a server: what two participants send each other, handed over in memory.

Only the network is stood in for; tracks, sources, frames, errors and enumerations are the library's.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from livekit import rtc


class Reader:
    """A byte stream as it arrives."""

    def __init__(self, attributes, topic):
        self.info = SimpleNamespace(attributes=attributes, topic=topic, stream_id="s")
        self.queue: asyncio.Queue = asyncio.Queue()
        self.closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        data = await self.queue.get()
        if data is None:
            raise StopAsyncIteration
        if isinstance(data, Exception):
            raise data
        return data

    def close(self):
        self.closed = True
        self.queue.put_nowait(None)


class Writer:
    def __init__(self, reader):
        self._reader = reader

    async def write(self, data):
        self._reader.queue.put_nowait(data)

    async def aclose(self):
        self._reader.queue.put_nowait(None)


class Person:
    """A participant: of kind, with attributes, and RPC methods."""

    def __init__(self, room, identity, kind, attributes):
        self.room, self.identity, self.kind = room, identity, kind
        self.attributes = attributes
        self.state = rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE
        self.track_publications = {}
        self.tracks = []
        self.calls = []
        self._rpc_handlers = {}

    def register_rpc_method(self, method, handler):
        self._rpc_handlers[method] = handler

    def unregister_rpc_method(self, method):
        del self._rpc_handlers[method]

    async def perform_rpc(self, *, destination_identity, method, payload):
        await asyncio.sleep(0)
        self.calls.append((method, payload))
        other = self.room.people.get(destination_identity)
        code = rtc.RpcError.ErrorCode
        if other is None:
            raise rtc.RpcError(code.RECIPIENT_NOT_FOUND, "not there")
        handler = other._rpc_handlers.get(method)
        if handler is None:
            raise rtc.RpcError(code.UNSUPPORTED_METHOD, "unknown")
        return handler(SimpleNamespace(caller_identity=self.identity, payload=payload))

    async def stream_bytes(self, name, *, topic, destination_identities, attributes):
        reader = Reader(attributes, topic)
        for identity in destination_identities:
            self.room.people[identity].side.streams[topic](reader, self.identity)
        return Writer(reader)

    async def publish_track(self, track, options):
        kind = track.kind
        publication = SimpleNamespace(kind=kind, options=options, track=track)
        publication.wait_for_subscription = _at_once
        self.track_publications[track.name] = publication
        self.tracks.append(track.name)
        for person in self.room.people.values():
            if person is not self:
                person.side.emit("track_published", publication, self)
        return publication


async def _at_once():
    return None


class Side(rtc.EventEmitter):
    """The room as one participant sees it."""

    def __init__(self, room, person):
        super().__init__()
        self.room, self.local_participant = room, person
        self.streams = {}
        person.side = self

    @property
    def remote_participants(self):
        return {k: p for k, p in self.room.people.items() if p is not self.local_participant}

    def isconnected(self):
        return True

    def register_byte_stream_handler(self, topic, handler):
        assert topic not in self.streams
        self.streams[topic] = handler

    def unregister_byte_stream_handler(self, topic):
        del self.streams[topic]


class Wire:
    """The room itself."""

    def __init__(self):
        self.people = {}

    def join(self, identity, kind=rtc.ParticipantKind.PARTICIPANT_KIND_AGENT, **attributes):
        attributes = {k.replace("__", "."): v for k, v in attributes.items()}
        person = Person(self, identity, kind, attributes)
        self.people[identity] = person
        side = Side(self, person)
        for other in self.people.values():
            if other is not person:
                other.side.emit("participant_connected", person)
                other.side.emit("participant_active", person)
        return side

    def leave(self, identity):
        gone = self.people.pop(identity)
        for other in self.people.values():
            other.side.emit("participant_disconnected", gone)
