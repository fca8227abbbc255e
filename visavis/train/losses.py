"""What a motion net is taught by: where the mouth is, how it moves, and that shut means shut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from visavis.types import SPEECH_CHANNELS

_JAW = SPEECH_CHANNELS.index("jaw_open")
# Importance by channel: lips first, then what is measured with more noise.
CHANNEL_WEIGHT = (3.5, 1.5, 0.6, 1.0, 0.7, 1.0, 0.5, 0.6, 0.6)
SHUT = 0.012  # lip opening, in eye distances, that is tracked on lips that touch


@dataclass(frozen=True)
class LossWeights:
    """Factors of the terms of ``motion_loss``."""

    regression: float = 1.0
    velocity: float = 2.0
    acceleration: float = 0.5
    closure: float = 0.08
    amplitude: float = 0.1
    phones: float = 0.15


def motion_loss(
    motion: Tensor,
    logits: Tensor,
    target: Tensor,
    known: Tensor,
    phones: Tensor,
    scale: Tensor,
    weights: LossWeights,
) -> dict[str, Tensor]:
    """The terms, weighted; their sum is the loss.

    Args:
        motion: ``(B, T, 9)`` answered.
        logits: ``(B, T, 40)`` phones answered.
        target: ``(B, T, 9)``.
        known: ``(B, T)`` weight of each step.
        phones: ``(B, T)`` int64, -100 where unknown.
        scale: ``(9,)`` standard deviation of each channel.
        weights: of the terms.
    """  # fmt: skip
    importance = torch.tensor(CHANNEL_WEIGHT, dtype=motion.dtype) / sum(CHANNEL_WEIGHT)
    error = (motion - target) / scale

    def mean(value: Tensor, weight: Tensor) -> Tensor:
        per_step = F.smooth_l1_loss(value, torch.zeros_like(value), reduction="none") * importance
        return (per_step.sum(-1) * weight).sum() / weight.sum().clamp(min=1.0)

    pair = torch.minimum(known[:, 1:], known[:, :-1])
    triple = torch.minimum(pair[:, 1:], pair[:, :-1])
    velocity = error[:, 1:] - error[:, :-1]
    acceleration = velocity[:, 1:] - velocity[:, :-1]

    jaw, goal = motion[..., _JAW], target[..., _JAW]
    shut = known * (goal < SHUT)
    over = torch.relu(jaw - 0.5 * SHUT) / scale[_JAW]

    count = known.sum(1).clamp(min=1.0)

    def spread(x: Tensor) -> Tensor:
        middle = (x * known).sum(1, keepdim=True) / count[:, None]
        return (((x - middle) ** 2 * known).sum(1) / count + 1e-6).sqrt()

    whole = (known.sum(1) > 0.5 * known.shape[1]).to(motion.dtype)
    amplitude = (torch.abs(spread(jaw) - spread(goal)) / scale[_JAW] * whole).mean()
    heard = (phones >= 0).any()
    said = F.cross_entropy(logits.transpose(1, 2), phones) if heard else logits.sum() * 0.0
    return {
        "regression": weights.regression * mean(error, known),
        "velocity": weights.velocity * mean(velocity, pair),
        "acceleration": weights.acceleration * mean(acceleration, triple),
        "closure": weights.closure * (over * shut).sum() / shut.sum().clamp(min=1.0),
        "amplitude": weights.amplitude * amplitude,
        "phones": weights.phones * said,
    }
