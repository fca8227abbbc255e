"""A LiveKit agent with a face.

    pip install 'visavis[serve,livekit]'
    export LIVEKIT_URL=wss://... LIVEKIT_API_KEY=... LIVEKIT_API_SECRET=...
    python -m livekit.agents start --dev examples/livekit_agent.py

It greets whoever comes, read aloud by a program of this machine (``AGENT_TTS``, by default flite).
Name a speech recogniser and a language model of LiveKit's inference service and it converses:
``AGENT_STT=deepgram/nova-3 AGENT_LLM=openai/gpt-4.1-mini``.

``AGENT_AVATAR`` is the face, the demo's by default. ``AGENT_FACE=remote`` has the face drawn by a process
of its own, ``visavis livekit``, which joins the room by itself: the form to use when agents and faces
run on different machines.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from livekit import api, rtc
from livekit.agents import (
    DEFAULT_API_CONNECT_OPTIONS,
    Agent,
    AgentServer,
    AgentSession,
    APIConnectOptions,
    JobContext,
    tts,
    utils,
)
from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
from livekit.agents.voice.avatar import AvatarRunner, DataStreamAudioOutput, QueueAudioOutput

import visavis
from visavis.serve.coders import to_s16
from visavis.serve.config import ASSETS
from visavis.serve.face import Face
from visavis.serve.livekit import VisavisGenerator, options_of
from visavis.serve.speech import speak_text

FACE = "visavis-face"  # identity of a remote face
RATE = 16_000
GREETING = "Hello. I am a synthetic face. What can I do for you?"
INSTRUCTIONS = "You are a friendly assistant with a face. Answer in one or two short sentences."
FLITE = "flite -voice slt -f /dev/stdin -o {out}"


class ProgramTTS(tts.TTS):
    """Reads aloud with a program of this machine: text on stdin, a sound file out."""

    def __init__(self, command: str):
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=False), sample_rate=RATE, num_channels=1
        )
        self.command = shlex.split(command)

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        """See `tts.TTS`."""
        return _Spoken(tts=self, input_text=text, conn_options=conn_options)


class _Spoken(tts.ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        program = self._tts
        assert isinstance(program, ProgramTTS)
        pcm, rate = await speak_text(self.input_text, program.command, 20.0, 600)
        output_emitter.initialize(
            request_id=utils.shortuuid(), sample_rate=rate, num_channels=1, mime_type="audio/pcm"
        )
        output_emitter.push(to_s16(pcm).tobytes())
        output_emitter.flush()


def make_session(settings: Mapping[str, str]) -> AgentSession:
    """Voice, and what listens and thinks where it is named."""
    return AgentSession(
        stt=settings.get("AGENT_STT") or None,
        llm=settings.get("AGENT_LLM") or None,
        tts=ProgramTTS(settings.get("AGENT_TTS") or FLITE),
    )


def avatar_of(settings: Mapping[str, str]) -> Path:
    """The face."""
    return Path(settings.get("AGENT_AVATAR") or ASSETS / "demo.avatar")


async def wear(session: AgentSession, room: rtc.Room, face: Face) -> AvatarRunner:
    """Give the session a face drawn in this process."""
    await face.start()
    speech = QueueAudioOutput(sample_rate=RATE, wait_playback_start=True)
    runner = AvatarRunner(
        room, audio_recv=speech, video_gen=VisavisGenerator(face), options=options_of(face)
    )
    await runner.start()
    session.output.replace_audio_tail(speech)
    return runner


def wear_remote(session: AgentSession, room: rtc.Room) -> None:
    """Send the session's speech to a face that is, or will be, in the room."""
    session.output.replace_audio_tail(
        DataStreamAudioOutput(
            room,
            destination_identity=FACE,
            sample_rate=RATE,
            wait_remote_track=rtc.TrackKind.KIND_VIDEO,
            wait_playback_start=True,
        )
    )


def face_token(room: str, agent: str, key: str | None = None, secret: str | None = None) -> str:
    """What lets a face into a room on behalf of an agent."""
    return (
        api.AccessToken(key, secret)
        .with_kind("agent")
        .with_identity(FACE)
        .with_grants(api.VideoGrants(room_join=True, room=room))
        .with_attributes({ATTRIBUTE_PUBLISH_ON_BEHALF: agent})
        .to_jwt()
    )


async def start_remote(avatar: Path, token: str) -> asyncio.subprocess.Process:
    """``visavis livekit`` on this machine; on another, send it the token instead."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "visavis", "livekit", str(avatar),
        env={**os.environ, "LIVEKIT_TOKEN": token},
    )  # fmt: skip


server = AgentServer()


@server.rtc_session()
async def entry(ctx: JobContext) -> None:
    """One job: one room."""
    await ctx.connect()
    session, avatar = make_session(os.environ), avatar_of(os.environ)
    if os.environ.get("AGENT_FACE") == "remote":
        token = face_token(ctx.room.name, ctx.room.local_participant.identity)
        process = await start_remote(avatar, token)
        wear_remote(session, ctx.room)

        async def leave() -> None:
            if process.returncode is None:
                process.terminate()
            await process.wait()

    else:
        face = Face.of(visavis.load_avatar(avatar))
        runner = await wear(session, ctx.room, face)

        async def leave() -> None:
            await runner.aclose()
            await face.stop()

    ctx.add_shutdown_callback(leave)
    await session.start(Agent(instructions=INSTRUCTIONS), room=ctx.room)
    await session.say(GREETING)
