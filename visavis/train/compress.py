"""Make the mouth net smaller: whole channels pruned, then weights and activations in int8.

Both change the picture, so both stand behind a gate: a net that loses more than a stated number of dB
against the one it came from, on people never trained on, is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from visavis.errors import ModelError
from visavis.models.mouth import MouthUNet
from visavis.mouth import MouthNet, mouth_inputs, mouth_masks
from visavis.train.personal import Mouths
from visavis.train.renderer_data import MARGIN, MouthData

FLOAT_NODES = ("/head/Conv", "/refine/Conv")  # few weights, and what they say is the picture


@dataclass(frozen=True)
class Layer:
    """Which groups of channels a convolution reads and writes; None: not pruned."""

    name: str
    reads: tuple[str | None, ...]
    writes: str | None


def layers_of(net: MouthUNet) -> list[Layer]:
    """The convolutions of a mouth net with their groups.

    Channels that meet in a sum are one group: ``e`` of a level before, ``d`` after the middle, ``h``
    within a block; skips are concatenated, so ``e`` and ``d`` need not keep the same ones.
    """
    deepest = len(net.down)
    found = [Layer("stem", (None,), "e0"), Layer("narrow", ("d0",), None)]
    for i in range(deepest):
        above = f"e{deepest}" if i + 1 == deepest else f"d{i + 1}"
        found += [
            Layer(f"encode.{i}.only", (f"e{i}",), f"e{i}"),
            Layer(f"down.{i}", (f"e{i}",), f"e{i + 1}"),
            Layer(f"merge.{i}", (f"e{i}", above), f"d{i}"),
            Layer(f"decode.{i}.first", (f"d{i}",), f"h{i}"),
            Layer(f"decode.{i}.second", (f"h{i}",), f"d{i}"),
        ]
    for k in range(len(net.middle)):
        hidden = f"h{deepest}.{k}"
        found += [
            Layer(f"middle.{k}.first", (f"e{deepest}",), hidden),
            Layer(f"middle.{k}.second", (hidden,), f"e{deepest}"),
        ]
    return found


def pruned(net: MouthUNet, widths: tuple[int, ...]) -> MouthUNet:
    """A narrower mouth net that keeps the channels with the largest weights around them.

    Args:
        net: to start from.
        widths: at 64, 32, 16 and 8 px, none larger than the net's.

    Raises:
        ModelError: a width is larger than the net's, or there are more or fewer of them.
    """
    layers = layers_of(net)
    have = tuple(m.out_channels for m in (net.stem, *net.down))
    if len(widths) != len(have) or any(w > h for w, h in zip(widths, have, strict=True)):
        raise ModelError(f"a net of widths {have} cannot be pruned to {widths}; give smaller ones")
    sizes = {g: have[int(g[1])] for y in layers for g in (*y.reads, y.writes) if g}
    keep = {
        group: torch.argsort(weight, descending=True)[: widths[int(group[1])]].sort().values
        for group, weight in _weight_of_groups(net, layers, sizes).items()
    }
    out = MouthUNet(net.stem.in_channels, widths, len(net.middle))
    old, new = dict(net.named_modules()), dict(out.named_modules())
    with torch.no_grad():
        for layer in layers:
            weight, bias = old[layer.name].weight, old[layer.name].bias
            if layer.writes:
                weight, bias = weight[keep[layer.writes]], bias[keep[layer.writes]]
            if layer.reads[0]:
                weight = weight[:, torch.cat(_offset(layer, keep, sizes))]
            new[layer.name].weight.copy_(weight)
            new[layer.name].bias.copy_(bias)
        for name in ("refine", "head"):
            new[name].load_state_dict(old[name].state_dict())
    return out


def _offset(layer: Layer, keep: dict[str, torch.Tensor], sizes: dict[str, int]) -> list:
    """Kept input channels of a convolution over concatenated groups."""
    parts, start = [], 0
    for group in layer.reads:
        parts.append(keep[group] + start)
        start += sizes[group]
    return parts


def _weight_of_groups(
    net: MouthUNet, layers: Iterable[Layer], sizes: dict[str, int]
) -> dict[str, torch.Tensor]:
    """How much weight stands before and after each channel of every group."""
    modules = dict(net.named_modules())
    total = {g: torch.zeros(n) for g, n in sizes.items()}
    for layer in layers:
        weight = modules[layer.name].weight.detach().float()
        share = weight.square() / weight.square().mean().clamp_min(1e-12)
        if layer.writes:
            total[layer.writes] += share.mean((1, 2, 3))
        start = 0
        for group in layer.reads:
            if group:
                total[group] += share[:, start : start + sizes[group]].mean((0, 2, 3))
                start += sizes[group]
    return total


def calibration(data: MouthData, count: int = 64) -> list[np.ndarray]:
    """Inputs ``(1, C, SIZE, SIZE)`` of evenly spread crops, for the ranges of the activations."""
    feeds = []
    for k in np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int):
        crop, points = data.images[k][MARGIN:-MARGIN, MARGIN:-MARGIN], data.points[k]
        feeds.append(mouth_inputs(crop, points, mouth_masks(points))[None])
    return feeds


def quantise(model_dir: Path, out: Path, feeds: Iterable[np.ndarray]) -> Path:
    """A mouth net's folder with its graph in int8 (QDQ: per-channel weights, one scale a tensor).

    OpenVINO and ONNX Runtime both run such a graph in integers. A person's own weights cannot take
    the place of the graph's: their scales would be wrong.

    Args:
        model_dir: folder of a mouth net.
        out: the new folder.
        feeds: of `calibration`.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rest: Iterator[np.ndarray] = iter(feeds)

        def get_next(self) -> dict | None:
            feed = next(self._rest, None)
            return None if feed is None else {"inputs": feed}

    card = json.loads((model_dir / "model.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    wide, graph = out / "wide.onnx", out / "mouth.onnx"
    onnx.save(widened(onnx.load(model_dir / card["graph"])), wide)
    quantize_static(
        wide, graph, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        op_types_to_quantize=["Conv"], nodes_to_exclude=list(FLOAT_NODES),
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    wide.unlink()
    card |= {"graph": graph.name, "precision": "int8"}
    card["sha256"] = hashlib.sha256(graph.read_bytes()).hexdigest()
    (out / "model.json").write_text(json.dumps(card, indent=1) + "\n")
    if (model_dir / "card.md").is_file():
        shutil.copyfile(model_dir / "card.md", out / "card.md")
    return out


def widened(model):
    """An ONNX graph of `modelfolder.store_half` with its weights in float32 again, without casts."""
    from onnx import numpy_helper

    halves = {t.name: t for t in model.graph.initializer if t.name.endswith(".half")}
    for node in [n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in halves]:
        half = halves[node.input[0]]
        value = numpy_helper.to_array(half).astype(np.float32)
        half.CopyFrom(numpy_helper.from_array(value, node.output[0]))
        model.graph.node.remove(node)
    return model


def mouth_psnr(net: MouthNet, mouths: Mouths) -> float:
    """Mean PSNR (dB) inside the lips, painted over what tier ``mesh`` has drawn there."""
    rows = []
    for under, real, points in zip(mouths.under, mouths.real, mouths.points, strict=True):
        rgb, alpha = net.paint(under[None], points[None])
        shown = under + (rgb[0].astype(np.float32) - under) * alpha[0][..., None]
        inside = mouth_masks(points)["inner"] > 0.5
        error = np.square(shown - real.astype(np.float32))[inside].mean()
        rows.append(10 * np.log10(255**2 / max(float(error), 1e-9)))
    return float(np.mean(rows))


def gate(before: Path, after: Path, mouths: Mouths, most_db: float) -> dict[str, float]:
    """Refuse a compressed net that has lost too much.

    Args:
        before: folder of the net it came from, run in float32.
        after: folder of the compressed one.
        mouths: open ones of people neither was trained on.
        most_db: what may be lost.

    Returns:
        Both figures and the loss, dB.

    Raises:
        ModelError: more is lost.
    """
    first, second = (mouth_psnr(MouthNet(f, "f32"), mouths) for f in (before, after))
    report = {"before_db": first, "after_db": second, "lost_db": first - second}
    if first - second > most_db:
        raise ModelError(
            f"the compressed net loses {first - second:.2f} dB of {first:.2f}, allowed are"
            f" {most_db:.2f}; prune less, or train it longer"
        )
    return report


def kept_share(net: nn.Module, other: nn.Module) -> float:
    """Parameters of ``other`` as a share of those of ``net``."""
    counts = [sum(p.numel() for p in x.parameters()) for x in (net, other)]
    return counts[1] / counts[0]
