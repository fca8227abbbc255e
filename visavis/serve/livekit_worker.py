"""LiveKit, remote: a face that joins a room and lends it to an agent running elsewhere.

Only the ``livekit`` package is needed. The agent sends speech as byte streams and hears back what was
played, which is what ``DataStreamAudioOutput`` of livekit-agents does:

=====================  ===============  ==========================================================
name                   direction        what
=====================  ===============  ==========================================================
``lk.audio_stream``    agent to face    byte stream a segment of speech; s16 PCM; ``sample_rate``
                                        and ``num_channels`` as attributes; its end is the segment's
``lk.clear_buffer``    agent to face    RPC: be quiet, forget what waits
``lk.playback_started``   face to agent RPC: the first sound of a segment is out
``lk.playback_finished``  face to agent RPC: ``{"playback_position": s, "interrupted": bool}``, once
                                        for every segment
=====================  ===============  ==========================================================
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from livekit import rtc

from visavis.errors import AudioError, ConfigError
from visavis.serve.coders import to_s16
from visavis.serve.face import Face
from visavis.session import AudioBlock, VideoFrame
from visavis.voice import LIVE_RATES

log = logging.getLogger("visavis.livekit")
AUDIO_TOPIC = "lk.audio_stream"
CLEAR, STARTED, FINISHED = "lk.clear_buffer", "lk.playback_started", "lk.playback_finished"
ON_BEHALF = "lk.publish_on_behalf"  # attribute of the token: the agent's identity
STREAMS = 32  # segments waiting at most
LOOK_S = 0.5  # how often a silent stream is looked at
IDLE_LOOKS = 20  # then its end is taken for lost
TRIES, RETRY_S = 3, 0.1
QUEUE_MS = 60  # of sound inside LiveKit; more would put it behind the picture after a stall
BITRATE = 2_000_000


@dataclass(eq=False)
class Segment:
    """One byte stream; the agent waits for one report on it."""

    reader: Any
    rate: int
    channels: int
    pushed: int = 0  # samples given to the face
    played_s: float = 0.0  # seconds given to the room
    started: bool = False
    reported: bool = False
    out: asyncio.Event = field(default_factory=asyncio.Event)  # its last sound is, or it was cut


class AvatarWorker:
    """One face in one room.

    Args:
        room: connected.
        face: started and stopped by whoever made it.
        agent: identity whose speech it takes. Empty: the one named in the token, or else the first
            participant of kind agent that sends any.
    """

    def __init__(self, room: rtc.Room, face: Face, agent: str = ""):
        self._room, self._face = room, face
        self._agent = agent or room.local_participant.attributes.get(ON_BEHALF, "")
        rate = face.config.audio_rate
        self._audio = rtc.AudioSource(rate, 1, queue_size_ms=QUEUE_MS)
        self._video = rtc.VideoSource(face.size, face.size)
        self._waiting: deque[Segment] = deque()
        self._news = asyncio.Event()
        self._current: Segment | None = None
        self._reports: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._why = ""
        self._tasks: list[asyncio.Task] = []

    async def start(self) -> None:
        """Listen to the agent and publish the face."""
        me = self._room.local_participant
        me.register_rpc_method(CLEAR, self._on_clear)
        self._room.register_byte_stream_handler(AUDIO_TOPIC, self._on_stream)
        self._room.on("participant_disconnected", self._on_leave)
        self._room.on("disconnected", self._on_disconnect)
        sound = rtc.LocalAudioTrack.create_audio_track("avatar_audio", self._audio)
        await me.publish_track(
            sound, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        )
        encoding = rtc.VideoEncoding(max_bitrate=BITRATE, max_framerate=float(self._face.fps))
        picture = rtc.LocalVideoTrack.create_video_track("avatar_video", self._video)
        await me.publish_track(
            picture,
            rtc.TrackPublishOptions(
                source=rtc.TrackSource.SOURCE_CAMERA,
                simulcast=False,  # every layer would be encoded on this machine
                video_encoding=encoding,
            ),
        )
        work = (self._hear(), self._show(), self._tell())
        self._tasks = [asyncio.ensure_future(part) for part in work]

    async def wait(self) -> str:
        """Until the agent or the room is gone, or `stop`; why."""
        leaving = asyncio.ensure_future(self._gone.wait())
        done, _ = await asyncio.wait([leaving, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        for task in done - {leaving}:
            task.result()  # a failure of ours is raised
        return self._why

    def stop(self, why: str = "stopped") -> None:
        """Have `wait` return."""
        self._why = self._why or why
        self._gone.set()

    async def aclose(self) -> None:
        """Let go of the room; it stays connected."""
        self._room.off("participant_disconnected", self._on_leave)
        self._room.off("disconnected", self._on_disconnect)
        self._room.unregister_byte_stream_handler(AUDIO_TOPIC)
        self._room.local_participant.unregister_rpc_method(CLEAR)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for segment in self._outstanding():
            segment.reader.close()
        await self._audio.aclose()
        await self._video.aclose()

    # --- what the room says ---

    def _from_agent(self, identity: str) -> bool:
        if not self._agent:
            sender = self._room.remote_participants.get(identity)
            if sender is None or sender.kind != rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
                return False
            self._agent = identity
        return identity == self._agent

    def _on_stream(self, reader: rtc.ByteStreamReader, identity: str) -> None:
        if not self._from_agent(identity):
            log.warning("speech refused", extra={"from": identity, "agent": self._agent})
            reader.close()
            return
        attributes = reader.info.attributes or {}
        try:
            rate, channels = int(attributes["sample_rate"]), int(attributes["num_channels"])
        except (KeyError, ValueError):
            rate, channels = 0, 0
        segment = Segment(reader, rate, channels)
        fits = LIVE_RATES[0] <= rate <= LIVE_RATES[1] and 1 <= channels <= 8
        if not fits or len(self._waiting) >= STREAMS:
            log.warning("speech refused", extra={"attributes": attributes, "fits": fits})
            self._drop(segment)
            return
        self._waiting.append(segment)
        self._news.set()

    def _on_clear(self, data: rtc.RpcInvocationData) -> str:
        if not self._from_agent(data.caller_identity):
            log.warning("interruption refused", extra={"from": data.caller_identity})
            return "reject"
        owed, queued = self._outstanding(), self._audio.queued_duration
        self._current = None
        self._waiting.clear()
        self._face.clear()
        self._audio.clear_queue()
        for segment in owed:
            segment.played_s = max(0.0, segment.played_s - queued)
            self._drop(segment)
        return "ok"

    def _on_leave(self, participant: rtc.RemoteParticipant) -> None:
        if self._agent and participant.identity == self._agent:
            self.stop("the agent left")

    def _on_disconnect(self, *reason: Any) -> None:
        self.stop("the room was closed")

    # --- speech in ---

    def _outstanding(self) -> list[Segment]:
        return [s for s in (self._current, *self._waiting) if s is not None]

    def _drop(self, segment: Segment) -> None:
        segment.reader.close()
        segment.out.set()
        self._finish(segment, interrupted=True)

    async def _hear(self) -> None:
        """One segment after the other: the next is begun when the last is out, so that each has an
        end of its own."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                segment = self._current = self._waiting.popleft()
                await self._read(segment)
                if not segment.out.is_set():
                    await self._face.end()
                    await segment.out.wait()
                segment.reader.close()

    async def _read(self, segment: Segment) -> None:
        width, rest = 2 * segment.channels, b""
        async for data in self._chunks(segment):
            data = rest + data
            whole = len(data) - len(data) % width
            rest = data[whole:]
            pcm = np.frombuffer(data[:whole], "<i2").reshape(-1, segment.channels)
            segment.pushed += len(pcm)
            try:
                await self._face.push(pcm, segment.rate)
            except AudioError as error:
                log.warning("speech refused", extra={"error": str(error)})
                return

    async def _chunks(self, segment: Segment) -> AsyncIterator[bytes]:
        """What the stream brings; over at its end, when it is cut, or when its end was lost."""
        cut = asyncio.ensure_future(segment.out.wait())
        looks, coming = 0, None
        try:
            while not segment.out.is_set():
                coming = coming or asyncio.ensure_future(anext(segment.reader, None))
                await asyncio.wait(
                    {coming, cut}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
                if not coming.done():
                    looks += 1
                    if self._waiting or looks >= IDLE_LOOKS:
                        log.warning("a stream of speech has no end", extra={"looks": looks})
                        return
                    continue
                data, coming, looks = coming.result(), None, 0
                if data is None:
                    return
                yield data
        except ConnectionError as error:  # rtc.StreamError, where this livekit has it
            log.warning("a stream of speech broke off", extra={"error": str(error)})
        finally:
            cut.cancel()
            if coming is not None:
                coming.cancel()

    # --- sound and picture out ---

    async def _show(self) -> None:
        async for item in self._face:
            if isinstance(item, VideoFrame):
                self._video.capture_frame(picture_of(item))
            else:
                await self._play(item)

    async def _play(self, block: AudioBlock) -> None:
        segment = self._current
        if block.speaking:
            await self._audio.capture_frame(sound_of(block))
            if segment is not None:
                segment.played_s += len(block.pcm) / block.rate
                if not segment.started:
                    segment.started = True
                    self._reports.put_nowait((STARTED, ""))
        if block.ends and segment is not None and segment is self._current:
            self._current = None
            segment.out.set()
            self._finish(segment, interrupted=False)

    # --- reports ---

    def _finish(self, segment: Segment, *, interrupted: bool) -> None:
        if segment.reported:
            return
        segment.reported = True
        length = segment.pushed / segment.rate if segment.rate else 0.0
        position = length if not interrupted else min(segment.played_s, length)
        facts = {"playback_position": round(position, 3), "interrupted": interrupted}
        self._reports.put_nowait((FINISHED, json.dumps(facts)))

    async def _tell(self) -> None:
        while True:
            method, payload = await self._reports.get()
            for attempt in range(TRIES):
                if attempt:
                    await asyncio.sleep(RETRY_S)
                if await self._call(method, payload):
                    break

    async def _call(self, method: str, payload: str) -> bool:
        """Whether there is no sense in another try."""
        try:
            await self._room.local_participant.perform_rpc(
                destination_identity=self._agent, method=method, payload=payload
            )
        except rtc.RpcError as error:
            if error.code == rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD:
                return True  # older agents do not want to know when it starts
            log.warning("the agent cannot be told", extra={"method": method, "error": str(error)})
            return False
        return True


def picture_of(frame: VideoFrame) -> rtc.VideoFrame:
    """As LiveKit wants it."""
    height, width = frame.image.shape[:2]
    return rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, frame.image.tobytes())


def sound_of(block: AudioBlock) -> rtc.AudioFrame:
    """As LiveKit wants it."""
    return rtc.AudioFrame(to_s16(block.pcm).tobytes(), block.rate, 1, len(block.pcm))


async def lend(url: str, token: str, face: Face, agent: str = "", on_ready: Any = None) -> str:
    """Join a room, serve its agent to the end, leave; returns why it ended.

    Args:
        url: ``wss://...``.
        token: of the room, for this face.
        face: not started yet.
        agent: see `AvatarWorker`.
        on_ready: called with the worker once the face can be seen.

    Raises:
        ConfigError: the room cannot be joined.
    """
    room = rtc.Room()
    try:
        await room.connect(url, token, rtc.RoomOptions(auto_subscribe=False))
    except rtc.ConnectError as error:
        raise ConfigError(
            f"cannot join the room at {url}: {error}; check --url and the token"
        ) from error
    try:
        await face.start()
        worker = AvatarWorker(room, face, agent)
        try:
            await worker.start()
            if on_ready is not None:
                on_ready(worker)
            return await worker.wait()
        finally:
            await worker.aclose()
    finally:
        await face.stop()
        await room.disconnect()
