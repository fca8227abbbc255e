"""Frames to VP8, on the thread that drew them: a packet is ready before its moment to leave comes."""

from __future__ import annotations

import threading
from fractions import Fraction

import av
import cv2
import numpy as np

VIDEO_CLOCK = 90_000
START_BITRATE, MIN_BITRATE, MAX_BITRATE = 1_500_000, 300_000, 2_500_000
RAISE, RAISE_FRAMES = 1.5, 150  # a new rate costs a key frame: up only by half, and after 5 s
LOWER = 0.85
OPTIONS = {
    "deadline": "realtime",
    "cpu-used": "-10",  # 3.7 ms a frame of 512 px where -6 takes 4.7, at 43.5 instead of 45 dB
    "noise-sensitivity": "0",  # a drawn face has no camera noise to take out
    "static-thresh": "200",  # the background never moves
    "lag-in-frames": "0",
    "partitions": "0",
    "overshoot-pct": "15",
    "undershoot-pct": "100",
}


def to_yuv(image: np.ndarray) -> av.VideoFrame:
    """``(S, S, 3)`` uint8 RGB to BT.601 limited range, what browsers take VP8 for."""
    return av.VideoFrame.from_ndarray(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420), format="yuv420p")


class Vp8:
    """One stream. ``encode`` on one thread, ``want_key`` and ``aim`` from any."""

    def __init__(self, bitrate: int = START_BITRATE):
        self._codec: av.VideoCodecContext | None = None
        self._rate = self._aim = bitrate
        self._key = threading.Event()
        self._since = 0

    def want_key(self) -> None:
        """The next frame must stand alone: one before it was lost."""
        self._key.set()

    def aim(self, bitrate: int) -> None:
        """What the network carries, bit/s."""
        self._aim = max(MIN_BITRATE, min(bitrate, MAX_BITRATE))

    def encode(self, image: np.ndarray, index: int, fps: Fraction) -> av.Packet:
        """Frame ``index``, ``(S, S, 3)`` uint8 RGB; its pts is in 1/90000 s."""
        picture = to_yuv(image)
        picture.pts, picture.time_base = round(index * VIDEO_CLOCK / fps), Fraction(1, VIDEO_CLOCK)
        self._open(picture.width, picture.height)
        if self._key.is_set():
            self._key.clear()
            picture.pict_type = av.video.frame.PictureType.I
        assert self._codec is not None
        (packet,) = self._codec.encode(picture)  # no lag: one in, one out
        packet.time_base = Fraction(1, VIDEO_CLOCK)
        self._since += 1
        return packet

    def _open(self, width: int, height: int) -> None:
        """A codec of this size and rate; libvpx behind FFmpeg cannot change either."""
        codec = self._codec
        if codec is not None and (codec.width, codec.height) == (width, height):
            up = self._aim > self._rate * RAISE and self._since > RAISE_FRAMES
            if not up and self._aim > self._rate * LOWER:
                return
        rate = self._rate = self._aim
        self._since = 0
        self._codec = codec = av.CodecContext.create("libvpx", "w")
        codec.width, codec.height, codec.pix_fmt = width, height, "yuv420p"
        codec.bit_rate, codec.gop_size = rate, 100_000
        codec.qmin, codec.qmax, codec.thread_count = 6, 56, 1
        codec.time_base = Fraction(1, VIDEO_CLOCK)
        codec.options = OPTIONS | {"bufsize": str(rate), "minrate": str(rate), "maxrate": str(rate)}
