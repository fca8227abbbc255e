# ruff: noqa: E402
"""Workers that are processes: what goes in and comes out, what happens when one falls."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import speech_like

for needed in ("aiortc", "prometheus_client"):
    pytest.importorskip(needed, reason="the serve extra is not installed")

from live_doubles import double_models, tiny_models

from visavis.avatar import load_avatar
from visavis.errors import AudioError, AvatarError
from visavis.serve.coders import HEADER, JPEG, PCM
from visavis.serve.config import ASSETS, ServeConfig
from visavis.serve.engine import Engine
from visavis.serve.media import SocketOutlet
from visavis.serve.metrics import Ledger, Metrics
from visavis.serve.process import in_process
from visavis.serve.workers import WorkerGone


@pytest.fixture(scope="module")
def face():
    return load_avatar(ASSETS / "demo.avatar")


@asynccontextmanager
async def engine_of(make, avatar_of, workers=1):
    engine = Engine(in_process(make, avatar_of), workers=workers, limit=4, metrics=Metrics())
    try:
        await engine.start("demo")
        yield engine
    finally:
        await engine.stop()


async def messages(outlet, kind, count):
    return [(await asyncio.wait_for(outlet.next(kind), 20)).ready for _ in range(count)]


def attached(engine, live):
    outlet = SocketOutlet(engine.clock, 5, engine.metrics)
    live.attach(outlet)
    return outlet


def kinds(data):
    return {HEADER.unpack(message[: HEADER.size])[0] for message in data}


async def test_sound_goes_in_and_sound_and_pictures_come_out(face):
    async with engine_of(tiny_models, lambda name: face) as engine:
        live = await engine.open("demo", 0, "me")
        outlet = attached(engine, live)
        assert await live.push_audio(speech_like(0.5), 16_000) == 8000
        await live.end_of_speech()
        sound, pictures = await asyncio.gather(
            messages(outlet, "audio", 40), messages(outlet, "video", 20)
        )
        assert kinds(sound) == {PCM}
        assert kinds(pictures) == {JPEG}
        loud = [np.abs(np.frombuffer(m[16:], "<i2").astype(int)).max() for m in sound]
        assert max(loud) > 1000
        with pytest.raises(AudioError, match="NaN"):
            await live.push_audio(np.full(100, np.nan, np.float32), 16_000)
        state = await live.save_state()
        assert isinstance(state, bytes)
        while not live.stats:
            await messages(outlet, "audio", 1)
        await messages(outlet, "audio", 2)
        text = engine.metrics.text().decode()
        assert 'visavis_frames_total{tier="mesh"} 0.0' not in text, "the child's counts arrive"
        assert 'visavis_stage_seconds_count{stage="render"} 0.0' not in text
        await engine.close(live)


async def test_an_interruption_reaches_the_child(face):
    async with engine_of(tiny_models, lambda name: face) as engine:
        live = await engine.open("demo", 0, "me")
        outlet = attached(engine, live)
        await live.push_audio(speech_like(2.0), 16_000)
        await messages(outlet, "audio", 30)
        live.clear_buffer()
        await messages(outlet, "audio", 15)
        later = await messages(outlet, "audio", 10)
        assert all(HEADER.unpack(m[:16])[2] == 1 for m in later), "their epoch"
        assert all(np.abs(np.frombuffer(m[16:], "<i2")[100:].astype(int)).max() < 50 for m in later)


async def test_a_fallen_worker_takes_its_sessions_only_and_is_replaced(face):
    async with engine_of(tiny_models, lambda name: face, workers=2) as engine:
        first, second = [await engine.open("demo", i, "me") for i in range(2)]
        assert first.worker is not second.worker
        lost, kept = attached(engine, first), attached(engine, second)
        await messages(lost, "audio", 3)
        pid = first.worker.pid
        os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(first.closed.wait(), 10)
        assert "failed" in first.error
        assert lost.closed
        await messages(kept, "video", 5)
        await engine.close(first)
        assert not Path(f"/proc/{pid}").exists(), "and is not left as a zombie"
        other = await engine.open("demo", 2, "me")
        assert other.worker is second.worker, "the one that stands"
        with pytest.raises(WorkerGone):
            await first.worker.prepare("demo")
        while not first.worker.ready:
            await asyncio.sleep(0.05)
        again = await engine.open("demo", 3, "me")
        assert again.worker.pid != pid
        await messages(attached(engine, again), "video", 3)
        assert "visavis_workers_lost_total 1.0" in engine.metrics.text().decode()


async def test_no_process_is_left_and_none_outlives_its_parent(face):
    async with engine_of(tiny_models, lambda name: face) as engine:
        worker = engine.workers[0]
        pid = worker.pid
        assert engine.metrics.children == {pid}
        worker._writer.transport.abort()  # as when the parent is killed
        for _ in range(400):
            if not Path(f"/proc/{pid}").exists():
                break
            await asyncio.sleep(0.05)
        assert not Path(f"/proc/{pid}").exists()
    assert engine.metrics.children == set()


async def test_an_avatar_goes_to_the_child_once_and_an_unknown_one_is_refused(face):
    asked = []

    def avatar_of(name):
        asked.append(name)
        if name == "nobody":
            raise AvatarError("no such avatar")
        return face

    async with engine_of(partial(double_models, "mesh", 256, 30), avatar_of) as engine:
        await asyncio.gather(*(engine.workers[0].prepare("other") for _ in range(2)))
        await engine.workers[0].prepare("demo")
        assert asked.count("demo") == 1
        with pytest.raises(AvatarError):
            await engine.open("nobody", 0, "me")
        assert not engine.sessions
        assert 0 < await engine.workers[0].measure("demo") < 1000


def test_a_ledger_is_counted_as_if_here():
    ledger, metrics = Ledger(), Metrics()
    ledger.frames.labels("mesh").inc()
    ledger.lateness.observe(0.004)
    ledger.variance.set(7)
    with ledger.timer("render"):
        pass
    metrics.replay(ledger.take())
    assert ledger.take() == []
    text = metrics.text().decode()
    for line in (
        'visavis_frames_total{tier="mesh"} 1.0',
        "visavis_frame_lateness_seconds_count 1.0",
        "visavis_frame_variance 7.0",
        'visavis_stage_seconds_count{stage="render"} 1.0',
    ):
        assert line in text, line


@pytest.mark.slow
async def test_the_real_server_measures_its_places():
    import httpx2 as httpx

    from visavis.serve.cli import make_app

    config = ServeConfig.of(avatars=(ASSETS / "demo.avatar",), size=256, tier="mesh", workers=1)
    app = make_app(config)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.get("/healthz")).json()["limit"] >= 1


@pytest.mark.slow
def test_a_film_is_made_in_a_process_and_can_be_taken_back(face, tmp_path):
    from conftest import write_wav

    from visavis.errors import InputError
    from visavis.pipeline import PipelineConfig
    from visavis.serve import films
    from visavis.serve.jobs import Cancelled

    render = films.in_process(PipelineConfig(size=256, tier="mesh"))
    sound, film = write_wav(tmp_path / "a.wav", speech_like(0.5)), tmp_path / "film.webm"
    done = []
    render(face, sound, film, done.append)
    assert done[-1] == 15
    assert film.stat().st_size > 1000

    def taken_back(frames):
        raise Cancelled

    with pytest.raises(Cancelled):
        render(
            face, write_wav(tmp_path / "b.wav", speech_like(60)), tmp_path / "b.webm", taken_back
        )
    assert not list(tmp_path.glob("*b.webm*"))
    (tmp_path / "c.wav").write_bytes(b"no sound")
    with pytest.raises(InputError):
        render(face, tmp_path / "c.wav", film, done.append)
