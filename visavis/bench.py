"""How fast the pipeline is: core time per stage and frame, and a whole render against the clock."""

from __future__ import annotations

import itertools
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from visavis.audio import decode_audio, read_audio
from visavis.pipeline import Pipeline, PipelineConfig, StageClock, open_avatar, stream
from visavis.types import MOTION_HOP, SAMPLE_RATE
from visavis.video import VideoWriter, write_all

WARM_UP = 25  # motion steps left out: compilation, first touch of memory


def measure(who: str | Path, speech: str | Path, config: PipelineConfig, seconds: int) -> dict:
    """Run the pipeline on ``seconds`` of ``speech``, repeated as needed.

    Returns:
        Plain facts: ``core_ms`` per frame by stage (process CPU time, so threads add up),
        ``frame_ms_p50`` and ``frame_ms_p99`` (wall time of one frame's compute, no encoding),
        ``frame_core_ms_p99`` (the same in CPU time, which others at work disturb less),
        ``times_real_time`` (wall, encoding included, avatar ready), ``latency_ms``, ``peak_mb``.
    """
    avatar = open_avatar(who, config.size)
    pcm = _repeat(np.concatenate(list(read_audio(speech))), seconds * SAMPLE_RATE)
    pipe = Pipeline(avatar, config)
    core_ms, frame_ms, frame_core_ms = _stages(pipe, pcm)
    with tempfile.TemporaryDirectory() as folder:
        encode_ms, ratio = _whole(pipe, pcm, speech, Path(folder) / "bench.mp4", seconds)
    core_ms["encode"] = encode_ms
    return {
        "bench": "render",
        "tier": config.tier,
        "size": config.size,
        "fps": str(config.fps),
        "seconds": seconds,
        "core_ms": {name: round(value, 3) for name, value in core_ms.items()},
        "core_ms_total": round(sum(core_ms.values()), 2),
        "frame_ms_p50": round(float(np.percentile(frame_ms, 50)), 2),
        "frame_ms_p99": round(float(np.percentile(frame_ms, 99)), 2),
        "frame_core_ms_p99": round(float(np.percentile(frame_core_ms, 99)), 2),
        "times_real_time": round(ratio, 2),
        "latency_ms": round(1000 * float(pipe.latency), 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def _repeat(pcm: np.ndarray, samples: int) -> np.ndarray:
    return np.tile(pcm, -(-samples // len(pcm)))[:samples]


def _stages(pipe: Pipeline, pcm: np.ndarray) -> tuple[dict[str, float], list[float], list[float]]:
    """Core-ms per frame by stage; wall ms and core-ms of every frame, fed live in 20 ms steps."""
    state, clock = pipe.init_state(), StageClock(time.process_time_ns)
    since, costs = np.zeros(2), []
    for number, start in enumerate(range(0, len(pcm), MOTION_HOP)):
        if number == WARM_UP:
            clock, costs = StageClock(time.process_time_ns), []
        begin = np.array([time.perf_counter_ns(), time.process_time_ns()])
        state, shown = pipe.step(state, pcm[None, start : start + MOTION_HOP], clock)
        since += np.array([time.perf_counter_ns(), time.process_time_ns()]) - begin
        if shown:
            costs += [since / len(shown) / 1e6] * len(shown)
            since = np.zeros(2)
    wall, core = np.array(costs).T
    per_frame = {name: total / len(costs) / 1e6 for name, total in clock.total.items()}
    return per_frame, list(wall), list(core)


def _whole(
    pipe: Pipeline, pcm: np.ndarray, speech: str | Path, path: Path, seconds: int
) -> tuple[float, float]:
    """Core-ms per frame of encoding alone, and how many times real time a whole render is."""
    size = (pipe.renderer.size, pipe.renderer.size)
    fps, kept = pipe.config.fps, []

    def pictures() -> Iterator[np.ndarray]:
        for frame in stream(pipe.renderer.avatar, [pcm], pipeline=pipe):
            if len(kept) < 60:
                kept.append(frame.image)
            yield frame.image

    begin = time.perf_counter()
    with VideoWriter(path, fps, size, sound=_sound(speech)) as film:
        write_all(film, pictures())
    ratio = seconds / (time.perf_counter() - begin)
    begin = time.process_time()
    with VideoWriter(path, fps, size, sound=_sound(speech)) as film:
        for image in kept:
            film.write(image)
    return 1000 * (time.process_time() - begin) / len(kept), ratio


def _sound(speech: str | Path) -> Iterator[tuple[np.ndarray, int]]:
    return itertools.chain.from_iterable(decode_audio(speech) for _ in itertools.count())
