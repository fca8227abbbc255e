"""Whose turn it is, in the face: the mouth shuts when interrupted, the head nods when spoken to.

``MouthGate`` stands between the smoothed motion and the frames. ``Listening`` adds to it what the
user's own voice calls for. Both are stages of one motion step; their memory is an argument.
"""

from __future__ import annotations

import numpy as np

from visavis.idle import uniform
from visavis.types import (
    CHANNEL,
    MOTION_RATE,
    N_CHANNELS,
    RANGE_HIGH,
    RANGE_LOW,
    SPEECH_CHANNELS,
    State,
)

CLOSING = 4  # motion steps from open to shut: 80 ms
OPENING = 3
FOLLOW, CLOSE, OPEN = 0, 1, 2
_SPEECH = np.array([CHANNEL[c] for c in SPEECH_CHANNELS])
_JAW = SPEECH_CHANNELS.index("jaw_open")
_DT = 1.0 / MOTION_RATE


class MouthGate:
    """Lets the speech channels through, or brings them to rest and holds them there.

    The closing curve is the quintic of least jerk (Flash and Hogan, J. Neuroscience 5, 1985) from
    the mouth's present place and speed to rest: no jump in place or speed, and no way back.
    """

    def init_state(self) -> State:
        """Following, at rest."""
        n = len(SPEECH_CHANNELS)
        return {
            "gate/mode": np.array([CLOSE], np.int64),
            "gate/age": np.array([CLOSING], np.int64),
            "gate/last": np.zeros((2, n)),  # the two rows before, oldest first
            "gate/from": np.zeros((2, n)),  # place and speed at the start of the closing
        }

    def close(self, state: State) -> State:
        """Start to shut the mouth; a mouth already shutting goes on."""
        if state["gate/mode"][0] == CLOSE:
            return state
        before, last = state["gate/last"]
        begin = np.stack([last, np.clip(last - before, -0.5 * np.abs(last), 0.15 * np.abs(last))])
        return state | {
            "gate/mode": np.array([CLOSE], np.int64),
            "gate/age": np.zeros(1, np.int64),
            "gate/from": begin,
        }

    def open(self, state: State) -> State:
        """Let the mouth follow the voice again."""
        if state["gate/mode"][0] != CLOSE:
            return state
        return state | {"gate/mode": np.array([OPEN], np.int64), "gate/age": np.zeros(1, np.int64)}

    def shut(self, state: State) -> bool:
        """Whether the mouth rests shut."""
        return bool(state["gate/mode"][0] == CLOSE and state["gate/age"][0] >= CLOSING)

    def step(self, state: State, row: np.ndarray) -> tuple[State, np.ndarray]:
        """One motion step ``(D,)`` in and out."""
        mode, age = int(state["gate/mode"][0]), int(state["gate/age"][0])
        speech = row[_SPEECH].astype(np.float64)
        if mode == CLOSE:
            speech = _quintic(*state["gate/from"], (age + 1) / CLOSING)
            age = min(age + 1, CLOSING)
        elif mode == OPEN:
            share = (age + 1) / (OPENING + 1)
            speech = speech * share * share * (3 - 2 * share)
            age += 1
            mode = FOLLOW if age >= OPENING else OPEN
        speech[_JAW] = max(speech[_JAW], 0.0)
        out = row.copy()
        out[_SPEECH] = speech
        return {
            "gate/mode": np.array([mode], np.int64),
            "gate/age": np.array([age], np.int64),
            "gate/last": np.stack([state["gate/last"][1], speech]),
            "gate/from": state["gate/from"],
        }, out


def _quintic(place: np.ndarray, speed: np.ndarray, u: float) -> np.ndarray:
    """Least-jerk way to rest: at ``u`` in [0, 1] of ``CLOSING`` steps; ``speed`` is per step."""
    if u >= 1:
        return np.zeros_like(place)
    p = 1 - u**3 * (10 - 15 * u + 6 * u * u)
    v = u - u**3 * (6 - 8 * u + 3 * u * u)
    return place * p + speed * CLOSING * v


class Listening:
    """What a listener's face does: eyes on the talker, a nod at the end of a phrase.

    Nods fall on the talker's pauses (Dittmann and Llewellyn, J. Pers. Soc. Psych. 9, 1968); a listener
    looks at the talker more than a talker at the listener (Argyle and Cook, 1976).
    """

    attention_up = 0.12  # share per step while the user speaks
    attention_down = 0.015
    floor_db = -45.0
    pause_steps = 12  # 240 ms of pause end a phrase
    phrase_steps = 30  # 600 ms of voice make one
    nod_degrees = 2.6

    def init_state(self, seed: int) -> State:
        """No one has spoken."""
        return {
            "listen/seed": np.array([seed], np.uint64),
            "listen/counter": np.zeros(1, np.int64),
            "listen/attention": np.zeros(1),
            "listen/voice": np.zeros(1, np.int64),  # steps of voice in this phrase
            "listen/pause": np.zeros(1, np.int64),  # steps since
            "listen/nod": np.zeros(2),  # place and speed, degrees, degrees per second
            "listen/again": np.zeros(1, np.int64),  # steps to the second beat of a nod
        }

    def step(
        self, state: State, pcm: np.ndarray | None, row: np.ndarray
    ) -> tuple[State, np.ndarray]:
        """One motion step.

        Args:
            state: memory.
            pcm: ``(320,)`` float32 of the user's voice, ``None`` for silence.
            row: ``(D,)`` motion to change.
        """
        level = -120.0 if pcm is None else 10 * np.log10(float(np.mean(np.square(pcm))) + 1e-12)
        speaking = level > self.floor_db
        attention = float(state["listen/attention"][0])
        if not speaking and attention < 1e-4 and not state["listen/nod"].any():
            return state, row
        rate = self.attention_up if speaking else self.attention_down
        attention += rate * (float(speaking) - attention)
        voice, pause = int(state["listen/voice"][0]), int(state["listen/pause"][0])
        voice, pause = (voice + 1, 0) if speaking else (voice, pause + 1)
        place, speed = state["listen/nod"]
        again = max(int(state["listen/again"][0]) - 1, 0)
        counter = state["listen/counter"]
        if pause == self.pause_steps and voice >= self.phrase_steps:
            chance, size, twice, _ = uniform(state["listen/seed"], counter, 4)[0]
            counter = counter + 1
            if chance < 0.8:
                speed += 24.0 * self.nod_degrees * (0.6 + 0.8 * size)
                again = 18 if twice < 0.4 else 0
            voice = 0
        if again == 1:
            speed += 15.0 * self.nod_degrees
        turn = speed + 9.0 * place  # critically damped
        decay = np.exp(-9.0 * _DT)
        place, speed = (place + turn * _DT) * decay, (speed - 9.0 * turn * _DT) * decay
        if abs(place) + abs(speed) < 1e-3:
            place = speed = 0.0
        state = {
            "listen/seed": state["listen/seed"],
            "listen/counter": counter,
            "listen/attention": np.array([attention]),
            "listen/voice": np.array([voice], np.int64),
            "listen/pause": np.array([pause], np.int64),
            "listen/nod": np.array([place, speed]),
            "listen/again": np.array([again], np.int64),
        }
        return state, self._face(row, attention, place)

    def _face(self, row: np.ndarray, attention: float, nod: float) -> np.ndarray:
        out = row.copy()
        assert out.shape == (N_CHANNELS,), out.shape
        for name in ("gaze_x", "gaze_y"):
            out[CHANNEL[name]] *= 1 - 0.6 * attention
        out[CHANNEL["head_pitch"]] += nod
        out[CHANNEL["gaze_y"]] -= 0.8 * nod  # the eyes stay on the talker
        out[CHANNEL["brow_raise"]] += 0.006 * attention
        out[CHANNEL["scale"]] += 0.004 * attention
        return np.clip(out, RANGE_LOW, RANGE_HIGH)
