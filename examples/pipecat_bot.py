"""A Pipecat bot with a face.

    pip install 'visavis[serve,pipecat]' 'pipecat-ai[webrtc,runner]'
    python examples/pipecat_bot.py            # then open the address it prints

It greets whoever comes, read aloud by a program of this machine (``BOT_TTS``, by default flite). With
``OPENAI_API_KEY`` it listens, thinks and answers as well. ``BOT_AVATAR`` is the face, the demo's by
default.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import Frame, TTSAudioRawFrame, TTSSpeakFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.stt import OpenAISTTService
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TTSService
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.workers.runner import WorkerRunner

import visavis
from visavis.serve.coders import to_s16
from visavis.serve.config import ASSETS
from visavis.serve.face import Face
from visavis.serve.pipecat import VisavisProcessor
from visavis.serve.speech import speak_text

GREETING = "Hello. I am a synthetic face. What can I do for you?"
INSTRUCTIONS = "You are a friendly assistant with a face. Answer in one or two short sentences."
FLITE = "flite -voice slt -f /dev/stdin -o {out}"


class ProgramTTS(TTSService):
    """Reads aloud with a program of this machine: text on stdin, a sound file out."""

    def __init__(self, command: str):
        settings = TTSSettings(model=None, voice=None, language=None)
        super().__init__(push_start_frame=True, push_stop_frames=True, settings=settings)
        self._command = shlex.split(command)

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame, None]:
        """See `TTSService`."""
        pcm, rate = await speak_text(text, self._command, 20.0, 600)
        yield TTSAudioRawFrame(to_s16(pcm).tobytes(), rate, 1, context_id=context_id)


def transport_params(face: Face) -> TransportParams:
    """What the face needs of a transport."""
    return TransportParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        audio_out_sample_rate=face.config.audio_rate,
        video_out_enabled=True,
        video_out_is_live=True,
        video_out_width=face.size,
        video_out_height=face.size,
        video_out_framerate=round(face.fps),
    )


def make_pipeline(transport: BaseTransport, face: Face, settings: Mapping[str, str]) -> Pipeline:
    """Ears, mind, voice, face; the first two where there is a key for them."""
    voice = [ProgramTTS(settings.get("BOT_TTS") or FLITE), VisavisProcessor(face)]
    key = settings.get("OPENAI_API_KEY")
    if not key:
        return Pipeline([transport.input(), *voice, transport.output()])
    memory = LLMContextAggregatorPair(
        LLMContext([{"role": "system", "content": INSTRUCTIONS}]),
        user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer()),
    )
    return Pipeline(
        [
            transport.input(),
            OpenAISTTService(api_key=key),
            memory.user(),
            OpenAILLMService(api_key=key),
            *voice,
            transport.output(),
            memory.assistant(),
        ]
    )


async def talk(transport: BaseTransport, face: Face, settings: Mapping[str, str]) -> None:
    """One conversation, to its end."""
    params = PipelineParams(audio_out_sample_rate=face.config.audio_rate)
    worker = PipelineWorker(make_pipeline(transport, face, settings), params=params)

    @transport.event_handler("on_client_connected")
    async def greet(transport: BaseTransport, client: Any) -> None:
        await worker.queue_frame(TTSSpeakFrame(GREETING))

    @transport.event_handler("on_client_disconnected")
    async def leave(transport: BaseTransport, client: Any) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


async def bot(arguments: Any) -> None:
    """What Pipecat's runner calls for each client."""
    from pipecat.runner.utils import create_transport

    face = Face.of(visavis.load_avatar(os.environ.get("BOT_AVATAR") or ASSETS / "demo.avatar"))
    transport = await create_transport(arguments, {"webrtc": lambda: transport_params(face)})
    await talk(transport, face, os.environ)


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
