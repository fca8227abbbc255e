"""The mouth net and its critic (torch, training only).

A U-Net on the 128 px crop that computes at 64 px and below, but for two narrow last layers; no
normalisation layers, so a picture never depends on its batch or on its own statistics.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

SEEN = 4  # leading input channels (picture and mask) that the last layers see at full size


class Residual(nn.Module):
    """Two 3x3 convolutions around a skip; starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class Light(nn.Module):
    """One 3x3 convolution around a skip; starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.only = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.only.weight)
        nn.init.zeros_(self.only.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.only(F.relu(x))


class MouthUNet(nn.Module):
    """``(B, channels, 128, 128)`` maps to ``(B, 4, 128, 128)``: RGB about -1..1 (not clipped) and
    alpha in 0..1.

    The last input channel holds the gaps between generic teeth. The net says how much of them to add
    to its colour, pixel by pixel: from few faces it learns the tone of teeth long before their edges.

    Args:
        channels: of the maps `visavis.mouth.mouth_inputs` makes.
        widths: at 64, 32, 16 and 8 px.
        deep: residual blocks at 8 px.
    """

    def __init__(
        self, channels: int = 17, widths: tuple[int, ...] = (24, 48, 96, 128), deep: int = 1
    ):
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)
        )
        self.encode = nn.ModuleList(Light(w) for w in widths[:-1])
        self.middle = nn.Sequential(*(Residual(widths[-1]) for _ in range(deep)))
        self.merge = nn.ModuleList(nn.Conv2d(a + b, a, 1) for a, b in pairwise(widths))
        self.decode = nn.ModuleList(Residual(w) for w in widths[:-1])
        self.narrow = nn.Conv2d(widths[0], 8, 1)
        self.refine = nn.Conv2d(8 + SEEN, 7, 3, padding=1)
        self.head = nn.Conv2d(7, 5, 3, padding=1)
        with torch.no_grad():
            self.head.bias[3] = 0.8

    def forward(self, x: Tensor) -> Tensor:
        seen, gaps = x[:, :SEEN], x[:, -1:]
        x = self.stem(x)
        skips = []
        for block, down in zip(self.encode, self.down, strict=True):
            x = block(x)
            skips.append(x)
            x = down(F.relu(x))
        x = self.middle(x)
        for skip, merge, block in zip(
            reversed(skips), reversed(self.merge), reversed(self.decode), strict=True
        ):
            x = block(merge(torch.cat([skip, double(x)], 1)))
        x = double(self.narrow(F.relu(x)))
        x = self.head(F.relu(self.refine(torch.cat([x, seen], 1))))
        colour = x[:, :3] + x[:, 3:4] * gaps
        return torch.cat([colour, torch.sigmoid(x[:, 4:])], 1)


def double(x: Tensor) -> Tensor:
    """Twice the size, bilinear: nearest neighbour and depth-to-space left a grid on the teeth."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class MouthCritic(nn.Module):
    """Patch critic, spectrally normalised: ``(B, channels, H, W)`` to a logit map and its features.

    The receptive field is about 38 px (three teeth), so it judges texture and tooth shape, not who
    this is.
    """

    def __init__(self, channels: int = 6, width: int = 32):
        super().__init__()
        sizes = (channels, width, 2 * width, 4 * width)
        self.body = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, stride=2 if i < 2 else 1, padding=1))
            for i, (a, b) in enumerate(pairwise(sizes))
        )
        self.judge = spectral_norm(nn.Conv2d(sizes[-1], 1, 4, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for layer in self.body:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.judge(x), features


def multiply_adds(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of all convolutions for one input of ``shape`` (batch excluded)."""
    total = 0

    def count(layer: nn.Conv2d, _, out: Tensor) -> None:
        nonlocal total
        kernel = layer.weight[0].numel()
        total += kernel * out[0].numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        net(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return total
