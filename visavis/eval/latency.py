"""Speed: percentiles per stage, first frame, core-ms, real-time factor, memory, energy.

Measured figures come from the runner; here are the arithmetic and the meters, with the clock given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Milliseconds over many frames."""

    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    count: int


def spread(times_ms: np.ndarray) -> Spread:
    """Mean and percentiles (linear interpolation) of ``(N,)`` milliseconds; NaN for none."""
    times_ms = np.asarray(times_ms, float)
    if len(times_ms) == 0:
        return Spread(*(float("nan"),) * 4, 0)
    p50, p95, p99 = np.quantile(times_ms, [0.5, 0.95, 0.99])
    return Spread(float(times_ms.mean()), float(p50), float(p95), float(p99), len(times_ms))


@dataclass
class StageTimer:
    """Collects the time of named stages; ``clock`` returns seconds and is the caller's."""

    clock: Callable[[], float]
    times_ms: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, stage: str, work: Callable[[], Any]) -> Any:
        """Run ``work`` and book its duration under ``stage``."""
        start = self.clock()
        result = work()
        self.times_ms.setdefault(stage, []).append((self.clock() - start) * 1000)
        return result

    def spreads(self) -> dict[str, Spread]:
        return {name: spread(np.array(times)) for name, times in self.times_ms.items()}


def real_time_factor(media_s: float, wall_s: float) -> float:
    """Seconds of video made per second of wall time; over 1 is faster than real time."""
    return media_s / wall_s if wall_s > 0 else float("inf")


def core_ms_per_frame(cpu_s: float, frames: int) -> float:
    """Processor time of all threads per frame, ms."""
    return cpu_s * 1000 / frames if frames else float("nan")


def peak_rss_mb() -> float:
    """Peak resident memory of this process so far, MB (Linux counts KiB, macOS bytes)."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def energy_joules(root: Path = Path("/sys/class/powercap")) -> float | None:
    """Energy counter of the CPU packages, J, or None where it cannot be read (VMs, no permission).

    Source: Linux powercap, ``intel-rapl:N/energy_uj`` (AMD too).
    """
    total, seen = 0.0, False
    for counter in sorted(root.glob("intel-rapl:?/energy_uj")):
        try:
            total += int(counter.read_text()) / 1e6
            seen = True
        except (OSError, ValueError):
            return None
    return total if seen else None


def peak_vram_mb() -> float | None:
    """GPU memory in use by this process, MB, through NVML; None without a GPU or the library."""
    import os

    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    used = 0
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid():
                used += process.usedGpuMemory or 0
    return used / 1e6 if used else None


def waterfall(spreads: dict[str, Spread]) -> list[tuple[str, float, float]]:
    """(stage, start ms, median ms) of the stages laid end to end in their order, for the chart."""
    rows, start = [], 0.0
    for name, figures in spreads.items():
        rows.append((name, start, figures.p50_ms))
        start += figures.p50_ms
    return rows
