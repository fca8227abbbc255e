"""Losses of the renderer nets: pixels, gradients, perceptual and identity distances, a patch critic.

The perceptual distance is LPIPS-like: SqueezeNet 1.1 features with the published linear heads. The
backbone is the Keras port of the Caffe weights, not torchvision's, hence its own name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visavis.errors import ModelError

_TAPS = (None, 3, 5, 6, 7, 8, 9)  # conv1, then the fire modules that the heads read
_POOL_BEFORE = (2, 4, 6)


class Perceptual(nn.Module):
    """Distance of two pictures ``(B, 3, H, W)`` in -1..1, ``(B,)``; not trained.

    Args:
        models: folder with ``squeezenet_v1.1_notop.h5`` and ``lpips_lin_squeeze_v0.1.pth``.
    """

    def __init__(self, models: Path):
        import h5py  # only here: a run without this loss does not need it

        super().__init__()
        weights: dict[str, Tensor] = {}

        def read(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                block, part, *_ = name.split("/")
                kind = "kernel" if "kernel" in name else "bias"
                value = torch.from_numpy(np.array(item, np.float32))
                key = f"{block}_{part}" if block.startswith("fire") else block
                weights[f"{key}_{kind}"] = value.permute(3, 2, 0, 1) if value.ndim == 4 else value

        with h5py.File(models / "squeezenet_v1.1_notop.h5") as file:
            file.visititems(read)
        for name, value in weights.items():
            self.register_buffer(name, value.contiguous())
        heads = torch.load(
            models / "lpips_lin_squeeze_v0.1.pth", weights_only=True, map_location="cpu"
        )
        for i in range(len(_TAPS)):
            self.register_buffer(f"head{i}", heads[f"lin{i}.model.1.weight"].reshape(1, -1, 1, 1))
        self.register_buffer("mean", torch.tensor([103.939, 116.779, 123.68]).reshape(1, 3, 1, 1))

    def features(self, rgb: Tensor) -> list[Tensor]:
        """Unit-length feature maps at the seven taps."""
        x = (rgb.flip(1) + 1) * 127.5 - self.mean
        x = F.relu(F.conv2d(x, self.conv1_kernel, self.conv1_bias, stride=2))
        taps = [x]
        for fire in range(2, 10):
            if fire in _POOL_BEFORE:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = self._fire(x, fire)
            if fire in _TAPS:
                taps.append(x)
        return [t * torch.rsqrt(t.square().sum(1, keepdim=True) + 1e-8) for t in taps]

    def _fire(self, x: Tensor, fire: int) -> Tensor:
        def layer(name: str, pad: int, x: Tensor) -> Tensor:
            kernel, bias = (getattr(self, f"fire{fire}_{name}_{k}") for k in ("kernel", "bias"))
            return F.relu(F.conv2d(x, kernel, bias, padding=pad))

        x = layer("squeeze1x1", 0, x)
        return torch.cat([layer("expand1x1", 0, x), layer("expand3x3", 1, x)], 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            real = self.features(b)
        total = torch.zeros(len(a), device=a.device)
        for i, (x, y) in enumerate(zip(self.features(a), real, strict=True)):
            apart = ((x - y).square() * getattr(self, f"head{i}")).sum(1)
            total = total + apart.mean((1, 2)).float()
        return total


def masked_l1(a: Tensor, b: Tensor, mask: Tensor, floor: float) -> Tensor:
    """Mean absolute difference under a mask; per picture first, so that small mouths count too.

    ``floor`` (mask pixels) keeps nearly shut mouths from weighing as much as open ones.
    """
    total = ((a - b).abs().mean(1, keepdim=True) * mask).sum((1, 2, 3))
    return (total / (mask.sum((1, 2, 3)) + floor)).mean()


def pixel_loss(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """`masked_l1` at full, half and quarter size."""
    loss = masked_l1(a, b, mask, 150.0)
    for _ in range(2):
        a, b, mask = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2), F.avg_pool2d(mask, 2)
        loss = loss + masked_l1(a, b, mask, 20.0)
    return loss / 3


def gradients(x: Tensor) -> Tensor:
    """Forward differences along x and y, ``(B, 2C, H, W)``; zero at the far edges."""
    dx = F.pad(x[..., :, 1:] - x[..., :, :-1], (0, 1, 0, 0))
    dy = F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    return torch.cat([dx, dy], 1)


def gradient_loss(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """`masked_l1` of the gradients."""
    return masked_l1(gradients(a), gradients(b), mask, 150.0)


def gradient_energy(x: Tensor, mask: Tensor) -> Tensor:
    """Mean squared gradient under the mask, ``(B,)``."""
    energy = (gradients(x).square().mean(1, keepdim=True) * mask).sum((1, 2, 3))
    return energy / (mask.sum((1, 2, 3)) + 1e-3)


def energy_loss(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """How far the gradient energy is from the real one, in logarithms."""
    ratio = (gradient_energy(a, mask) + 1e-4) / (gradient_energy(b, mask) + 1e-4)
    return ratio.log().abs().mean()


def critic_loss(real: Tensor, fake: Tensor, mask: Tensor) -> Tensor:
    """Hinge loss on logit maps, averaged where ``mask`` (same size) is."""
    weight = mask / mask.sum().clamp_min(1.0)
    return ((F.relu(1 - real) + F.relu(1 + fake)) * weight).sum()


def fooling_loss(fake: Tensor, mask: Tensor) -> Tensor:
    """The generator's side of `critic_loss`."""
    return -(fake * mask).sum() / mask.sum().clamp_min(1.0)


class Identity(nn.Module):
    """Distance of two faces' embeddings, 1 - cosine; not trained.

    The graph of face-reidentification-retail-0095 (Intel Open Model Zoo, Apache-2.0) run in torch,
    operation by operation, so that a gradient comes through.

    Args:
        models: folder with ``face-reidentification-retail-0095.xml``.

    Raises:
        ModelError: the graph has an operation that is not known here.
    """

    def __init__(self, models: Path):
        import openvino as ov

        super().__init__()
        graph = ov.Core().read_model(str(models / "face-reidentification-retail-0095.xml"))
        self._plan: list[tuple[str, str, list[str], dict]] = []
        self._fixed: dict[str, str] = {}
        for op in graph.get_ordered_ops():
            kind, name = op.get_type_name(), op.get_friendly_name()
            sources = [
                op.input_value(i).get_node().get_friendly_name() for i in range(op.get_input_size())
            ]
            if kind == "Constant":
                self._fixed[name] = f"w{len(self._fixed)}"
                value = torch.from_numpy(op.get_data().astype(np.float32))
                self.register_buffer(self._fixed[name], value, persistent=False)
            elif kind == "Convert":
                self._fixed[name] = self._fixed[sources[0]]
            elif kind == "Parameter":
                self._input = name
            elif kind == "Result":
                self._output = sources[0]
            elif kind in _OPERATIONS:
                self._plan.append((kind, name, sources, op.get_attributes()))
            else:
                raise ModelError(f"the identity graph has an unknown operation {kind}")

    def embed(self, faces: Tensor) -> Tensor:
        """Unit embeddings ``(B, 256)`` of aligned faces ``(B, 3, 128, 128)``, RGB -1..1."""
        values = {self._input: (faces.flip(1) + 1) * 127.5}
        for kind, name, sources, attributes in self._plan:
            given = [values[s] if s in values else getattr(self, self._fixed[s]) for s in sources]
            values[name] = _OPERATIONS[kind](*given, attributes)
        return F.normalize(values[self._output].flatten(1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """``(B,)`` distances of aligned faces."""
        with torch.no_grad():
            real = self.embed(b)
        return 1 - (self.embed(a) * real).sum(1)


def _convolve(x: Tensor, weight: Tensor, attributes: dict) -> Tensor:
    groups = 1
    if weight.ndim == 5:  # group first
        groups, weight = len(weight), weight.flatten(0, 1)
    return F.conv2d(
        x, weight, None, tuple(attributes["strides"]), tuple(attributes["pads_begin"]), 1, groups
    )


_OPERATIONS = {
    "Convolution": _convolve,
    "GroupConvolution": _convolve,
    "Add": lambda a, b, _: a + b,
    "Multiply": lambda a, b, _: a * b,
    "PRelu": lambda x, slope, _: F.prelu(x, slope.flatten()),
    "Sigmoid": lambda x, _: torch.sigmoid(x),
    "AvgPool": lambda x, at: F.avg_pool2d(x, tuple(at["kernel"]), tuple(at["strides"])),
}


def crop_at(picture: Tensor, place: Tensor, size: int) -> Tensor:
    """Crops ``(B, C, size, size)`` of ``(B, C, H, W)`` at affine places ``(B, 2, 3)`` in -1..1."""
    grid = F.affine_grid(place, [len(picture), 1, size, size], align_corners=False)
    return F.grid_sample(
        picture.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def moved_back(picture: Tensor, flow: Tensor) -> Tensor:
    """A picture ``(B, C, H, W)`` fetched where ``flow`` ``(B, H, W, 2)`` px points."""
    side = picture.shape[-1]
    eye = torch.eye(2, 3).repeat(len(picture), 1, 1)
    grid = F.affine_grid(eye, [len(picture), 1, side, side], align_corners=False)
    return F.grid_sample(
        picture, grid + flow * (2 / side), mode="bilinear", padding_mode="border",
        align_corners=False,
    )  # fmt: skip
