"""Learned speech encoders (HuBERT, wav2vec 2.0, WavLM) in the place of log-mel, in chunks of a stream.

The windows are those of ``visavis.encoder``, which runs an exported one without torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from visavis.encoder import EncoderStage, Grid
from visavis.errors import ConfigError, ModelError
from visavis.models.architectures import AnyMotionNet
from visavis.train.data import LOG_MEL, FrontEnd
from visavis.train.recipes import MotionRecipe
from visavis.types import MOTION_HOP

ENCODERS = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model", "wavlm": "WavLMModel"}
"""Encoder names and their classes in transformers."""
REFUSED = {
    "wavlm": "the model cards of WavLM's weights name CC BY-SA 3.0, which is not permissive: what is "
    "made from them may have to be shared alike (its repository says MIT; microsoft/unilm issue 1757 "
    "asks which holds and has no answer)"
}
FLOOR = 1e-5  # of a window's variance: silence is not turned up to the level of speech


class ChunkedEncoder(nn.Module):
    """Sound by motion steps ``(B, T, 320)`` to ``(B, T, width)``, window by window.

    Args:
        model: of transformers, with a frame every 320 samples.
        grid: the windows.
        tuned: uppermost layers whose weights learn; the others and the convolutions are frozen.
        normalise: whether the encoder was taught on sound of unit variance.

    Raises:
        ModelError: the encoder has another rate.
    """

    def __init__(self, model: nn.Module, grid: Grid, tuned: int = 0, normalise: bool = True):
        super().__init__()
        hop = int(np.prod(model.config.conv_stride))
        if hop != MOTION_HOP:
            raise ModelError(
                f"the encoder has a frame every {hop} samples, {MOTION_HOP} are needed (50 Hz)"
            )
        self.model, self.grid, self.normalise = model, grid, normalise
        self.width = model.config.hidden_size
        model.requires_grad_(False)
        for layer in list(model.encoder.layers)[len(model.encoder.layers) - tuned :]:
            layer.requires_grad_(True)

    def train(self, mode: bool = True) -> ChunkedEncoder:
        """The encoder stays as it is used: no dropout, no masking."""
        return super().train(False)

    def forward(self, sound: Tensor) -> Tensor:
        """A whole clip that starts and ends in silence."""
        g, steps = self.grid, sound.shape[1]
        chunks = -(-steps // g.chunk)
        after = chunks * g.chunk - steps + g.future
        padded = nn.functional.pad(sound, (0, 0, g.past, after))
        windows = padded.unfold(1, g.steps, g.chunk).transpose(2, 3)  # (B, chunks, steps, 320)
        answers = self.answer(windows.flatten(2).flatten(0, 1))
        return answers.unflatten(0, (len(sound), chunks)).flatten(1, 2)[:, :steps]

    def answer(self, windows: Tensor) -> Tensor:
        """Windows ``(N, steps * 320)`` to their chunks ``(N, chunk, width)``."""
        if self.normalise:
            middle = windows - windows.mean(1, keepdim=True)
            windows = middle / (middle.square().mean(1, keepdim=True) + FLOOR).sqrt()
        out = self.model(windows).last_hidden_state
        return out[:, self.grid.past : self.grid.past + self.grid.chunk]


class EncodedMotionNet(nn.Module):
    """A motion net on an encoder that is tuned along; features are sound, ``(B, T, 320)``."""

    def __init__(self, encoder: ChunkedEncoder, motion: AnyMotionNet):
        super().__init__()
        self.encoder, self.motion = encoder, motion
        self.mean, self.scale = motion.mean, motion.scale

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """Of the motion net; the encoder starts in silence."""
        return self.motion.init_state(batch)

    def forward(
        self, features: Tensor, lookahead: Tensor | None, state: dict[str, Tensor]
    ) -> tuple:
        """As the motion net's own, from sound."""
        return self.motion(self.encoder(features), lookahead, state)


def stage_of(encoder: ChunkedEncoder) -> EncoderStage:
    """The encoder, frozen, as a stage between sound and features."""
    encoder = encoder.eval()

    @torch.no_grad()
    def answer(windows: np.ndarray) -> np.ndarray:
        return encoder.answer(torch.from_numpy(np.ascontiguousarray(windows))).numpy()

    return EncoderStage(answer, encoder.grid, encoder.width)


def load_encoder(recipe: MotionRecipe, accept_licence: bool = False) -> ChunkedEncoder:
    """The encoder a recipe names, from a folder or from the Hugging Face hub (or its cache).

    Raises:
        ConfigError: unknown encoder, no weights named, transformers missing, or a licence that is
            not permissive and was not accepted.
        ModelError: the weights cannot be read, or have another rate than 50 Hz.
    """
    name, weights = recipe.encoder, recipe.encoder_weights
    if name not in ENCODERS:
        raise ConfigError(
            f"encoder {name!r} is unknown; choose one of log_mel, {', '.join(ENCODERS)}"
        )
    if name in REFUSED and not accept_licence:
        raise ConfigError(f"{REFUSED[name]}; take hubert or wav2vec2, or give --accept-licence")
    if not weights:
        raise ConfigError(
            f"encoder {name} needs weights: give --encoder-weights FOLDER_OR_HUB_NAME"
        )
    if recipe.encoder_future < 1 or recipe.encoder_chunk < 1 or recipe.encoder_past < 0:
        raise ConfigError("an encoder needs chunks and a future of at least one step of 20 ms")
    try:
        import transformers
    except ImportError as err:
        raise ConfigError("learned encoders need: pip install 'visavis[encoders]'") from err
    try:
        model = getattr(transformers, ENCODERS[name]).from_pretrained(weights)
    except (OSError, ValueError) as err:
        reason = str(err).strip().splitlines()[0]
        raise ModelError(f"no {name} weights at {weights}: {reason}") from err
    grid = Grid(recipe.encoder_past, recipe.encoder_chunk, recipe.encoder_future)
    return ChunkedEncoder(model.eval(), grid, recipe.encoder_layers, _normalises(weights))


def _normalises(weights: str) -> bool:
    """What the weights' own preprocessor says; most were taught on sound of unit variance."""
    path = Path(weights) / "preprocessor_config.json"
    if not path.is_file():
        return True
    return bool(json.loads(path.read_text(encoding="utf-8")).get("do_normalize", True))


def _by_steps(pcm: np.ndarray) -> np.ndarray:
    """Sound ``(n,)`` as ``(n // 320, 320)``."""
    steps = len(pcm) // MOTION_HOP
    return pcm[: steps * MOTION_HOP].reshape(steps, MOTION_HOP)


def open_front(
    recipe: MotionRecipe, accept_licence: bool = False
) -> tuple[FrontEnd, ChunkedEncoder | None]:
    """What a recipe's net hears with, and the encoder where it is tuned along.

    A frozen encoder is run once over every clip; one that is tuned hears the clips anew each time.

    Raises:
        ConfigError: unknown encoder, no weights named, or a licence that was not accepted.
        ModelError: the weights cannot be read.
    """
    if recipe.encoder == "log_mel":
        return LOG_MEL, None
    encoder = load_encoder(recipe, accept_licence)
    if recipe.encoder_layers:
        return FrontEnd(_by_steps, np.zeros(MOTION_HOP, np.float32)), encoder
    stage = stage_of(encoder)
    silence = stage.hear(np.zeros(2 * encoder.grid.steps * MOTION_HOP, np.float32))
    return FrontEnd(stage.hear, silence[-1]), None


def describe_front(recipe: MotionRecipe, encoder: ChunkedEncoder) -> dict:
    """What ``model.json`` says of the features of a net on a learned encoder."""
    silence = stage_of(encoder).hear(np.zeros(2 * encoder.grid.steps * MOTION_HOP, np.float32))
    return {
        "encoder": recipe.encoder,
        "graph": "encoder.onnx",
        "weights": recipe.encoder_weights,
        "tuned_layers": recipe.encoder_layers,
        "lookahead_ms": 20 * encoder.grid.lookahead,
        "per_step": 1,
        "silence": [round(float(v), 6) for v in silence[-1]],
        **{f"encoder_{k}": v for k, v in asdict(encoder.grid).items()},
    }
