"""The matting net (torch, training only): a photo and where its face is to the person's alpha.

A U-Net on the 192 px crop that computes at 96 px and below, but for two narrow last layers; no
normalisation layers, so a matte never depends on its batch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visavis.models.mouth import Light, Residual, double

COLOURS = 3  # leading input channels that the last layers see at full size


class MatteUNet(nn.Module):
    """``(B, channels, 192, 192)`` maps to ``(B, 1, 192, 192)`` alpha in 0..1.

    Args:
        channels: of the maps `visavis.matte.matte_inputs` makes.
        widths: at 96, 48, 24, 12 and 6 px.
        deep: residual blocks at 6 px.
    """

    def __init__(
        self, channels: int, widths: tuple[int, ...] = (16, 32, 64, 96, 128), deep: int = 1
    ):
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)
        )
        self.encode = nn.ModuleList(Light(w) for w in widths[:-1])
        self.middle = nn.Sequential(*(Residual(widths[-1]) for _ in range(deep)))
        self.whole = nn.Linear(widths[-1], widths[-1])
        self.merge = nn.ModuleList(nn.Conv2d(a + b, a, 1) for a, b in pairwise(widths))
        self.decode = nn.ModuleList(Residual(w) for w in widths[:-1])
        self.narrow = nn.Conv2d(widths[0], 8, 1)
        self.refine = nn.Conv2d(8 + COLOURS, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 1, 3, padding=1)
        # nothing normalises: without this the signal dies on its way and little is learned for long
        for layer in (self.stem, *self.down, *self.merge, self.narrow, self.refine):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def logits(self, x: Tensor) -> Tensor:
        """Alpha before the sigmoid."""
        seen = x[:, :COLOURS]
        x = self.stem(x)
        skips = []
        for block, down in zip(self.encode, self.down, strict=True):
            x = block(x)
            skips.append(x)
            x = down(F.relu(x))
        x = self.middle(x)
        x = x + self.whole(F.relu(x).mean((2, 3)))[..., None, None]
        for skip, merge, block in zip(
            reversed(skips), reversed(self.merge), reversed(self.decode), strict=True
        ):
            x = block(merge(torch.cat([skip, double(x)], 1)))
        x = double(self.narrow(F.relu(x)))
        return self.head(F.relu(self.refine(torch.cat([x, seen], 1))))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(x))
