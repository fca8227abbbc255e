# ruff: noqa: E402
"""The live server without a browser: sessions, sockets, guard, uploads, films, isolation."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
from conftest import speech_like, write_wav

for needed in ("fastapi", "aiortc", "prometheus_client", "httpx2", "multipart"):
    pytest.importorskip(needed, reason="the serve extra is not installed")

import httpx2 as httpx
from live_doubles import DoublePipeline, MotionRenderer, live_app, no_film
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from visavis.avatar import load_avatar
from visavis.clock import ManualClock
from visavis.errors import ConfigError
from visavis.serve.app import build_app, drain
from visavis.serve.cli import JsonLines, _ice
from visavis.serve.coders import HEADER, JPEG, PCM
from visavis.serve.config import ASSETS, ServeConfig
from visavis.serve.guard import Rates, Tickets
from visavis.serve.library import Library
from visavis.serve.workers import in_thread

TOKEN = "a-token-of-some-length"
ECHO_TTS = (
    f'{sys.executable} -c "import sys, wave; t = sys.stdin.read(); '
    "w = wave.open(sys.stdout.buffer, 'wb'); w.setparams((1, 2, 16000, 0, 'NONE', '')); "
    'w.writeframes(bytes(640 * len(t)))"'
)


@pytest.fixture(scope="module")
def face():
    return load_avatar(ASSETS / "demo.avatar")


class Fragile(MotionRenderer):
    """Fails once the head of its session has moved the first time."""

    broken = False

    def step(self, state, motion):
        if Fragile.broken:
            raise RuntimeError("a renderer broke")
        return super().step(state, motion)


def app_of(face, renderers=None, *, limit=3, render=no_film, **changes):
    """The app on renderers that cost nothing: avatar name to renderer."""
    here = {"allowed_origins": ("http://testserver",)}
    changes = {"size": 256, "workers": 1, "detach_s": 2.0} | here | changes
    config = ServeConfig.of(**changes)
    library = Library(config.size, config.uploads_kept)
    library.share(face)
    for name in renderers or {}:
        library.share(
            type(face)(**{**vars(face), "meta": face.meta.model_copy(update={"name": name})})
        )

    def models(name):
        renderer = (renderers or {}).get(name) or MotionRenderer("mesh", size=32)
        return DoublePipeline(config.fps, renderer), ()

    return build_app(config, library=library, hire=in_thread(models), limit=limit, render=render)


@pytest.fixture
def client(face):
    with TestClient(app_of(face, tts=ECHO_TTS)) as client:
        yield client


def protocols(ticket):
    return ["visavis.v1", f"ticket.{ticket}"]


def open_session(client, **body):
    answer = client.post("/sessions", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def media(client, session):
    return client.websocket_connect(
        f"/sessions/{session['id']}/media", protocols(session["tickets"]["media"])
    )


def control(client, session):
    return client.websocket_connect(
        f"/sessions/{session['id']}/control", protocols(session["tickets"]["control"])
    )


def receive(socket, seconds):
    """``{kind: [(epoch, rate, pts, payload)]}`` until ``seconds`` of sound have come."""
    got = {JPEG: [], PCM: []}
    while sum(len(p[3]) for p in got[PCM]) < seconds * 48_000 * 2:
        data = socket.receive_bytes()
        kind, _, epoch, rate, pts = HEADER.unpack(data[: HEADER.size])
        got[kind].append((epoch, rate, pts, data[HEADER.size :]))
    return got


# --- what it says of itself ----------------------------------------------------------------------


def test_page_health_docs_and_headers(client):
    page = client.get("/")
    assert "Synthetic face" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert client.get("/healthz").json()["status"] == "ok"
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/sessions", "/sessions/{name}/offer", "/avatars", "/render"} <= set(paths)
    for name in ("app.js", "style.css", "graph.js", "socket.js", "worklet.js", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200
    assert client.get("/static/../app.py").status_code == 404
    assert client.get("/static/%2e%2e/app.py").status_code == 404


def test_metrics_are_exposed(client):
    text = client.get("/metrics").text
    for name in ("visavis_sessions ", "visavis_rss_bytes ", "visavis_stage_seconds_bucket"):
        assert name in text


# --- places --------------------------------------------------------------------------------------


def test_a_full_house_says_when_to_come_back(client):
    sessions = [open_session(client) for _ in range(3)]
    refused = client.post("/sessions")
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert client.delete(f"/sessions/{sessions[0]['id']}").status_code == 204
    assert client.delete(f"/sessions/{sessions[0]['id']}").status_code == 404
    open_session(client)
    assert client.post("/sessions", json={"avatar": "nobody"}).status_code == 503


def test_unknown_faces_and_fields_are_refused(client):
    assert client.post("/sessions", json={"avatar": "../../etc/passwd"}).status_code == 422
    assert client.post("/sessions", json={"sed": 1}).status_code == 422
    assert client.get("/sessions/none").status_code == 404
    assert client.get("/healthz").json()["sessions"] == 0


def test_one_client_does_not_take_every_place(face):
    with TestClient(app_of(face, limit=9, sessions_per_client=2)) as client:
        open_session(client), open_session(client)
        assert client.post("/sessions").status_code == 503


def test_a_session_no_one_attends_is_closed(face):
    with TestClient(app_of(face, detach_s=0.1)) as client:
        open_session(client)
        wait_until(lambda: client.get("/healthz").json()["sessions"] == 0)


def wait_until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


# --- sockets -------------------------------------------------------------------------------------


def test_media_socket_gives_back_the_sound_with_frames(client):
    pcm = np.round(speech_like(0.6) * 20_000).astype("<i2")
    with media(client, open_session(client)) as socket:
        socket.send_text(json.dumps({"rate": 16_000}))
        socket.send_bytes(pcm.tobytes())
        socket.send_bytes(b"")
        got = receive(socket, 1.4)
    sound = np.concatenate([np.frombuffer(p[3], "<i2") for p in got[PCM]])
    assert [p[2] for p in got[PCM]] == list(range(0, 960 * len(got[PCM]), 960))
    assert {p[1] for p in got[PCM]} == {48_000}
    level = np.sqrt(np.mean(np.square(pcm.astype(float))))
    heard = sound[np.flatnonzero(sound)[0] :][: 3 * len(pcm)]
    assert 0.9 < np.sqrt(np.mean(np.square(heard.astype(float)))) / level < 1.1
    pts = [p[2] for p in got[JPEG]]
    assert pts == sorted(set(pts))
    assert all(p[3][:2] == b"\xff\xd8" for p in got[JPEG])
    assert all(p[1] == 30_000 for p in got[JPEG])


def test_a_ticket_is_good_once_and_for_one_thing(client):
    session = open_session(client)
    with media(client, session):
        pass
    with pytest.raises(WebSocketDisconnect), media(client, session):
        pass
    crossed = {"id": session["id"], "tickets": {"media": session["tickets"]["control"]}}
    with pytest.raises(WebSocketDisconnect), media(client, crossed):
        pass


@pytest.mark.parametrize(
    "bad",
    [
        b"\0\0\0",
        "not json",
        '{"rate": 1}',
        '{"rate": 16000, "mode": "shout"}',
        "[]",
        '{"rate": "x"}',
    ],
)
def test_garbage_on_a_media_socket_is_refused_with_a_reason(client, bad):
    session = open_session(client)
    with media(client, session) as socket:
        socket.send_bytes(bad) if isinstance(bad, bytes) else socket.send_text(bad)
        with pytest.raises(WebSocketDisconnect) as closed:
            while True:
                socket.receive_bytes()
        assert closed.value.code == 1008
        assert "expected" in closed.value.reason
    assert client.get(f"/sessions/{session['id']}").status_code == 200


def answers(socket, kind):
    for _ in range(40):
        message = socket.receive_json()
        if message["type"] == kind:
            return message
    raise AssertionError(f"no {kind} came")


def test_control_socket_answers_and_survives_nonsense(client):
    session = open_session(client)
    with control(client, session) as socket:
        for nonsense in ("{", "[]", "3", '{"type": "dance"}', '{"type": "mic", "mode": "x"}'):
            socket.send_text(nonsense)
            assert answers(socket, "error")["reason"]
        for sdp in ("", "v=0", "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n", "x" * 100_000):
            socket.send_json({"type": "offer", "sdp": sdp})
            assert "offer" in answers(socket, "error")["reason"]
        socket.send_json({"type": "candidate", "candidate": {"candidate": "rubbish"}})
        socket.send_json({"type": "ping"})
        answers(socket, "pong")
        socket.send_json({"type": "clear"})
        assert answers(socket, "cleared")["epoch"] == 1
        socket.send_json({"type": "avatar", "id": "nobody"})
        answers(socket, "error")
        answers(socket, "stats")
    wait_until(lambda: client.get("/healthz").json()["sessions"] == 0)


def test_text_is_spoken_by_the_program_given(client):
    session = open_session(client)
    with media(client, session) as socket:
        answer = client.post(
            f"/sessions/{session['id']}/say", json={"text": "twenty letters long!"}
        )
        assert answer.status_code == 202
        assert answer.json()["seconds"] == pytest.approx(0.42)
        receive(socket, 0.2)
    assert client.post(f"/sessions/{session['id']}/say", json={"text": " "}).status_code == 422


@pytest.mark.parametrize(
    ("command", "why"),
    [("", "no text-to-speech"), ("false", "status 1"), ("no-such-program-here", "cannot be run")],
)
def test_a_failing_program_is_named(face, command, why):
    with TestClient(app_of(face, tts=command)) as client:
        session = open_session(client)
        answer = client.post(f"/sessions/{session['id']}/say", json={"text": "hello"})
        assert answer.status_code == 422
        assert why in answer.json()["detail"]


def test_a_sound_file_is_spoken_and_others_are_refused(client, tmp_path):
    session = open_session(client)
    wav = write_wav(tmp_path / "a.wav", speech_like(0.5, 22_050), 22_050)
    url = f"/sessions/{session['id']}/audio"
    answer = client.post(url, files={"file": ("../../x.wav", wav.read_bytes())})
    assert answer.json() == {"seconds": 0.5}
    bad = client.post(url, files={"file": ("x.wav", b"RIFF____WAVE nothing")})
    assert bad.status_code == 422
    assert str(tmp_path.parent) not in bad.text
    assert "/tmp" not in bad.text


def test_interruption_reaches_what_already_waits_to_be_sent(client):
    session = open_session(client)
    loud = np.full(16_000 * 5, 9_000, "<i2")
    with media(client, session) as socket:
        socket.send_bytes(loud.tobytes())
        receive(socket, 0.6)
        assert client.post(f"/sessions/{session['id']}/clear").status_code == 204
        marked = time.monotonic()
        quiet = 0
        while quiet < 10 and time.monotonic() - marked < 5:
            data = socket.receive_bytes()
            kind, _, epoch, _, _ = HEADER.unpack(data[:16])
            if kind == PCM:
                level = np.abs(np.frombuffer(data[16:], "<i2").astype(int))[200:].max()
                quiet = quiet + 1 if level < 50 else 0
        assert quiet == 10


# --- isolation -----------------------------------------------------------------------------------


def test_a_crash_ends_one_session_only(face):
    Fragile.broken = False
    with TestClient(app_of(face, {"fragile": Fragile("mesh", size=32)})) as client:
        weak, strong = open_session(client, avatar="fragile"), open_session(client)
        with media(client, weak) as a, media(client, strong) as b:
            receive(a, 0.1)
            Fragile.broken = True
            with pytest.raises(WebSocketDisconnect) as closed:
                while True:
                    a.receive_bytes()
            assert "failed" in closed.value.reason
            assert len(receive(b, 0.5)[JPEG]) > 3
        assert "visavis_sessions_crashed_total 1.0" in client.get("/metrics").text
    Fragile.broken = False


def test_many_short_sessions_leave_nothing(face):
    app = app_of(face, limit=4, sessions_per_client=4, requests_per_minute=10_000)
    with TestClient(app) as client:
        before = threading.active_count()
        for i in range(24):
            session = open_session(client, seed=i)
            if i % 3:
                with media(client, session) as socket:
                    if i % 2:
                        socket.receive_bytes()
            client.delete(f"/sessions/{session['id']}")
        hall = app.state.hall
        assert not hall.engine.sessions
        assert not hall.peers
        assert all(not worker.runner._slots for worker in hall.engine.workers)
        assert threading.active_count() <= before + 2  # the executor may have grown
    assert not [t for t in threading.enumerate() if t.name == "visavis-worker"]


def test_a_face_may_be_changed_in_the_middle(face):
    with TestClient(app_of(face, {"other": MotionRenderer("mesh", size=32)})) as client:
        session = open_session(client)
        with control(client, session) as socket, media(client, session) as pictures:
            before = receive(pictures, 0.3)
            socket.send_json({"type": "avatar", "id": "other"})
            assert answers(socket, "avatar")["id"] == "other"
            after = receive(pictures, 0.3)
            assert after[PCM][0][2] == before[PCM][-1][2] + 960, "the sound goes on"


# --- the guard -----------------------------------------------------------------------------------


def test_a_token_is_needed_where_one_is_set(face):
    with TestClient(app_of(face, token=TOKEN)) as client:
        assert client.get("/").status_code == 200
        assert client.get("/config").json()["needs_token"]
        for path in ("/avatars", "/metrics", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 401
        assert client.post("/sessions").status_code == 401
        wrong = {"Authorization": "Bearer " + TOKEN[:-1]}
        assert client.post("/sessions", headers=wrong).status_code == 401
        right = {"Authorization": "Bearer " + TOKEN}
        assert client.post("/sessions", headers=right).status_code == 201


def test_other_hosts_and_origins_are_refused(client):
    assert client.get("/config", headers={"host": "evil.example"}).status_code == 421
    evil = {"origin": "https://evil.example"}
    assert client.post("/sessions", headers=evil).status_code == 403
    session = open_session(client)
    path = f"/sessions/{session['id']}/media"
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        client.websocket_connect(path, protocols(session["tickets"]["media"]), headers=evil),
    ):
        pass
    assert refused.value.code == 4403


def test_floods_and_bombs_are_refused(face):
    with TestClient(app_of(face, requests_per_minute=5, upload_mb=1)) as client:
        big = client.post("/avatars", files={"file": ("x.png", bytes(2 << 20))})
        assert big.status_code == 413
        codes = [client.post("/sessions/none/clear").status_code for _ in range(8)]
        assert codes[-1] == 429
        assert client.get("/healthz").status_code == 200


def test_rates_and_tickets_keep_to_the_clock():
    clock = ManualClock()
    rates = Rates(60, clock)
    assert sum(rates.allow("a") for _ in range(100)) == 60
    assert rates.allow("b")
    clock.advance(2_500_000_000)
    assert sum(rates.allow("a") for _ in range(10)) == 2
    tickets = Tickets(clock)
    late, fresh = tickets.issue("media x"), tickets.issue("media x")
    assert not tickets.use(fresh, "media y")
    assert not tickets.use(fresh, "media x"), "a wrong use spends it"
    clock.advance(61_000_000_000)
    assert not tickets.use(late, "media x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "0.0.0.0"},
        {"host": "192.168.1.4", "token": "short"},
        {"ssl_certfile": "a.pem"},
        {"colour": "red"},
    ],
)
def test_unsafe_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        ServeConfig.of(**wrong)


def test_ice_servers_are_written_as_one_word():
    assert _ice("stun:stun.example:3478") == {"urls": "stun:stun.example:3478"}
    turn = {"urls": "turn:t.example:3478", "username": "me", "credential": "p@s:s"}
    assert _ice("turn:me:p@s:s@t.example:3478") == turn
    with pytest.raises(ConfigError):
        _ice("http://x")


# --- faces and films -----------------------------------------------------------------------------


def test_uploads_are_looked_at(client, face, tmp_path):
    def upload(data, **form):
        return client.post("/avatars", files={"file": ("../../evil.png", data)}, data=form)

    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (60_000).to_bytes(4, "big") * 2 + bytes(40)
    assert upload(png).status_code == 422, "consent is asked for"
    for data in (b"", b"hello", b"PK\x03\x04" + bytes(100), png, b"\xff\xd8\xff" + bytes(50)):
        answer = upload(data, consent="true")
        assert answer.status_code == 422, data[:8]
        assert "/tmp" not in answer.text
    good = face.save(tmp_path / "me.avatar").read_bytes()
    entry = upload(good, consent="true").json()
    assert entry["id"] not in [e["id"] for e in client.get("/avatars").json()], "known to its owner"
    assert client.get(f"/avatars/{entry['id']}/image").content[:2] == b"\xff\xd8"
    open_session(client, avatar=entry["id"])
    assert client.get("/avatars/%2e%2e/image").status_code == 404


def test_films_are_made_in_the_background(face, tmp_path):
    wav = write_wav(tmp_path / "a.wav", speech_like(0.3)).read_bytes()
    with TestClient(app_of(face, render_jobs=2)) as client:
        job = client.post("/render", files={"file": ("a.wav", wav)}).json()
        wait_until(lambda: client.get(f"/render/{job['id']}").json()["state"] == "done")
        film = client.get(f"/render/{job['id']}/film")
        assert film.content == b"film of RIFF"
        assert film.headers["content-type"] == "video/webm"
        assert client.post("/render", files={"file": ("a", b"no")}).status_code == 422
        client.post("/render", files={"file": ("a.wav", wav)})
        full = client.post("/render", files={"file": ("a.wav", wav)})
        assert full.status_code == 503
        assert "retry-after" in full.headers
        assert client.delete(f"/render/{job['id']}").status_code == 204
        assert client.get(f"/render/{job['id']}").status_code == 404


def test_a_film_that_fails_says_so(face, tmp_path):
    def broken(avatar, sound, film, progress):
        raise RuntimeError(f"secret {sound}")

    wav = write_wav(tmp_path / "a.wav", speech_like(0.3)).read_bytes()
    with TestClient(app_of(face, render=broken)) as client:
        job = client.post("/render", files={"file": ("a.wav", wav)}).json()
        wait_until(lambda: client.get(f"/render/{job['id']}").json()["state"] == "failed")
        assert "secret" not in client.get(f"/render/{job['id']}").text
        assert client.get(f"/render/{job['id']}/film").status_code == 409


# --- WebRTC, in this process ---------------------------------------------------------------------


@asynccontextmanager
async def running(app):
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            yield client


async def test_webrtc_brings_sound_and_pictures_on_one_clock(face):
    from aiortc import RTCPeerConnection, RTCSessionDescription

    config = ServeConfig.of(size=256, workers=1, allowed_origins=("http://testserver",))
    async with running(live_app(config, face)) as client:
        session = (await client.post("/sessions")).json()
        pc = RTCPeerConnection()
        pc.addTransceiver("audio", direction="recvonly")
        pc.addTransceiver("video", direction="recvonly")
        tracks = {}
        pc.on("track", lambda track: tracks.setdefault(track.kind, track))
        await pc.setLocalDescription(await pc.createOffer())
        answer = await client.post(
            f"/sessions/{session['id']}/offer", json={"sdp": pc.localDescription.sdp}
        )
        sdp = answer.json()["sdp"]
        assert "VP8/90000" in sdp
        assert "H264" not in sdp
        await pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))

        async def take(kind, count):
            return [await asyncio.wait_for(tracks[kind].recv(), 20) for _ in range(count)]

        frames, blocks = await asyncio.gather(take("video", 10), take("audio", 30))
        assert (frames[0].width, frames[0].format.name) == (256, "yuv420p")
        steps = np.diff([f.pts for f in frames]) / 3000
        assert np.abs(steps - np.round(steps)).max() < 0.01, "30 a second, or some left out"
        assert (np.diff([b.pts for b in blocks]) == 960).all(), "no sound is left out"
        assert (await client.delete(f"/sessions/{session['id']}")).status_code == 204
        await pc.close()


async def test_draining_takes_no_one_and_waits_for_those_inside(face):
    app = app_of(face, drain_s=30, detach_s=30)
    async with running(app) as client:
        session = (await client.post("/sessions")).json()
        task = asyncio.ensure_future(drain(app))
        await asyncio.sleep(0)
        assert (await client.get("/healthz")).status_code == 503
        assert (await client.post("/sessions")).status_code == 503
        assert not task.done()
        await client.delete(f"/sessions/{session['id']}")
        await asyncio.wait_for(task, 5)


def test_log_lines_are_json_with_the_session():
    import logging

    record = logging.LogRecord("visavis.serve", logging.INFO, "", 0, "opened %s", ("it",), None)
    record.session = "abc"
    line = json.loads(JsonLines().format(record))
    assert line["message"] == "opened it"
    assert line["session"] == "abc"
