# ruff: noqa: E402
"""The face inside other frameworks, driven by their own classes."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from conftest import speech_like

for needed in ("fastapi", "prometheus_client"):
    pytest.importorskip(needed, reason="the serve extra is not installed")

from live_doubles import DoublePipeline, MotionRenderer

from visavis.serve.face import Face
from visavis.session import AudioBlock, VideoFrame


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


async def test_pipecat_shows_a_face_for_the_speech_of_its_tts():
    frames = pytest.importorskip("pipecat.frames.frames", reason="pipecat is not installed")
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
