# ruff: noqa: E402
"""A bad network between the server and a WebRTC client: lost, late and held-up packets, in memory.

The client is aiortc's. Flashes and beeps are put on one clock as a browser would: by the sender
reports of both streams.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress

import numpy as np
import pytest

for needed in ("fastapi", "aiortc", "prometheus_client", "httpx2"):
    pytest.importorskip(needed, reason="the serve extra is not installed")

import httpx2 as httpx
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtcpSrPacket
from live_doubles import DoublePipeline, MotionRenderer, no_film

from visavis.avatar import load_avatar
from visavis.serve.app import build_app
from visavis.serve.config import ASSETS, ServeConfig
from visavis.serve.library import Library
from visavis.serve.workers import in_thread
from visavis.types import CHANNEL

NTP_EPOCH = 2_208_988_800  # seconds from 1900 to 1970
EVERY_S, BEEP_S = 0.5, 0.15
CLOCK = {"audio": 48_000, "video": 90_000}


class Flash(MotionRenderer):
    """White while the mouth is open."""

    def step(self, state, motion):
        open_ = motion[0, 0, CHANNEL["jaw_open"]] > 0.04
        return state, np.full((1, 1, self.size, self.size, 3), 255 * open_, np.uint8)


class Link:
    """What the packets of both sides go through."""

    def __init__(self, seed):
        self.loss, self.jitter_s, self.cut = 0.0, 0.0, False
        self.sent = self.lost = 0
        self._dice = random.Random(seed)
        self._under_way = set()

    def lay(self, pc):
        """Between ``pc`` and its network; ICE's own checks do not count as packets here."""
        for ice in {t.sender.transport.transport for t in pc.getTransceivers()}:
            ice._send = self._through(ice._send)

    def _through(self, send):
        async def late(data, delay):
            await asyncio.sleep(delay)
            with suppress(ConnectionError):
                await send(data)

        async def through(data):
            self.sent += 1
            if self.cut or self._dice.random() < self.loss:
                self.lost += 1
            elif self.jitter_s:
                task = asyncio.ensure_future(late(data, self._dice.uniform(0, self.jitter_s)))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            else:
                await send(data)

        return through


class Viewer:
    """An aiortc client that notes when beeps and flashes were meant to be."""

    def __init__(self):
        self.pc = RTCPeerConnection()
        self.pc.addTransceiver("audio", direction="recvonly")
        self.pc.addTransceiver("video", direction="recvonly")
        self.seen = {"audio": [], "video": []}  # (pts, loudness or brightness)
        self.reports = {"audio": [], "video": []}  # (rtp, ntp seconds)
        self._tasks = []

    async def call(self, client, name):
        await self.pc.setLocalDescription(await self.pc.createOffer())
        body = {"sdp": self.pc.localDescription.sdp}
        answer = (await client.post(f"/sessions/{name}/offer", json=body)).json()
        for transceiver in self.pc.getTransceivers():
            self._note_reports(transceiver.receiver, transceiver.kind)
        await self.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        for transceiver in self.pc.getTransceivers():
            self._tasks.append(asyncio.ensure_future(self._watch(transceiver)))

    def _note_reports(self, receiver, kind):
        handle = receiver._handle_rtcp_packet

        async def noted(packet):
            if isinstance(packet, RtcpSrPacket):
                info = packet.sender_info
                self.reports[kind].append((info.rtp_timestamp, info.ntp_timestamp / 2**32))
            await handle(packet)

        receiver._handle_rtcp_packet = noted

    async def _watch(self, transceiver):
        kind = transceiver.kind
        with suppress(MediaStreamError):
            while True:
                frame = await transceiver.receiver.track.recv()
                if kind == "video":
                    levels = [float(frame.to_ndarray(format="gray").mean())]
                else:
                    pcm = frame.to_ndarray().reshape(-1, len(frame.layout.channels))[:, 0]
                    levels = np.abs(pcm.astype(float)).reshape(-1, 240).max(axis=1)  # 5 ms
                for i, level in enumerate(levels):
                    self.seen[kind].append((frame.pts + 240 * i, level))

    def onsets(self, kind, loud):
        """When, on the sender's clock in Unix seconds, each beep or flash began."""
        receiver = next(t for t in self.pc.getTransceivers() if t.kind == kind).receiver
        origin = vars(receiver)["_RTCRtpReceiver__timestamp_mapper"]._origin
        rtp, ntp = np.array(self.reports[kind]).T
        ahead = (rtp - origin) % 2**32  # of the first frame's, in ticks
        zero = np.median(ntp - NTP_EPOCH - ahead / CLOCK[kind])
        out, dark_since = [], None
        for pts, level in sorted(self.seen[kind]):
            now = zero + pts / CLOCK[kind]
            if level < loud:
                dark_since = now if dark_since is None else dark_since
            elif dark_since is not None:
                if now - dark_since > 0.2:
                    out.append(now)
                dark_since = None
        return np.array(out)

    async def close(self):
        for task in self._tasks:
            task.cancel()
        await self.pc.close()


def beeps(seconds):
    """``(N,)`` int16 at 16 kHz: a tone of `BEEP_S` every `EVERY_S`."""
    t = np.arange(round(seconds * 16_000)) / 16_000
    return np.round(16_000 * np.sin(2 * np.pi * 400 * t) * (t % EVERY_S < BEEP_S)).astype(np.int16)


def offsets(sound, flashes, begin, end):
    """Milliseconds from each beep between two moments to the flash nearest to it."""
    sound = sound[(sound > begin) & (sound < end)]
    nearest = [flashes[np.argmin(np.abs(flashes - s))] - s for s in sound] if len(flashes) else []
    return np.array([1e3 * n for n in nearest if abs(n) < EVERY_S / 2])


@pytest.mark.slow
async def test_loss_jitter_and_an_outage_are_got_over_in_sync():
    config = ServeConfig.of(
        size=256, workers=1, detach_s=10, allowed_origins=("http://testserver",)
    )
    library = Library(config.size, config.uploads_kept)
    library.share(load_avatar(ASSETS / "demo.avatar"))

    def models(name):
        return DoublePipeline(config.fps, Flash("mesh", size=64)), ()

    app = build_app(config, library=library, hire=in_thread(models), limit=1, render=no_film)
    link, viewer = Link(seed=3), Viewer()
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://testserver") as client,
    ):
        name = (await client.post("/sessions")).json()["id"]
        hall = app.state.hall
        await viewer.call(client, name)
        async with asyncio.timeout(20):
            while not viewer.seen["video"] or not viewer.seen["audio"]:
                await asyncio.sleep(0.05)
        link.lay(viewer.pc)
        link.lay(hall.peers[name].pc)
        hall.spawn(hall.engine.sessions[name].say(beeps(22), 16_000))
        marks = [time.time()]
        for seconds, loss, jitter_s, cut in (
            (5, 0, 0, False),
            (5, 0.05, 0.05, False),
            (2, 0, 0, True),
            (6, 0.05, 0.05, False),
        ):
            link.loss, link.jitter_s, link.cut = loss, jitter_s, cut
            await asyncio.sleep(seconds)
            marks.append(time.time())
        live = hall.engine.sessions[name]
        assert not live.closed.is_set(), "the session outlived it"
        assert viewer.pc.connectionState == "connected"
        stats = dict(live.stats)
        sound, flashes = viewer.onsets("audio", 2_000), viewer.onsets("video", 128)
        await viewer.close()
    assert 0.02 * link.sent < link.lost
    before = offsets(sound, flashes, marks[0], marks[1])
    during = offsets(sound, flashes, marks[1], marks[2])
    after = offsets(sound, flashes, marks[3] + 1.5, marks[4])
    print(f"{link.lost} of {link.sent} packets lost; {stats}")
    for label, part in (("before", before), ("during", during), ("after", after)):
        print(f"{label}: {len(part)} pairs, median {np.median(part):+.1f} ms, {np.round(part)}")
    assert min(len(before), len(during), len(after)) >= 4, "pictures and sound come through"
    for part in (during, after):
        assert abs(np.median(part) - np.median(before)) < 34, "a frame's time"
