"""Run an ONNX picture net in torch: on a GPU compiled, with CUDA graphs. An option, never a default.

The graph file stays the wall between training and run time: this reads the same ``.onnx`` as the
other providers, one torch call for each of its nodes. Nets with loops or recurrent layers are
refused by name; those are small and belong on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from visavis.errors import ConfigError, ModelError

HALVES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


class TorchGraph:
    """A graph as torch calls: ``graph({name: array}) -> {name: array}``, stateless.

    Batches are padded to a power of two, so that only a few shapes are compiled and captured.

    Args:
        source: path of an ``.onnx`` file, or its bytes.
        threads: CPU threads, where there is no GPU.
        precision: ``f32``, ``f16`` or ``bf16``; inputs and outputs are float32 always.
        constants: weights that take the place of the graph's own, by name.
        device: ``cuda`` or ``cpu``; what there is by default.
        compiled: through ``torch.compile`` (on a GPU with CUDA graphs); on a GPU by default.

    Raises:
        ConfigError: torch, onnx or the device is missing, or the precision is unknown.
        ModelError: not a graph, or one with a node that is not known here.
    """

    batched = True

    def __init__(
        self,
        source: str | Path | bytes,
        *,
        threads: int = 1,
        precision: str = "f32",
        constants: dict[str, np.ndarray] | None = None,
        device: str | None = None,
        compiled: bool | None = None,
    ):
        torch = self._torch = _import_torch()
        if precision not in HALVES:
            raise ConfigError(
                f"precision {precision!r} is unknown; choose one of {', '.join(HALVES)}"
            )
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("torch sees no CUDA device; use provider openvino")
        if self._device == "cpu":
            torch.set_num_threads(threads)
        self._dtype = getattr(torch, HALVES[precision])
        graph = read_onnx(source, constants).graph
        names = {t.name for t in graph.initializer}
        self.inputs = {i.name: i for i in graph.input if i.name not in names}
        self.outputs = [o.name for o in graph.output]
        self._program = _Program(torch, graph, self._dtype, self._device)
        use = self._device != "cpu" if compiled is None else compiled
        mode = {"mode": "reduce-overhead"} if self._device != "cpu" else {}
        self._run = torch.compile(self._program, dynamic=False, **mode) if use else self._program

    def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; the arrays returned are copies."""
        torch = self._torch
        count = len(next(iter(feeds.values())))
        whole = 1 << (count - 1).bit_length()
        with torch.inference_mode():
            given = []
            for name in self.inputs:
                value = np.concatenate([feeds[name], *[feeds[name][-1:]] * (whole - count)])
                given.append(torch.from_numpy(value).to(self._device, self._dtype))
            got = self._run(*given)
            return {
                name: value[:count].float().cpu().numpy().copy()
                for name, value in zip(self.outputs, got, strict=True)
            }


class _Program:
    """The nodes of a graph in their order, weights on the device."""

    def __init__(self, torch: Any, graph: Any, dtype: Any, device: str):
        from onnx import helper, numpy_helper

        self._fixed: dict[str, np.ndarray] = {
            t.name: numpy_helper.to_array(t) for t in graph.initializer
        }
        calls = _calls(torch)
        self._nodes, halves = [], []
        for node in graph.node:
            options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                self._fixed[node.output[0]] = numpy_helper.to_array(options["value"])
            elif node.op_type == "Cast" and node.input[0] in self._fixed:
                self._fixed[node.output[0]] = self._fixed[node.input[0]]
            elif node.op_type not in calls:
                raise ModelError(
                    f"node {node.op_type} is not run by provider torch; use openvino for this net"
                )
            else:
                self._nodes.append(
                    (calls[node.op_type], options, list(node.input), list(node.output))
                )
        for name, value in self._fixed.items():
            if value.dtype in (np.float16, np.float32) and value.ndim:
                halves.append(name)
        self._weights = {
            name: torch.from_numpy(self._fixed[name].astype(np.float32)).to(device, dtype)
            for name in halves
        }
        self._inputs = [i.name for i in graph.input if i.name not in self._fixed]
        self._outputs = [o.name for o in graph.output]

    def __call__(self, *given: Any) -> list[Any]:
        values = dict(zip(self._inputs, given, strict=True))
        for call, options, inputs, outputs in self._nodes:
            fetched = [
                values[n] if n in values else (self._weights.get(n) if n else None) for n in inputs
            ]
            plain = [self._fixed.get(n) for n in inputs]
            got = call(fetched, plain, options)
            if not isinstance(got, tuple | list):
                got = [got]
            values.update(zip(outputs, got, strict=True))
        return [values[name] for name in self._outputs]


def read_onnx(source: str | Path | bytes, constants: dict[str, np.ndarray] | None = None) -> Any:
    """An ONNX model with some of its weights replaced (those kept as halves end in ``.half``).

    Raises:
        ConfigError: package onnx is missing.
        ModelError: no such file, not a graph, or a weight that does not fit.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as err:
        raise ConfigError("package onnx is missing; pip install 'visavis[gpu]'") from err
    if not isinstance(source, bytes):
        if not Path(source).is_file():
            raise ModelError(f"no model file at {source}; run `visavis models verify`")
        source = Path(source).read_bytes()
    try:
        model = onnx.load_from_string(source)
        onnx.checker.check_model(model)
    except Exception as err:  # protobuf and onnx share no class of their own
        raise ModelError(f"not a readable ONNX graph: {str(err).splitlines()[0][:160]}") from err
    held = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            held.update({name: a.t for a in node.attribute for name in (node.name, node.output[0])})
    for name, value in (constants or {}).items():
        tensor = held.get(f"{name}.half", held.get(name))
        if tensor is None or tuple(tensor.dims) != value.shape:
            raise ModelError(f"weight {name} {value.shape} does not fit the graph; train it again")
        kind = numpy_helper.to_array(tensor).dtype
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, kind), tensor.name))
    return model


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as err:
        raise ConfigError(
            "provider torch needs package torch; use openvino, or install it"
        ) from err
    return torch


def _calls(torch: Any) -> dict[str, Callable[[list, list, dict], Any]]:
    """Torch's answer to each kind of node: ``(tensors, constants, attributes) -> tensor(s)``."""
    functional = torch.nn.functional

    def conv(x: list, _: list, o: dict) -> Any:
        pads = o.get("pads", [0, 0, 0, 0])
        half = len(pads) // 2
        if list(pads[:half]) != list(pads[half:]):
            raise ModelError(f"a convolution with pads {list(pads)} is not run by provider torch")
        return functional.conv2d(
            *x, stride=o.get("strides", 1), padding=pads[:half],
            dilation=o.get("dilations", 1), groups=o.get("group", 1),
        )  # fmt: skip

    def resize(x: list, fixed: list, o: dict) -> Any:
        if len(fixed) > 3 and fixed[3] is not None:
            size = [int(n) for n in fixed[3][2:]]
        else:
            size = [round(float(s) * n) for s, n in zip(fixed[2][2:], x[0].shape[2:], strict=True)]
        if o.get("mode", b"nearest") == b"linear":
            return functional.interpolate(x[0], size=size, mode="bilinear", align_corners=False)
        return functional.interpolate(x[0], size=size, mode="nearest")

    def cut(x: list, fixed: list, _: dict) -> Any:
        starts, ends = fixed[1], fixed[2]
        axes = range(len(starts)) if len(fixed) < 4 or fixed[3] is None else fixed[3]
        where = [slice(None)] * x[0].ndim
        for start, end, axis in zip(starts, ends, axes, strict=True):
            where[int(axis)] = slice(int(start), min(int(end), 2**31))
        return x[0][tuple(where)]

    def number(tensor: Any, fixed: Any) -> Any:
        return float(fixed) if tensor is None else tensor

    def two(operation: Callable) -> Callable:
        return lambda x, fixed, _: operation(number(x[0], fixed[0]), number(x[1], fixed[1]))

    def split(x: list, fixed: list, o: dict) -> Any:
        axis = o.get("axis", 0)
        if len(fixed) > 1 and fixed[1] is not None:
            return torch.split(x[0], [int(n) for n in fixed[1]], axis)
        return torch.chunk(x[0], o["num_outputs"], axis)

    return {
        "Conv": conv,
        "Resize": resize,
        "Slice": cut,
        "Split": split,
        "Concat": lambda x, _, o: torch.cat(x, o["axis"]),
        "Relu": lambda x, *_: functional.relu(x[0]),
        "Sigmoid": lambda x, *_: torch.sigmoid(x[0]),
        "Tanh": lambda x, *_: torch.tanh(x[0]),
        "Identity": lambda x, *_: x[0],
        "Add": two(lambda a, b: a + b),
        "Sub": two(lambda a, b: a - b),
        "Mul": two(lambda a, b: a * b),
        "Div": two(lambda a, b: a / b),
    }
