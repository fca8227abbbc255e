"""The real server with marks in what it sends: a white corner and an 8 kHz beep at each whole second.

    python benchmarks/live_coded.py --size 512 --tier patch

Both marks follow from the pts alone, so what a browser sees and hears of them tells its offset of sound
and picture. Prints the address. For `live_browser.py`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from visavis.serve import rtc
from visavis.serve.cli import make_app, run
from visavis.serve.config import ASSETS, ServeConfig

MARK_S = 0.1
BEEP_HZ, BEEP = 8000, 0.2
CORNER = 48


class CodedOutlet(rtc.RtcOutlet):
    """Marks frames and blocks on their way to the encoders."""

    def prepare_frame(self, frame):
        image = frame.image.copy()
        lit = frame.pts % frame.fps < MARK_S * frame.fps
        image[:CORNER, :CORNER] = 255 * lit
        return super().prepare_frame(replace(frame, image=image))

    def prepare_block(self, block):
        pcm = block.pcm + beep(block.pts, block.rate, len(block.pcm))
        return super().prepare_block(replace(block, pcm=pcm))

    def silence(self, ready):
        """The beeps go on through an interruption."""
        pcm = beep(ready.pts, ready.sample_rate, ready.samples)
        return rtc.sound(rtc.to_s16(pcm), ready.pts, ready.sample_rate)


def beep(pts: int, rate: int, count: int) -> np.ndarray:
    """``(count,)`` float32: the marks in a block."""
    time = (pts + np.arange(count)) / rate
    return (BEEP * (time % 1 < MARK_S) * np.sin(2 * np.pi * BEEP_HZ * time)).astype(np.float32)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--tier", default="patch")
    parser.add_argument("--sessions", type=int, default=2)
    options = parser.parse_args()
    rtc.RtcOutlet = CodedOutlet
    config = ServeConfig.of(
        port=0,
        avatars=(ASSETS / "demo.avatar",),
        size=options.size,
        tier=options.tier,
        max_sessions=options.sessions,
        sessions_per_client=options.sessions,
        requests_per_minute=100_000,
    )
    run(config, make_app(config))


if __name__ == "__main__":
    main()
