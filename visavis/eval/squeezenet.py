"""SqueezeNet 1.1 features and LPIPS heads as one OpenVINO graph, read from their files without
torch.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from visavis.errors import ModelError

CAFFE_MEAN_BGR = (
    103.939,
    116.779,
    123.68,
)  # Keras "caffe" preprocessing, the port's training input


def read_heads(path: Path) -> list[np.ndarray]:
    """The seven LPIPS channel weights, ``[(64,), (128,), (256,), (384,), (384,), (512,), (512,)]``.

    The file is torch's pre-1.6 format: five pickles, then the raw storages. Only the names such a
    file needs are unpickled; anything else raises ``ModelError``.
    """
    try:
        return _read_legacy(Path(path).read_bytes())
    except (OSError, pickle.UnpicklingError, struct.error, KeyError, ValueError, EOFError) as error:
        raise ModelError(
            f"{path}: not the LPIPS SqueezeNet heads (torch state dict): {error}"
        ) from error


def _read_legacy(raw: bytes) -> list[np.ndarray]:
    stream = io.BytesIO(raw)
    storages: dict[str, np.ndarray] = {}

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("collections", "OrderedDict"):
                return OrderedDict
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return lambda key, offset, shape, stride, *rest: (key, offset, shape)
            if (module, name) == ("torch", "FloatStorage"):
                return "float32"
            raise pickle.UnpicklingError(f"refuses {module}.{name}")

        def persistent_load(self, pid: Any) -> str:
            return str(pid[2])

    for _ in range(3):  # magic number, protocol, system info
        Reader(stream).load()
    tensors = Reader(stream).load()
    for key in Reader(stream).load():
        (count,) = struct.unpack("<q", stream.read(8))
        if not 0 < count <= 4096:
            raise ValueError(f"storage of {count} values")
        storages[str(key)] = np.frombuffer(stream.read(4 * count), "<f4")
    heads = []
    for name in sorted(tensors):
        key, offset, shape = tensors[name]
        heads.append(storages[key][offset : offset + int(np.prod(shape))].astype(np.float32))
    if [len(h) for h in heads] != [64, 128, 256, 384, 384, 512, 512]:
        raise ValueError(f"heads of sizes {[len(h) for h in heads]}")
    return heads


def read_backbone(path: Path) -> dict[str, np.ndarray]:
    """Kernels ``(out, in, kh, kw)`` and biases ``(out,)`` by layer, e.g.
    ``fire2/squeeze1x1/kernel``.
    """
    try:
        import h5py
    except ImportError as error:
        raise ModelError(f"{path} is an HDF5 file: pip install h5py to read it") from error
    weights: dict[str, np.ndarray] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            layer = "/".join(name.split("/")[:2]) if name.startswith("fire") else "conv1"
            kind = "kernel" if "kernel" in name else "bias"
            value = np.asarray(node, np.float32)
            weights[f"{layer}/{kind}"] = value.transpose(3, 2, 0, 1) if kind == "kernel" else value

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        raise ModelError(f"{path}: not a Keras weight file: {error}") from error
    if len(weights) != 50:
        raise ModelError(f"{path}: expected 50 SqueezeNet 1.1 arrays, found {len(weights)}")
    return weights


def _features(ops: Any, image: Any, weights: dict[str, np.ndarray]) -> list[Any]:
    """The seven taps of LPIPS: conv1, fire3, fire5, fire6, fire7, fire8, fire9 (after ReLU)."""

    def conv(x: Any, name: str, stride: int = 1, pad: int = 0) -> Any:
        kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
        x = ops.convolution(
            x,
            ops.constant(np.ascontiguousarray(kernel)),
            [stride] * 2,
            [pad] * 2,
            [pad] * 2,
            [1, 1],
        )
        return ops.relu(ops.add(x, ops.constant(bias.reshape(1, -1, 1, 1))))

    def fire(x: Any, name: str) -> Any:
        x = conv(x, f"{name}/squeeze1x1")
        return ops.concat(
            [conv(x, f"{name}/expand1x1"), conv(x, f"{name}/expand3x3", pad=1)], axis=1
        )

    def pool(x: Any) -> Any:
        return ops.max_pool(
            x, [2, 2], [1, 1], [0, 0], [0, 0], [3, 3], rounding_type="floor"
        ).output(0)

    one = conv(image, "conv1", stride=2)
    two = fire(fire(pool(one), "fire2"), "fire3")
    three = fire(fire(pool(two), "fire4"), "fire5")
    four = fire(pool(three), "fire6")
    five = fire(four, "fire7")
    six = fire(five, "fire8")
    return [one, two, three, four, five, six, fire(six, "fire9")]


def compile_distance(
    backbone: Path, heads: Path, threads: int = 1
) -> Callable[[np.ndarray, np.ndarray], float]:
    """A function of two uint8 RGB images of one shape that returns their perceptual distance."""
    import openvino as ov
    from openvino import opset13 as ops

    weights, linear = read_backbone(backbone), read_heads(heads)
    # Both images go through as one batch of two; the graph ends in one number.
    given = ops.parameter(ov.PartialShape([2, 3, -1, -1]), ov.Type.f32, name="images")
    total = None
    for tap, weight in zip(_features(ops, given, weights), linear, strict=True):
        norm = ops.sqrt(ops.reduce_sum(ops.multiply(tap, tap), [1], keep_dims=True))
        unit = ops.divide(tap, ops.add(norm, ops.constant(np.float32(1e-10))))
        parts = ops.split(unit, 0, 2)
        diff = ops.subtract(parts.output(0), parts.output(1))
        weighted = ops.multiply(ops.multiply(diff, diff), ops.constant(weight.reshape(1, -1, 1, 1)))
        mean = ops.reduce_mean(ops.reduce_sum(weighted, [1], keep_dims=True), [0, 1, 2, 3])
        total = mean if total is None else ops.add(total, mean)
    compiled = ov.Core().compile_model(
        ov.Model([total], [given], "perceptual"),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = compiled.create_infer_request()
    mean = np.array(CAFFE_MEAN_BGR, np.float32)

    def distance(image: np.ndarray, reference: np.ndarray) -> float:
        assert image.shape == reference.shape, (image.shape, reference.shape)
        assert min(image.shape[:2]) >= 35, image.shape
        pair = np.stack([image, reference])[..., ::-1].astype(np.float32) - mean
        result = request.infer([np.ascontiguousarray(pair.transpose(0, 3, 1, 2))])
        return float(result[compiled.output(0)])

    return distance
