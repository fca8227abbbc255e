"""Run a graph. One small interface over several runtimes, `PROVIDERS` by name.

OpenVINO on the CPU is the default (it reads ONNX, TFLite and IR). ONNX Runtime (CPU, CUDA,
TensorRT) and torch take the same ONNX files; each package is imported when it is asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from visavis.errors import ConfigError, ModelError
from visavis.torchgraph import TorchGraph, read_onnx

PRECISIONS = {"f32": "f32", "bf16": "bf16", "f16": "f16"}


class Runnable(Protocol):
    """What every provider gives: a stateless graph over a dynamic batch axis.

    Attributes:
        outputs: names of the outputs.
        batched: sessions run cheaper together than one after the other.
    """

    outputs: list[str]
    batched: bool

    def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


class Graph:
    """A compiled graph: ``graph({name: array}) -> {name: array}``, stateless and thread-bound.

    A graph of any batch is compiled for a batch of one, which runs about a third faster than one
    whose shapes are open; other batches compile the open one when they first come.

    Args:
        source: path of an ``.onnx``, ``.tflite`` or ``.xml`` file, or the bytes of the first two.
        threads: CPU threads used for one call.
        precision: ``f32`` (exact), ``bf16`` or ``f16``; a hint where the CPU lacks the type.
        constants: weights that take the place of the graph's own, by name.

    Raises:
        ModelError: the file is missing or is not a graph, or a weight does not fit it.
        ConfigError: the precision is unknown.
    """

    batched = False

    def __init__(
        self,
        source: str | Path | bytes,
        *,
        threads: int = 1,
        precision: str = "f32",
        constants: dict[str, np.ndarray] | None = None,
    ):
        import openvino as ov

        if precision not in PRECISIONS:
            raise ConfigError(
                f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}"
            )
        core = ov.Core()
        try:
            if isinstance(source, bytes):
                model = _read_bytes(core, source)
            else:
                if not Path(source).is_file():
                    raise ModelError(f"no model file at {source}; run `visavis models verify`")
                model = core.read_model(str(source))
        except RuntimeError as err:
            raise ModelError(f"{_name(source)} is not a readable graph: {_first(err)}") from err
        # the graph points into these arrays
        self._kept = _replace_constants(model, constants) if constants else []
        self._config = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        self.inputs = {p.get_any_name(): p.get_partial_shape() for p in model.inputs}
        self.outputs = [p.get_any_name() for p in model.outputs]
        self._open = model
        self._core = core
        single = _of_batch_one(model)
        self._single = self._request(single) if single else None
        self._any = None if single else self._request(model)

    def _request(self, model: Any) -> Any:
        return self._core.compile_model(model, "CPU", self._config).create_infer_request()

    def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. The arrays returned are copies, safe to keep."""
        request = self._single
        if request is None or any(len(v) != 1 for v in feeds.values()):
            request = self._any = self._any or self._request(self._open)
        request.infer(feeds, share_inputs=True)
        return {
            name: request.get_output_tensor(i).data.copy() for i, name in enumerate(self.outputs)
        }


class OnnxGraph:
    """A graph in ONNX Runtime; same call as `Graph`.

    ``f16`` asks TensorRT for half precision; elsewhere the graph itself is turned to halves,
    inputs and outputs staying float32.

    Args:
        source: path of an ``.onnx`` file, or its bytes.
        kind: execution provider, a key of `EXECUTION`.
        threads: CPU threads for one call.
        precision: ``f32`` or ``f16``.
        constants: weights that take the place of the graph's own, by name.
        cache: folder where TensorRT keeps the engines it has built.

    Raises:
        ConfigError: the package or the provider is missing, or the precision is unknown.
        ModelError: not an ONNX graph, or a weight does not fit it.
    """

    def __init__(
        self,
        source: str | Path | bytes,
        *,
        kind: str = "cpu",
        threads: int = 1,
        precision: str = "f32",
        constants: dict[str, np.ndarray] | None = None,
        cache: str | Path | None = None,
    ):
        if precision not in ("f32", "f16"):
            raise ConfigError(f"precision {precision!r} is not run by ONNX Runtime; use f32 or f16")
        name = EXECUTION[kind]
        if name not in _execution_providers():
            raise ConfigError(
                f"ONNX Runtime here has no {name} (it has {', '.join(_execution_providers()) or 'nothing'});"
                " pip install 'visavis[gpu]', or use provider openvino"
            )
        import onnxruntime as ort

        model = read_onnx(source, constants)
        half = precision == "f16"
        model = _to_halves(model) if half and kind != "tensorrt" else model
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        told: dict[str, Any] = {}
        if kind == "tensorrt":
            told = {"trt_fp16_enable": half, "trt_engine_cache_enable": cache is not None}
            told |= {"trt_engine_cache_path": str(cache)} if cache else {}
        chosen: list = [(name, told)]
        if kind == "tensorrt":  # what TensorRT does not take goes to CUDA
            chosen.append((EXECUTION["cuda"], {}))
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, chosen)
        except RuntimeError as err:
            raise ModelError(f"ONNX Runtime refuses {_name(source)}: {_first(err)}") from err
        # ONNX Runtime falls back to the CPU without a word where a GPU's libraries are missing
        if self._session.get_providers()[0] != name:
            raise ConfigError(f"{name} does not start here (driver, CUDA or cuDNN missing?)")
        self.batched = kind != "cpu"
        self.outputs = [o.name for o in self._session.get_outputs()]

    def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. The arrays returned are the caller's."""
        return dict(zip(self.outputs, self._session.run(self.outputs, feeds), strict=True))


EXECUTION = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
PROVIDERS: dict[str, Callable[..., Runnable]] = {
    "openvino": Graph,
    "onnxruntime": partial(OnnxGraph, kind="cpu"),
    "cuda": partial(OnnxGraph, kind="cuda"),
    "tensorrt": partial(OnnxGraph, kind="tensorrt"),
    "torch": TorchGraph,
}
FASTEST_FIRST = ("tensorrt", "cuda", "openvino")  # what `auto` takes


def open_graph(source: str | Path | bytes, provider: str = "openvino", **options: Any) -> Runnable:
    """A graph on a provider.

    Args:
        source: path or bytes of the graph.
        provider: a key of `PROVIDERS`, or ``auto``: the first of `FASTEST_FIRST` that is there.
        options: ``threads``, ``precision``, ``constants`` and what the provider has beside them.

    Raises:
        ConfigError: the provider is unknown or not there.
        ModelError: the graph cannot be read or run.
    """
    if provider == "auto":
        provider = next(name for name in FASTEST_FIRST if name in available_providers())
    if provider not in PROVIDERS:
        raise ConfigError(
            f"provider {provider!r} is unknown; choose one of auto, {', '.join(PROVIDERS)}"
        )
    return PROVIDERS[provider](source, **options)


def available_providers() -> list[str]:
    """Keys of `PROVIDERS` whose package is installed; whether a GPU answers, only opening tells."""
    held = _execution_providers()
    found = {name for name, kind in zip(("onnxruntime", "cuda", "tensorrt"), EXECUTION.values(), strict=True)
             if kind in held}  # fmt: skip
    found |= {"torch"} if find_spec("torch") and find_spec("onnx") else set()
    return [name for name in PROVIDERS if name == "openvino" or name in found]


def _execution_providers() -> list[str]:
    if not find_spec("onnxruntime"):
        return []
    import onnxruntime as ort

    return ort.get_available_providers()


def _to_halves(model: Any) -> Any:
    """The same net computing in float16 between float32 inputs and outputs, in place."""
    from onnx import TensorProto, helper

    graph, half = model.graph, TensorProto.FLOAT16
    _shrink_weights(graph)
    fixed = {t.name for t in graph.initializer}
    for port in [*graph.input, *graph.output]:
        if port.name in fixed or port.type.tensor_type.elem_type != TensorProto.FLOAT:
            continue
        inner = f"{port.name}:half"
        for node in graph.node:
            node.input[:] = [inner if n == port.name else n for n in node.input]
            node.output[:] = [inner if n == port.name else n for n in node.output]
        if port in graph.input:
            graph.node.insert(0, helper.make_node("Cast", [port.name], [inner], to=half))
        else:
            cast = helper.make_node("Cast", [inner], [port.name], to=TensorProto.FLOAT)
            graph.node.append(cast)
    del graph.value_info[:]  # they still say float32
    return model


def _shrink_weights(graph: Any) -> None:
    """Float32 weights to float16, but for the scales of a resize, and casts to the former."""
    from onnx import TensorProto, numpy_helper

    scales = {name for n in graph.node if n.op_type == "Resize" for name in n.input[1:]}
    tensors = [t for t in graph.initializer if t.name not in scales]
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] not in scales:
            tensors += [a.t for a in node.attribute if a.name == "value"]
        for a in node.attribute:
            if node.op_type == "Cast" and a.name == "to" and a.i == TensorProto.FLOAT:
                a.i = TensorProto.FLOAT16
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def _of_batch_one(model: Any) -> Any | None:
    """A copy of the graph with every open first dimension set to 1; None if that is not enough."""
    shapes = {}
    for port in model.inputs:
        shape = port.get_partial_shape()
        if shape.rank.is_dynamic or any(d.is_dynamic for d in list(shape)[1:]):
            return None
        if shape[0].is_static and len(shape) and shape[0].get_length() != 1:
            return None
        shapes[port.get_any_name()] = [1, *(d.get_length() for d in list(shape)[1:])]
    if not model.is_dynamic():
        return None
    copy = model.clone()
    copy.reshape(shapes)
    return None if copy.is_dynamic() else copy


def _replace_constants(model: Any, weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Give a graph other weights; those kept as halves are named ``NAME.half`` in it.

    Returns:
        The arrays that the graph now points into: OpenVINO does not copy them.
    """
    from openvino import opset13

    found = {
        op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"
    }
    kept = []
    for name, value in weights.items():
        op = found.get(f"{name}.half", found.get(name))
        if op is None or tuple(op.output(0).shape) != value.shape:
            raise ModelError(f"weight {name} {value.shape} does not fit the graph; train it again")
        kept.append(np.ascontiguousarray(value, op.output(0).element_type.to_dtype()))
        op.output(0).replace(opset13.constant(kept[-1]).output(0))
    return kept


def _read_bytes(core: Any, source: bytes) -> Any:
    """OpenVINO reads ONNX from memory, TFLite only from a file of that name."""
    if source[4:8] != b"TFL3":
        return core.read_model(model=source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.tflite"
        path.write_bytes(source)
        return core.read_model(str(path))


def _name(source: str | Path | bytes) -> str:
    return f"a graph of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _first(err: Exception) -> str:
    return str(err).strip().splitlines()[-1][:200]
