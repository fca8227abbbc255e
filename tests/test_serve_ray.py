# ruff: noqa: E402
"""Everything over one WebSocket, and replicas of the server under Ray Serve."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import speech_like, write_wav

for needed in ("fastapi", "aiortc", "prometheus_client", "httpx2", "multipart", "websockets"):
    pytest.importorskip(needed, reason="the serve extra is not installed")

from live_doubles import DoublePipeline, MotionRenderer, no_film
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from visavis.avatar import load_avatar
from visavis.errors import ConfigError
from visavis.serve.app import build_app
from visavis.serve.coders import HEADER, JPEG, PCM
from visavis.serve.config import ASSETS, ServeConfig
from visavis.serve.library import Library
from visavis.serve.replicas import app as ray_app
from visavis.serve.replicas import replicas_of
from visavis.serve.talk import PIECE, PIECE_BYTES
from visavis.serve.workers import in_thread

HERE = Path(__file__).parent
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def face():
    return load_avatar(ASSETS / "demo.avatar")


def talking(face, *, limit=3, **changes):
    """A client of the app on renderers that cost nothing."""
    config = ServeConfig.of(
        **{"size": 256, "workers": 1, "allowed_origins": ("http://testserver",)} | changes
    )
    library = Library(config.size, config.uploads_kept)
    library.share(face)

    def models(name):
        return DoublePipeline(config.fps, MotionRenderer("mesh", size=32)), ()

    app = build_app(config, library=library, hire=in_thread(models), limit=limit, render=no_film)
    return TestClient(app)


@pytest.fixture
def client(face):
    with talking(face, sound_limit_s=5, upload_mb=1) as client:
        yield client


def opened(socket, **choices):
    socket.send_json({"type": "open"} | choices)
    answer = socket.receive_json()
    assert answer["type"] == "opened", answer
    return answer


def answer_to(socket, message, kind="error"):
    """Send a JSON object or bytes; the next message of ``kind``."""
    if isinstance(message, bytes):
        socket.send_bytes(message)
    elif message is not None:
        socket.send_json(message)
    for _ in range(200):
        heard = socket.receive()
        assert heard["type"] == "websocket.send", heard
        if heard.get("text") and (told := json.loads(heard["text"]))["type"] == kind:
            return told
    raise AssertionError(f"no {kind} came")


def shown_out(client, *messages, **kwargs):
    """``(code, reason)`` of a socket that says ``messages`` first."""
    with client.websocket_connect("/talk", **kwargs) as socket:
        for message in messages:
            (socket.send_bytes if isinstance(message, bytes) else socket.send_text)(message)
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
    return closed.value.code, closed.value.reason


def sessions(client):
    return client.get("/healthz").json()["sessions"]


def wait_until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


# --- being let in --------------------------------------------------------------------------------


def test_one_socket_is_a_place_and_its_end_gives_it_back(client):
    with client.websocket_connect("/talk", ["visavis.v1"]) as socket:
        answer = opened(socket, seed=4)
        assert set(answer) == {"type", "id", "avatar", "ice_servers"}
        assert client.get(f"/sessions/{answer['id']}").json()["avatar"] == answer["avatar"]
        answer_to(socket, {"type": "ping"}, "pong")
        assert answer_to(socket, {"type": "clear"}, "cleared")["epoch"] == 1
        assert "dance" in answer_to(socket, {"type": "dance"})["reason"]
        assert answer_to(socket, {"type": "offer", "sdp": ""})["reason"]
    wait_until(lambda: sessions(client) == 0)


def test_the_server_hangs_up_when_told_that_it_is_the_end(client):
    with client.websocket_connect("/talk") as socket:
        opened(socket)
        assert answer_to(socket, {"type": "end"}, "closed")["reason"] == "ended by the client"
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == 1000
    assert sessions(client) == 0


def test_a_full_house_says_so(face):
    with talking(face, limit=1) as client, client.websocket_connect("/talk") as socket:
        opened(socket)
        code, reason = shown_out(client, '{"type": "open"}')
        assert (code, reason) == (4503, "all 1 places are taken; try again")
        assert 'visavis_sessions_refused_total{reason="full"} 1.0' in client.get("/metrics").text


def test_one_client_does_not_take_every_place(face):
    with talking(face, sessions_per_client=1) as client, client.websocket_connect("/talk") as one:
        opened(one)
        assert shown_out(client, '{"type": "open"}')[0] == 4503


def test_the_token_is_looked_at_to_the_letter(face):
    with talking(face, token=TOKEN) as client:
        for wrong in ("", TOKEN[:-1], TOKEN + "x", "\u00e9"):
            message = json.dumps({"type": "open", "token": wrong})
            assert shown_out(client, message)[0] == 4401
        with client.websocket_connect("/talk") as socket:
            opened(socket, token=TOKEN)
        right = {"Authorization": f"Bearer {TOKEN}"}
        metrics = client.get("/metrics", headers=right).text
        assert 'visavis_requests_rejected_total{reason="401"} 4.0' in metrics


def test_who_says_nothing_is_shown_out(face):
    with talking(face, header_timeout_s=0.05) as client:
        code, reason = shown_out(client)
        assert code == 4408
        assert "0.05 s" in reason
        assert sessions(client) == 0


@pytest.mark.parametrize(
    "first",
    [
        "",
        "[]",
        "{",
        '{"type": "ping"}',
        '{"type": "open", "sed": 1}',
        '{"type": "open", "seed": -1}',
        '{"type": "open", "token": "\\ud800"}',
        '{"type": "open", "avatar": "../../etc/passwd"}',
        "[" * 3000,
        " " * 10_000,
        b"open",
    ],
)
def test_first_words_that_mean_nothing_are_refused(client, first):
    code, reason = shown_out(client, first)
    assert code == 4422
    assert reason
    assert sessions(client) == 0


def test_other_origins_and_floods_are_refused(face):
    with talking(face, requests_per_minute=3) as client:
        evil = {"origin": "https://evil.example"}
        with pytest.raises(WebSocketDisconnect) as closed:
            client.websocket_connect("/talk", headers=evil).__enter__()
        assert closed.value.code == 4403
        for _ in range(3):
            with client.websocket_connect("/talk"):
                pass
        with pytest.raises(WebSocketDisconnect) as closed:
            client.websocket_connect("/talk").__enter__()
        assert closed.value.code == 4429


# --- files and media on it -----------------------------------------------------------------------


def hand_over(socket, data, size=None, piece=PIECE_BYTES):
    socket.send_json({"type": "file", "bytes": len(data) if size is None else size})
    for at in range(0, len(data), piece):
        socket.send_bytes(bytes([PIECE]) + data[at : at + piece])
    socket.send_json({"type": "file_end"})


def test_a_sound_file_comes_in_pieces_and_is_heard(client, tmp_path):
    wav = write_wav(tmp_path / "a.wav", speech_like(0.5, 22_050), 22_050).read_bytes()
    with client.websocket_connect("/talk") as socket:
        opened(socket)
        socket.send_json({"type": "media", "rate": 16_000})
        hand_over(socket, wav, piece=3000)
        assert answer_to(socket, None, "said")["seconds"] == pytest.approx(0.5)
        loudest, frames, blocks = 0, 0, 0
        while loudest < 3000 or frames < 5:
            data = socket.receive().get("bytes") or b"\0"
            frames += data[0] == JPEG
            if data[0] == PCM:
                blocks += 1
                loudest = max(loudest, np.abs(np.frombuffer(data[HEADER.size :], "<i2")).max())
            assert blocks < 1000, "the file was never heard"
    wait_until(lambda: sessions(client) == 0)


def test_files_that_are_none_are_refused_and_the_talk_goes_on(client, tmp_path):
    long = write_wav(tmp_path / "a.wav", np.zeros(8000 * 6, np.float32), 8000, 1).read_bytes()
    with client.websocket_connect("/talk") as socket:
        opened(socket)
        for size in (0, -1, (1 << 20) + 1, "9", True, None, 1e3):
            assert "expected 1 to" in answer_to(socket, {"type": "file", "bytes": size})["reason"]
        assert "no file" in answer_to(socket, bytes([PIECE]) + b"x")["reason"]
        assert answer_to(socket, {"type": "file_end"})["reason"].startswith("0 bytes")
        hand_over(socket, b"1234", size=5)
        assert "4 bytes of a file came; expected 5" in answer_to(socket, None)["reason"]
        socket.send_json({"type": "file", "bytes": 3})
        assert "longer than" in answer_to(socket, bytes([PIECE]) + b"1234")["reason"]
        huge = bytes([PIECE]) + bytes(PIECE_BYTES + 1)
        assert "at most" in answer_to(socket, huge)["reason"]
        hand_over(socket, b"RIFF____WAVE nothing")
        assert "/tmp" not in answer_to(socket, None)["reason"]
        hand_over(socket, long)
        assert "longer than 5 s" in answer_to(socket, None)["reason"]
        for bad in (b"", b"\x00abc", b"\x02ab"):
            assert "expected" in answer_to(socket, bad)["reason"]
        for rate in (1, "x", None, 1e9):
            assert "8000 to 96000" in answer_to(socket, {"type": "media", "rate": rate})["reason"]
        answer_to(socket, {"type": "ping"}, "pong")


def spoken_into(socket, pcm, ticks=4):
    """Whether each of the next stats says that the avatar speaks.

    The microphone gives one block of 20 ms for each block of sound that comes, whatever the clock.
    """
    blocks = itertools.cycle(pcm[at : at + 640] for at in range(0, len(pcm), 640))
    told = []
    while len(told) < ticks:
        heard = socket.receive()
        assert heard["type"] == "websocket.send", heard
        if heard.get("bytes", b"")[:1] == bytes([PCM]):
            socket.send_bytes(bytes([PCM]) + next(blocks))
        elif heard.get("text") and (message := json.loads(heard["text"]))["type"] == "stats":
            told.append(message.get("speaking", False))  # none before the first frame
    return told


def test_a_microphone_goes_where_its_mode_says(client):
    pcm = np.round(speech_like(0.4) * 20_000).astype("<i2").tobytes()
    with client.websocket_connect("/talk") as socket:
        opened(socket)
        socket.send_json({"type": "media", "rate": 16_000})
        for mode, speaking in (("listen", False), ("speak", True)):
            answer_to(socket, {"type": "mic", "mode": mode}, "mic")
            assert any(spoken_into(socket, pcm)) == speaking, mode


# --- replicas ------------------------------------------------------------------------------------


def test_what_another_replica_would_not_know_is_refused(face):
    with talking(face, one_socket=True) as client:
        assert client.get("/config").json()["one_socket"] is True
        assert client.post("/sessions").status_code == 409
        photo = {"file": ("a.png", b"x")}
        assert client.post("/avatars", files=photo).status_code == 409
        assert client.post("/render", files=photo).status_code == 409
        with client.websocket_connect("/talk") as socket:
            opened(socket)


def test_numbers_of_replicas():
    assert replicas_of("3") == (3, 3)
    assert replicas_of("1:8") == (1, 8)
    for wrong in ("", "0", "x", "3:1", "1:", "-1", "1:2:3"):
        with pytest.raises(ConfigError):
            replicas_of(wrong)
    with pytest.raises(ConfigError):
        ray_app({"colour": "red"})


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"visavis\[serve,scale\]"):
        ray_app({"replicas": 2})


def need_ray():
    for name in ("ray", "ray.serve"):
        if importlib.util.find_spec("ray") is None or importlib.util.find_spec(name) is None:
            pytest.skip("the scale extra (Ray Serve) is not installed")


MANIFEST = """
import sys, yaml
from ray.serve.schema import ServeDeploySchema
from visavis.errors import ConfigError
from visavis.serve.replicas import app

manifest = yaml.safe_load(open(sys.argv[1]))
told = yaml.safe_load(manifest["spec"]["serveConfigV2"])
application = ServeDeploySchema.model_validate(told).applications[0]
assert application.import_path == "visavis.serve.replicas:app"
deployment = app(application.args)._bound_deployment
scaling = deployment._deployment_config.autoscaling_config
assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 8, 1)
assert deployment.max_ongoing_requests > application.args["max_sessions"], "room to refuse"
try:
    app(application.args | {"max_sessions": 0})
except ConfigError as error:
    print(error)
cluster = manifest["spec"]["rayClusterConfig"]
for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
    (container,) = group["template"]["spec"]["containers"]
    environment = {e["name"]: e.get("value") for e in container["env"]}
    assert environment["RAY_worker_niceness"] == "0", "pictures come too late at 15"
"""


@pytest.mark.slow
def test_the_manifest_is_understood():
    """By Ray's own schema and by ours, in a process of its own: importing Ray Serve warns."""
    need_ray()
    manifest = HERE.parent / "deploy" / "rayservice.yaml"
    done = [
        subprocess.run(
            [sys.executable, "-c", MANIFEST, manifest],
            capture_output=True,
            text=True,
            env=os.environ | {"VISAVIS_TOKEN": token},
            timeout=300,
            check=False,
        )
        for token in (TOKEN, "")
    ]
    assert "max_sessions" in done[0].stdout, done[0].stderr[-2000:]
    assert done[0].returncode == 0
    assert "set a token" in done[1].stderr, "others can reach it"


class RayServer:
    """``ray_server.py`` in a process of its own: ``address``, and ``stop``."""

    def __init__(self, log):
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, HERE / "ray_server.py"],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
        )
        lines = iter(self._process.stdout.readline, "")
        line = next((text for text in lines if text.startswith("visavis is at")), "")
        assert line, f"Ray Serve did not start: {log.read_text()[-3000:]}"
        self.address = line.split()[-1]
        threading.Thread(target=self._process.stdout.read, daemon=True).start()

    def connect(self):
        return connect(
            self.address.replace("http", "ws") + "/talk", open_timeout=60, ping_interval=None
        )

    def stop(self):
        """By SIGTERM; its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._log.close()


@pytest.fixture(scope="module")
def ray_server(tmp_path_factory):
    need_ray()
    server = RayServer(tmp_path_factory.mktemp("ray") / "log")
    yield server
    assert server.stop() == 0, "SIGTERM ends the replicas and Ray"


def say(socket, **message):
    socket.send(json.dumps(message))
    end = time.monotonic() + 30
    while time.monotonic() < end:
        told = json.loads(socket.recv(timeout=30))
        if told["type"] != "stats":
            return told
    raise AssertionError("no answer")


def home(socket):
    return int(socket.response.headers["x-pid"])


def goes_on(socket):
    with suppress(ConnectionClosed):
        return say(socket, type="ping") == {"type": "pong"}
    return False


@pytest.mark.slow
def test_the_page_talks_to_a_replica(ray_server, tmp_path):
    """One conversation by WebRTC, one by the socket alone; a recording is played in both."""
    browser = pytest.importorskip("test_serve_browser", reason="Chromium is not installed")
    from playwright.sync_api import sync_playwright

    wav = write_wav(tmp_path / "hello.wav", speech_like(12.0))
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=browser.CHROMIUM, args=list(browser.FLAGS)
        )
        page = chromium.new_page()
        page.set_default_timeout(browser.PATIENCE)
        for query, transport in (("", "WebRTC"), ("/?socket", "WebSocket")):
            browser.begin(page, ray_server.address + query)
            assert not page.is_visible("#make"), "a photo would be known to one replica only"
            browser.says(page, transport)
            browser.until(page, "parseFloat(document.querySelector('#fps').textContent) > 2")
            page.set_input_files("#sound", wav)
            browser.until(page, "document.querySelector('#status').textContent.includes('12 s')")
            browser.says(page, "speaking")
            page.click("#interrupt")
            browser.says(page, "idle")
            page.click("#mic")
            browser.says(page, "speaking")
            page.click("#end")
            page.wait_for_selector("#start:visible")
        chromium.close()


def four_conversations(server):
    """Sockets that fill both replicas, once the conversations before are really over."""
    end = time.monotonic() + 60
    while True:
        with ExitStack() as stack:
            taken = [stack.enter_context(server.connect()) for _ in range(4)]
            try:
                names = {say(socket, type="open")["id"] for socket in taken}
                assert len(names) == 4
                return stack.pop_all(), taken
            except ConnectionClosed as full:
                assert full.rcvd.code == 4503
                assert time.monotonic() < end, "a place is never given back"
        time.sleep(1)


@pytest.mark.slow
def test_conversations_keep_their_replica_and_die_with_no_other(ray_server):
    stack, taken = four_conversations(ray_server)
    with stack:
        homes = [home(socket) for socket in taken]
        assert sorted(homes.count(pid) for pid in set(homes)) == [2, 2], "spread evenly"
        for _ in range(5):
            assert all(goes_on(socket) for socket in taken), "a socket stays where its session is"

        with ray_server.connect() as fifth, pytest.raises(ConnectionClosed):
            say(fifth, type="open")
        assert fifth.close_code == 4503
        assert "places are taken" in fifth.close_reason

        os.kill(homes[0], signal.SIGKILL)
        for socket, pid in zip(taken, homes, strict=True):
            if pid == homes[0]:
                with pytest.raises(ConnectionClosed):
                    while True:
                        socket.recv(timeout=60)
        assert all(goes_on(s) for s, pid in zip(taken, homes, strict=True) if pid != homes[0])

        end = time.monotonic() + 120
        while True:
            assert time.monotonic() < end, "no other replica took its place"
            with (
                suppress(ConnectionClosed, InvalidStatus, TimeoutError),
                ray_server.connect() as one,
            ):
                if say(one, type="open")["type"] == "opened" and home(one) not in homes:
                    return
            time.sleep(0.5)
