"""The motion autoencoder: named channels and mouth vertices to a small smooth code and back to a mesh.

Both halves are a linear map plus a small net that starts at zero, so that training begins at the
principal components it is started from and adds what lines cannot say.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes.

    Attributes:
        n_channels: named channels in.
        n_vertices: vertices in and out.
        latent: numbers of the code, 8 to 32.
        hidden: width of the small nets.
    """

    n_channels: int = 11
    n_vertices: int = 280
    latent: int = 16
    hidden: int = 128


class MotionAutoencoder(nn.Module):
    """Channels ``(..., C)`` and offsets ``(..., V, 3)`` to a code ``(..., latent)`` and back."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        c = config
        n_in, n_out = c.n_channels + 3 * c.n_vertices, 3 * c.n_vertices
        self.to_code = nn.Linear(n_in, c.latent)
        self.bend_code = _small_net(n_in, c.hidden, 2 * c.latent)
        self.to_mesh = nn.Linear(c.latent, n_out)
        self.bend_mesh = _small_net(c.latent, c.hidden, n_out)
        self.register_buffer("channel_scale", torch.ones(c.n_channels))
        self.register_buffer("mesh_scale", torch.ones(()))

    def start(self, mean: Tensor, components: Tensor, spread: Tensor) -> None:
        """Begin at principal components, code of unit variance.

        Args:
            mean: ``(3 V,)`` offsets over ``mesh_scale``.
            components: ``(latent, 3 V)`` orthonormal rows.
            spread: ``(latent,)`` standard deviation along each.
        """
        with torch.no_grad():
            self.to_code.weight.zero_()
            self.to_code.weight[:, self.config.n_channels :] = components / spread[:, None]
            self.to_code.bias[:] = -(components @ mean) / spread
            self.to_mesh.weight[:] = (components * spread[:, None]).T
            self.to_mesh.bias[:] = mean

    def encode(self, channels: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The code and the logarithm of its variance, both ``(..., latent)``."""
        x = [channels / self.channel_scale, offsets.flatten(-2) / self.mesh_scale]
        x = torch.cat(x, dim=-1)
        shift, log_variance = self.bend_code(x).chunk(2, dim=-1)
        return self.to_code(x) + shift, log_variance - 4.0

    def decode(self, code: Tensor) -> Tensor:
        """Offsets ``(..., V, 3)`` in eye distances."""
        flat = (self.to_mesh(code) + self.bend_mesh(code)) * self.mesh_scale
        return flat.unflatten(-1, (self.config.n_vertices, 3))

    def forward(self, channels: Tensor, offsets: Tensor) -> Tensor:
        """There and back, without chance."""
        return self.decode(self.encode(channels, offsets)[0])

    def describe(self) -> dict:
        """Sizes as plain data."""
        return asdict(self.config)


def _small_net(n_in: int, hidden: int, n_out: int) -> nn.Sequential:
    """One hidden layer whose answer is zero at first."""
    last = nn.Linear(hidden, n_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(n_in, hidden), nn.GELU(), last)
