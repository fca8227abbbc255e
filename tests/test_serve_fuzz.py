# ruff: noqa: E402
"""Clients that mean harm: refused with a reason, and whoever talks beside them notices nothing."""

from __future__ import annotations

import asyncio
import io
import json
import random
import resource
import socket
import struct
import threading
import time
import wave
import zipfile
import zlib
from contextlib import suppress
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

for needed in ("fastapi", "aiortc", "prometheus_client", "httpx2", "multipart", "websockets"):
    pytest.importorskip(needed, reason="the serve extra is not installed")

import httpx2 as httpx
from live_doubles import DoublePipeline, MotionRenderer, no_film, serving
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from visavis.avatar import load_avatar
from visavis.clock import ManualClock
from visavis.errors import AudioError
from visavis.serve import guard
from visavis.serve.app import build_app
from visavis.serve.coders import HEADER, JPEG
from visavis.serve.config import ASSETS, ServeConfig
from visavis.serve.library import Library
from visavis.serve.metrics import Metrics
from visavis.serve.workers import in_thread
from visavis.session import AudioBlock, Session, SessionConfig

TOKEN = "a-token-of-some-length"
calm = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def protocols(ticket):
    return ["visavis.v1", f"ticket.{ticket}"]


class Beside:
    """A session in good order, watched while others misbehave. ``receive`` gives a message's bytes."""

    def __init__(self, receive):
        self.sound, self.frames = [], []
        self._receive = receive
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        with suppress(Exception):
            while True:
                data = self._receive()
                kind, _, _, _, pts = HEADER.unpack(data[: HEADER.size])
                (self.frames if kind == JPEG else self.sound).append(pts)

    def goes_on(self):
        """Frames and sound keep coming, and no sound is missing."""
        frames, sound = len(self.frames), len(self.sound)
        end = time.monotonic() + 20
        while len(self.frames) < frames + 5 or len(self.sound) < sound + 10:
            assert self._thread.is_alive(), "the session beside was closed"
            assert time.monotonic() < end, "the session beside stands still"
            time.sleep(0.02)
        steps = np.diff(self.sound)
        assert (steps == 960).all(), "sound was left out"
        assert (np.diff(self.frames) > 0).all()

    @property
    def share(self):
        """Of the frames due, how many came."""
        return len(self.frames) / (self.frames[-1] - self.frames[0] + 1)


# --- in this process -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client():
    config = ServeConfig.of(
        size=256,
        workers=1,
        detach_s=60.0,
        upload_mb=2,
        sound_limit_s=5,
        requests_per_minute=1_000_000,
        sessions_per_client=100,
        allowed_origins=("http://testserver",),
    )
    library = Library(config.size, config.uploads_kept)
    library.share(load_avatar(ASSETS / "demo.avatar"))

    def models(name):
        return DoublePipeline(config.fps, MotionRenderer("mesh", size=32)), ()

    app = build_app(config, library=library, hire=in_thread(models), limit=50, render=no_film)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def beside(client):
    session = client.post("/sessions").json()
    url = f"/sessions/{session['id']}/media"
    with client.websocket_connect(url, protocols(session["tickets"]["media"])) as socket:
        yield Beside(socket.receive_bytes)


@pytest.fixture
def session(client):
    made = client.post("/sessions").json()
    yield made
    client.delete(f"/sessions/{made['id']}")


async def _offer():
    from aiortc import RTCPeerConnection

    pc = RTCPeerConnection()
    pc.addTransceiver("audio", direction="sendrecv")
    pc.addTransceiver("video", direction="recvonly")
    await pc.setLocalDescription(await pc.createOffer())
    text = pc.localDescription.sdp
    await pc.close()
    return text


OFFER = asyncio.run(_offer())
LINES = OFFER.splitlines()


@st.composite
def broken_offers(draw):
    """A good offer with lines lost, doubled, moved, cut or changed."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(["lose", "double", "move", "cut", "change", "number"]))
        if how == "lose":
            del lines[at]
        elif how == "double":
            lines.insert(at, lines[at])
        elif how == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        elif how == "cut":
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
        elif how == "change":
            lines[at] = lines[at][:2] + draw(st.text(max_size=30))
        else:
            lines[at] = "".join(
                str(draw(st.integers(-1, 2**33))) if c.isdigit() else c for c in lines[at]
            )
        if not lines:
            break
    return "\r\n".join(lines) + "\r\n"


def test_broken_offers_are_answered_or_refused_with_a_reason(client, beside):
    refused = []

    @calm
    @given(broken_offers())
    def offered(sdp):
        session = client.post("/sessions").json()["id"]
        answer = client.post(f"/sessions/{session}/offer", json={"sdp": sdp})
        assert answer.status_code in (200, 422), answer.text
        if answer.status_code == 422:
            refused.append(sdp)
            assert answer.json()["detail"]
        else:
            assert answer.json()["type"] == "answer"
        assert client.get(f"/sessions/{session}").status_code == 200, "the place is still there"
        assert client.delete(f"/sessions/{session}").status_code == 204

    offered()
    assert refused
    beside.goes_on()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
commands = st.sampled_from(
    ["offer", "candidate", "say", "clear", "end_of_speech", "mic", "avatar", "ping", "", None]
)
fields = st.dictionaries(
    st.sampled_from(["sdp", "candidate", "text", "mode", "id", "x"]), json_values, max_size=3
)


def test_no_control_message_ends_the_conversation(client, beside, session):
    url = f"/sessions/{session['id']}/control"
    with client.websocket_connect(url, protocols(session["tickets"]["control"])) as socket:

        @calm
        @given(st.builds(lambda kind, rest: rest | {"type": kind}, commands, fields))
        @example({"type": "candidate", "candidate": {"candidate": "candidate:" + "9 " * 9000}})
        @example({"type": ["offer"]})
        def told(message):
            socket.send_text(json.dumps(message))
            socket.send_json({"type": "ping"})
            for _ in range(50):
                if socket.receive_json()["type"] == "pong":
                    return
            raise AssertionError("no answer any more")

        told()
        for text in ("", "\0", "[" * 100_000, "9" * 10_000, '"', "NaN"):
            socket.send_text(text)
        socket.send_json({"type": "ping"})
        while socket.receive_json()["type"] != "pong":
            pass
    beside.goes_on()


media_messages = st.lists(
    st.binary(max_size=3000)
    | st.builds(json.dumps, json_values)
    | st.builds(
        lambda rate, mode: json.dumps({"rate": rate, "mode": mode}),
        st.sampled_from([8_000, 16_000, 44_100, 96_000, 7_999, 96_001, -1, 1e9, "x", None]),
        st.sampled_from(["speak", "mic", "listen", "x", None]),
    ),
    max_size=6,
)


def test_whatever_a_media_socket_brings_the_session_stands(client, beside):
    @calm
    @given(media_messages)
    def sent(messages):
        session = client.post("/sessions").json()
        url = f"/sessions/{session['id']}/media"
        with client.websocket_connect(url, protocols(session["tickets"]["media"])) as socket:
            for message in messages:
                send = socket.send_bytes if isinstance(message, bytes) else socket.send_text
                send(message)
            try:
                for _ in range(3):
                    socket.receive_bytes()
            except WebSocketDisconnect as closed:
                assert (closed.code, bool(closed.reason)) == (1008, True)
        assert client.get(f"/sessions/{session['id']}").status_code == 200
        client.delete(f"/sessions/{session['id']}")

    sent()
    beside.goes_on()


BAD = (np.nan, np.inf, -np.inf, 1e38, -1e38, 5.0)


@calm
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3000),
            st.sampled_from([np.int16, np.uint8, np.int32, np.float32, np.float64, bool, complex]),
            st.sampled_from([0, 1, 2, 3, 8, 9, 1000]),
            st.sampled_from([0, -1, 7_999, 8_000, 16_000, 44_100, 48_000, 96_000, 96_001, 2**31]),
            st.sampled_from([None, *BAD]),
        ),
        max_size=8,
    )
)
def test_no_sound_gets_what_is_not_finite_into_a_session(pushes):
    clock = ManualClock()
    config = SessionConfig(audio_rate=16_000)
    session = Session(DoublePipeline(30, MotionRenderer("mesh")), config, clock=clock)
    list(session.advance())
    noise = np.random.default_rng(0)
    for count, kind, channels, rate, bad in pushes:
        pcm = (noise.standard_normal((count, channels) if channels else count) * 50).astype(kind)
        if bad is not None and count and channels and np.issubdtype(kind, np.floating):
            pcm[count // 2] = bad
        finite = bool(np.isfinite(pcm).all())
        for push in (session.push_audio, session.push_listen_audio):
            try:
                push(pcm, rate)
            except AudioError as error:
                assert str(error)
            else:
                assert finite
                assert 8_000 <= rate <= 96_000
    for _ in range(12):
        clock.advance(20_000_000)
        for item in session.advance():
            if isinstance(item, AudioBlock):
                assert np.isfinite(item.pcm).all()
                assert np.abs(item.pcm).max() <= 1.01
    assert all(np.isfinite(v).all() for v in session._state.values())


# --- bombs ---------------------------------------------------------------------------------------


def png(width, height):
    """One colour; a few hundred kilobytes whatever its size."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    packed = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def avatar_with(**members):
    """The demo's avatar file with members replaced."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(ASSETS / "demo.avatar") as good,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bad,
    ):
        for name in good.namelist():
            bad.writestr(name, members.pop(name.replace(".", "_"), None) or good.read(name))
        for name, data in members.items():
            bad.writestr(name, data)
    return out.getvalue()


def many_members():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i in range(5000):
            archive.writestr(f"m{i}", b"")
    return out.getvalue()


def silence_file(seconds):
    """FLAC: minutes of silence in a few kilobytes."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", "flac") as film:
        stream = film.add_stream("flac", 16_000, layout="mono")
        for _ in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), "s16", "mono")
            frame.sample_rate = 16_000
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return out.getvalue()


def float_wav(bad):
    pcm = np.full(8000, 0.1, "<f4")
    pcm[4000] = bad
    fmt = struct.pack("<HHIIHH", 3, 1, 16_000, 64_000, 4, 32)
    data = pcm.tobytes()
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def wav_header(rate, samples):
    """A WAV file that claims more than it has."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(64))
    data = bytearray(out.getvalue())
    data[40:44] = struct.pack("<I", min(samples * 2, 2**32 - 1))
    return bytes(data)


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("photo far too wide", lambda: png(40_000, 70), "40000x70"),
        ("member that unpacks to 40 MB", lambda: avatar_with(image_png=bytes(40 << 20)), "large"),
        ("picture inside, far too wide", lambda: avatar_with(image_png=png(20_000, 90)), ""),
        ("five thousand members", many_members, "5000"),
        ("a zip cut in two", lambda: avatar_with()[:30_000], "avatar file"),
        ("metadata nested without end", lambda: avatar_with(avatar_json=b"[" * 200_000), "JSON"),
    ],
)
def test_a_bomb_for_an_avatar_is_refused(client, beside, name, make, says):
    bomb = make()
    assert len(bomb) < 2 << 20, "small on the wire"
    before = peak_mb()
    answer = client.post("/avatars", files={"file": (name, bomb)}, data={"consent": "true"})
    assert answer.status_code == 422, answer.text
    assert says in answer.json()["detail"]
    assert "/tmp" not in answer.text
    assert peak_mb() - before < 150
    beside.goes_on()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: silence_file(1200), "longer than"),
        (lambda: float_wav(np.nan), "NaN"),
        (lambda: float_wav(np.inf), ""),
        (lambda: wav_header(2_000_000_000, 100), ""),
        (lambda: b"\x1aE\xdf\xa3" + bytes(5000), ""),
        (lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/hosts\n#EXT-X-ENDLIST\n", ""),
        (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", ""),
        (lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", ""),
    ],
)
def test_a_bomb_for_a_sound_is_refused(client, beside, session, make, says):
    data = make()
    assert len(data) < 2 << 20
    before = peak_mb()
    for url in (f"/sessions/{session['id']}/audio", "/render"):
        answer = client.post(url, files={"file": ("x.wav", data)})
        assert answer.status_code == 422, answer.text
        assert says in answer.json()["detail"]
        assert "/tmp" not in answer.text
    assert peak_mb() - before < 150
    beside.goes_on()


def chunks_of(total):
    for _ in range(total // 65536):
        yield bytes(65536)


def test_a_body_without_a_length_is_cut_at_the_limit(client, beside):
    kind = {"content-type": "multipart/form-data; boundary=x"}
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    def body():
        yield head
        yield from chunks_of(8 << 20)

    answer = client.post("/avatars", content=body(), headers=kind)
    assert answer.status_code == 413
    assert "at most 2 MB" in answer.json()["detail"]
    beside.goes_on()


def test_forms_of_too_many_or_too_large_parts_are_refused(client, beside):
    part = '--x\r\nContent-Disposition: form-data; name="f{}"\r\n\r\n\r\n'
    kind = {"content-type": "multipart/form-data; boundary=x"}
    many = "".join(part.format(i) for i in range(20_000)) + "--x--\r\n"
    answer = client.post("/avatars", content=many.encode(), headers=kind)
    assert answer.status_code == 400
    assert "many" in answer.json()["detail"].lower()
    text = {"consent": "true", "name": "n" * (1 << 20) + "x"}
    answer = client.post("/avatars", files={"file": ("a", b"x")}, data=text)
    assert answer.status_code in (400, 422)
    for junk in (b"", b"--x", b"--y\r\n\r\n--y--", b"\0" * 1000, b"--x\r\n" * 10_000):
        assert client.post("/avatars", content=junk, headers=kind).status_code in (400, 422)
    beside.goes_on()


async def _ask(config, headers, body=()):
    """One request through the guard; the body comes in pieces, then never ends."""
    answers = []

    async def inner(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    pieces = iter(body)

    async def receive():
        piece = next(pieces, None)
        if piece is None:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(message):
        answers.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/render",
        "client": ("127.0.0.1", 5),
        "headers": [(b"host", b"localhost"), *headers],
    }
    await guard.Guard(inner, config, Metrics(), ManualClock())(scope, receive, send)
    return answers[0]["status"], json.loads(answers[1]["body"] or b"{}").get("detail", "")


async def test_a_body_that_never_comes_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(guard, "BODY_TIMEOUT_S", 0.05)
    status, why = await _ask(ServeConfig.of(), [], [b"a", b"b"])
    assert (status, why) == (408, "the request came too slowly")


@pytest.mark.parametrize(
    "given_token",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer " + TOKEN.encode() + b" ",
        b"Basic " + TOKEN.encode(),
        b"Bearer \xff\xfe\x00",
        b"Bearer " + TOKEN.upper().encode(),
        b"Bearer " + TOKEN.encode() * 1000,
    ],
)
async def test_a_token_is_good_only_to_the_letter(given_token):
    config = ServeConfig.of(token=TOKEN)
    status, why = await _ask(config, [(b"authorization", given_token)])
    assert (status, "token" in why) == (401, True)


@pytest.mark.parametrize("length", [b"-1", b"9" * 40, b"1e3", b" 5", b"0x10", "²".encode()])
async def test_a_length_that_is_none_is_refused(length):
    status, _ = await _ask(ServeConfig.of(), [(b"content-length", length)])
    assert status == 413


def test_a_ticket_of_a_session_that_ended_opens_nothing(client):
    gone, here = client.post("/sessions").json(), client.post("/sessions").json()
    client.delete(f"/sessions/{gone['id']}")
    for session, ticket in ((gone, gone["tickets"]["media"]), (here, gone["tickets"]["control"])):
        url = f"/sessions/{session['id']}/media"
        with pytest.raises(WebSocketDisconnect) as refused:
            client.websocket_connect(url, protocols(ticket)).__enter__()
        assert refused.value.code == 4401
    client.delete(f"/sessions/{here['id']}")


# --- a server of its own -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    with serving("hostile_server.py") as address:
        yield address


def open_media(server):
    session = httpx.post(f"{server}/sessions").json()
    url = f"{server}/sessions/{session['id']}/media".replace("http", "ws")
    return connect(url, subprotocols=protocols(session["tickets"]["media"]), max_size=1 << 22)


@pytest.fixture(scope="module")
def neighbour(server):
    with open_media(server) as media:
        yield Beside(media.recv)


def place(server):
    parts = urlsplit(server)
    return parts.hostname, parts.port


def test_slow_and_silent_connections_are_shown_out(server, neighbour):
    heads = [
        b"",
        b"GET / HT",
        b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"\x16\x03\x01",
    ]
    slow = [socket.create_connection(place(server), timeout=30) for _ in range(60)]
    for i, one in enumerate(slow):
        one.sendall(heads[i % len(heads)])
    neighbour.goes_on()
    for one in slow:
        with suppress(ConnectionError):
            assert one.recv(4096)[:12] in (b"", b"HTTP/1.1 400")
        one.close()
    assert httpx.get(f"{server}/healthz").status_code == 200


def test_rubbish_on_the_wire_is_refused(server, neighbour):
    dice = random.Random(5)
    rubbish = [
        dice.randbytes(2000),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100_000,
        b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzzzz\r\n",
        b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"fffffffffffffffff\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ]
    for bad in rubbish:
        with socket.create_connection(place(server), timeout=30) as wire:
            with suppress(ConnectionError):
                wire.sendall(bad)
                wire.shutdown(socket.SHUT_WR)
                answer = wire.recv(4096)
                assert answer == b"" or answer.split()[1][:1] == b"4", answer[:100]
    neighbour.goes_on()


def test_oversized_and_endless_messages_end_their_own_socket_only(server, neighbour):
    with open_media(server) as media:
        with suppress(ConnectionClosed):
            media.send(bytes(3 << 20))
            while True:
                media.recv(timeout=20)
        assert media.close_code == 1009
    with open_media(server) as media:  # two minutes of speech at once, then never read
        with suppress(ConnectionClosed, TimeoutError):
            for _ in range(40):
                media.socket.settimeout(0.5)
                media.send(bytes(96_000))
    with open_media(server) as media, suppress(ConnectionClosed):
        for i in range(3000):
            media.send(json.dumps({"rate": 8_000 + i, "mode": "listen"}))
    neighbour.goes_on()


def test_a_flood_of_sessions_that_come_and_go(server, neighbour):
    with httpx.Client(base_url=server) as flood:
        for i in range(60):
            name = flood.post("/sessions", json={"seed": i}).json()["id"]
            if i % 2:
                assert flood.delete(f"/sessions/{name}").status_code == 204
    neighbour.goes_on()


def test_the_api_keeps_to_its_description(server, neighbour):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from schemathesis import checks as ch
    from schemathesis.specs.openapi import checks as openapi

    schema = schemathesis.openapi.from_url(f"{server}/openapi.json")
    checks = [
        ch.not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_schema_conformance,
    ]
    asked = []
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(calm, max_examples=10)
        @given(operation.as_strategy())
        def ask(case):
            asked.append(case.operation.label)
            case.call_and_validate(checks=checks)

        ask()
    assert len(set(asked)) >= 15
    neighbour.goes_on()


def test_the_neighbour_kept_its_frames(neighbour):
    assert neighbour.share > 0.5, "most, even where other programs want the machine"
