"""Time the pipeline as it runs live: 20 ms of sound in, whatever frames are due out.

The clock is an argument; only the command line passes the machine's own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from visavis.eval import latency, lips
from visavis.eval.clips import read_clip
from visavis.eval.jobs import jobs_of
from visavis.eval.rows import at_times
from visavis.eval.runner import Bench, SystemUnderTest, open_pipeline, speak
from visavis.eval.stats import bootstrap
from visavis.facemesh import FaceMesh
from visavis.pipeline import Pipeline
from visavis.track import motion_of_track
from visavis.types import CHANNEL, MOTION_HOP, SAMPLE_RATE

LOOKAHEADS = (0, 40, 80, 160)
PER_FRAME = ("features", "motion", "idle", "smoothing", "render")


class StageLog:
    """Timer for ``Pipeline.step`` that keeps every stage's time per 20 ms step, ms."""

    def __init__(self, now: Callable[[], float]):
        self._now = now
        self.current: dict[str, float] = {}
        self.steps: list[dict[str, float]] = []

    @contextmanager
    def __call__(self, stage: str) -> Any:
        start = self._now()
        yield
        self.current[stage] = self.current.get(stage, 0.0) + (self._now() - start) * 1000

    def close_step(self, frames: int) -> None:
        """End of one step; ``frames`` came out of it."""
        self.steps.append(self.current | {"frames": frames})
        self.current = {}


def time_pipeline(
    pipe: Pipeline, pcm: np.ndarray, wall: Callable[[], float], cpu: Callable[[], float]
) -> dict[str, Any]:
    """Run a sound through a pipeline in live-sized pieces.

    Args:
        pipe: one session's pipeline.
        pcm: ``(S,)`` float32 16 kHz, some seconds.
        wall, cpu: clocks in seconds; ``cpu`` counts all threads of the process.

    Returns stage spreads per frame, end-to-end spread per frame, first-frame delay in samples,
    real-time factor, core-ms per frame, memory, energy where readable.
    """
    log, state = StageLog(wall), pipe.init_state()
    state, _ = pipe.step(
        state, pcm[None, : 10 * MOTION_HOP]
    )  # warm: compilation is no frame's cost
    state, fed, first, frames = pipe.init_state(), 0, None, 0
    energy, began, spent = latency.energy_joules(), wall(), cpu()
    for start in range(0, len(pcm) - MOTION_HOP + 1, MOTION_HOP):
        state, due = pipe.step(state, pcm[None, start : start + MOTION_HOP], log)
        log.close_step(len(due))
        fed, frames = fed + MOTION_HOP, frames + len(due)
        if first is None and due:
            first = fed
    took, used, joules = wall() - began, cpu() - spent, latency.energy_joules()
    stages, total = per_frame(log.steps)
    facts: dict[str, float | str] = {
        "first frame after hearing, ms (declared)": float(pipe.latency) * 1000,
        "first frame after hearing, ms (counted)": (first or 0) * 1000 / SAMPLE_RATE,
        "end to end per frame, p99 ms": latency.spread(total).p99_ms,
        "real-time factor": latency.real_time_factor(fed / SAMPLE_RATE, took),
        "core-ms per frame": latency.core_ms_per_frame(used, frames),
        "peak memory of the process, MB": latency.peak_rss_mb(),
        "GPU memory, MB": latency.peak_vram_mb() or "no GPU",
    }
    if energy is not None and joules is not None and frames:
        facts["energy, J per frame (whole package)"] = (joules - energy) / frames
    else:
        facts["energy"] = "not readable here"
    spreads = {name: latency.spread(times) for name, times in stages.items()}
    return {
        "facts": facts,
        "stages": {k: asdict(v) for k, v in (spreads | {"all": latency.spread(total)}).items()},
        "waterfall": [list(row) for row in latency.waterfall(spreads)],
        "budget_ms": float(1000 / pipe.config.fps),
    }


def per_frame(steps: list[dict[str, float]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Times of 20 ms steps booked to frames: a frame bears the steps since the frame before it.

    Returns per stage and in sum ``(frames,)`` ms. Two frames out of one step share it evenly.
    """
    rows: dict[str, list[float]] = {name: [] for name in PER_FRAME}
    waiting = dict.fromkeys(PER_FRAME, 0.0)
    for step in steps:
        for name in PER_FRAME:
            waiting[name] += step.get(name, 0.0)
        count = int(step["frames"])
        if count:
            for name in PER_FRAME:
                rows[name] += [waiting[name] / count] * count
            waiting = dict.fromkeys(PER_FRAME, 0.0)
    arrays = {name: np.array(times) for name, times in rows.items()}
    return arrays, np.sum(list(arrays.values()), axis=0)


def lookahead_sweep(bench: Bench) -> list[dict[str, float]]:
    """Correlation of our lip opening (as sent to the renderer) with the film's, by look-ahead.

    Over the films of the first ``reconstruct`` split; nothing is drawn.
    """
    from visavis.avatar import create_avatar

    mesh = FaceMesh.open(bench.models)
    jobs = [j for j in jobs_of(bench.protocol, bench.data) if j.split.kind == "reconstruct"]
    jobs = [j for j in jobs if j.split.name == jobs[0].split.name] if jobs else []
    clips = [read_clip(j.film, mesh, bench.cache, j.split.seconds or None) for j in jobs]
    clips = [c for c in clips if len(c.pcm)]
    if not clips:
        return []
    avatar = create_avatar(clips[0].frames[0], size=256, mesh=mesh)
    points = []
    for milliseconds in LOOKAHEADS:
        system = SystemUnderTest(
            "mesh", bench.system.motion_dir, milliseconds, bench.system.threads
        )
        pipe = open_pipeline(replace(bench, system=system), avatar)
        scores = []
        for clip in clips:
            ours = at_times(speak(pipe, clip.pcm, bench.protocol.seed), clip.times)
            real = motion_of_track(clip.track)
            opening = CHANNEL["jaw_open"]
            scores.append(lips.correlation(ours[:, opening], real[:, opening]))
        points.append({"lookahead_ms": milliseconds, **vars(bootstrap(np.array(scores)))})
    return points


def measure(
    bench: Bench, photo: Path, sound: Path, seconds: float, clocks: tuple
) -> dict[str, Any]:
    """The speed section of a report: one portrait, one voice, the product's own frame size."""
    from visavis.avatar import create_avatar
    from visavis.eval.clips import read_sound

    avatar = create_avatar(photo, mesh=FaceMesh.open(bench.models))
    pipe = open_pipeline(bench, avatar)
    return time_pipeline(pipe, read_sound(sound, seconds, []), *clocks)
