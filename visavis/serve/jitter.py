"""A microphone's packets in order, at once: aiortc's own buffer holds four of them, 80 ms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiortc.jitterbuffer import JitterFrame

SEQUENCES = 1 << 16
PATIENCE = 2  # packets that may overtake one before it is given up: 40 ms
JUMP = 100  # further apart is another stream


class VoiceBuffer:
    """For sound, where each packet is a frame. The interface of ``aiortc.jitterbuffer.JitterBuffer``.

    Args:
        early: takes frames, oldest first, that are ready besides the one that ``add`` gives back.
    """

    def __init__(self, early: Callable[[JitterFrame, int], None]):
        self._early = early
        self._next: int | None = None
        self._waiting: dict[int, Any] = {}

    def add(self, packet: Any) -> tuple[bool, JitterFrame | None]:
        """One packet in; at most one frame out, others through ``early`` before it."""
        number = packet.sequence_number
        if self._next is None:
            self._next = number
        ahead = (number - self._next + SEQUENCES // 2) % SEQUENCES - SEQUENCES // 2
        if abs(ahead) > JUMP:
            self._waiting.clear()
            self._next, ahead = number, 0
        if ahead < 0 or not packet._data:
            return False, None  # too late, a copy, or no sound
        self._waiting[number] = packet
        ready = self._ready()
        for one in ready[:-1]:
            self._early(JitterFrame(one._data, one.timestamp), one.payload_type)
        return False, JitterFrame(ready[-1]._data, ready[-1].timestamp) if ready else None

    def _ready(self) -> list[Any]:
        assert self._next is not None
        ready = []
        while self._waiting:
            packet = self._waiting.pop(self._next, None)
            if packet is None and len(self._waiting) <= PATIENCE:
                break
            self._next = (self._next + 1) % SEQUENCES
            if packet is not None:
                ready.append(packet)
        return ready
