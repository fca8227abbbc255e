"""From the net's motion to what a face does: filters, closures, silence, limits, and video frames.

``Smoother`` runs at 50 Hz and looks one step (20 ms) ahead; ``Interpolator`` turns 50 Hz into any
frame rate with integer arithmetic only.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from visavis.types import (
    CHANNEL,
    MOTION_HOP,
    MOTION_RATE,
    N_CHANNELS,
    RANGE_HIGH,
    RANGE_LOW,
    SAMPLE_RATE,
    SPEECH_CHANNELS,
    State,
)

_SPEECH = np.array([CHANNEL[c] for c in SPEECH_CHANNELS])
_JAW = SPEECH_CHANNELS.index("jaw_open")
# A change this large, per step, is clearly motion: one unit of the one-euro filters' speed.
_UNIT = np.array([0.01, 0.01, 0.06, 0.5, 0.004, 0.006, 0.003, 0.004, 0.004])


@dataclass(frozen=True)
class SmootherConfig:
    """Times in motion steps of 20 ms, mouth lengths in eye distances.

    ``cutoff_hz`` and ``speed_gain`` are those of Casiez, Roussel, Vogel, "1 euro filter", CHI 2012.
    """

    cutoff_hz: float = 14.0
    speed_gain_hz: float = 30.0
    speed_cutoff_hz: float = 6.0
    closure_open: float = 0.03  # a dip of the raw lip opening below this is a closure
    contact: float = 0.008  # openings up to about here are lips that touch
    quiet_open: float = 0.02  # a mouth this little open ...
    quiet_speed: float = 0.06  # ... that moves less than this, in units, is silent
    quiet_hold: int = 10  # steps of quiet before the mouth settles: longer than any closure
    settle: float = 0.08  # share of the way to rest per step
    wake: float = 0.3  # share of the way back per step
    knee: float = 0.9  # soft limits begin at this share of the range


def soft_limit(values: np.ndarray, knee: float = 0.9) -> np.ndarray:
    """Hold ``(..., 21)`` inside ``types.RANGES``: linear to the knee, then bending, never over."""
    middle = 0.5 * (RANGE_LOW + RANGE_HIGH)
    half = 0.5 * (RANGE_HIGH - RANGE_LOW)
    x = (values - middle) / half
    over = np.maximum(np.abs(x) - knee, 0.0)
    bent = knee + (1.0 - knee) * np.tanh(over / (1.0 - knee))
    x = np.where(over > 0.0, np.sign(x) * bent, x)
    limited = middle + half * x
    # Shut lips sit on the edge of their range and must stay there.
    jaw = CHANNEL["jaw_open"]
    low_side = x[..., jaw] < 0.0
    limited[..., jaw] = np.where(low_side, np.maximum(values[..., jaw], 0.0), limited[..., jaw])
    return np.clip(limited, RANGE_LOW, RANGE_HIGH).astype(np.float32)


class Smoother:
    """Stage: motion ``(B, n, 21)`` in and out. Channels that are not speech are only limited."""

    lookahead = 1

    def __init__(self, config: SmootherConfig | None = None) -> None:
        self.config = config or SmootherConfig()

    def init_state(self, batch: int = 1) -> State:
        """A shut mouth at rest."""
        n = len(_SPEECH)
        return {
            "smoothing/last": np.zeros((batch, 2, N_CHANNELS), np.float32),
            "smoothing/steps": np.zeros(batch, np.int64),
            "smoothing/filtered": np.zeros((batch, n)),
            "smoothing/speed": np.zeros((batch, n)),
            "smoothing/quiet": np.zeros(batch, np.int64),
            "smoothing/gate": np.zeros(batch),
        }

    def step(self, state: State, chunk: np.ndarray) -> tuple[State, np.ndarray]:
        """One output per input but the first, which waits for its neighbour."""
        state = dict(state)
        rows = []
        for i in range(chunk.shape[1]):
            after = chunk[:, i]
            before, here = state["smoothing/last"][:, 0], state["smoothing/last"][:, 1]
            if state["smoothing/steps"][0] == 1:
                before = here
            if state["smoothing/steps"][0] > 0:
                rows.append(self._one(state, before, here, after))
            state["smoothing/last"] = np.stack([here, after], axis=1)
            state["smoothing/steps"] = state["smoothing/steps"] + 1
        out = np.zeros((len(chunk), len(rows), N_CHANNELS), np.float32)
        if rows:
            out[:] = np.stack(rows, axis=1)
        return state, out

    def flush(self, state: State) -> np.ndarray:
        """The last step, taken to go on as it was."""
        if state["smoothing/steps"][0] == 0:
            return np.zeros((len(state["smoothing/last"]), 0, N_CHANNELS), np.float32)
        return self.step(state, state["smoothing/last"][:, 1:])[1]

    def _one(
        self, state: State, before: np.ndarray, here: np.ndarray, after: np.ndarray
    ) -> np.ndarray:
        """Filter one step ``(B, 21)``; updates the entries of ``state``."""
        c = self.config
        b, h, a = (v[:, _SPEECH].astype(np.float64) for v in (before, here, after))
        mean = 0.25 * b + 0.5 * h + 0.25 * a
        speed = 0.5 * (a - b) / _UNIT
        speed = state["smoothing/speed"] + _share(c.speed_cutoff_hz) * (
            speed - state["smoothing/speed"]
        )
        share = _share(c.cutoff_hz + c.speed_gain_hz * np.abs(speed))
        filtered = state["smoothing/filtered"] + share * (mean - state["smoothing/filtered"])
        # A dip to shut lips is speech, not noise: it goes through whole.
        jaw = h[:, _JAW]
        dip = (jaw < c.closure_open) & (jaw <= b[:, _JAW] + 1e-9) & (jaw <= a[:, _JAW] + 1e-9)
        filtered[:, _JAW] = np.where(dip, np.minimum(filtered[:, _JAW], jaw), filtered[:, _JAW])
        state["smoothing/filtered"], state["smoothing/speed"] = filtered, speed
        out = here.copy()
        out[:, _SPEECH] = self._gate(state, filtered, speed)[:, None] * filtered
        jaw_open = out[:, CHANNEL["jaw_open"]]
        # Smooth step over the tracker's contact bias: 0 .. contact reads as shut.
        ramp = np.clip(jaw_open / (2.0 * c.contact), 0.0, 1.0)
        out[:, CHANNEL["jaw_open"]] = np.maximum(jaw_open, 0.0) * ramp * (2.0 - ramp)
        return soft_limit(out, c.knee)

    def _gate(self, state: State, filtered: np.ndarray, speed: np.ndarray) -> np.ndarray:
        """1 in speech, 0 at rest, ``(B,)``: a mouth all but shut and still is brought to rest."""
        c = self.config
        still = np.sqrt(np.mean(speed * speed, axis=-1)) < c.quiet_speed
        quiet = still & (filtered[:, _JAW] < c.quiet_open)
        count = np.where(quiet, state["smoothing/quiet"] + 1, 0)
        gate = state["smoothing/gate"]
        resting = count >= c.quiet_hold
        gate = np.where(resting, gate - c.settle * gate, gate + c.wake * (1.0 - gate))
        gate = np.where(resting & (gate < 0.01), 0.0, gate)
        state["smoothing/quiet"], state["smoothing/gate"] = count, gate
        return gate


def _share(cutoff_hz: float | np.ndarray) -> float | np.ndarray:
    """Coefficient of a first-order low pass at the motion rate."""
    r = 2.0 * np.pi * cutoff_hz / MOTION_RATE
    return r / (r + 1.0)


class Interpolator:
    """Stage: 50 Hz motion ``(B, n, 21)`` in, one row per video frame ``(B, k, 21)`` out.

    Frame ``k`` shows ``t = k / fps``: it lies between motion steps ``i = floor(50 k / fps)`` and
    ``i + 1`` and comes out as soon as the latter is in.
    """

    lookahead = 1

    def __init__(self, fps: Fraction | int) -> None:
        self.fps = Fraction(fps)
        assert self.fps > 0

    def init_state(self, batch: int = 1) -> State:
        """Nothing seen, nothing shown."""
        return {
            "interpolator/last": np.zeros((batch, N_CHANNELS), np.float32),
            "interpolator/steps": np.zeros(batch, np.int64),
            "interpolator/frames": np.zeros(batch, np.int64),
        }

    def step(self, state: State, chunk: np.ndarray) -> tuple[State, np.ndarray]:
        """Every frame that lies between motion steps already in."""
        if chunk.shape[1] == 0:
            return state, chunk[:, :0]
        seen = int(state["interpolator/steps"][0])
        have = np.concatenate([state["interpolator/last"][:, None], chunk], axis=1)
        first = seen - 1  # the motion index of have[:, 0]
        total = seen + chunk.shape[1]
        frame = int(state["interpolator/frames"][0])
        rows = []
        while (place := self._place(frame))[0] + 1 < total:
            index, share = place
            low, high = have[:, index - first], have[:, index + 1 - first]
            rows.append(low + np.float32(share) * (high - low))
            frame += 1
        out = np.stack(rows, axis=1) if rows else chunk[:, :0]
        return {
            "interpolator/last": chunk[:, -1],
            "interpolator/steps": np.full_like(state["interpolator/steps"], total),
            "interpolator/frames": np.full_like(state["interpolator/frames"], frame),
        }, out

    def flush(self, state: State, samples: int | None = None) -> np.ndarray:
        """The frames left, showing the last motion step.

        Args:
            state: after the last chunk.
            samples: length of the sound; one motion step per 320 samples where it is not given.

        Returns:
            ``(B, k, 21)``: as many as make ``round(samples * fps / 16000)`` frames in all, halves
            up; none where rounding down would need a frame already shown to be taken back.
        """
        if samples is None:
            samples = int(state["interpolator/steps"][0]) * MOTION_HOP
        total = int(samples * self.fps / SAMPLE_RATE + Fraction(1, 2))
        left = max(total - int(state["interpolator/frames"][0]), 0)
        return np.repeat(state["interpolator/last"][:, None], left, axis=1)

    def _place(self, frame: int) -> tuple[int, float]:
        """Motion index at or before a frame, and how far the frame lies past it (0 .. 1)."""
        whole, rest = divmod(frame * MOTION_RATE * self.fps.denominator, self.fps.numerator)
        return whole, rest / self.fps.numerator
