"""LiveKit: the face as the ``VideoGenerator`` of an ``AvatarRunner`` (extra: ``livekit``).

    runner = AvatarRunner(room, audio_recv=receiver, video_gen=VisavisGenerator(face),
                          options=options_of(face))

``receiver`` is a ``QueueAudioOutput`` in the agent's own process, or a ``DataStreamAudioReceiver`` in a
worker elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, VideoGenerator

from visavis.serve.face import Face
from visavis.serve.outlet import to_s16
from visavis.session import AudioBlock, VideoFrame


def options_of(face: Face) -> AvatarOptions:
    """What an ``AvatarRunner`` has to know of a face."""
    return AvatarOptions(
        video_width=face.size,
        video_height=face.size,
        video_fps=float(face.fps),
        audio_sample_rate=face.config.audio_rate,
        audio_channels=1,
    )


class VisavisGenerator(VideoGenerator):
    """Speech in, the same speech and frames out.

    Args:
        face: started and stopped by whoever made it.
    """

    def __init__(self, face: Face):
        self._face = face

    async def push_audio(self, frame: rtc.AudioFrame | AudioSegmentEnd) -> None:
        """See `VideoGenerator`."""
        if isinstance(frame, AudioSegmentEnd):
            await self._face.end()
        else:
            pcm = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
            await self._face.push(pcm, frame.sample_rate)

    def clear_buffer(self) -> None:
        """See `VideoGenerator`."""
        self._face.clear()

    async def __aiter__(self) -> AsyncIterator[rtc.VideoFrame | rtc.AudioFrame | AudioSegmentEnd]:
        """Frames always, sound while it speaks, the end of each segment after its last sound."""
        async for item in self._face:
            if isinstance(item, VideoFrame):
                yield _picture(item)
                continue
            if item.speaking:
                yield _sound(item)
            if item.ends:
                yield AudioSegmentEnd()


def _picture(frame: VideoFrame) -> rtc.VideoFrame:
    height, width = frame.image.shape[:2]
    return rtc.VideoFrame(width, height, rtc.VideoBufferType.RGB24, frame.image.tobytes())


def _sound(block: AudioBlock) -> rtc.AudioFrame:
    return rtc.AudioFrame(to_s16(block.pcm).tobytes(), block.rate, 1, len(block.pcm))
