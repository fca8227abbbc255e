"""The torch twin of ``visavis.motion``: causal convolutions, a GRU, two heads.

One network serves every look-ahead: which one is wanted comes in as a one-hot, and decides only how
far behind its input the network is asked to answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

LOOKAHEAD_STEPS = {0: -1, 40: 1, 80: 3, 160: 7}
"""Look-ahead in ms -> steps the answer lies behind the input (-1: ahead, so no future sound)."""


@dataclass(frozen=True)
class MotionNetConfig:
    """Sizes; ``size`` of the recipe picks one of ``SIZES``."""

    n_inputs: int = 166  # two features of 83
    n_outputs: int = 9
    n_phones: int = 40
    width: int = 256
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


class MotionNet(nn.Module):
    """Features ``(B, T, 166)`` to speech motion ``(B, T, 9)`` and phone logits ``(B, T, 40)``."""

    def __init__(self, config: MotionNetConfig):
        super().__init__()
        self.config = config
        c = config
        self.entry = nn.Linear(c.n_inputs + len(LOOKAHEAD_STEPS), c.width)
        self.blocks = nn.ModuleList(
            CausalBlock(c.width, c.kernel, d, c.dropout) for d in c.dilations
        )
        self.norm = nn.LayerNorm(c.width)
        self.gru = nn.GRU(c.width, c.hidden, batch_first=True)
        self.drop = nn.Dropout(c.dropout)
        self.head = nn.Linear(c.hidden + c.width, c.n_outputs)
        self.phones = nn.Linear(c.hidden + c.width, c.n_phones)
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
        self, features: Tensor, lookahead: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One chunk.

        Args:
            features: ``(B, T, 166)``.
            lookahead: ``(B, 4)`` one-hot in the order of ``LOOKAHEAD_STEPS``.
            state: see ``state_shapes``.
        """
        following = {}
        wanted = lookahead[:, None, :].expand(-1, features.shape[1], -1)
        x = self.entry(torch.cat([features, wanted], dim=-1))
        for i, block in enumerate(self.blocks):
            x, following[f"motion/conv{i}"] = block(x, state[f"motion/conv{i}"])
        y, h = self.gru(self.norm(x), state["motion/gru"][None])
        following["motion/gru"] = h[0]
        joint = self.drop(torch.cat([x, y], dim=-1))
        return self.head(joint) * self.scale + self.mean, self.phones(joint), following

    def describe(self) -> dict:
        """Sizes as plain data, for checkpoints and model.json."""
        return asdict(self.config)
