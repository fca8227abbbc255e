"""How many sessions this machine carries: measured at the start, on the avatar it will serve."""

from __future__ import annotations

from time import thread_time_ns
from typing import Any

import numpy as np

from visavis.clock import ManualClock
from visavis.serve.vp8 import Vp8
from visavis.session import AudioBlock, Session, SessionConfig
from visavis.types import SAMPLE_RATE

USABLE = 0.7  # share of a core that may be planned for
SENDING_MS = 4.0  # core time a frame and its sound take in the event loop: Opus, RTP, SRTP


def core_ms_per_frame(
    models: tuple[Any, tuple], config: SessionConfig, seconds: float = 1.5
) -> float:
    """Core time of one frame: hearing, drawing and VP8, on this thread; the best half counts."""
    pipeline, fallbacks = models
    clock = ManualClock()
    session = Session(pipeline, config, clock=clock, fallbacks=fallbacks)
    noise = np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE)) * 0.1
    list(session.advance())
    session.push_audio(noise.astype(np.float32), SAMPLE_RATE)
    encoder = Vp8()
    costs: list[int] = []
    begin = thread_time_ns()
    for _ in range(round(seconds * 50)):
        clock.advance(20_000_000)
        for item in session.advance():
            if isinstance(item, AudioBlock):
                continue
            encoder.encode(item.image, item.pts, item.fps)
            costs.append(thread_time_ns() - begin)
            begin = thread_time_ns()
    costs = sorted(costs)[: max(1, len(costs) // 2)]
    return float(np.mean(costs)) / 1e6 if costs else 1.0


def session_limit(core_ms: float, fps: float, cores: int) -> int:
    """Sessions that fit, at least one."""
    return max(1, int(cores * USABLE * 1000 / fps / (core_ms + SENDING_MS)))
