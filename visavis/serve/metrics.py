"""What the server counts, under names a dashboard can rely on. One registry per app."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

STAGE_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 0.016, 0.025, 0.033, 0.05, 0.1, 0.25)
LATE_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.033, 0.066, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """All instruments. ``text`` is what ``/metrics`` answers."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"visavis_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"visavis_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple, *labels: str) -> Histogram:
            return Histogram(f"visavis_{name}", text, labels, registry=registry, buckets=buckets)

        self.sessions = gauge("sessions", "Sessions open")
        self.session_limit = gauge("session_limit", "Sessions this process takes")
        self.sessions_total = counter("sessions_opened", "Sessions opened")
        self.refused = counter("sessions_refused", "Sessions refused", "reason")
        self.crashed = counter("sessions_crashed", "Sessions ended by an error")
        self.frames = counter("frames", "Video frames drawn", "tier")
        self.dropped = counter("frames_dropped", "Video frames dropped", "where")
        self.blocks = counter("audio_blocks", "20 ms blocks of sound handed out")
        self.lateness = histogram(
            "frame_lateness_seconds", "Frame ready after its due time", LATE_BUCKETS
        )
        self.stage = histogram("stage_seconds", "Time in one stage", STAGE_BUCKETS, "stage")
        self.av_offset = histogram(
            "av_offset_seconds",
            "Absolute offset of sound and picture when handed to the network",
            LATE_BUCKETS,
        )
        self.first_frame = histogram(
            "first_frame_seconds",
            "From the offer to the first frame",
            (0.1, 0.25, 0.5, 1, 1.5, 2, 5),
        )
        self.variance = gauge("frame_variance", "Pixel variance of a recent frame (0: blank)")
        self.queued_speech = gauge("queued_speech_seconds", "Speech waiting, all sessions")
        self.queue_depth = gauge("send_queue_depth", "Items waiting to be sent", "kind")
        self.interruptions = counter("interruptions", "Barge-ins")
        self.underruns = counter("speech_underruns", "Utterances that ran dry")
        self.tier_changes = counter("tier_changes", "Quality tier moved")
        self.jobs = gauge("render_jobs", "Render jobs", "state")
        self.requests = counter("requests_rejected", "Requests rejected", "reason")
        self.workers_lost = counter("workers_lost", "Drawing processes that ended unasked")
        self.children: set[int] = set()  # process ids of the workers
        registry.register(_Process(self.children))
        for stage in ("features", "motion", "idle", "smoothing", "render", "encode"):
            self.stage.labels(stage)
        for tier in ("mesh", "patch", "full"):
            self.frames.labels(tier)
        for where in ("late", "slow_client"):
            self.dropped.labels(where)
        for kind in ("audio", "video"):
            self.queue_depth.labels(kind)

    @contextmanager
    def timer(self, stage: str) -> Iterator[None]:
        """Around each stage of a pipeline."""
        begin = perf_counter()
        yield
        self.stage.labels(stage).observe(perf_counter() - begin)

    def replay(self, notes: list[tuple]) -> None:
        """Count what a `Ledger` noted in another process."""
        for name, labels, verb, value in notes:
            instrument = getattr(self, name)
            getattr(instrument.labels(*labels) if labels else instrument, verb)(value)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class _Entry:
    """An instrument of `Metrics` that only notes what would be counted."""

    def __init__(self, notes: list[tuple], name: str, labels: tuple = ()):
        self._notes, self._name, self._labels = notes, name, labels

    def labels(self, *labels: str) -> _Entry:
        return _Entry(self._notes, self._name, labels)

    def inc(self, amount: float = 1) -> None:
        self._notes.append((self._name, self._labels, "inc", amount))

    def set(self, value: float) -> None:
        self._notes.append((self._name, self._labels, "set", value))

    def observe(self, amount: float) -> None:
        self._notes.append((self._name, self._labels, "observe", amount))


class Ledger:
    """Stands in for `Metrics` in a drawing process: ``take`` it there, ``Metrics.replay`` it here."""

    def __init__(self) -> None:
        self._notes: list[tuple] = []

    def __getattr__(self, name: str) -> _Entry:
        return _Entry(self._notes, name)

    timer = Metrics.timer

    def take(self) -> list[tuple]:
        """All notes since the last time, oldest first."""
        notes = self._notes[:]
        del self._notes[: len(notes)]  # entries handed out keep the same list
        return notes


class _Process(Collector):
    """Memory of this process and its workers; the GPU's load where NVML finds one."""

    def __init__(self, children: set[int]):
        self._children = children

    def collect(self) -> Iterator[GaugeMetricFamily]:
        rss = GaugeMetricFamily("visavis_rss_bytes", "Resident memory, drawing processes included")
        rss.add_metric([], sum(_rss(pid) for pid in ("self", *self._children)))
        yield rss
        used = GaugeMetricFamily("visavis_gpu_memory_bytes", "GPU memory in use", labels=["gpu"])
        load = GaugeMetricFamily(
            "visavis_gpu_utilisation_ratio", "GPU load, 0 to 1", labels=["gpu"]
        )
        for i, (memory, utilisation) in enumerate(_gpus()):
            used.add_metric([str(i)], memory)
            load.add_metric([str(i)], utilisation)
        yield used
        yield load


def _rss(pid: int | str) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0  # it has just ended


def _gpus() -> list[tuple[int, float]]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [
            (
                pynvml.nvmlDeviceGetMemoryInfo(h).used,
                pynvml.nvmlDeviceGetUtilizationRates(h).gpu / 100,
            )
            for h in handles
        ]
    except pynvml.NVMLError:
        return []  # no GPU, or no driver
