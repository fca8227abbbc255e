"""How well a motion net hears phones: its second head, which the exported graph leaves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from visavis.features import SILENCE
from visavis.models.motion import LOOKAHEAD_STEPS
from visavis.train.clips import Clip
from visavis.train.data import extract
from visavis.train.phones import PHONES, VISEMES, viseme_of_phone
from visavis.types import FEATURES_PER_MOTION

UNKNOWN = 255


def load_hearing(run: str | Path) -> torch.nn.Module:
    """The averaged weights of a training run, with both heads."""
    from visavis.train.cli import load_average

    return load_average(run)


def hear(clips: list[Clip]) -> dict[str, np.ndarray]:
    """Features ``(n, 83)`` of each clip by its name."""
    return {c.name: extract(c.pcm.astype(np.float32) / 32768.0) for c in clips}


@torch.no_grad()
def phone_odds(
    net: torch.nn.Module,
    clips: list[Clip],
    lookahead_ms: int,
    heard: dict[str, np.ndarray],
    batch: int = 16,
) -> list[np.ndarray]:
    """Phone probabilities ``(T, 40)`` at 50 Hz of each clip, at the step they are about.

    Args:
        net: of ``load_hearing``.
        clips: with sound.
        lookahead_ms: one of ``LOOKAHEAD_STEPS``.
        heard: of ``hear``.
        batch: clips side by side; those after a clip's end hear silence.
    """
    choice, behind = list(LOOKAHEAD_STEPS).index(lookahead_ms), LOOKAHEAD_STEPS[lookahead_ms]
    wanted = torch.eye(len(LOOKAHEAD_STEPS))[choice]
    found: dict[str, np.ndarray] = {}
    by_length = sorted(clips, key=lambda c: len(c.pcm))
    for start in range(0, len(by_length), batch):
        group = by_length[start : start + batch]
        rows = [heard[c.name] for c in group]
        steps = max(len(h) for h in rows) // FEATURES_PER_MOTION + 1 + max(behind, 0)
        features = np.tile(SILENCE.astype(np.float32), (len(group), FEATURES_PER_MOTION * steps, 1))
        for row, h in zip(features, rows, strict=True):
            row[: len(h)] = h
        if behind < 0:  # the answer for step m is due before step m is heard
            quiet = np.tile(SILENCE.astype(np.float32), (len(group), -2 * behind, 1))
            features = np.concatenate([quiet, features], axis=1)
        pairs = torch.from_numpy(features.reshape(len(group), features.shape[1] // 2, -1))
        logits = net(pairs, wanted.expand(len(group), -1), net.init_state(len(group)))[1]
        odds = torch.softmax(logits, -1).numpy()
        first = max(behind, 0)
        for clip, row in zip(group, odds, strict=True):
            found[clip.name] = row[first : first + clip.steps]
    return [found[c.name] for c in clips]


def phone_scores(odds: list[np.ndarray], clips: list[Clip]) -> dict[str, float]:
    """Shares of 20 ms steps named right: phones, phones outside silence, visemes.

    Visemes are the 11 classes of ``VISEMES``; their odds are sums over their phones.
    """
    groups = np.zeros((len(PHONES), len(VISEMES)), np.float32)
    groups[np.arange(len(PHONES)), viseme_of_phone()] = 1.0
    truth, answers, looks = [], [], []
    for row, clip in zip(odds, clips, strict=True):
        labels = clip.phones[np.minimum(np.arange(len(row)) * 2, len(clip.phones) - 1)]
        known = labels != UNKNOWN
        truth.append(labels[known].astype(np.int64))
        answers.append(row[known].argmax(-1))
        looks.append((row[known] @ groups).argmax(-1))
    t, a, v = (np.concatenate(x) for x in (truth, answers, looks))
    spoken = t > 0
    right = v == viseme_of_phone()[t]
    return {
        "phones": round(float((a == t).mean()), 3),
        "phones_in_speech": round(float((a == t)[spoken].mean()), 3),
        "visemes": round(float(right.mean()), 3),
        "visemes_in_speech": round(float(right[spoken].mean()), 3),
    }
