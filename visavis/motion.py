"""Features to speech motion: a small causal net, run step by step at 50 Hz.

Input step ``j`` is features ``2j`` and ``2j + 1``. At 80 ms look-ahead it answers for motion step
``j - 3``, so motion step ``m`` has heard samples before ``320 (m + 4)``: the 80 ms include all of
it. At 0 ms step ``m`` is computed from input step ``m - 1`` and given out with input step ``m``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from visavis.backends import Graph
from visavis.errors import ConfigError, ModelError
from visavis.features import SILENCE
from visavis.types import CHANNEL, FEATURES_PER_MOTION, N_CHANNELS, SPEECH_CHANNELS, State

DEFAULT_MODEL = Path(__file__).parent / "assets" / "models" / "motion"
LOOKAHEAD_STEPS = {0: -1, 40: 1, 80: 3, 160: 7}
"""Look-ahead in ms -> input steps an answer lies behind its input."""


class MotionNet:
    """Stage: features ``(B, n, 83)`` in, motion ``(B, m, 21)`` out, speech channels only.

    Args:
        model_dir: a folder with ``model.json`` and ``motion.onnx``.
        lookahead_ms: 0, 40, 80 or 160.
        threads: CPU threads of one step.
        encoder: what the features come from; a learned one is run by ``visavis.encoder``.

    Attributes:
        lookahead: motion steps (20 ms) the output lags its input: 0, 1, 3 or 7. Of the look-ahead
            in ms one further step is the 20 ms hop itself.

    Raises:
        ConfigError: no such look-ahead.
        ModelError: the folder holds no model of this version, or one taught on other features.
    """

    hears_sound = False

    def __init__(
        self,
        model_dir: str | Path | None = None,
        lookahead_ms: int = 80,
        *,
        threads: int = 1,
        encoder: str = "log_mel",
    ):
        folder = Path(model_dir or DEFAULT_MODEL)
        if lookahead_ms not in LOOKAHEAD_STEPS:
            raise ConfigError(
                f"look-ahead of {lookahead_ms} ms is not offered; choose one of "
                f"{', '.join(map(str, LOOKAHEAD_STEPS))}"
            )
        self.card = read_card(folder)
        taught = self.card.get("front", {}).get("encoder", "log_mel")
        if taught != encoder:
            raise ModelError(
                f"the model in {folder} was taught on features of {taught}, here come those of "
                f"{encoder}; visavis.encoder.open_motion runs either"
            )
        front = self.card.get("front", {"per_step": FEATURES_PER_MOTION, "silence": SILENCE})
        self._per_step = int(front["per_step"])
        self._silence = np.asarray(front["silence"], np.float32)
        self._behind = LOOKAHEAD_STEPS[lookahead_ms]
        self.lookahead = max(self._behind, 0)
        self._graph = Graph(folder / self.card["graph"], threads=threads, precision="f32")
        self._shapes = {k: tuple(v) for k, v in self.card["state"].items()}
        order = self.card["lookahead_ms"]
        self._wanted = (np.asarray(order) == lookahead_ms).astype(np.float32)
        self._columns = [CHANNEL[c] for c in SPEECH_CHANNELS]

    def init_state(self, batch: int = 1) -> State:
        """Silence before the first feature."""
        state: State = {k: np.zeros((batch, *s), np.float32) for k, s in self._shapes.items()}
        state["motion/half"] = np.zeros((batch, len(self._silence)), np.float32)
        state["motion/half_count"] = np.zeros(batch, np.int64)
        state["motion/steps"] = np.zeros(batch, np.int64)
        if self._behind < 0:
            quiet = self._quiet(batch, self._per_step)
            state, held = self._run(state, quiet)
            state["motion/held"] = held
        return state

    def step(self, state: State, chunk: np.ndarray) -> tuple[State, np.ndarray]:
        """Every motion step whose look-ahead has come."""
        state = dict(state)
        batch = len(chunk)
        count = int(state["motion/half_count"][0])
        features = np.concatenate([state["motion/half"][:, None][:, :count], chunk], axis=1)
        n = features.shape[1] // self._per_step
        rows = []
        for j in range(n):
            pair = features[:, self._per_step * j : self._per_step * (j + 1)]
            state, row = self._run(state, pair)
            if self._behind < 0:
                state["motion/held"], row = row, state["motion/held"]
            if state["motion/steps"][0] >= self.lookahead:
                rows.append(row)
            state["motion/steps"] = state["motion/steps"] + 1
        rest = features[:, self._per_step * n :]
        if rest.shape[1]:
            state["motion/half"] = np.ascontiguousarray(rest[:, 0])
        state["motion/half_count"] = np.full(batch, rest.shape[1], np.int64)
        out = np.zeros((batch, len(rows), N_CHANNELS), np.float32)
        if rows:
            out[:, :, self._columns] = np.stack(rows, axis=1)
        return state, out

    def flush(self, state: State) -> np.ndarray:
        """The last steps, heard against silence: in all one per begun 320 samples."""
        batch = len(state["motion/half"])
        waiting = int(state["motion/half_count"][0])
        if waiting == 0 and state["motion/steps"][0] == 0:
            return np.zeros((batch, 0, N_CHANNELS), np.float32)
        missing = waiting + self._per_step * self.lookahead
        return self.step(state, self._quiet(batch, missing))[1]

    def _quiet(self, batch: int, count: int) -> np.ndarray:
        """Features of silence, ``(B, count, width)``."""
        return np.tile(self._silence, (batch, count, 1))

    def _run(self, state: State, pair: np.ndarray) -> tuple[State, np.ndarray]:
        """One input step: ``(B, 2, 83)`` (or what a learned encoder gives) -> ``(B, 9)``."""
        batch = len(pair)
        feeds = {k: state[k] for k in self._shapes}
        feeds["features"] = np.ascontiguousarray(pair, np.float32).reshape(batch, 1, -1)
        feeds["lookahead"] = np.broadcast_to(self._wanted, (batch, len(self._wanted))).copy()
        # By position: a compiler that fuses the last layers may rename an output.
        motion, *following = self._graph(feeds).values()
        return state | dict(zip(self._shapes, following, strict=True)), motion[:, 0]


def read_card(folder: Path) -> dict:
    """``model.json``: graph file, state shapes, look-aheads.

    Raises:
        ModelError: missing, not JSON, or of another kind or version.
    """
    path = folder / "model.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ModelError(f"no motion model in {folder}: model.json is missing") from err
    except ValueError as err:
        raise ModelError(f"{path} is not JSON: {err}") from err
    if not isinstance(card, dict) or card.get("kind") != "motion" or card.get("version") != 1:
        raise ModelError(f"{path} is not a motion model of version 1; export it again")
    if tuple(card.get("channels", ())) != SPEECH_CHANNELS:
        raise ModelError(f"{path} names other channels than this version drives; export it again")
    return card
