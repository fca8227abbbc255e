# ruff: noqa: E402
"""The remote LiveKit worker, spoken to by livekit-agents' own sender and by rude ones."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import numpy as np
import pytest
from conftest import speech_like

for needed in ("prometheus_client", "livekit.rtc"):
    pytest.importorskip(needed, reason="the livekit-worker extra is not installed")

from live_doubles import DoublePipeline, MotionRenderer
from livekit import rtc
from livekit_doubles import Wire
from typer.testing import CliRunner

from visavis.cli import app as commands
from visavis.serve import livekit_worker as lk
from visavis.serve.face import Face

S = 24_000  # samples a second of the agent's speech


def pcm16(seconds, seed=0):
    return np.round(speech_like(seconds, S, seed) * 20_000).astype("<i2")


class Taken:
    """What reached LiveKit's own sources."""

    def __init__(self, worker, monkeypatch):
        self.frames, self.sound = 0, []
        self.video, self.audio = worker._video.capture_frame, worker._audio.capture_frame
        monkeypatch.setattr(worker._video, "capture_frame", self.show)
        monkeypatch.setattr(worker._audio, "capture_frame", self.play)

    def show(self, frame):
        self.frames += 1
        self.video(frame)

    async def play(self, frame):
        self.sound.append(np.frombuffer(frame.data, np.int16))
        await self.audio(frame)

    @property
    def seconds(self):
        return sum(map(len, self.sound)) / 48_000


@asynccontextmanager
async def working(wire, monkeypatch, agent="", **attributes):
    face = Face(DoublePipeline(30, MotionRenderer("mesh", size=32)))
    await face.start()
    worker = lk.AvatarWorker(wire.join("avatar", **attributes), face, agent)
    taken = Taken(worker, monkeypatch)
    await worker.start()
    try:
        yield worker, taken
    finally:
        await worker.aclose()
        await face.stop()


async def until(true, seconds=20):
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def finished(side):
    """Reports the worker sent."""
    calls = side.room.people["avatar"].calls
    return [json.loads(p) for m, p in calls if m == lk.FINISHED]


async def speak(side, *chunks, rate=S, channels=1, end=True):
    attributes = {"sample_rate": str(rate), "num_channels": str(channels)}
    writer = await side.local_participant.stream_bytes(
        "AUDIO", topic=lk.AUDIO_TOPIC, destination_identities=["avatar"], attributes=attributes
    )
    for chunk in chunks:
        await writer.write(chunk)
    if end:
        await writer.aclose()
    return writer


# --- livekit-agents' own sender ------------------------------------------------------------------


@pytest.fixture
def output_class():
    module = pytest.importorskip("livekit.agents.voice.avatar", reason="no livekit-agents")
    return module.DataStreamAudioOutput


async def say(output, pcm):
    for part in np.array_split(pcm, 5):
        await output.capture_frame(rtc.AudioFrame(part.tobytes(), S, 1, len(part)))
    output.flush()


async def test_the_agents_own_sender_hears_that_each_segment_was_played(monkeypatch, output_class):
    wire = Wire()
    room = wire.join("agent")
    async with working(wire, monkeypatch, lk__publish_on_behalf="agent") as (worker, taken):
        output = output_class(
            room,
            destination_identity="avatar",
            sample_rate=S,
            wait_remote_track=rtc.TrackKind.KIND_VIDEO,
            wait_playback_start=True,
        )
        started = []
        output.on("playback_started", started.append)
        assert wire.people["avatar"].tracks == ["avatar_audio", "avatar_video"]
        for seconds in (0.6, 0.3):
            await say(output, pcm16(seconds))
            event = await asyncio.wait_for(output.wait_for_playout(), 20)
            assert not event.interrupted
            assert event.playback_position == pytest.approx(seconds, abs=0.001)
        assert len(started) == 2
        assert taken.seconds == pytest.approx(0.9, abs=0.05), "all of it was played"
        assert taken.frames > 10
        level = np.abs(np.concatenate(taken.sound).astype(float)).max()
        assert level == pytest.approx(np.abs(pcm16(0.6)).max(), rel=0.1)


async def test_two_segments_sent_at_once_end_twice(monkeypatch, output_class):
    wire = Wire()
    room = wire.join("agent")
    async with working(wire, monkeypatch, agent="agent"):
        output = output_class(room, destination_identity="avatar", sample_rate=S)
        await say(output, pcm16(0.4))
        await say(output, pcm16(0.2))
        await asyncio.wait_for(output.wait_for_playout(), 20)
        assert [r["playback_position"] for r in finished(room)] == [0.4, 0.2]


async def test_an_interruption_silences_and_reports_where(monkeypatch, output_class):
    wire = Wire()
    room = wire.join("agent")
    async with working(wire, monkeypatch, agent="agent") as (worker, taken):
        output = output_class(room, destination_identity="avatar", sample_rate=S)
        await say(output, pcm16(8))
        await say(output, pcm16(3))  # waits behind
        await until(lambda: taken.seconds > 0.3)
        output.clear_buffer()
        event = await asyncio.wait_for(output.wait_for_playout(), 1.9)  # its own time-out is 2 s
        assert event.interrupted
        reports = finished(room)
        assert [r["interrupted"] for r in reports] == [True, True]
        assert 0.1 < reports[0]["playback_position"] < 7
        assert reports[1]["playback_position"] == 0
        before = taken.seconds
        await asyncio.sleep(0.5)
        assert taken.seconds - before <= 0.04, "nothing old is played after it"
        await say(output, pcm16(0.3))
        event = await asyncio.wait_for(output.wait_for_playout(), 20)
        assert not event.interrupted
        assert event.playback_position == pytest.approx(0.3, abs=0.001)


# --- others --------------------------------------------------------------------------------------


async def test_strangers_are_not_listened_to(monkeypatch):
    wire = Wire()
    standard = rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD
    guest, agent = wire.join("guest", standard), wire.join("agent")
    async with working(wire, monkeypatch) as (worker, taken):
        await speak(guest, pcm16(0.3).tobytes())
        answer = guest.local_participant.perform_rpc(
            destination_identity="avatar", method=lk.CLEAR, payload=""
        )
        assert await answer == "reject"
        await speak(agent, pcm16(0.3).tobytes())  # the first agent that speaks is the agent
        await until(lambda: finished(agent))
        other = wire.join("other")
        await speak(other, pcm16(0.3).tobytes())
        await asyncio.sleep(0.2)
        assert finished(agent) == [{"playback_position": 0.3, "interrupted": False}]
        assert taken.seconds == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("rate", "channels"), [("x", 1), (1, 1), (10**9, 1), (S, 0), (S, 99), ("", "")]
)
async def test_a_stream_that_is_no_speech_is_reported_and_survived(monkeypatch, rate, channels):
    wire = Wire()
    agent = wire.join("agent")
    async with working(wire, monkeypatch, agent="agent") as (worker, taken):
        await speak(agent, b"\1" * 99, rate=rate, channels=channels)
        await until(lambda: finished(agent))
        assert finished(agent) == [{"playback_position": 0.0, "interrupted": True}]
        await speak(agent, pcm16(0.2).tobytes())
        await until(lambda: len(finished(agent)) == 2)


async def test_samples_cut_in_two_and_stereo_are_put_together(monkeypatch):
    wire = Wire()
    agent = wire.join("agent")
    async with working(wire, monkeypatch, agent="agent") as (worker, taken):
        both = np.repeat(pcm16(0.4), 2).tobytes()
        await speak(agent, both[:1001], both[1001:1002], both[1002:], channels=2)
        await until(lambda: finished(agent))
        assert finished(agent)[0]["playback_position"] == 0.4
        level = np.abs(np.concatenate(taken.sound).astype(float)).max()
        assert level == pytest.approx(np.abs(pcm16(0.4)).max(), rel=0.1)


async def test_an_end_that_was_lost_does_not_wedge_the_face(monkeypatch):
    monkeypatch.setattr(lk, "LOOK_S", 0.05)
    wire = Wire()
    agent = wire.join("agent")
    async with working(wire, monkeypatch, agent="agent"):
        await speak(agent, pcm16(0.3).tobytes(), end=False)  # superseded by the next
        broken = await speak(agent, pcm16(0.2).tobytes(), end=False)
        broken._reader.queue.put_nowait(ConnectionError("aborted by the sender"))
        await speak(agent, pcm16(0.1).tobytes(), end=False)  # silent from then on
        await until(lambda: len(finished(agent)) == 3)
        assert [r["playback_position"] for r in finished(agent)] == [0.3, 0.2, 0.1]


async def test_a_pause_of_the_speaker_is_no_end(monkeypatch):
    wire = Wire()
    agent = wire.join("agent")
    async with working(wire, monkeypatch, agent="agent"):
        writer = await speak(agent, pcm16(0.25).tobytes(), end=False)
        await asyncio.sleep(0.9)
        assert not finished(agent)
        await writer.write(pcm16(0.25).tobytes())
        await writer.aclose()
        await until(lambda: finished(agent))
        assert finished(agent) == [{"playback_position": 0.5, "interrupted": False}]


async def test_it_leaves_when_the_agent_or_the_room_is_gone(monkeypatch):
    wire = Wire()
    wire.join("agent")
    async with working(wire, monkeypatch, agent="agent") as (worker, taken):
        waiting = asyncio.ensure_future(worker.wait())
        wire.join("guest")
        wire.leave("guest")
        await asyncio.sleep(0.05)
        assert not waiting.done()
        wire.leave("agent")
        assert await asyncio.wait_for(waiting, 5) == "the agent left"
    async with working(wire, monkeypatch) as (worker, taken):
        wire.people["avatar"].side.emit("disconnected", 1)
        assert await asyncio.wait_for(worker.wait(), 5) == "the room was closed"


async def test_reports_are_tried_again_and_given_up(monkeypatch):
    monkeypatch.setattr(lk, "RETRY_S", 0.01)
    wire = Wire()
    agent = wire.join("agent")
    async with working(wire, monkeypatch, agent="agent") as (worker, taken):
        code = rtc.RpcError.ErrorCode
        answers = iter([rtc.RpcError(code.CONNECTION_TIMEOUT, "slow")] * 2)

        def handler(data):
            error = next(answers, None)
            if error is not None:
                raise error
            return "ok"

        agent.local_participant.register_rpc_method(lk.FINISHED, handler)
        await speak(agent, pcm16(0.2).tobytes())
        await until(lambda: len(finished(agent)) == 3)
        assert not worker._tasks[2].done(), "and it goes on"


# --- the command ---------------------------------------------------------------------------------


def test_a_room_that_cannot_be_joined_is_one_line(demo_avatar_path):
    arguments = ["livekit", str(demo_avatar_path), "--size", "256", "--tier", "mesh"]
    done = CliRunner().invoke(commands, arguments, env={"LIVEKIT_URL": "", "LIVEKIT_TOKEN": ""})
    assert "--url" in str(done.exception)
    where = ["--url", "ws://127.0.0.1:1", "--token", "x"]
    done = CliRunner().invoke(commands, [*arguments, *where])
    assert "cannot join the room at ws://127.0.0.1:1" in str(done.exception)
