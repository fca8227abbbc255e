# ruff: noqa: E402
"""Spans of sessions and utterances, as OpenTelemetry's own exporter gets them."""

from __future__ import annotations

import asyncio
import http.server
import threading

import pytest
from conftest import speech_like

for needed in ("fastapi", "prometheus_client", "opentelemetry.sdk"):
    pytest.importorskip(needed, reason="the serve or otel extra is not installed")

from live_doubles import DoublePipeline, MotionRenderer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from visavis.clock import ManualClock
from visavis.errors import ConfigError
from visavis.serve import runner, tracing
from visavis.serve.face import Face
from visavis.session import AudioBlock, Session, SessionConfig, VideoFrame

MS = 1_000_000


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider.get_tracer("visavis")


def facts(span):
    return {k.removeprefix("visavis."): v for k, v in span.attributes.items()}


class Told:
    """A session on a manual clock that tells its trace what an engine would."""

    def __init__(self, tracer, cost_ns=0):
        self.clock = ManualClock()
        renderer = MotionRenderer("mesh", clock=self.clock, cost_ns=cost_ns)
        config = SessionConfig(audio_rate=16_000)
        self.session = Session(DoublePipeline(30, renderer), config, clock=self.clock)
        self.trace = tracing.SessionTrace(tracer, "s1", "demo")
        self.frames = 0
        self.run(0)

    def run(self, seconds):
        for _ in range(round(seconds * 50) + 1):
            for item in self.session.advance():
                due = self.session.time_of(item.due)
                self.trace.sent(item, due, self.clock.now(), self.session.speaking)
                self.frames += isinstance(item, VideoFrame)
            self.clock.advance(20 * MS)

    def push(self, seconds):
        self.trace.heard(self.clock.now())
        self.session.push_audio(speech_like(seconds), 16_000)

    def end(self):
        self.trace.complete()
        self.session.end_of_speech()

    def clear(self):
        self.trace.cut()
        self.session.clear_buffer()


def test_an_utterance_is_a_child_with_what_was_said_and_shown(tracer, spans):
    told = Told(tracer)
    told.run(0.5)
    told.push(1.0)
    told.end()
    told.run(2)
    told.trace.close()
    said, session = spans.get_finished_spans()
    assert (said.name, session.name) == ("visavis.utterance", "visavis.session")
    assert said.parent.span_id == session.context.span_id
    told_of = facts(said)
    first = told_of.pop("first_frame_ms")
    latency = told.session.latency_samples / 16
    assert latency - 20 <= first <= latency + 40 + 34, "a hop; prebuffer and the wait for a frame"
    assert told_of.pop("frames") in (29, 30), "of the last 20 ms the sound comes first"
    assert told_of == {
        "samples": 16_000,
        "rate": 16_000,
        "drops": 0,
        "interrupted": False,
    }
    assert facts(session) == {
        "session": "s1",
        "avatar": "demo",
        "utterances": 1,
        "interruptions": 0,
        "frames": told.frames,
        "drops": 0,
    }


def test_an_interruption_and_late_frames_are_in_the_span(tracer, spans):
    told = Told(tracer, cost_ns=60 * MS)  # two frames long
    told.push(9.0)
    told.run(1)
    told.clear()
    told.run(0.5)
    told.trace.close()
    said, session = spans.get_finished_spans()
    assert facts(said)["interrupted"]
    assert facts(said)["drops"] > 5
    assert 0 < facts(said)["samples"] < 9 * 16_000
    assert facts(session)["interruptions"] == 1
    assert facts(session)["drops"] == told.session.stats()["dropped"]


def test_two_utterances_wait_each_for_itself(tracer, spans):
    told = Told(tracer)
    told.push(1.0)
    told.end()
    told.run(1.04)  # handed out to its end, not yet heard to it
    assert not spans.get_finished_spans()
    told.push(0.5)
    told.end()
    told.run(2)
    first, second = (facts(s) for s in spans.get_finished_spans())
    assert (first["samples"], second["samples"]) == (16_000, 8_000)
    assert abs(first["first_frame_ms"] - second["first_frame_ms"]) < 60


def test_what_never_spoke_or_ended_is_closed_too(tracer, spans):
    told = Told(tracer)
    told.trace.close("RuntimeError('x')")
    (session,) = spans.get_finished_spans()
    assert not session.status.is_ok
    assert facts(session)["utterances"] == 0
    spans.clear()
    told = Told(tracer)
    told.push(2.0)
    told.run(0.5)
    told.trace.close()
    assert [s.name for s in spans.get_finished_spans()] == ["visavis.utterance", "visavis.session"]


async def test_the_engine_reports_to_its_trace(tracer, spans, monkeypatch):
    def opened(session, avatar):
        return tracing.SessionTrace(tracer, session, avatar)

    monkeypatch.setattr(runner, "open_trace", opened)
    face = Face(DoublePipeline(30, MotionRenderer("mesh", size=32)))
    await face.start()
    name = face.live.id
    await face.push(speech_like(0.4), 16_000)
    await face.end()

    async def watch():
        async for item in face:
            if isinstance(item, AudioBlock) and item.ends:
                return

    await asyncio.wait_for(watch(), 20)
    await face.push(speech_like(3), 16_000)
    watching = asyncio.ensure_future(watch())
    await asyncio.sleep(0.5)
    face.clear()
    await face.stop()
    await asyncio.wait_for(watching, 5)
    first, second, session = spans.get_finished_spans()
    assert facts(first)["samples"] == 0.4 * 48_000
    assert [facts(first)["interrupted"], facts(second)["interrupted"]] == [False, True]
    assert facts(session)["session"] == name
    assert facts(session)["utterances"] == 2


def test_without_the_package_nothing_is_traced(monkeypatch):
    monkeypatch.setattr(tracing, "trace", None)
    none = tracing.open_trace("s", "a")
    assert type(none) is tracing.NoTrace
    none.heard(0), none.complete(), none.cut(), none.close()
    block = AudioBlock(0, 16_000, speech_like(0.02), 0, 0, speaking=True)
    none.sent(block, 0, 0, False)


@pytest.fixture
def collector():
    """An OTLP collector; yields (address, bodies)."""
    bodies = []

    class Take(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers["content-length"])
            bodies.append((self.path, self.rfile.read(size)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Take) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


def test_spans_reach_a_collector(collector, monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="no OTLP exporter")
    address, bodies = collector
    monkeypatch.setattr(tracing.trace, "set_tracer_provider", lambda provider: None)
    provider = tracing.export_to(address)
    tracing.SessionTrace(provider.get_tracer("visavis"), "s9", "demo").close()
    provider.shutdown()
    ((path, body),) = bodies
    assert path == "/v1/traces"
    assert b"visavis.session" in body
    with pytest.raises(ConfigError, match="4318"):
        tracing.export_to("localhost")
