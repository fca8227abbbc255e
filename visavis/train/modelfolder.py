"""A trained net as a model folder: ONNX graphs with halved weights, ``model.json``, ``card.md``."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn


def learned(net: nn.Module, recipe: BaseModel, steps: int) -> dict[str, object]:
    """What ``model.json`` tells of any training: parameters, steps and the recipe without its paths."""
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "steps": steps,
        "recipe": json.loads(recipe.model_dump_json(exclude={"run", "data", "models"})),
    }


def digest(graph: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(graph.read_bytes()).hexdigest()


def write_folder(out: Path, about: dict[str, object], card: str) -> Path:
    """Write ``model.json`` and ``card.md`` beside the graphs; returns the folder."""
    (out / "model.json").write_text(json.dumps(about, indent=1) + "\n")
    (out / "card.md").write_text(card)
    return out


def write_graph(net: nn.Module, example: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    """Export a net for any batch, weights as float16.

    Args:
        net: its forward takes the inputs in this order.
        example: inputs by name.
        outputs: their names.
        path: the ``.onnx`` file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter says that it is old; it is quick
        torch.onnx.export(
            net, tuple(example.values()), str(path), dynamo=False, opset_version=17,
            input_names=list(example), output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in (*example, *outputs)},
        )  # fmt: skip
    store_half(path)


def store_half(path: Path) -> None:
    """Keep the weights of an ONNX file as float16, each followed by a cast; smaller by half."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        half = numpy_helper.to_array(tensor).astype(np.float16)
        wide = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{wide}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{wide}.half"], [wide], to=1))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    keep = [info for info in model.graph.value_info if not info.name.endswith("weight")]
    del model.graph.value_info[:]
    model.graph.value_info.extend(keep)
    model.producer_name, model.doc_string = "visavis", ""
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model)
    onnx.save(model, path)
