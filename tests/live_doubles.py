"""Stand-ins for live tests: a pipeline whose mouth follows loudness, a renderer that costs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from visavis.features import FeatureExtractor
from visavis.idle import Idle, IdleConfig
from visavis.pipeline import Pipeline, PipelineConfig
from visavis.smoothing import Interpolator, Smoother
from visavis.types import CHANNEL, N_CHANNELS, N_MELS

HERE = Path(__file__).parent


@contextmanager
def serving(script):
    """A server, ``tests/SCRIPT``, in a process of its own: its address. It must end well on SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, HERE / script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
    )
    try:
        line = process.stdout.readline()
        assert "http://" in line, "the server did not start"
        yield line.split()[-1]
        process.terminate()
        log = process.communicate(timeout=40)[1]
        assert "Traceback" not in log, log[-3000:]
        assert process.returncode in (0, -15), "SIGTERM drains and ends"
    finally:
        process.kill()
        process.communicate()


class LoudnessMotion:
    """Stage: the jaw opens with the sound's energy. Look-ahead as of the real net's default."""

    hears_sound = False

    def __init__(self, lookahead: int = 3):
        self.lookahead = lookahead

    def init_state(self, batch=1):
        return {
            "motion/seen": np.zeros(batch, np.int64),
            "motion/jaw": np.zeros((batch, 4), np.float32),
        }

    def step(self, state, chunk):
        assert chunk.shape[1] % 2 == 0, "live hops are whole motion steps"
        rows = []
        for i in range(0, chunk.shape[1], 2):
            energy = chunk[:, i : i + 2, N_MELS].mean(axis=1)
            jaw = np.clip(0.25 * (energy + 0.2), 0, 0.3).astype(np.float32)
            state = {
                "motion/seen": state["motion/seen"] + 1,
                "motion/jaw": np.roll(state["motion/jaw"], -1, axis=1),
            }
            state["motion/jaw"][:, -1] = jaw
            if state["motion/seen"][0] > self.lookahead:
                row = np.zeros((len(chunk), N_CHANNELS), np.float32)
                row[:, CHANNEL["jaw_open"]] = state["motion/jaw"][:, -1 - self.lookahead]
                rows.append(row)
        return state, np.stack(rows, 1) if rows else np.zeros(
            (len(chunk), 0, N_CHANNELS), np.float32
        )

    def flush(self, state):
        return np.zeros((1, 0, N_CHANNELS), np.float32)


class MotionRenderer:
    """Draws the motion row itself into a tiny picture; ``cost_ns`` passes on a manual clock."""

    lookahead = 0

    def __init__(self, tier="patch", clock=None, cost_ns=0, size=8):
        self.tier, self.clock, self.cost_ns, self.size = tier, clock, cost_ns, size
        self.rows: list[np.ndarray] = []

    def init_state(self, batch=1):
        return {"render/seen": np.zeros(batch, np.int64)} if self.tier == "patch" else {}

    def step(self, state, motion):
        if self.clock:
            self.clock.advance(self.cost_ns)
        if "render/seen" in state:
            state = {"render/seen": state["render/seen"] + 1}
        self.rows.append(motion[0, 0].copy())
        del self.rows[:-10_000]
        bytes_ = np.frombuffer(motion[0, 0].tobytes(), np.uint8)
        image = np.zeros((1, 1, self.size, self.size, 3), np.uint8)
        image.reshape(-1)[: len(bytes_)] = bytes_
        return state, image


def row_of(image: np.ndarray) -> np.ndarray:
    """The motion row a `MotionRenderer` drew."""
    return np.frombuffer(image.reshape(-1)[: 4 * N_CHANNELS].tobytes(), np.float32)


class DoublePipeline(Pipeline):
    """The real path but for the motion net and the renderer."""

    def __init__(self, fps=30, renderer=None, seed=0):
        self.config = PipelineConfig(fps=Fraction(fps), seed=seed)
        self.features = FeatureExtractor()
        self.motion = LoudnessMotion()
        self.idle = Idle(IdleConfig(lookahead=3))
        self.smoother = Smoother()
        self.interpolator = Interpolator(self.config.fps)
        self.renderer = renderer or MotionRenderer()


def double_models(tier, size, fps, avatar_of):
    """`Models` with the demo's looks and `LoudnessMotion` for the motion net."""
    from visavis.render import Renderer

    return lambda name: (DoublePipeline(fps, Renderer(avatar_of(name), tier, size)), ())


def tiny_models(avatar_of):
    """`Models` that cost nothing."""
    return lambda name: (DoublePipeline(30, MotionRenderer("mesh", size=32)), ())


def live_app(config, avatar, *, tier="mesh", limit=2, render=None, processes=False):
    """The server on the demo's face, with `LoudnessMotion` for the motion net."""
    from visavis.serve.app import build_app
    from visavis.serve.library import Library
    from visavis.serve.process import in_process
    from visavis.serve.workers import in_thread

    library = Library(config.size, config.uploads_kept)
    library.share(avatar)

    def avatar_of(name):
        return library.get(name).avatar

    make = partial(double_models, tier, config.size, config.fps)
    hire = in_process(make, avatar_of) if processes else in_thread(make(avatar_of))
    return build_app(config, library=library, hire=hire, limit=limit, render=render or no_film)


def no_film(avatar, sound, film, progress):
    """`Render` that makes a film of nothing."""
    progress(1)
    film.write_bytes(b"film of " + sound.read_bytes()[:4])
