"""Motion nets that hear with a learned encoder (HuBERT, wav2vec 2.0), as one graph and without torch.

The encoders hear both ways, so a stream is cut into windows on a fixed grid: ``past`` steps, a
``chunk``, ``future`` steps, and only the answers of the chunk are kept. The graph of a window holds
no memory; what is remembered of the sound is the state here. Offline and live run the same windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visavis.backends import Graph
from visavis.errors import ModelError
from visavis.motion import DEFAULT_MODEL, MotionNet, read_card
from visavis.types import MOTION_HOP, N_CHANNELS, State


@dataclass(frozen=True)
class Grid:
    """The windows of a stream, in motion steps of 20 ms.

    Attributes:
        past: steps heard before a chunk.
        chunk: steps answered at once.
        future: steps heard after a chunk, at least 1: the encoders' frames reach 5 ms too far.
    """

    past: int = 50
    chunk: int = 4
    future: int = 4

    @property
    def steps(self) -> int:
        """Length of a window."""
        return self.past + self.chunk + self.future

    @property
    def lookahead(self) -> int:
        """Steps that the first answer of a chunk waits for after its own."""
        return self.chunk + self.future - 1


class EncoderStage:
    """Stage: sound ``(B, n)`` at 16 kHz in, an encoder's answers ``(B, m, width)`` at 50 Hz out.

    Args:
        answer: windows ``(N, grid.steps * 320)`` float32 to their chunks ``(N, grid.chunk, width)``.
        grid: the windows.
        width: of an answer.

    Attributes:
        lookahead: the most steps of 20 ms an answer comes after its own step.
    """

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray], grid: Grid, width: int):
        self.answer, self.grid, self.width = answer, grid, width
        self.lookahead = grid.lookahead
        self._before = grid.past * MOTION_HOP

    def init_state(self, batch: int = 1) -> State:
        """Silence before the first sample."""
        return {
            "encoder/sound": np.zeros((batch, self.grid.steps * MOTION_HOP), np.float32),
            "encoder/waiting": np.zeros(batch, np.int64),
        }

    def step(self, state: State, chunk: np.ndarray) -> tuple[State, np.ndarray]:
        """Every chunk of answers whose future has been heard."""
        g, held = self.grid, self._before + int(state["encoder/waiting"][0])
        sound = np.concatenate([state["encoder/sound"][:, :held], chunk], axis=1)
        length, hop = g.steps * MOTION_HOP, g.chunk * MOTION_HOP
        count = max(0, (sound.shape[1] - length) // hop + 1)
        parts = [self.answer(sound[:, k * hop : k * hop + length]) for k in range(count)]
        rest = np.ascontiguousarray(sound[:, count * hop :])
        kept = np.zeros_like(state["encoder/sound"])
        kept[:, : rest.shape[1]] = rest
        waiting = np.full(len(chunk), rest.shape[1] - self._before, np.int64)
        none = np.zeros((len(chunk), 0, self.width), np.float32)
        following = {"encoder/sound": kept, "encoder/waiting": waiting}
        return following, np.concatenate([none, *parts], axis=1)

    def flush(self, state: State) -> np.ndarray:
        """The last steps, heard against silence: in all one per begun 320 samples."""
        waiting = int(state["encoder/waiting"][0])
        steps = -(-waiting // MOTION_HOP)
        chunks = -(-steps // self.grid.chunk)
        total = (chunks * self.grid.chunk + self.grid.future) * MOTION_HOP
        quiet = np.zeros((len(state["encoder/sound"]), max(total - waiting, 0)), np.float32)
        return self.step(state, quiet)[1][:, :steps]

    def hear(self, pcm: np.ndarray) -> np.ndarray:
        """A whole clip, ``(n,)`` float32 to ``(n // 320, width)``: the stream, drained."""
        state, out = self.step(self.init_state(), pcm[None].astype(np.float32))
        whole = np.concatenate([out, self.flush(state)], axis=1)
        return whole[0, : len(pcm) // MOTION_HOP]


class EncodedMotion:
    """Stage: sound ``(B, n)`` at 16 kHz in, motion ``(B, m, 21)`` out, through a learned encoder.

    The encoder answers in chunks; motion steps are given out one by one as sound comes, each
    ``lookahead`` steps after its own, like those of ``MotionNet``.

    Args:
        folder: of ``visavis export``, with the encoder's graph.
        lookahead_ms: of the motion net, on top of the encoder's own.
        threads: CPU threads.

    Raises:
        ModelError: the folder holds no such model.
    """

    hears_sound = True

    def __init__(self, folder: str | Path, lookahead_ms: int = 80, *, threads: int = 1):
        folder = Path(folder)
        front = read_card(folder).get("front", {})
        try:
            grid = Grid(*(int(front[f"encoder_{k}"]) for k in ("past", "chunk", "future")))
            graph, width, name = front["graph"], len(front["silence"]), front["encoder"]
        except KeyError as err:
            raise ModelError(
                f"the model in {folder} names no graph of its encoder ({err} is missing); export the "
                "run again"
            ) from err
        self.net = MotionNet(folder, lookahead_ms, threads=threads, encoder=name)
        self._graph = Graph(folder / graph, threads=threads)
        self.encoder = EncoderStage(self._answer, grid, width)
        self.lookahead = grid.lookahead + self.net.lookahead

    def init_state(self, batch: int = 1) -> State:
        """Silence before the first sample."""
        own = {
            "encoder/samples": np.zeros(batch, np.int64),
            "encoder/held": np.zeros((batch, self.encoder.grid.chunk, N_CHANNELS), np.float32),
            "encoder/held_count": np.zeros(batch, np.int64),
        }
        return self.encoder.init_state(batch) | self.net.init_state(batch) | own

    def step(self, state: State, chunk: np.ndarray) -> tuple[State, np.ndarray]:
        """Every motion step that is ``lookahead`` whole steps old."""
        before = int(state["encoder/samples"][0])
        after = before + chunk.shape[1]
        heard, answers = self.encoder.step(state, chunk)
        state, rows = self.net.step(state | heard, answers)
        rows = np.concatenate([self._held(state), rows], axis=1)
        due = self._due(after) - self._due(before)
        kept = np.zeros_like(state["encoder/held"])
        kept[:, : rows.shape[1] - due] = rows[:, due:]
        state["encoder/samples"] = np.full_like(state["encoder/samples"], after)
        state["encoder/held"] = kept
        state["encoder/held_count"] = np.full(len(chunk), rows.shape[1] - due, np.int64)
        return state, rows[:, :due]

    def flush(self, state: State) -> np.ndarray:
        """The last steps, heard against silence: in all one per begun 320 samples."""
        held = self._held(state)
        state, rows = self.net.step(state, self.encoder.flush(state))
        return np.concatenate([held, rows, self.net.flush(state)], axis=1)

    def _due(self, samples: int) -> int:
        """Motion steps given out once so many samples have come."""
        return max(0, samples // MOTION_HOP - self.lookahead)

    def _held(self, state: State) -> np.ndarray:
        return state["encoder/held"][:, : int(state["encoder/held_count"][0])]

    def _answer(self, windows: np.ndarray) -> np.ndarray:
        """One by one: what one conversation hears does not depend on how many run beside it."""
        return np.concatenate(
            [self._graph({"sound": np.ascontiguousarray(w[None])})["answers"] for w in windows]
        )


def open_motion(
    folder: str | Path | None = None, lookahead_ms: int = 80, *, threads: int = 1
) -> MotionNet | EncodedMotion:
    """The motion net of a model folder, with its encoder where it hears with one.

    Args:
        folder: of ``visavis export``; the shipped model by default.
        lookahead_ms: 0, 40, 80 or 160.
        threads: CPU threads of one step.

    Raises:
        ConfigError: no such look-ahead.
        ModelError: the folder holds no such model.
    """
    path = Path(folder or DEFAULT_MODEL)
    kind = EncodedMotion if "front" in read_card(path) else MotionNet
    return kind(path, lookahead_ms, threads=threads)
