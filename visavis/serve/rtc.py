"""WebRTC: a session's outlet as VP8 and Opus tracks, the browser's microphone as its input."""

from __future__ import annotations

import asyncio
import logging
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.sdp import candidate_from_sdp

from visavis.clock import Clock
from visavis.errors import InputError
from visavis.serve.coders import Parcel, RtcCoder
from visavis.serve.config import ServeConfig
from visavis.serve.engine import LiveSession
from visavis.serve.jitter import VoiceBuffer
from visavis.serve.metrics import Metrics
from visavis.serve.outlet import Outlet
from visavis.serve.vp8 import VIDEO_CLOCK

log = logging.getLogger("visavis.serve")
MAX_SDP = 64 << 10
MIC_MODES = ("speak", "listen", "off")
CLOSE_S = 5.0


class _PlannedTime:
    """Descriptor: the wall clock of a sender report is when its frame was *meant* to leave.

    aiortc reports the moment after encoding. A picture takes longer to encode than sound, so a
    browser that lines both up by their reports would show the lips late by the difference.
    """

    def __get__(self, sender: RTCRtpSender, owner: type | None = None) -> int:
        return vars(sender).get("planned_ntp", 0)

    def __set__(self, sender: RTCRtpSender, ntp: int) -> None:
        track = sender.track
        late_ns = track.late_ns if isinstance(track, OutTrack) else 0
        vars(sender)["planned_ntp"] = ntp - ((late_ns << 32) // 1_000_000_000) if ntp else 0


def report_planned_time() -> None:
    """Put `_PlannedTime` into aiortc, which has no hook for it; harmless where names have changed."""
    RTCRtpSender._RTCRtpSender__ntp_timestamp = _PlannedTime()  # type: ignore[attr-defined]


class RtcOutlet(Outlet):
    """Frames as VP8 packets; blocks as s16, for aiortc's Opus."""

    chained = True

    def __init__(self, clock: Clock, margin_ms: int, metrics: Metrics):
        super().__init__(clock, margin_ms, metrics)
        self.coder = RtcCoder

    def wrap(self, parcel: Parcel) -> av.Packet | av.AudioFrame:
        """As aiortc takes them."""
        data, pts, rest = parcel.body
        if parcel.kind == "audio":
            return sound(np.frombuffer(data, np.int16), pts, rest)
        packet = av.Packet(data)
        packet.pts, packet.time_base = pts, Fraction(1, VIDEO_CLOCK)
        packet.is_keyframe = rest
        return packet

    def is_key(self, ready: av.Packet) -> bool:
        """See `Outlet`."""
        return ready.is_keyframe

    def silence(self, ready: av.AudioFrame) -> av.AudioFrame:
        """The same moment, silent."""
        return sound(np.zeros(ready.samples, np.int16), ready.pts, ready.sample_rate)


def sound(pcm: np.ndarray, pts: int, rate: int) -> av.AudioFrame:
    """``(N,)`` int16 at ``rate`` from sample ``pts`` on."""
    frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, pts, Fraction(1, rate)
    return frame


class OutTrack(MediaStreamTrack):
    """One kind of an outlet."""

    def __init__(self, kind: str, outlet: Outlet):
        super().__init__()
        self.kind = kind
        self._outlet = outlet
        self._when = 0

    @property
    def late_ns(self) -> int:
        """How long ago the last thing handed out was due."""
        return self._outlet.clock.now() - self._when if self._when else 0

    async def recv(self) -> Any:
        """See `MediaStreamTrack`."""
        held = await self._outlet.next(self.kind)
        if held is None:
            self.stop()
            raise MediaStreamError
        self._when = held.when
        return held.ready


class _Packer(Vp8Encoder):
    """Cuts our packets for aiortc, which tells its encoders what the client says of the network."""

    def __init__(self, outlet: RtcOutlet):
        super().__init__()
        self._outlet = outlet

    @property
    def target_bitrate(self) -> int:
        """As aiortc has it; setting it reaches the encoder where the session is drawn."""
        return Vp8Encoder.target_bitrate.__get__(self)

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._outlet.tell("aim", bitrate)


def listen_to_network(sender: RTCRtpSender, outlet: RtcOutlet) -> None:
    """Have the outlet told of lost pictures and of the rate that gets through: no hook in aiortc."""
    sender._send_keyframe = lambda: outlet.tell("want_key")
    if "_RTCRtpSender__encoder" in vars(sender):
        vars(sender)["_RTCRtpSender__encoder"] = _Packer(outlet)


def take_at_once(receiver: Any) -> None:
    """Give aiortc's receiver of sound a `VoiceBuffer`; harmless where names have changed."""
    inside = vars(receiver)
    queue, codecs = (inside.get(f"_RTCRtpReceiver__{name}") for name in ("decoder_queue", "codecs"))
    if queue is None or codecs is None:
        return
    inside["_RTCRtpReceiver__jitter_buffer"] = VoiceBuffer(
        lambda frame, kind: queue.put((codecs[kind], frame))
    )


class Peer:
    """One peer connection of one session.

    Args:
        live: the session.
        config: ICE servers and margin.
    """

    def __init__(self, live: LiveSession, config: ServeConfig):
        self.live = live
        servers = [RTCIceServer(**s.model_dump()) for s in config.ice_servers]
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        worker = live.worker
        self.outlet = RtcOutlet(worker.clock, config.margin_ms, worker.metrics)
        self.mic = "off"  # until the client says what its microphone is for
        self._tasks: set[asyncio.Task] = set()
        self._closing: asyncio.Task | None = None
        self.pc.on("track", self._on_track)
        self.pc.on("connectionstatechange", self._on_state)

    async def answer(self, sdp: str) -> str:
        """The answer to an offer.

        Raises:
            InputError: not an offer that can be answered.
        """
        if len(sdp) > MAX_SDP:
            raise InputError(f"the offer has {len(sdp)} characters; expected at most {MAX_SDP}")
        try:
            self.pc.addTransceiver(OutTrack("audio", self.outlet), "sendrecv")
            video = self.pc.addTransceiver(OutTrack("video", self.outlet), "sendonly")
            video.setCodecPreferences(_vp8())
            listen_to_network(video.sender, self.outlet)
            await self.pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            if video.mid is None:
                raise ValueError("no video asked for")
            if any(t.receiver.transport is None for t in self.pc.getTransceivers()):
                raise ValueError("a bundle of what is not there")
            await self.pc.setLocalDescription(await self.pc.createAnswer())
        except Exception as error:
            await self.close()
            raise InputError(f"the offer cannot be answered: {type(error).__name__}") from error
        self.live.attach(self.outlet)
        return self.pc.localDescription.sdp

    async def candidate(self, given: dict[str, Any]) -> None:
        """One of the browser's ICE candidates; an empty one ends them.

        Raises:
            InputError: not a candidate.
        """
        text = str(given.get("candidate") or "")
        if not text:
            await self.pc.addIceCandidate(None)
            return
        try:
            candidate = candidate_from_sdp(text.split(":", 1)[1])
            candidate.sdpMid = str(given.get("sdpMid") or "0")
            candidate.sdpMLineIndex = int(given.get("sdpMLineIndex") or 0)
            await self.pc.addIceCandidate(candidate)
        except (AssertionError, IndexError, ValueError, TypeError) as error:
            raise InputError("not an ICE candidate") from error

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind != "audio" or len(self._tasks) > 4:
            return
        for transceiver in self.pc.getTransceivers():
            if transceiver.receiver.track is track:
                take_at_once(transceiver.receiver)
        task = asyncio.ensure_future(self._listen(track))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await track.recv()
                if self.mic == "off":
                    continue
                pcm = frame.to_ndarray().reshape(-1, len(frame.layout.channels))
                if self.mic == "speak":
                    await self.live.push_audio(pcm, frame.sample_rate, live=True)
                else:
                    await self.live.push_listen_audio(pcm, frame.sample_rate)
        except (MediaStreamError, LookupError, BufferError, InputError):
            return  # the microphone, or the session, is gone

    async def _on_state(self) -> None:
        if self.pc.connectionState in ("failed", "closed"):
            await self.close()

    async def close(self) -> None:
        """Hang up; harmless when done."""
        self.live.detach(self.outlet)
        for task in list(self._tasks):
            task.cancel()
        self._closing = self._closing or asyncio.ensure_future(hang_up(self.pc))
        await asyncio.wait({self._closing}, timeout=CLOSE_S)


async def hang_up(pc: RTCPeerConnection) -> None:
    """Close a peer connection, whatever its client made of it.

    An offer may bundle what it does not have; then aiortc holds tracks without a transport. Its
    ``close`` breaks off at the first, leaves the others open, and a second ``close`` waits for ever.
    """
    tracks = vars(pc).get("_RTCPeerConnection__transceivers", [])
    tracks[:] = [t for t in tracks if t.receiver.transport is not None]
    try:
        await pc.close()
    except Exception as error:  # noqa: BLE001 - there is nothing left to be done with it
        log.warning("peer connection did not close", extra={"error": repr(error)})


def _vp8() -> list[Any]:
    codecs = RTCRtpSender.getCapabilities("video").codecs
    return [c for c in codecs if c.mimeType.lower() in ("video/vp8", "video/rtx")]
