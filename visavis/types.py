"""Shared vocabulary: rates, channel names, the stage contract. numpy and stdlib only.

Everything that more than one stage must agree on is written here once. Time is integers
(sample, feature, motion and frame indices); seconds appear only in reports.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

SAMPLE_RATE = 16_000  # Hz, mono float32 in [-1, 1]
FEATURE_RATE = 100  # Hz
MOTION_RATE = 50  # Hz
FEATURE_HOP = SAMPLE_RATE // FEATURE_RATE  # 160 samples
MOTION_HOP = SAMPLE_RATE // MOTION_RATE  # 320 samples
FEATURES_PER_MOTION = FEATURE_RATE // MOTION_RATE  # 2

N_MELS = 80
PROSODY = ("energy", "f0", "voicing")  # follow the mel bands in a feature vector
N_FEATURES = N_MELS + len(PROSODY)  # 83

CONTRACT_CHANNELS = (
    "jaw_open",  # inner-lip gap / outer-eye distance; 0 = lips touch (absolute)
    "mouth_width",  # mouth-corner distance / outer-eye distance, minus the person's neutral
    "lip_rounding",  # narrowing of the lips about the centre, 0 neutral .. ~1 pursed
    "jaw_rotation",  # degrees the mandible is rotated down from the neutral
    "eye_blink_left",  # 0 open as in the neutral .. 1 closed (the person's left)
    "eye_blink_right",
    "head_pitch",  # degrees, positive looks down
    "head_yaw",  # degrees, positive turns to the person's left (image right)
    "head_roll",  # degrees, positive tilts the head clockwise in the image
)
EXTENDED_CHANNELS = (
    "upper_lip_raise",  # upper lip up against the nose, eye distances, minus neutral
    "lower_lip_drop",  # lower lip down against the chin, eye distances, minus neutral
    "lip_press",  # thinning of the visible lips, eye distances, minus neutral
    "corner_pull_left",  # mouth corner up/out (smile), eye distances, minus neutral
    "corner_pull_right",
    "brow_raise",  # eye distances, minus neutral
    "brow_furrow",  # inner brows together, eye distances, minus neutral
    "gaze_x",  # degrees, positive to the person's left (image right)
    "gaze_y",  # degrees, positive down
    "shift_x",  # head translation in the image, eye distances, positive right
    "shift_y",  # positive down
    "scale",  # log of the size ratio to the neutral
)
CHANNELS = CONTRACT_CHANNELS + EXTENDED_CHANNELS
N_CHANNELS = len(CHANNELS)
CHANNEL = {name: i for i, name in enumerate(CHANNELS)}

# What the audio-to-motion net drives; every other channel is sampled by idle.py.
SPEECH_CHANNELS = (
    "jaw_open",
    "mouth_width",
    "lip_rounding",
    "jaw_rotation",
    "upper_lip_raise",
    "lower_lip_drop",
    "lip_press",
    "corner_pull_left",
    "corner_pull_right",
)

# Hard limits per channel, (low, high): a renderer is tested over the whole of this box.
RANGES: dict[str, tuple[float, float]] = {
    "jaw_open": (0.0, 0.45),
    "mouth_width": (-0.18, 0.18),
    "lip_rounding": (-0.5, 1.0),
    "jaw_rotation": (-3.0, 20.0),
    "eye_blink_left": (-0.3, 1.0),
    "eye_blink_right": (-0.3, 1.0),
    "head_pitch": (-8.0, 8.0),
    "head_yaw": (-12.0, 12.0),
    "head_roll": (-12.0, 12.0),
    "upper_lip_raise": (-0.06, 0.10),
    "lower_lip_drop": (-0.10, 0.12),
    "lip_press": (-0.06, 0.06),
    "corner_pull_left": (-0.08, 0.10),
    "corner_pull_right": (-0.08, 0.10),
    "brow_raise": (-0.03, 0.05),
    "brow_furrow": (-0.03, 0.03),
    "gaze_x": (-15.0, 15.0),
    "gaze_y": (-12.0, 12.0),
    "shift_x": (-0.15, 0.15),
    "shift_y": (-0.15, 0.15),
    "scale": (-0.08, 0.08),
}
RANGE_LOW = np.array([RANGES[c][0] for c in CHANNELS], np.float32)
RANGE_HIGH = np.array([RANGES[c][1] for c in CHANNELS], np.float32)

State = dict[str, np.ndarray]
"""Everything a stage remembers: flat names such as ``motion/gru_h``, batch on axis 0."""


class Stage(Protocol):
    """A frozen object whose memory is passed in and handed back.

    Chunks are arrays with the batch on axis 0 and time on axis 1; either side of ``step`` may be
    zero long. ``lookahead`` is by how many of the stage's own *output* steps it lags its input.
    """

    lookahead: int

    def init_state(self, batch: int = 1) -> State: ...

    def step(self, state: State, chunk: np.ndarray) -> tuple[State, np.ndarray]: ...

    def flush(self, state: State) -> np.ndarray: ...


@dataclass(frozen=True)
class Motion:
    """A clip: ``values`` ``(T, D)`` float32 with the columns of ``channels`` at ``rate`` Hz."""

    values: np.ndarray
    rate: Fraction = Fraction(MOTION_RATE)
    channels: tuple[str, ...] = CHANNELS
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def channel(self, name: str) -> np.ndarray:
        """One channel, ``(T,)`` float32."""
        return self.values[:, self.channels.index(name)]


@dataclass(frozen=True)
class Frame:
    """One video frame: ``image`` ``(H, W, 3)`` uint8 RGB, shown at ``index / fps`` seconds."""

    index: int
    image: np.ndarray
    fps: Fraction
