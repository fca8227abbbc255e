"""Run a graph. One small interface over the CPU runtime (OpenVINO reads ONNX, TFLite and IR)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from visavis.errors import ConfigError, ModelError

PRECISIONS = {"f32": "f32", "bf16": "bf16", "f16": "f16"}


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
