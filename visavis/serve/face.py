"""One live face inside another program's event loop: what the LiveKit and Pipecat adapters share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np

from visavis.avatar import Avatar
from visavis.pipeline import Pipeline, PipelineConfig
from visavis.render import Renderer
from visavis.serve.engine import Engine, LiveSession
from visavis.serve.metrics import Metrics
from visavis.serve.outlet import Outlet
from visavis.serve.workers import in_thread
from visavis.session import AudioBlock, SessionConfig, VideoFrame


class _Plain(Outlet):
    """Hands items on as they are."""

    def silence(self, ready: AudioBlock) -> AudioBlock:
        return replace(ready, pcm=np.zeros_like(ready.pcm), speaking=False, ends=False)


class Face:
    """A session on a thread of its own; async iteration gives sound and frames at their moments.

    Args:
        pipeline: of the avatar; see ``Face.of``.
        fallbacks: cheaper renderers.
        audio_rate: of the sound given back, 16000 or 48000.
        margin_ms: see ``ServeConfig``.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        fallbacks: tuple[Renderer, ...] = (),
        *,
        audio_rate: int = 48_000,
        margin_ms: int = 25,
    ):
        self.metrics = Metrics()
        self.config = SessionConfig(audio_rate=audio_rate)
        self.size, self.fps = pipeline.renderer.size, pipeline.config.fps
        self._margin = margin_ms
        hire = in_thread(lambda name: (pipeline, fallbacks), self.config)
        self._engine = Engine(hire, workers=1, limit=1, metrics=self.metrics)
        self._live: LiveSession | None = None
        self._ending = False
        self._finished = asyncio.Event()
        self._finished.set()

    @classmethod
    def of(cls, avatar: Avatar, config: PipelineConfig | None = None, **choices: Any) -> Face:
        """A face of an avatar, its weights loaded here."""
        config = config or PipelineConfig()
        cheaper = () if config.tier == "mesh" else (Renderer(avatar, "mesh", config.size),)
        return cls(Pipeline(avatar, config), cheaper, **choices)

    async def start(self) -> None:
        """Start the thread; before anything else."""
        await self._engine.start("")
        self._live = await self._engine.open("", 0, "")
        self._outlet = _Plain(self._engine.clock, self._margin, self.metrics)
        self._live.attach(self._outlet)

    @property
    def live(self) -> LiveSession:
        """The session."""
        assert self._live is not None, "start first"
        return self._live

    async def push(self, pcm: np.ndarray, rate: int) -> None:
        """Sound to be spoken; waits where the buffer is full, an interruption ends the wait."""
        epoch, start = self.live.epoch, 0
        while start < len(pcm) and self.live.epoch == epoch:
            start += await self.live.push_audio(pcm[start:], rate)
            if start < len(pcm):
                await asyncio.sleep(0.05)

    async def end(self) -> None:
        """The utterance is complete."""
        self._ending = True
        self._finished.clear()
        await self.live.end_of_speech()

    async def finished(self) -> None:
        """Wait until the utterance ended last is out, or was interrupted; needs someone iterating."""
        await self._finished.wait()

    def clear(self) -> None:
        """Interrupt."""
        self._ending = False
        self._finished.set()
        self.live.clear_buffer()

    async def __aiter__(self) -> AsyncIterator[AudioBlock | VideoFrame]:
        """Until ``stop``: each item when it is due, sound and frames merged.

        A sound ``ends`` only where `end` was called: a pause of the speaker's makes no end.
        """
        queue: asyncio.Queue = asyncio.Queue(8)

        async def read(kind: str) -> None:
            while (held := await self._outlet.next(kind)) is not None:
                await queue.put(held.ready)
            await queue.put(None)

        readers = [asyncio.ensure_future(read(kind)) for kind in ("audio", "video")]
        try:
            while (item := await queue.get()) is not None:
                if item.epoch < self._outlet.epoch:
                    if isinstance(item, VideoFrame):
                        continue
                    item = self._outlet.silence(item)
                ends = isinstance(item, AudioBlock) and item.ends
                if ends and not self._ending:
                    item, ends = replace(item, ends=False), False
                yield item
                if ends:
                    self._ending = False
                    self._finished.set()
        finally:
            for reader in readers:
                reader.cancel()

    async def stop(self) -> None:
        """End the session and its thread."""
        await self._engine.stop()
