"""LiveKit, in the agent's process: the face as ``VideoGenerator`` of an ``AvatarRunner``.

    runner = AvatarRunner(room, audio_recv=QueueAudioOutput(), video_gen=VisavisGenerator(face),
                          options=options_of(face))

Needs livekit-agents (extra: ``livekit``). A worker elsewhere needs only ``livekit``: see
``livekit_worker``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarOptions, VideoGenerator

from visavis.serve.face import Face
from visavis.serve.livekit_worker import picture_of, sound_of
from visavis.session import VideoFrame


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
        """See `VideoGenerator`. A segment's end returns when it is out: the runner tells two segments
        apart only when the second comes after that."""
        if isinstance(frame, AudioSegmentEnd):
            await self._face.end()
            await self._face.finished()
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
                yield picture_of(item)
                continue
            if item.speaking:
                yield sound_of(item)
            if item.ends:
                yield AudioSegmentEnd()
