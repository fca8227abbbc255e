"""Marks in what the server sends: a white corner and an 8 kHz beep at each whole second.

Both follow from the pts alone, so what a browser sees and hears of them tells its offset of sound and
picture. For `live_coded.py`; a module of its own, since the drawing processes import it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from visavis.serve import rtc
from visavis.serve.coders import RtcCoder, to_s16

MARK_S = 0.1
BEEP_HZ, BEEP = 8000, 0.2
CORNER = 48


class CodedCoder(RtcCoder):
    """Marks frames and blocks on their way to the encoders."""

    def frame(self, frame):
        image = frame.image.copy()
        lit = frame.pts % frame.fps < MARK_S * frame.fps
        image[:CORNER, :CORNER] = 255 * lit
        return super().frame(replace(frame, image=image))

    def block(self, block):
        pcm = block.pcm + beep(block.pts, block.rate, len(block.pcm))
        return super().block(replace(block, pcm=pcm))


class CodedOutlet(rtc.RtcOutlet):
    """The beeps go on through an interruption."""

    def __init__(self, *choices):
        super().__init__(*choices)
        self.coder = CodedCoder

    def silence(self, ready):
        pcm = beep(ready.pts, ready.sample_rate, ready.samples)
        return rtc.sound(to_s16(pcm), ready.pts, ready.sample_rate)


def beep(pts: int, rate: int, count: int) -> np.ndarray:
    """``(count,)`` float32: the marks in a block."""
    time = (pts + np.arange(count)) / rate
    return (BEEP * (time % 1 < MARK_S) * np.sin(2 * np.pi * BEEP_HZ * time)).astype(np.float32)
