"""The head net of tier `full`, its identity encoder and what unrolls them (torch, training only).

A U-Net on the 256 px head crop that computes at 128 px and below, but for three narrow last layers.
It carries its own last picture and a gated memory from frame to frame as plain arguments; no layer
normalises, so a frame never depends on its batch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visavis.models.mouth import Light, Residual, double

UNDER, LIMIT = slice(0, 3), slice(12, 13)  # of the maps of `visavis.head.head_inputs`
MASKS = slice(9, 12)
MEMORY_LEVEL = 2  # of the widths, at an eighth of the picture's side
MEMORY_STRIDE = 8


class IdentityEncoder(nn.Module):
    """``(B, 6, 256, 256)`` photo and place on the head to a code ``(B, code)``."""

    def __init__(self, channels: int, code: int, width: int = 16):
        super().__init__()
        sizes = (channels, width, 2 * width, 3 * width, 4 * width, 6 * width)
        self.body = nn.ModuleList(
            nn.Conv2d(a, b, 4 if i == 0 else 3, stride=2, padding=1)
            for i, (a, b) in enumerate(pairwise(sizes))
        )
        self.out = nn.Linear(sizes[-1], code)

    def forward(self, photo: Tensor) -> Tensor:
        for layer in self.body:
            photo = F.relu(layer(photo))
        return torch.tanh(self.out(photo.mean((2, 3))))


class Gate(nn.Module):
    """Features through a memory that is overwritten as far as the features say."""

    def __init__(self, width: int, memory: int):
        super().__init__()
        self.memory = memory
        self.fresh = nn.Conv2d(width + memory, 2 * memory, 3, padding=1)
        self.read = nn.Conv2d(memory, width, 1)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        value, share = self.fresh(torch.cat([x, memory], 1)).split(self.memory, 1)
        memory = memory + torch.sigmoid(share) * (torch.tanh(value) - memory)
        return x + self.read(memory), memory


class Modulate(nn.Module):
    """Scale and shift of every channel by identity and motion; starts as the identity."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.both = nn.Linear(inputs, 2 * width)
        nn.init.zeros_(self.both.weight)
        nn.init.zeros_(self.both.bias)

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        scale, shift = self.both(by)[..., None, None].chunk(2, 1)
        return x * (1 + scale) + shift


class HeadUNet(nn.Module):
    """One frame: what the maps show, who it is, how the face moves and what was before.

    Args:
        inputs: maps of `visavis.head.head_inputs`.
        motion: channels of a motion row.
        code: numbers of an identity.
        widths: at a half, a quarter, an eighth and a sixteenth of the picture's side.
        deep: residual blocks at the last of them.
        memory: channels carried from frame to frame, at an eighth.
    """

    def __init__(
        self,
        inputs: int = 13,
        motion: int = 21,
        code: int = 32,
        widths: tuple[int, ...] = (24, 48, 96, 128),
        deep: int = 2,
        memory: int = 16,
    ):
        super().__init__()
        self.stem = nn.Conv2d(inputs + 4, widths[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)
        )
        self.encode = nn.ModuleList(Light(w) for w in widths[:-1])
        self.gate = Gate(widths[MEMORY_LEVEL], memory)
        self.modulate = nn.ModuleList(Modulate(code + motion, w) for w in widths[MEMORY_LEVEL:])
        self.middle = nn.Sequential(*(Residual(widths[-1]) for _ in range(deep)))
        self.merge = nn.ModuleList(nn.Conv2d(a + b, a, 1) for a, b in pairwise(widths))
        self.decode = nn.ModuleList(Residual(w) for w in widths[:-1])
        self.narrow = nn.Conv2d(widths[0], 12, 1)
        self.refine = nn.Conv2d(12 + 6, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 4, 3, padding=1)
        with torch.no_grad():
            self.head.weight[:3], self.head.bias[:3] = 0.0, 0.0  # the photo stands at first

    def forward(
        self, inputs: Tensor, code: Tensor, motion: Tensor, rgb: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Paint a frame.

        Args:
            inputs: ``(B, inputs, H, H)``.
            code: ``(B, code)``.
            motion: ``(B, motion)``.
            rgb: ``(B, 4, H, H)``, the last picture as it was shown and 1, or zeros.
            memory: ``(B, memory, H / 8, H / 8)``.

        Returns:
            ``(B, 3, H, H)`` what to add to the frame, cover times the difference of colours; the
            next ``rgb`` and ``memory``.
        """
        under, limit = inputs[:, UNDER], inputs[:, LIMIT]
        by = torch.cat([code, motion / _usual(motion)], 1)
        x, memory = self._features(torch.cat([inputs, rgb], 1), by, memory)
        seen = torch.cat([double(self.narrow(F.relu(x))), under, inputs[:, MASKS]], 1)
        out = self.head(F.relu(self.refine(seen)))
        paint = out[:, :3] * torch.sigmoid(out[:, 3:]) * limit  # difference of colours, cover
        return paint, torch.cat([under + paint, rgb[:, 3:] * 0 + 1], 1), memory

    def _features(self, x: Tensor, by: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Maps at half size, and the memory after this frame."""
        x, skips = self.stem(x), []
        for level, (block, down) in enumerate(zip(self.encode, self.down, strict=True)):
            x = block(x)
            if level == MEMORY_LEVEL:
                x, memory = self.gate(self.modulate[0](x, by), memory)
            skips.append(x)
            x = down(F.relu(x))
        x = self.middle(self.modulate[1](x, by))
        for skip, merge, block in zip(
            reversed(skips), reversed(self.merge), reversed(self.decode), strict=True
        ):
            x = block(merge(torch.cat([skip, double(x)], 1)))
        return x, memory

    def first(self, batch: int, side: int) -> tuple[Tensor, Tensor]:
        """``rgb`` and ``memory`` of no previous frame, for pictures of ``side`` px."""
        small = side // MEMORY_STRIDE
        device = self.stem.weight.device
        return (
            torch.zeros(batch, 4, side, side, device=device),
            torch.zeros(batch, self.gate.memory, small, small, device=device),
        )


def _usual(motion: Tensor) -> Tensor:
    """Half the range of every channel, so that all come in about -1..1."""
    from visavis.types import RANGE_HIGH, RANGE_LOW

    return torch.from_numpy((RANGE_HIGH - RANGE_LOW) / 2).to(motion)


class HeadTalker(nn.Module):
    """Identity encoder and net, run over a few frames: what is trained, and shared by processes."""

    def __init__(self, encoder: IdentityEncoder, net: HeadUNet):
        super().__init__()
        self.encoder, self.net = encoder, net

    def forward(
        self, photo: Tensor, inputs: Tensor, motion: Tensor, rgb: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Paint a few frames one after another.

        Args:
            photo: ``(B, 6, H, H)``.
            inputs: ``(B, T, C, H, H)``.
            motion: ``(B, T, D)``.
            rgb: ``(B, 4, H, H)`` the picture before the first frame, or zeros.

        Returns:
            ``(B, T, 3, H, H)`` what was added and ``(B, T, 3, H, H)`` pictures as shown, float32.
        """
        code = self.encoder(photo)
        _, memory = self.net.first(len(inputs), inputs.shape[-1])
        paint, shown = [], []
        for t in range(inputs.shape[1]):
            out, rgb, memory = self.net(inputs[:, t], code, motion[:, t], rgb, memory)
            paint.append(out.float())
            shown.append(rgb[:, :3].float())
        return torch.stack(paint, 1), torch.stack(shown, 1)
