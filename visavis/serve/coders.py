"""A worker's part of each transport: what was drawn and said, to what can be sent.

A coder lives where its session is drawn, which may be another process: its class and arguments are
pickled, what it makes is small. `Outlet.wrap` makes of that what the transport takes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from visavis.serve.vp8 import Vp8
from visavis.session import AudioBlock, VideoFrame

HEADER = struct.Struct("<BBHIQ")
JPEG, PCM = 1, 2


@dataclass(frozen=True)
class Parcel:
    """One thing to send: ``kind`` is audio or video, ``when`` clock nanoseconds, ``body`` a coder's.

    ``epoch`` counts the interruptions before it.
    """

    kind: str
    epoch: int
    when: int
    body: Any


class Coder(Protocol):
    """One transport's coder."""

    def frame(self, frame: VideoFrame) -> Any:
        """The body of a frame's parcel."""
        ...

    def block(self, block: AudioBlock) -> Any:
        """The body of a block's parcel."""
        ...

    def want_key(self) -> None:
        """The next frame must stand alone."""
        ...

    def aim(self, bitrate: int) -> None:
        """What the network carries, bit/s."""
        ...


def to_s16(pcm: np.ndarray) -> np.ndarray:
    """``(N,)`` float32 to int16."""
    return np.round(np.clip(pcm, -1, 1) * 32767).astype(np.int16)


class PlainCoder:
    """Hands items on as they are: for who takes them in the same process."""

    def frame(self, frame: VideoFrame) -> VideoFrame:
        """See `Coder`."""
        return frame

    def block(self, block: AudioBlock) -> AudioBlock:
        """See `Coder`."""
        return block

    def want_key(self) -> None:
        """Every frame stands alone."""

    def aim(self, bitrate: int) -> None:
        """There is no network."""


class RtcCoder(PlainCoder):
    """VP8 as ``(bytes, pts, key)`` and s16 as ``(bytes, pts, rate)``."""

    def __init__(self) -> None:
        self._vp8 = Vp8()

    def frame(self, frame: VideoFrame) -> tuple[bytes, int, bool]:
        """Its pts is in 1/90000 s."""
        packet = self._vp8.encode(frame.image, frame.pts, frame.fps)
        return bytes(packet), packet.pts, packet.is_keyframe

    def block(self, block: AudioBlock) -> tuple[bytes, int, int]:
        """Mono; pts in samples."""
        return to_s16(block.pcm).tobytes(), block.pts, block.rate

    def want_key(self) -> None:
        """See `Coder`."""
        self._vp8.want_key()

    def aim(self, bitrate: int) -> None:
        """See `Coder`."""
        self._vp8.aim(bitrate)


class SocketCoder(PlainCoder):
    """Ready messages of the media socket.

    Args:
        quality: of the JPEGs.
    """

    def __init__(self, quality: int = 80):
        self._quality = quality

    def frame(self, frame: VideoFrame) -> bytes:
        """Header and JPEG."""
        bgr = cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self._quality])[1]
        rate = round(frame.fps * 1000)
        return HEADER.pack(JPEG, 0, frame.epoch & 0xFFFF, rate, frame.pts) + jpeg.tobytes()

    def block(self, block: AudioBlock) -> bytes:
        """Header and samples."""
        head = HEADER.pack(PCM, 0, block.epoch & 0xFFFF, block.rate, block.pts)
        return head + to_s16(block.pcm).tobytes()
