"""The transformer beside ``models.motion``: causal attention over a bounded window of the past.

Its memory is the keys and values of the last ``window`` steps and which of them are real, passed in
and handed back like any other state; the oldest falls out as a new one comes in. Steps know how far
apart they are (a learned bias per head and distance), never where they stand, so a stream of any
length looks the same.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from visavis.models.motion import CausalBlock, Heads, NetConfig

HIDDEN_SCORE = -1e4  # of a key that must not be seen; finite, so that half precision is safe


@dataclass(frozen=True)
class TransformerConfig(NetConfig):
    """Sizes; ``size`` of the recipe picks one of ``SIZES``."""

    layers: int = 4
    heads: int = 4
    window: int = 50  # steps of the past a step sees, besides itself: 1 s
    spread: int = 2  # width of the feed-forward part over ``width``
    kernel: int = 3
    dropout: float = 0.1


SIZES = {
    "tiny": TransformerConfig(width=32, layers=2, heads=2, window=20),
    "small": TransformerConfig(width=192, layers=3),
    "base": TransformerConfig(),
    "large": TransformerConfig(width=384, layers=6, heads=6),
}


class Attention(nn.Module):
    """Causal self-attention over new steps and a cache of ``window`` old ones."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.queries = nn.Linear(width, width)
        self.pairs = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.nearness = nn.Parameter(torch.zeros(heads, window + 1))  # by distance in steps
        with torch.no_grad():  # heads start out with reaches from short to the whole window
            fall = torch.logspace(0, -2, heads)[:, None]
            self.nearness -= fall * torch.arange(window + 1.0)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> tuple:
        """``x`` ``(B, T, C)``, caches ``(B, W, C)``, ``hidden`` ``(B, 1, T, W + T)`` added to scores.

        Returns:
            ``(B, T, C)`` and the two caches moved on by T.
        """
        new_keys, new_values = self.pairs(x).chunk(2, dim=-1)
        keys = torch.cat([keys, new_keys], dim=1)
        values = torch.cat([values, new_values], dim=1)
        q, k, v = (self._split(part) for part in (self.queries(x), keys, values))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        distance = _distances(x.shape[1], self.window).to(x.device)
        bias = self.nearness[:, distance.clamp(0, self.window)]
        mixed = torch.softmax(scores + bias + hidden, dim=-1) @ v
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.out(mixed), keys[:, -self.window :], values[:, -self.window :]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, x.shape[-1] // self.heads)).transpose(1, 2)


def _distances(steps: int, window: int) -> Tensor:
    """How many steps each key lies behind each query, ``(T, W + T)``; negative ahead of it."""
    return torch.arange(steps)[:, None] + window - torch.arange(window + steps)[None]


class Layer(nn.Module):
    """Attention and a feed-forward part, each normalised before and added after."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        c = config
        self.before = nn.LayerNorm(c.width)
        self.attention = Attention(c.width, c.heads, c.window)
        self.between = nn.LayerNorm(c.width)
        self.wide = nn.Linear(c.width, c.spread * c.width)
        self.narrow = nn.Linear(c.spread * c.width, c.width)
        self.drop = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> tuple:
        seen, keys, values = self.attention(self.before(x), keys, values, hidden)
        x = x + self.drop(seen)
        y = nn.functional.gelu(self.wide(self.between(x)))
        return x + self.drop(self.narrow(y)), keys, values


class MotionTransformer(nn.Module):
    """Features ``(B, T, 166)`` to speech motion ``(B, T, 9)`` and phone logits ``(B, T, 40)``."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        c = config
        self.entry = nn.Linear(c.n_inputs, c.width)
        self.stem = CausalBlock(c.width, c.kernel, 1, c.dropout)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        self.heads = Heads(c.width, c)
        self.register_buffer("mean", torch.zeros(c.n_outputs))
        self.register_buffer("scale", torch.ones(c.n_outputs))

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape without the batch of everything the network remembers.

        ``motion/seen`` is 1 where the caches hold a step and 0 where nothing came yet.
        """
        c = self.config
        shapes = {"motion/stem": (self.stem.context, c.width), "motion/seen": (c.window,)}
        for i in range(c.layers):
            shapes |= {f"motion/{part}{i}": (c.window, c.width) for part in ("keys", "values")}
        return shapes

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """All zero: nothing seen."""
        device = self.mean.device
        return {k: torch.zeros(batch, *s, device=device) for k, s in self.state_shapes().items()}

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
        steps, window, following = features.shape[1], self.config.window, {}
        x = self.entry(features)
        x, following["motion/stem"] = self.stem(x, state["motion/stem"])
        seen = torch.cat([state["motion/seen"], torch.ones_like(features[..., 0])], dim=1)
        following["motion/seen"] = seen[:, -window:]
        distance = _distances(steps, window).to(x.device)
        reachable = ((distance >= 0) & (distance <= window)).to(seen.dtype)
        hidden = (1.0 - seen[:, None, None, :] * reachable) * HIDDEN_SCORE
        for i, layer in enumerate(self.layers):
            x, following[f"motion/keys{i}"], following[f"motion/values{i}"] = layer(
                x, state[f"motion/keys{i}"], state[f"motion/values{i}"], hidden
            )
        motion, phones = self.heads(self.norm(x), lookahead)
        return motion * self.scale + self.mean, phones, following

    def describe(self) -> dict:
        """Sizes as plain data, for checkpoints and model.json."""
        return asdict(self.config)
