"""Trained torch weights to a model folder: ONNX with its state as named inputs and outputs.

Every input ``motion/x`` has an output ``motion/x:next``. Batch is free, time is one step.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from visavis.types import MOTION_HOP, SPEECH_CHANNELS

if TYPE_CHECKING:
    from visavis.models.architectures import AnyMotionNet
    from visavis.models.autoencoder import MotionAutoencoder
    from visavis.train.encoders import ChunkedEncoder


def export_motion(
    net: AnyMotionNet, folder: str | Path, card: str, facts: dict | None = None
) -> Path:
    """Write ``motion.onnx``, ``model.json`` and ``card.md``.

    Args:
        net: trained weights.
        folder: made if missing.
        card: text of the model card (data, licences, figures).
        facts: further plain data for ``model.json``.

    Returns:
        The folder.
    """
    import torch

    from visavis.models.motion import LOOKAHEAD_STEPS

    class Step(torch.nn.Module):
        """The net with a flat signature; the phone head stays behind."""

        def __init__(self, inner: AnyMotionNet, names: list[str]):
            super().__init__()
            self.inner, self.names = inner, names

        def forward(self, features, lookahead, *state):
            motion, _, following = self.inner(
                features, lookahead, dict(zip(self.names, state, strict=True))
            )
            return motion, *(following[n] for n in self.names)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    net = net.eval()
    shapes = net.state_shapes()
    names = list(shapes)
    inputs = ["features", "lookahead", *names]
    outputs = ["motion", *(f"{n}:next" for n in names)]
    example = (
        torch.zeros(1, 1, net.config.n_inputs),
        torch.zeros(1, len(LOOKAHEAD_STEPS)),
        *(torch.zeros(1, *shapes[n]) for n in names),
    )
    with warnings.catch_warnings():
        # The older exporter: the new one takes half a minute for these three layers.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Step(net, names).eval(), example, str(folder / "motion.onnx"), dynamo=False, opset_version=17,
            input_names=inputs, output_names=outputs,
            dynamic_axes={n: {0: "batch"} for n in inputs + outputs},
        )  # fmt: skip
    description = {
        "kind": "motion",
        "version": 1,
        "graph": "motion.onnx",
        "channels": list(SPEECH_CHANNELS),
        "lookahead_ms": list(LOOKAHEAD_STEPS),
        "state": {n: list(s) for n, s in shapes.items()},
        "sizes": net.describe(),
    }
    text = json.dumps(description | (facts or {}), indent=1)
    (folder / "model.json").write_text(text + "\n", encoding="utf-8")
    (folder / "card.md").write_text(card, encoding="utf-8")
    return folder


def export_encoder(encoder: ChunkedEncoder, folder: str | Path) -> Path:
    """Write ``encoder.onnx``: windows of sound ``(B, samples)`` to ``(B, chunk, width)``.

    The graph is of one window, past sound included, and holds no state: these encoders hear both
    ways, so there is nothing between two windows to hand on but sound.
    """
    import copy

    import torch

    class Window(torch.nn.Module):
        """A window's answers, without the parametrisations that training needs."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, sound):
            return self.inner.answer(sound)

    whole = Window(copy.deepcopy(encoder).eval())
    for module in list(whole.modules()):
        if torch.nn.utils.parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                torch.nn.utils.parametrize.remove_parametrizations(module, name)
    path = Path(folder) / "encoder.onnx"
    example = torch.zeros(1, encoder.grid.steps * MOTION_HOP)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            whole, example, str(path), dynamo=False, opset_version=17, input_names=["sound"],
            output_names=["answers"], dynamic_axes={"sound": {0: "batch"}, "answers": {0: "batch"}},
        )  # fmt: skip
    return path


def export_autoencoder(
    net: MotionAutoencoder, folder: str | Path, card: str, facts: dict | None = None
) -> Path:
    """Write ``encoder.onnx``, ``decoder.onnx``, ``model.json`` and ``card.md``.

    Args:
        net: trained weights.
        folder: made if missing.
        card: text of the model card.
        facts: further plain data for ``model.json``, such as which vertices.

    Returns:
        The folder.
    """
    import torch

    class Half(torch.nn.Module):
        """One way through the net."""

        def __init__(self, way):
            super().__init__()
            self.net, self.way = net, way

        def forward(self, *inputs):
            return self.way(*inputs)

    c = net.config
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seen = (torch.zeros(2, c.n_channels), torch.zeros(2, c.n_vertices, 3))
    ways = {
        "encoder": (lambda *x: net.encode(*x)[0], seen, ["channels", "offsets"], "code"),
        "decoder": (net.decode, (torch.zeros(2, c.latent),), ["code"], "offsets"),
    }
    for name, (way, example, inputs, output) in ways.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older exporter says that it is old; it is quick
            torch.onnx.export(
                Half(way).eval(), example, str(folder / f"{name}.onnx"), dynamo=False,
                opset_version=17, input_names=inputs, output_names=[output],
                dynamic_axes={n: {0: "batch"} for n in [*inputs, output]},
            )  # fmt: skip
    description = {"kind": "motion_autoencoder", "version": 1, "sizes": net.describe()}
    text = json.dumps(description | (facts or {}), indent=1)
    (folder / "model.json").write_text(text + "\n", encoding="utf-8")
    (folder / "card.md").write_text(card, encoding="utf-8")
    return folder
