"""Pipecat: a processor that turns TTS audio into a talking face (extra: ``pipecat``).

Place it after the TTS and before the transport's output. TTS audio is consumed and comes back with
the frames of the face; an interruption shuts the mouth and drops what was queued.
"""

from __future__ import annotations

import asyncio

import numpy as np
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    SpeechOutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from visavis.serve.face import Face
from visavis.serve.outlet import to_s16
from visavis.session import AudioBlock


class VisavisProcessor(FrameProcessor):
    """The face as a processor.

    Args:
        face: whose session this drives; the processor starts and stops it.
    """

    def __init__(self, face: Face):
        super().__init__()
        self._face = face
        self._task: asyncio.Task | None = None

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """See `FrameProcessor`."""
        await super().process_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await self._face.start()
            await self.push_frame(frame, direction)
            self._task = self.create_task(self._show())
            return
        if isinstance(frame, TTSAudioRawFrame):
            pcm = np.frombuffer(frame.audio, "<i2").reshape(-1, frame.num_channels)
            await self._face.push(pcm, frame.sample_rate)
            return
        if isinstance(frame, TTSStoppedFrame):
            await self._face.end()
        elif isinstance(frame, InterruptionFrame):
            self._face.clear()
        elif isinstance(frame, EndFrame | CancelFrame):
            await self._stop()
        await self.push_frame(frame, direction)

    async def _show(self) -> None:
        async for item in self._face:
            if isinstance(item, AudioBlock):
                if item.speaking:
                    sound = to_s16(item.pcm).tobytes()
                    await self.push_frame(SpeechOutputAudioRawFrame(sound, item.rate, 1))
            else:
                size = (item.image.shape[1], item.image.shape[0])
                await self.push_frame(OutputImageRawFrame(item.image.tobytes(), size, "RGB"))

    async def _stop(self) -> None:
        if self._task is not None:
            await self.cancel_task(self._task)
            self._task = None
            await self._face.stop()

    async def cleanup(self) -> None:
        """See `FrameProcessor`."""
        await self._stop()
        await super().cleanup()
