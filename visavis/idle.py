"""Everything a face does besides speaking: blinks, glances, head, brows, breath.

These are many-to-one with the voice, so they are drawn, not predicted: every number comes from a
counter-based generator whose seed and counter are in the state. The voice shifts the odds: stress
nods the head and lifts the brows, speech widens the movement. Head amplitudes are fitted to tracked
clips (``visavis.train.idle`` wrote ``idle.json``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visavis.errors import ConfigError, ModelError
from visavis.features import SILENCE
from visavis.types import (
    CHANNEL,
    FEATURES_PER_MOTION,
    MOTION_RATE,
    N_CHANNELS,
    N_FEATURES,
    N_MELS,
    RANGE_HIGH,
    RANGE_LOW,
    State,
)

STYLE_FILE = Path(__file__).parent / "assets" / "models" / "idle" / "idle.json"
_DT = 1.0 / MOTION_RATE
_ENERGY, _F0 = N_MELS, N_MELS + 1
_AXES = ("head_pitch", "head_yaw", "head_roll")

# Uniform draws of one step, by lane; lanes n and n + 1 of a pair make one normal draw.
_LANES = 32
_DRIFT, _MICRO, _SHIFT_WHEN, _SHIFT = 0, 6, 12, 13  # 6, 6, 1, 6 lanes
_NOD, _BLINK, _SACCADE, _GAZE_NOISE, _BREATH = 19, 20, 24, 27, 31


@dataclass(frozen=True)
class IdleConfig:
    """Behaviour of one talker; angles in degrees, times in seconds.

    Blink speed after VanderWerf et al., J. Neurophysiol. 89 (2003): lids close about twice as fast
    as they open. Rates: Bentivoglio et al., Movement Disorders 12 (1997), 17 a minute at rest.
    """

    lookahead: int = 3
    head_sd: tuple[float, float, float] = (3.0, 3.4, 2.2)  # pitch, yaw, roll while speaking
    head_rest: float = 0.5  # share of that in silence
    sway: tuple[float, float, float] = (1.7, 1.5, 0.9)  # the same, of quicker movement
    drift_time: float = 5.0
    shift_rate: float = 0.6  # changes of posture per second of speech
    nod: float = 3.2  # degrees per stressed onset
    blink_interval: float = 3.3
    blink_spread: float = 0.35  # coefficient of variation
    blink_double: float = 0.08
    fixation: float = 1.4
    gaze_away: float = 0.22  # share of fixations off the viewer
    gaze_reach: tuple[float, float] = (5.0, 2.5)
    gaze_follow: float = 0.8  # share of the head's turn that the eyes take back
    brow: float = 0.022  # eye distances per octave of pitch accent
    breath_hz: float = 0.25
    breath_shift: float = 0.006  # eye distances

    @classmethod
    def load(cls, path: str | Path = STYLE_FILE, **changes: object) -> IdleConfig:
        """The fitted style, with single values replaced.

        Raises:
            ModelError: the file is missing or names an unknown value.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))["style"]
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**(values | changes))
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise ModelError(f"no idle style in {path}: {err}; reinstall visavis") from err


def uniform(seed: np.ndarray, counter: np.ndarray, lanes: int = _LANES) -> np.ndarray:
    """Counter-based random numbers: ``(B,)`` seeds and counters -> ``(B, lanes)`` in (0, 1).

    SplitMix64's finaliser (Steele, Lea, Flood 2014) over seed, counter and lane.
    """
    with np.errstate(over="ignore"):
        key = _mix(seed.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        key = _mix(key ^ (counter.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)))
        lane = np.arange(1, lanes + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(key[:, None] + lane)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _normal(u: np.ndarray) -> np.ndarray:
    """Box and Muller: ``(B, 2 n)`` uniform -> ``(B, n)`` standard normal."""
    return np.sqrt(-2.0 * np.log(u[:, 0::2])) * np.cos(2.0 * np.pi * u[:, 1::2])


class Idle:
    """Stage: features ``(B, n, 83)`` in, motion ``(B, m, 21)`` out, in step with ``MotionNet``.

    Args:
        config: behaviour; its ``lookahead`` must be the motion net's.
    """

    def __init__(self, config: IdleConfig | None = None) -> None:
        self.config = config or IdleConfig.load()
        if not 0 <= self.config.lookahead <= 50:
            raise ConfigError(f"idle look-ahead of {self.config.lookahead} steps; expected 0 to 50")
        self.lookahead = self.config.lookahead
        self._sd = np.asarray(self.config.head_sd)

    def init_state(self, batch: int = 1, seed: int | np.ndarray = 0) -> State:
        """A rested face; ``seed`` is one number (each batch row differs) or one per row."""
        seeds = np.asarray(seed).astype(np.uint64)
        if seeds.ndim == 0:
            seeds = seeds + np.arange(batch, dtype=np.uint64) * np.uint64(1_000_003)
        start = uniform(seeds, np.full(batch, 2**40))
        zeros = {
            "half": (N_FEATURES,), "drift": (3,), "posture": (3,), "head": (3,), "head_speed": (3,),
            "micro": (3,), "micro_speed": (3,), "nod": (), "nod_speed": (), "nod_target": (),
            "gaze": (2,),
            "gaze_target": (2,), "brow": (), "brow_speed": (), "brow_target": (), "tremor": (3,),
            "onset_age": (),
        }  # fmt: skip
        state: State = {f"idle/{k}": np.zeros((batch, *v)) for k, v in zeros.items()}
        state["idle/half"] = state["idle/half"].astype(np.float32)
        state["idle/half_count"] = np.zeros(batch, np.int64)
        state["idle/inputs"] = np.zeros(batch, np.int64)
        state["idle/counter"] = np.zeros(batch, np.int64)
        state["idle/seed"] = np.broadcast_to(seeds, (batch,)).copy()
        state["idle/activity"] = np.zeros(batch)
        state["idle/energy"] = np.full(batch, -1.0)
        state["idle/pitch"] = np.full(batch, 0.4)  # octaves above 100 Hz
        state["idle/breath"] = start[:, 0]
        state["idle/blink_wait"] = 0.5 + self.config.blink_interval * start[:, 1]
        state["idle/blink_age"] = np.full(batch, 9.0)
        state["idle/blink_shape"] = np.tile([1.0, 0.08, 0.18, 0.0], (batch, 1))
        state["idle/gaze_wait"] = 0.3 + start[:, 2]
        return state

    def step(self, state: State, chunk: np.ndarray) -> tuple[State, np.ndarray]:
        """One motion step per two features, ``lookahead`` steps behind them."""
        state = dict(state)
        count = int(state["idle/half_count"][0])
        features = np.concatenate([state["idle/half"][:, None][:, :count], chunk], axis=1)
        n = features.shape[1] // FEATURES_PER_MOTION
        rows = []
        for j in range(n):
            pair = features[:, FEATURES_PER_MOTION * j : FEATURES_PER_MOTION * (j + 1)]
            if state["idle/inputs"][0] >= self.lookahead:
                rows.append(self._one(state, pair.astype(np.float64)))
            state["idle/inputs"] = state["idle/inputs"] + 1
        rest = features[:, FEATURES_PER_MOTION * n :]
        if rest.shape[1]:
            state["idle/half"] = np.ascontiguousarray(rest[:, 0])
        state["idle/half_count"] = np.full_like(state["idle/half_count"], rest.shape[1])
        out = np.zeros((len(chunk), len(rows), N_CHANNELS), np.float32)
        if rows:
            out[:] = np.stack(rows, axis=1)
        return state, out

    def flush(self, state: State) -> np.ndarray:
        """The last steps, in silence: in all as many as ``MotionNet`` gives."""
        batch, waiting = len(state["idle/half"]), int(state["idle/half_count"][0])
        if waiting == 0 and state["idle/inputs"][0] == 0:
            return np.zeros((batch, 0, N_CHANNELS), np.float32)
        missing = waiting + FEATURES_PER_MOTION * self.lookahead
        return self.step(state, np.broadcast_to(SILENCE, (batch, missing, N_FEATURES)))[1]

    def _one(self, state: State, pair: np.ndarray) -> np.ndarray:
        """One step ``(B, 21)``; updates the entries of ``state``."""
        u = uniform(state["idle/seed"], state["idle/counter"])
        state["idle/counter"] = state["idle/counter"] + 1
        out = np.zeros((len(pair), N_CHANNELS))
        onset, accent = self._listen(state, pair)
        head = self._head(state, u, onset)
        gaze = self._gaze(state, u, head)
        closed = self._blink(state, u)
        self._brow(state, accent)
        for i, name in enumerate(_AXES):
            out[:, CHANNEL[name]] = head[:, i]
        out[:, CHANNEL["gaze_x"]], out[:, CHANNEL["gaze_y"]] = gaze[:, 0], gaze[:, 1]
        out[:, CHANNEL["eye_blink_left"]] = closed[:, 0]
        out[:, CHANNEL["eye_blink_right"]] = closed[:, 1]
        out[:, CHANNEL["brow_raise"]] = state["idle/brow"] + 0.001 * state["idle/micro"][:, 2]
        out[:, CHANNEL["brow_furrow"]] = -0.1 * state["idle/brow"]
        self._breathe(state, u, head, out)
        return np.clip(out, RANGE_LOW, RANGE_HIGH)

    def _listen(self, state: State, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy onsets (0 or a strength) and pitch accent in octaves, each ``(B,)``."""
        energy = pair[..., _ENERGY].mean(axis=1)
        speaking = (energy > -0.1).astype(np.float64)  # about -54 dB
        rate = np.where(speaking > state["idle/activity"], 0.15, 0.02)
        state["idle/activity"] = state["idle/activity"] + rate * (speaking - state["idle/activity"])
        rise = energy - state["idle/energy"]
        state["idle/energy"] = state["idle/energy"] + 0.12 * rise
        state["idle/onset_age"] = state["idle/onset_age"] + _DT
        fires = (rise > 0.45) & (state["idle/onset_age"] > 0.45) & (energy > 0.4)
        state["idle/onset_age"] = np.where(fires, 0.0, state["idle/onset_age"])
        f0 = pair[..., _F0]
        voiced = np.all(f0 != 0.0, axis=1)
        f0 = f0.mean(axis=1)
        accent = np.where(voiced, f0 - state["idle/pitch"], 0.0)
        state["idle/pitch"] = state["idle/pitch"] + np.where(voiced, 0.01, 0.0) * (
            f0 - state["idle/pitch"]
        )
        return np.where(fires, np.clip(rise, 0.0, 1.2), 0.0), np.clip(accent, 0.0, 0.8)

    def _head(self, state: State, u: np.ndarray, onset: np.ndarray) -> np.ndarray:
        """Pitch, yaw, roll ``(B, 3)``: slow drift, posture shifts, tremor, nods; mean-reverting."""
        c = self.config
        width = c.head_rest + (1.0 - c.head_rest) * state["idle/activity"]
        keep = np.exp(-_DT / c.drift_time)
        noise = _normal(u[:, _DRIFT : _DRIFT + 6])
        state["idle/drift"] = keep * state["idle/drift"] + np.sqrt(1 - keep * keep) * noise
        moves = u[:, _SHIFT_WHEN] < c.shift_rate * (0.3 + 0.7 * state["idle/activity"]) * _DT
        fresh = np.clip(_normal(u[:, _SHIFT : _SHIFT + 6]), -2.5, 2.5)
        state["idle/posture"] = np.where(moves[:, None], fresh, state["idle/posture"])
        target = (
            width[:, None] * self._sd * (0.55 * state["idle/drift"] + 0.8 * state["idle/posture"])
        )
        target[:, 1] += 0.15 * state["idle/gaze_target"][:, 0]
        _spring(state, "idle/head", "idle/head_speed", target, 5.0)
        keep = np.exp(-_DT / 0.4)
        noise = _normal(u[:, _MICRO : _MICRO + 6])
        state["idle/micro"] = keep * state["idle/micro"] + np.sqrt(1 - keep * keep) * noise
        _spring(state, "idle/tremor", "idle/micro_speed", state["idle/micro"], 9.0)
        strength = c.nod * onset * (0.4 + 1.2 * u[:, _NOD])
        state["idle/nod_target"] = state["idle/nod_target"] * np.exp(-_DT / 0.16) + 2.0 * strength
        _spring(state, "idle/nod", "idle/nod_speed", state["idle/nod_target"], 11.0)
        head = state["idle/head"] + width[:, None] * np.asarray(c.sway) * state["idle/tremor"]
        head[:, 0] += state["idle/nod"]
        limit = 0.9 * np.array([RANGE_HIGH[CHANNEL[a]] for a in _AXES])
        return limit * np.tanh(head / limit)

    def _gaze(self, state: State, u: np.ndarray, head: np.ndarray) -> np.ndarray:
        """Gaze in the head, ``(B, 2)`` degrees: fixations, mostly on the viewer, and saccades."""
        c = self.config
        a, b, d = u[:, _SACCADE], u[:, _SACCADE + 1], u[:, _SACCADE + 2]
        state["idle/gaze_wait"] = state["idle/gaze_wait"] - _DT
        jump = state["idle/gaze_wait"] <= 0.0
        noise = _normal(u[:, _GAZE_NOISE : _GAZE_NOISE + 4])
        away = a < c.gaze_away
        target = np.where(away[:, None], noise * c.gaze_reach, 0.5 * noise)
        target = np.clip(target, -np.asarray(c.gaze_reach) * 1.6, np.asarray(c.gaze_reach) * 1.6)
        size = np.abs(target - state["idle/gaze_target"]).sum(axis=1)
        state["idle/gaze_target"] = np.where(jump[:, None], target, state["idle/gaze_target"])
        hold = np.where(away, 0.35 + 0.5 * b, 0.3 - c.fixation * np.log(b))
        state["idle/gaze_wait"] = np.where(jump, np.minimum(hold, 4.0), state["idle/gaze_wait"])
        # A wide glance often takes a blink along.
        blinks = jump & (size > 5.0) & (d < 0.35) & (state["idle/blink_age"] > 1.2)
        state["idle/blink_wait"] = np.where(blinks, 0.0, state["idle/blink_wait"])
        # A saccade of a few degrees lasts 30 to 40 ms: nearly all of it within two steps.
        state["idle/gaze"] = state["idle/gaze"] + 0.72 * (
            state["idle/gaze_target"] - state["idle/gaze"]
        )
        follow = c.gaze_follow * head[:, [1, 0]]
        tremor = 0.06 * noise
        return np.clip(state["idle/gaze"] - follow + tremor, [-13.0, -10.0], [13.0, 10.0])

    def _blink(self, state: State, u: np.ndarray) -> np.ndarray:
        """Left and right lid, ``(B, 2)``: 0 open .. 1 closed."""
        c = self.config
        a, b, d, e = (u[:, _BLINK + i] for i in range(4))
        state["idle/blink_wait"] = state["idle/blink_wait"] - _DT
        state["idle/blink_age"] = np.minimum(state["idle/blink_age"] + _DT, 9.0)
        starts = (state["idle/blink_wait"] <= 0.0) & (state["idle/blink_age"] > 0.3)
        shape = np.stack([0.9 + 0.1 * a, 0.07 + 0.03 * b, 0.15 + 0.09 * d, 0.02 * (e - 0.5)], 1)
        state["idle/blink_shape"] = np.where(starts[:, None], shape, state["idle/blink_shape"])
        spread = np.clip(_normal(np.stack([d, b], axis=1))[:, 0], -2.0, 2.0) * c.blink_spread
        wait = np.maximum(c.blink_interval * (1.0 + spread), 0.8)
        wait = np.where(e < c.blink_double, 0.34, wait)
        state["idle/blink_wait"] = np.where(starts, wait, state["idle/blink_wait"])
        state["idle/blink_age"] = np.where(starts, 0.0, state["idle/blink_age"])
        amplitude, closing, opening, lag = state["idle/blink_shape"].T
        lids = []
        for delay in (np.maximum(lag, 0.0), np.maximum(-lag, 0.0)):
            age = state["idle/blink_age"] - delay
            down = np.clip(age / closing, 0.0, 1.0)
            up = np.clip((age - closing - 0.02) / opening, 0.0, 1.0)
            lids.append(amplitude * (_ease(down) - _ease(up**0.8)))
        return np.stack(lids, axis=1)

    def _brow(self, state: State, accent: np.ndarray) -> None:
        """Brows follow pitch accents, rising faster than they fall."""
        goal = self.config.brow * accent
        rate = np.where(goal > state["idle/brow_target"], 0.25, 0.03)
        state["idle/brow_target"] = state["idle/brow_target"] + rate * (
            goal - state["idle/brow_target"]
        )
        _spring(state, "idle/brow", "idle/brow_speed", state["idle/brow_target"], 10.0)

    def _breathe(self, state: State, u: np.ndarray, head: np.ndarray, out: np.ndarray) -> None:
        """Breath lifts the shoulders and with them the head; turning carries it sideways."""
        c = self.config
        rate = c.breath_hz * (0.9 + 0.2 * u[:, _BREATH])
        state["idle/breath"] = (state["idle/breath"] + rate * _DT) % 1.0
        wave = np.sin(2.0 * np.pi * state["idle/breath"])
        out[:, CHANNEL["shift_y"]] = -c.breath_shift * wave + 0.007 * head[:, 0]
        out[:, CHANNEL["shift_x"]] = 0.006 * head[:, 1] + 0.005 * head[:, 2]
        out[:, CHANNEL["scale"]] = 0.2 * c.breath_shift * wave


def _ease(x: np.ndarray) -> np.ndarray:
    """Smooth step 0 .. 1."""
    return x * x * (3.0 - 2.0 * x)


def _spring(state: State, place: str, speed: str, target: np.ndarray, omega: float) -> None:
    """Critically damped spring towards ``target``, exact over one step for a fixed target."""
    x = state[place] - target
    v = state[speed]
    decay = np.exp(-omega * _DT)
    turn = v + omega * x
    state[place] = target + (x + turn * _DT) * decay
    state[speed] = (v - omega * turn * _DT) * decay
