"""The torch twin of ``visavis.motion``: causal convolutions, a GRU, two heads.

One network serves every look-ahead. It hears once and answers for all of them, each so far behind its
input as ``LOOKAHEAD_STEPS`` says; a one-hot picks the answer that is wanted. So every stretch of sound
teaches all of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

LOOKAHEAD_STEPS = {0: -1, 40: 1, 80: 3, 160: 7}
"""Look-ahead in ms -> steps the answer lies behind the input (-1: ahead, so no future sound)."""


@dataclass(frozen=True)
class NetConfig:
    """What every motion net takes and gives, and its width."""

    n_inputs: int = 166  # two features of 83
    n_outputs: int = 9
    n_phones: int = 40
    width: int = 256


@dataclass(frozen=True)
class MotionNetConfig(NetConfig):
    """Sizes; ``size`` of the recipe picks one of ``SIZES``."""

    hidden: int = 256
    dilations: tuple[int, ...] = (1, 2, 4)
    kernel: int = 3
    dropout: float = 0.1


SIZES = {
    "tiny": MotionNetConfig(width=32, hidden=32, dilations=(1, 2)),
    "small": MotionNetConfig(width=192, hidden=192),
    "base": MotionNetConfig(),
    "large": MotionNetConfig(width=384, hidden=512, dilations=(1, 2, 4, 1)),
}


class CausalBlock(nn.Module):
    """Residual dilated convolution over the past only; its memory is passed in and handed back."""

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float):
        super().__init__()
        self.context = (kernel - 1) * dilation
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, 2 * width, kernel, dilation=dilation)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` ``(B, T, C)``, ``past`` ``(B, context, C)`` -> the same shapes."""
        y = torch.cat([past, self.norm(x)], dim=1)
        a, b = self.conv(y.transpose(1, 2)).transpose(1, 2).chunk(2, dim=-1)
        return x + self.drop(a * torch.sigmoid(b)), y[:, -self.context :]


class Heads(nn.Module):
    """Motion and phones for every look-ahead from what a net has heard ``(B, T, width)``."""

    def __init__(self, width: int, config: NetConfig):
        super().__init__()
        self.motion = nn.Linear(width, len(LOOKAHEAD_STEPS) * config.n_outputs)
        self.phones = nn.Linear(width, len(LOOKAHEAD_STEPS) * config.n_phones)

    def forward(self, x: Tensor, lookahead: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both for the look-ahead of a one-hot ``(B, 4)``, else for all, ``(B, 4, T, n)``."""
        answers = (self.motion(x), self.phones(x))
        motion, phones = (a.unflatten(-1, (len(LOOKAHEAD_STEPS), -1)) for a in answers)
        if lookahead is None:
            return motion.transpose(1, 2), phones.transpose(1, 2)
        wanted = lookahead[:, None, :, None]
        return (motion * wanted).sum(2), (phones * wanted).sum(2)


class MotionNet(nn.Module):
    """Features ``(B, T, 166)`` to speech motion ``(B, T, 9)`` and phone logits ``(B, T, 40)``."""

    def __init__(self, config: MotionNetConfig):
        super().__init__()
        self.config = config
        c = config
        self.entry = nn.Linear(c.n_inputs, c.width)
        self.blocks = nn.ModuleList(
            CausalBlock(c.width, c.kernel, d, c.dropout) for d in c.dilations
        )
        self.norm = nn.LayerNorm(c.width)
        self.gru = nn.GRU(c.width, c.hidden, batch_first=True)
        self.drop = nn.Dropout(c.dropout)
        self.heads = Heads(c.hidden + c.width, c)
        self.register_buffer("mean", torch.zeros(c.n_outputs))
        self.register_buffer("scale", torch.ones(c.n_outputs))

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape without the batch of everything the network remembers."""
        shapes = {
            f"motion/conv{i}": (block.context, self.config.width)
            for i, block in enumerate(self.blocks)
        }
        return shapes | {"motion/gru": (self.config.hidden,)}

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """All zero."""
        return {k: torch.zeros(batch, *s) for k, s in self.state_shapes().items()}

    def forward(
        self, features: Tensor, lookahead: Tensor | None, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One chunk.

        Args:
            features: ``(B, T, 166)``.
            lookahead: ``(B, 4)`` one-hot in the order of ``LOOKAHEAD_STEPS``; ``None`` asks for the
                answers at all of them, ``(B, 4, T, ...)``.
            state: see ``state_shapes``.
        """
        following = {}
        x = self.entry(features)
        for i, block in enumerate(self.blocks):
            x, following[f"motion/conv{i}"] = block(x, state[f"motion/conv{i}"])
        y, h = self.gru(self.norm(x), state["motion/gru"][None])
        following["motion/gru"] = h[0]
        joint = self.drop(torch.cat([x, y], dim=-1))
        motion, phones = self.heads(joint, lookahead)
        return motion * self.scale + self.mean, phones, following

    def describe(self) -> dict:
        """Sizes as plain data, for checkpoints and model.json."""
        return asdict(self.config)
