"""Fit the idle style to tracked clips: how far and how fast heads go while people speak."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from visavis.train.clips import Clip
from visavis.types import CHANNEL, MOTION_RATE

HEAD = [CHANNEL[c] for c in ("head_pitch", "head_yaw", "head_roll")]
WINDOW = 125  # steps, 2.5 s: as long as most clips


def head_statistics(motion: list[np.ndarray]) -> dict[str, list[float]]:
    """Of clips ``(T, 21)``: spread within 2.5 s, speed in degrees/s, and the power above 2 Hz.

    The tracker's own noise (above 5 Hz) is taken out first, so speeds are those of heads.
    """
    spread, speed, quick = [], [], []
    for clip in motion:
        if len(clip) < WINDOW:
            continue
        smooth = np.stack([np.convolve(clip[:, c], np.hanning(11) / 5, "same") for c in HEAD], 1)
        smooth = smooth[5:-5]
        for start in range(0, len(smooth) - WINDOW + 11, WINDOW):
            part = smooth[start : start + WINDOW - 10]
            part = part - part.mean(0)
            spread.append(part.std(0))
            speed.append(np.abs(np.diff(part, axis=0)).mean(0) * MOTION_RATE)
            power = np.abs(np.fft.rfft(part * np.hanning(len(part))[:, None], axis=0)) ** 2
            hz = np.fft.rfftfreq(len(part), 1 / MOTION_RATE)
            quick.append(power[hz > 2].sum(0) / (power[hz > 0.2].sum(0) + 1e-9))
    names = ("spread_deg", "speed_deg_s", "share_above_2_hz")
    return {
        n: np.median(v, axis=0).round(3).tolist()
        for n, v in zip(names, (spread, speed, quick), strict=True)
    }


def write_style(clips: list[Clip], style: dict, path: str | Path) -> None:
    """Save the style with the statistics it was fitted to."""
    facts = head_statistics([c.motion for c in clips if c.motion is not None])
    text = json.dumps({"style": style, "fitted_to": facts}, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")
