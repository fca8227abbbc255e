"""Pipecat: a processor that turns TTS audio into a talking face (extra: ``pipecat``).

Place it after the TTS and before the transport's output. TTS audio is consumed and comes back with
the frames of the face, each when it is due; what marks the end of speech goes on after the last sound.
An interruption shuts the mouth and drops what was queued. What the user says, where the transport's
input passes it on, is listened to.
"""

from __future__ import annotations

import asyncio
from collections import deque

import numpy as np
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    OutputImageRawFrame,
    SpeechOutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from visavis.serve.coders import to_s16
from visavis.serve.face import Face
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
        self._ends: deque[tuple[Frame, FrameDirection]] = deque()
        self._open = False  # speech came that no TTSStoppedFrame has ended

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """See `FrameProcessor`."""
        await super().process_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await self._face.start()
            await self.push_frame(frame, direction)
            self._task = self.create_task(self._show())
        elif isinstance(frame, TTSAudioRawFrame) and self._task is not None:
            self._open = True
            await self._face.push(_samples(frame), frame.sample_rate)
        elif isinstance(frame, TTSStoppedFrame) and self._task is not None:
            self._ends.append((frame, direction))
            self._open = False
            await self._face.end()
        else:
            await self._obey(frame)
            await self.push_frame(frame, direction)

    async def _obey(self, frame: Frame) -> None:
        if self._task is None:
            return  # not started, or ended
        if isinstance(frame, InputAudioRawFrame):
            await self._face.live.push_listen_audio(_samples(frame), frame.sample_rate)
        elif isinstance(frame, InterruptionFrame):
            self._ends.clear()
            self._open = False
            self._face.clear()
        elif isinstance(frame, EndFrame):
            if self._open:
                await self._face.end()
            await self._face.finished()  # the last words are said
            await self._stop()
        elif isinstance(frame, CancelFrame):
            await self._stop()

    async def _show(self) -> None:
        async for item in self._face:
            if not isinstance(item, AudioBlock):
                size = (item.image.shape[1], item.image.shape[0])
                await self.push_frame(OutputImageRawFrame(item.image.tobytes(), size, "RGB"))
                continue
            if item.speaking:
                sound = to_s16(item.pcm).tobytes()
                await self.push_frame(SpeechOutputAudioRawFrame(sound, item.rate, 1))
            while item.ends and self._ends:
                await self.push_frame(*self._ends.popleft())

    async def _stop(self) -> None:
        if self._task is not None:
            await self.cancel_task(self._task)
            self._task = None
            await self._face.stop()

    async def cleanup(self) -> None:
        """See `FrameProcessor`."""
        await self._stop()
        await super().cleanup()


def _samples(frame: TTSAudioRawFrame | InputAudioRawFrame) -> np.ndarray:
    return np.frombuffer(frame.audio, "<i2").reshape(-1, frame.num_channels)
