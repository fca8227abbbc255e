# ruff: noqa: E402
"""The face inside other frameworks, driven by their own classes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import speech_like

for needed in ("fastapi", "prometheus_client"):
    pytest.importorskip(needed, reason="the serve extra is not installed")

from live_doubles import DoublePipeline, MotionRenderer

from visavis.serve.face import Face
from visavis.session import AudioBlock, VideoFrame

EXAMPLES = Path(__file__).parents[1] / "examples"
LETTER_S = 0.02  # seconds that `VOICE` says for a letter
VOICE = (
    f'{sys.executable} -c "import math, struct, sys, wave; n = 320 * len(sys.stdin.read()); '
    "w = wave.open(sys.stdout.buffer, 'wb'); w.setparams((1, 2, 16000, 0, 'NONE', '')); "
    "w.writeframes(b''.join(struct.pack('<h', int(9000 * math.sin(i / 9))) for i in range(n)))\""
)
imported = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the frameworks' own


def example(name):
    """A file of ``examples/`` as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def until(true, seconds=20):
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def make_face(**choices):
    return Face(DoublePipeline(30, MotionRenderer("mesh", size=32)), **choices)


async def test_a_face_gives_back_the_sound_and_marks_its_end():
    face = make_face(audio_rate=16_000)
    await face.start()
    pcm = speech_like(0.5)
    await face.push(pcm, 16_000)
    await face.end()
    sound, frames = [], 0

    async def watch():
        nonlocal frames
        async for item in face:
            if isinstance(item, VideoFrame):
                frames += 1
            elif item.speaking:
                sound.append(item.pcm)
            if isinstance(item, AudioBlock) and item.ends:
                return

    await asyncio.wait_for(watch(), 20)
    np.testing.assert_array_equal(np.concatenate(sound)[: len(pcm)], pcm)
    assert frames > 5
    await face.push(pcm, 16_000)
    face.clear()
    await face.stop()


async def test_a_pause_ends_nothing_and_an_interruption_leaves_nothing():
    face = make_face(audio_rate=16_000)
    await face.start()
    said, ends = 0, 0

    async def watch():
        nonlocal said, ends
        async for item in face:
            if isinstance(item, AudioBlock):
                said += item.speaking
                ends += item.ends

    watching = asyncio.ensure_future(watch())
    await face.push(speech_like(0.25), 16_000)
    await asyncio.sleep(0.8)
    assert (said > 10, ends) == (True, 0)
    await face.end()
    await asyncio.wait_for(face.finished(), 10)
    assert ends == 1
    await face.push(speech_like(5), 16_000)
    await face.end()
    await until(lambda: said > 30)
    face.clear()
    await asyncio.wait_for(face.finished(), 1)
    before = said
    await asyncio.sleep(0.4)
    assert said == before, "nothing old after an interruption"
    assert ends == 1
    watching.cancel()
    await face.stop()


# --- Pipecat -------------------------------------------------------------------------------------


@pytest.fixture
def frames():
    return pytest.importorskip("pipecat.frames.frames", reason="pipecat is not installed")


def speech_frames(frames, seconds):
    speech = (speech_like(seconds) * 20_000).astype("<i2").tobytes()
    return [
        frames.TTSStartedFrame(),
        frames.TTSAudioRawFrame(speech, 16_000, 1),
        frames.TTSStoppedFrame(),
    ]


@imported
async def test_pipecat_shows_a_face_for_the_speech_of_its_tts(frames):
    from pipecat.tests.utils import SleepFrame, run_test

    from visavis.serve.pipecat import VisavisProcessor

    speech = (speech_like(0.3) * 20_000).astype("<i2").tobytes()
    down, _ = await run_test(
        VisavisProcessor(make_face(audio_rate=16_000)),
        frames_to_send=[
            frames.TTSStartedFrame(),
            frames.TTSAudioRawFrame(speech, 16_000, 1),
            frames.TTSStoppedFrame(),
            SleepFrame(sleep=1.5),
            frames.InterruptionFrame(),
            SleepFrame(sleep=0.1),
        ],
        start_timeout=20,
    )
    images = [f for f in down if isinstance(f, frames.OutputImageRawFrame)]
    sounds = [f for f in down if isinstance(f, frames.SpeechOutputAudioRawFrame)]
    assert len(images) > 5
    assert images[0].size == (32, 32)
    heard = b"".join(f.audio for f in sounds)
    assert abs(len(heard) - len(speech)) <= 640, "the sound comes back whole"
    assert not [f for f in down if isinstance(f, frames.TTSAudioRawFrame)], "and only once"
    assert any(isinstance(f, frames.InterruptionFrame) for f in down)


@imported
async def test_pipecats_end_waits_for_the_last_word(frames):
    from pipecat.tests.utils import run_test

    from visavis.serve.pipecat import VisavisProcessor

    down, _ = await run_test(
        VisavisProcessor(make_face(audio_rate=16_000)),
        frames_to_send=speech_frames(frames, 0.4),
        start_timeout=20,
    )
    kinds = [type(f) for f in down]
    heard = sum(len(f.audio) for f in down if isinstance(f, frames.SpeechOutputAudioRawFrame))
    assert abs(heard - 0.4 * 32_000) <= 640, "all of it was said before the end went on"
    last_sound = len(kinds) - 1 - kinds[::-1].index(frames.SpeechOutputAudioRawFrame)
    assert kinds.index(frames.TTSStoppedFrame) > last_sound, "the stop goes on after the sound"
    assert kinds.count(frames.TTSStoppedFrame) == 1


@imported
async def test_pipecats_interruption_drops_what_waits(frames):
    from pipecat.tests.utils import SleepFrame, run_test

    from visavis.serve.pipecat import VisavisProcessor

    sent = [
        *speech_frames(frames, 8),
        SleepFrame(sleep=0.8),
        frames.InterruptionFrame(),
        SleepFrame(sleep=0.4),
        *speech_frames(frames, 0.2),
    ]
    down, _ = await run_test(
        VisavisProcessor(make_face(audio_rate=16_000)), frames_to_send=sent, start_timeout=20
    )
    kinds = [type(f) for f in down]
    cut = kinds.index(frames.InterruptionFrame)
    after = [f for f in down[cut:] if isinstance(f, frames.SpeechOutputAudioRawFrame)]
    assert frames.SpeechOutputAudioRawFrame in kinds[:cut]
    assert abs(sum(len(f.audio) for f in after) - 0.2 * 32_000) <= 640, "the new, none of the old"
    assert kinds.count(frames.TTSStoppedFrame) == 1, "the cut utterance has no end"
    assert frames.OutputImageRawFrame in kinds[cut:]


@imported
async def test_the_example_bot_greets_through_pipecats_transport(frames):
    from pipecat.transports.base_input import BaseInputTransport
    from pipecat.transports.base_output import BaseOutputTransport
    from pipecat.transports.base_transport import BaseTransport

    bot = example("pipecat_bot")
    face = make_face()
    params = bot.transport_params(face)

    class Output(BaseOutputTransport):
        sound, images = b"", []

        async def start(self, frame):
            await super().start(frame)
            await self.set_transport_ready(frame)

        async def write_audio_frame(self, frame):
            Output.sound += frame.audio
            return True

        async def write_video_frame(self, frame):
            Output.images.append(frame.size)
            return True

    class Transport(BaseTransport):
        def __init__(self):
            super().__init__()
            self.ends = BaseInputTransport(params), Output(params)
            for name in ("on_client_connected", "on_client_disconnected"):
                self._register_event_handler(name)

        def input(self):
            return self.ends[0]

        def output(self):
            return self.ends[1]

    transport = Transport()
    talking = asyncio.ensure_future(bot.talk(transport, face, {"BOT_TTS": VOICE}))
    await until(lambda: len(Output.images) > 5)
    await transport._call_event_handler("on_client_connected", "someone")
    wanted = LETTER_S * len(bot.GREETING)

    def loud_s():
        pcm = np.frombuffer(Output.sound, "<i2").astype(float)
        pcm = pcm[: len(pcm) // 480 * 480].reshape(-1, 480)
        return (np.abs(pcm).max(axis=1) > 500).sum() / 100

    await until(lambda: loud_s() > wanted - 0.1)
    await transport._call_event_handler("on_client_disconnected", "someone")
    await asyncio.wait_for(talking, 20)
    assert loud_s() == pytest.approx(wanted, abs=0.1)
    assert set(Output.images) == {(32, 32)}
    with_key = bot.make_pipeline(Transport(), make_face(), {"OPENAI_API_KEY": "k"})
    assert len(with_key.processors) == len(bot.make_pipeline(Transport(), face, {}).processors) + 4


# --- LiveKit, in the agent's process -------------------------------------------------------------


class Room:
    """What an ``AvatarRunner`` needs of a room, without a server."""

    def __init__(self):
        self.local_participant = self

    def on(self, *args):
        pass

    def off(self, *args):
        pass

    def isconnected(self):
        return True

    async def publish_track(self, track, options):
        return self

    async def wait_for_subscription(self):
        pass


async def test_livekits_runner_plays_a_segment_to_its_end():
    rtc = pytest.importorskip("livekit.rtc", reason="livekit is not installed")
    avatar = pytest.importorskip("livekit.agents.voice.avatar", reason="no livekit-agents")

    from visavis.serve.livekit import VisavisGenerator, options_of

    face = make_face()
    await face.start()
    receiver = avatar.QueueAudioOutput(sample_rate=24_000)
    runner = avatar.AvatarRunner(
        Room(), audio_recv=receiver, video_gen=VisavisGenerator(face), options=options_of(face)
    )
    finished = asyncio.get_running_loop().create_future()
    receiver.on("playback_finished", lambda event: finished.done() or finished.set_result(event))
    await runner.start()
    speech = (speech_like(0.5, 24_000) * 20_000).astype(np.int16)
    frame = rtc.AudioFrame(speech.tobytes(), 24_000, 1, len(speech))
    await receiver.capture_frame(frame)
    receiver.flush()
    event = await asyncio.wait_for(finished, 20)
    assert event.playback_position == pytest.approx(0.5, abs=0.05)
    assert not event.interrupted
    await runner.aclose()
    await face.stop()


@imported
@pytest.mark.parametrize("remote", [False, True])
async def test_the_example_agent_speaks_through_its_face(remote):
    pytest.importorskip("livekit.agents", reason="livekit-agents is not installed")
    from livekit.agents import Agent
    from livekit_doubles import Wire

    from visavis.serve.livekit_worker import FINISHED, AvatarWorker

    agent = example("livekit_agent")
    wire, face = Wire(), make_face()
    room = wire.join("agent")
    session = agent.make_session({"AGENT_TTS": VOICE})
    if remote:
        agent.wear_remote(session, room)
        await face.start()
        worker = AvatarWorker(wire.join(agent.FACE, lk__publish_on_behalf="agent"), face)
        await worker.start()
    else:
        worker = await agent.wear(session, room, face)
    await session.start(Agent(instructions=agent.INSTRUCTIONS))
    handle = session.say(agent.GREETING)
    await asyncio.wait_for(handle.wait_for_playout(), 30)
    assert not handle.interrupted
    long = session.say(agent.GREETING * 5)
    await asyncio.sleep(1.5)
    await long.interrupt()
    await asyncio.wait_for(long.wait_for_playout(), 5)
    assert long.interrupted
    if remote:
        calls = wire.people[agent.FACE].calls
        first = json.loads(next(p for m, p in calls if m == FINISHED))
        wanted = LETTER_S * len(agent.GREETING)  # and the ends of its lines
        assert first["playback_position"] == pytest.approx(wanted, abs=0.1)
    await session.aclose()
    await worker.aclose()
    await face.stop()


@imported
def test_the_example_agents_token_names_whom_the_face_stands_for():
    pytest.importorskip("livekit.agents", reason="livekit-agents is not installed")
    from livekit.api import TokenVerifier

    agent = example("livekit_agent")
    secret = "a secret of thirty-two characters"
    token = agent.face_token("hall", "the-agent", "key", secret)
    claims = TokenVerifier("key", secret).verify(token)
    assert (claims.identity, claims.kind) == (agent.FACE, "agent")
    assert claims.video.room == "hall"
    assert claims.video.room_join
    assert claims.attributes == {"lk.publish_on_behalf": "the-agent"}
    assert agent.avatar_of({}).is_file()
