"""OpenTelemetry (extra: ``otel``): a span for each session and, below it, one for each utterance.

=====================  =====================================================================
span                   attributes, all ``visavis.*``
=====================  =====================================================================
``visavis.session``    session, avatar, utterances, interruptions, frames, drops
``visavis.utterance``  samples, rate, frames, drops, first_frame_ms, interrupted
=====================  =====================================================================

``first_frame_ms`` runs from the arrival of an utterance's first sound to the moment the frame that
belongs to it is due. Never a span per frame. Without the package, or with no exporter set up, it
costs next to nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from visavis.errors import ConfigError
from visavis.session import AudioBlock, VideoFrame

try:
    from opentelemetry import trace
except ImportError:
    trace = None  # type: ignore[assignment]

HINT = "pip install 'visavis[otel]'"


class NoTrace:
    """What stands in where OpenTelemetry is not installed."""

    def heard(self, now: int) -> None:
        """Sound to be spoken came; ``now`` in the session clock's nanoseconds."""

    def complete(self) -> None:
        """What was heard so far is one utterance."""

    def cut(self) -> None:
        """The session was interrupted."""

    def sent(self, item: AudioBlock | VideoFrame, due: int, now: int, more: bool) -> None:
        """Something left; ``due`` in nanoseconds, ``more``: there is more to be said."""

    def close(self, error: str = "") -> None:
        """The session is over."""


@dataclass
class _Utterance:
    span: Any
    heard_at: int
    due: int  # session clock, 16 kHz samples, of its first sound
    samples: int = 0
    rate: int = 0
    frames: int = 0
    drops: int = 0
    first_frame_ms: float | None = None


class SessionTrace(NoTrace):
    """The spans of one session. Its worker's thread calls it.

    Args:
        tracer: an ``opentelemetry.trace.Tracer``.
        session: its id.
        avatar: the face's.
    """

    def __init__(self, tracer: Any, session: str, avatar: str):
        self._tracer = tracer
        names = {"visavis.session": session, "visavis.avatar": avatar}
        self._span = tracer.start_span("visavis.session", attributes=names)
        self._context = trace.set_span_in_context(self._span)
        self._open: _Utterance | None = None
        self._heard_at = 0
        self._complete = False
        self._pts = -1
        self._counts = dict.fromkeys(("utterances", "interruptions", "frames", "drops"), 0)

    def heard(self, now: int) -> None:
        """See `NoTrace`."""
        if self._open is None or self._complete:
            self._heard_at = self._heard_at or now

    def complete(self) -> None:
        """See `NoTrace`."""
        self._complete = True

    def cut(self) -> None:
        """See `NoTrace`."""
        self._counts["interruptions"] += 1
        self._end(interrupted=True)
        self._heard_at = 0

    def sent(self, item: AudioBlock | VideoFrame, due: int, now: int, more: bool) -> None:
        """See `NoTrace`."""
        if isinstance(item, VideoFrame):
            self._frame(item, max(due, now))
            return
        if item.speaking:
            said = self._open = self._open or self._begin(item, now)
            said.samples += len(item.pcm)
            said.rate = item.rate
        if item.ends:
            self._end(interrupted=False)
            self._heard_at = self._heard_at if more else 0

    def close(self, error: str = "") -> None:
        """See `NoTrace`."""
        self._end(interrupted=True)
        for name, count in self._counts.items():
            self._span.set_attribute(f"visavis.{name}", count)
        if error:
            self._span.set_status(trace.StatusCode.ERROR, error)
        self._span.end()

    def _begin(self, block: AudioBlock, now: int) -> _Utterance:
        heard_at, self._heard_at = self._heard_at or now, 0
        self._counts["utterances"] += 1
        span = self._tracer.start_span(
            "visavis.utterance", self._context, start_time=time.time_ns() - (now - heard_at)
        )
        return _Utterance(span, heard_at, block.due)

    def _frame(self, frame: VideoFrame, shown: int) -> None:
        drops = frame.pts - self._pts - 1 if self._pts >= 0 else 0
        self._pts = frame.pts
        self._counts["frames"] += 1
        self._counts["drops"] += drops
        said = self._open
        if said is None or frame.due < said.due:
            return
        if said.first_frame_ms is None:
            said.first_frame_ms = (shown - said.heard_at) / 1e6
        said.frames += 1
        said.drops += drops

    def _end(self, *, interrupted: bool) -> None:
        said, self._open, self._complete = self._open, None, False
        if said is None:
            return
        facts: dict[str, int | float | bool] = {
            "samples": said.samples,
            "rate": said.rate,
            "frames": said.frames,
            "drops": said.drops,
            "interrupted": interrupted,
        }
        if said.first_frame_ms is not None:
            facts["first_frame_ms"] = round(said.first_frame_ms, 2)
        said.span.set_attributes({f"visavis.{k}": v for k, v in facts.items()})
        said.span.end()


def open_trace(session: str, avatar: str) -> NoTrace:
    """Of a new session, by the tracer provider the program has set up."""
    if trace is None:
        return NoTrace()
    return SessionTrace(trace.get_tracer("visavis"), session, avatar)


def export_to(endpoint: str) -> Any:
    """Send spans to an OTLP collector over HTTP; returns the provider, whose ``shutdown`` flushes.

    Args:
        endpoint: of the collector, ``http://localhost:4318``.

    Raises:
        ConfigError: not an address, or the packages are missing.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"traces to {endpoint[:60]!r}; expected http://HOST:4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(f"traces need OpenTelemetry: {HINT}") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "visavis"}))
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider
