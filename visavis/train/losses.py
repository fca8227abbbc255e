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
    amplitude: float = 0.7
    phones: float = 0.3


def loss_counts(target: Tensor, known: Tensor, phones: Tensor) -> dict[str, float]:
    """What each term of ``motion_loss`` is divided by, from the answers wanted alone.

    Those of a whole batch make the losses of its parts add up to the loss of the whole.

    Args:
        target: ``(B, T, 9)``.
        known: ``(B, T)`` weight of each step.
        phones: ``(B, T)`` int64, -100 where unknown.
    """
    pair, triple = _neighbours(known)
    sums = {
        "regression": known.sum(),
        "velocity": pair.sum(),
        "acceleration": triple.sum(),
        "closure": (known * (target[..., _JAW] < SHUT)).sum(),
        "amplitude": len(known),
        "phones": (phones >= 0).sum(),
    }
    return {k: max(float(v), 1.0) for k, v in sums.items()}


def motion_loss(
    motion: Tensor,
    logits: Tensor,
    target: Tensor,
    known: Tensor,
    phones: Tensor,
    scale: Tensor,
    weights: LossWeights,
    counts: dict[str, float] | None = None,
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
        counts: ``loss_counts`` of the whole batch where these rows are a part of one.
    """
    importance = motion.new_tensor(CHANNEL_WEIGHT) / sum(CHANNEL_WEIGHT)
    counts = counts or loss_counts(target, known, phones)
    error = (motion - target) / scale

    def total(value: Tensor, weight: Tensor) -> Tensor:
        per_step = F.smooth_l1_loss(value, torch.zeros_like(value), reduction="none") * importance
        return (per_step.sum(-1) * weight).sum()

    pair, triple = _neighbours(known)
    velocity = error[:, 1:] - error[:, :-1]
    acceleration = velocity[:, 1:] - velocity[:, :-1]
    jaw, goal = motion[..., _JAW], target[..., _JAW]
    shut = known * (goal < SHUT)
    over = torch.relu(jaw - 0.5 * SHUT) / scale[_JAW]
    spreads = torch.abs(_spread(motion, known) - _spread(target, known)) / scale
    heard = (phones >= 0).any()
    said = (
        F.cross_entropy(logits.transpose(1, 2), phones, reduction="sum")
        if heard
        else logits.sum() * 0.0
    )
    sums = {
        "regression": total(error, known),
        "velocity": total(velocity, pair),
        "acceleration": total(acceleration, triple),
        "closure": (over * shut).sum(),
        "amplitude": ((spreads * importance).sum(-1) * _row_weight(known)).sum(),
        "phones": said,
    }
    return {k: getattr(weights, k) * v / counts[k] for k, v in sums.items()}


def _neighbours(known: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of two and of three steps in a row: ``(B, T - 1)`` and ``(B, T - 2)``."""
    pair = torch.minimum(known[:, 1:], known[:, :-1])
    return pair, torch.minimum(pair[:, 1:], pair[:, :-1])


def _spread(x: Tensor, known: Tensor) -> Tensor:
    """Standard deviation ``(B, C)`` of each row of ``(B, T, C)`` over its known steps."""
    share = (known / known.sum(1, keepdim=True).clamp(min=1e-6))[..., None]
    middle = (x * share).sum(1, keepdim=True)
    return (((x - middle) ** 2 * share).sum(1) + 1e-6).sqrt()


def _row_weight(known: Tensor) -> Tensor:
    """Mean weight ``(B,)`` of each row's known steps, 0 where less than half of them are known."""
    steps = (known > 0).sum(1)
    return known.sum(1) / steps.clamp(min=1) * (steps > 0.5 * known.shape[1])
