"""Learned speech encoders (HuBERT, wav2vec 2.0, WavLM) in the place of log-mel, in chunks of a stream.

The encoders hear both ways, so a stream is cut into windows on a fixed grid: ``past`` steps, a
``chunk``, ``future`` steps, and only the answers of the chunk are kept. A step waits for at most
``chunk + future - 1`` steps of sound after its own; offline and live compute the same windows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visavis.errors import ConfigError, ModelError
from visavis.models.architectures import AnyMotionNet
from visavis.motion import MotionNet
from visavis.smoothing import Smoother
from visavis.train.data import LOG_MEL, FrontEnd
from visavis.train.evaluate import Voice
from visavis.train.recipes import MotionRecipe
from visavis.types import MOTION_HOP, State

ENCODERS = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model", "wavlm": "WavLMModel"}
"""Encoder names and their classes in transformers."""
REFUSED = {
    "wavlm": "the model cards of WavLM's weights name CC BY-SA 3.0, which is not permissive: what is "
    "made from them may have to be shared alike (its repository says MIT; microsoft/unilm issue 1757 "
    "asks which holds and has no answer)"
}
AT_ONCE = 16  # windows worked off side by side where a whole clip is at hand
FLOOR = 1e-5  # of a window's variance: silence is not turned up to the level of speech


@dataclass(frozen=True)
class Grid:
    """The windows of a stream, in motion steps of 20 ms.

    Attributes:
        past: steps heard before a chunk.
        chunk: steps answered at once.
        future: steps heard after a chunk, at least 1: the encoders' frames reach 5 ms too far.
    """

    past: int = 50
    chunk: int = 4
    future: int = 4

    @property
    def steps(self) -> int:
        """Length of a window."""
        return self.past + self.chunk + self.future

    @property
    def lookahead(self) -> int:
        """Steps that the first answer of a chunk waits for after its own."""
        return self.chunk + self.future - 1


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

    def forward(self, features: Tensor, lookahead: Tensor, state: dict[str, Tensor]) -> tuple:
        """As the motion net's own, from sound."""
        return self.motion(self.encoder(features), lookahead, state)


class EncoderStage:
    """Stage: sound ``(B, n)`` at 16 kHz in, an encoder's answers ``(B, m, width)`` at 50 Hz out.

    Args:
        encoder: frozen.

    Attributes:
        lookahead: the most steps of 20 ms an answer comes after its own step.
    """

    def __init__(self, encoder: ChunkedEncoder):
        self.encoder, self.grid = encoder.eval(), encoder.grid
        self.lookahead = encoder.grid.lookahead
        self._before = encoder.grid.past * MOTION_HOP

    def init_state(self, batch: int = 1) -> State:
        """Silence before the first sample."""
        return {
            "encoder/sound": np.zeros((batch, self.grid.steps * MOTION_HOP), np.float32),
            "encoder/waiting": np.zeros(batch, np.int64),
        }

    def step(self, state: State, chunk: np.ndarray) -> tuple[State, np.ndarray]:
        """Every chunk of answers whose future has been heard."""
        g, held = self.grid, self._before + int(state["encoder/waiting"][0])
        sound = np.concatenate([state["encoder/sound"][:, :held], chunk], axis=1)
        length, hop = g.steps * MOTION_HOP, g.chunk * MOTION_HOP
        count = max(0, (sound.shape[1] - length) // hop + 1)
        starts = np.arange(count) * hop
        parts = [
            self._answer(
                np.stack([sound[:, a : a + length] for a in starts[i : i + AT_ONCE]], axis=1)
            )
            for i in range(0, count, AT_ONCE)
        ]
        rest = np.ascontiguousarray(sound[:, count * hop :])
        kept = np.zeros_like(state["encoder/sound"])
        kept[:, : rest.shape[1]] = rest
        waiting = np.full(len(chunk), rest.shape[1] - self._before, np.int64)
        none = np.zeros((len(chunk), 0, self.encoder.width), np.float32)
        following = {"encoder/sound": kept, "encoder/waiting": waiting}
        return following, np.concatenate([none, *parts], axis=1)

    def flush(self, state: State) -> np.ndarray:
        """The last steps, heard against silence: in all one per begun 320 samples."""
        waiting = int(state["encoder/waiting"][0])
        steps = -(-waiting // MOTION_HOP)
        chunks = -(-steps // self.grid.chunk)
        total = (chunks * self.grid.chunk + self.grid.future) * MOTION_HOP
        quiet = np.zeros((len(state["encoder/sound"]), max(total - waiting, 0)), np.float32)
        return self.step(state, quiet)[1][:, :steps]

    def hear(self, pcm: np.ndarray) -> np.ndarray:
        """A whole clip, ``(n,)`` float32 to ``(n // 320, width)``: the stream, drained."""
        state, out = self.step(self.init_state(), pcm[None].astype(np.float32))
        whole = np.concatenate([out, self.flush(state)], axis=1)
        return whole[0, : len(pcm) // MOTION_HOP]

    @torch.no_grad()
    def _answer(self, windows: np.ndarray) -> np.ndarray:
        """Windows ``(B, N, samples)`` to ``(B, N * chunk, width)``."""
        flat = torch.from_numpy(windows).flatten(0, 1)
        return self.encoder.answer(flat).unflatten(0, windows.shape[:2]).flatten(1, 2).numpy()


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
    stage = EncoderStage(encoder)
    silence = stage.hear(np.zeros(2 * encoder.grid.steps * MOTION_HOP, np.float32))
    return FrontEnd(stage.hear, silence[-1]), None


def describe_front(recipe: MotionRecipe, encoder: ChunkedEncoder) -> dict:
    """What ``model.json`` says of the features of a net on a learned encoder."""
    silence = EncoderStage(encoder).hear(np.zeros(2 * encoder.grid.steps * MOTION_HOP, np.float32))
    return {
        "encoder": recipe.encoder,
        "weights": recipe.encoder_weights,
        "tuned_layers": recipe.encoder_layers,
        "lookahead_ms": 20 * encoder.grid.lookahead,
        "per_step": 1,
        "silence": [round(float(v), 6) for v in silence[-1]],
        **{f"encoder_{k}": v for k, v in asdict(encoder.grid).items()},
    }


def save_tuned(encoder: ChunkedEncoder, folder: str | Path) -> Path:
    """Write the weights that learned beside a motion model, ``encoder.safetensors``."""
    learned = {n: p.detach().contiguous() for n, p in encoder.named_parameters() if p.requires_grad}
    path = Path(folder) / "encoder.safetensors"
    save_file(learned, path)
    return path


def load_voice(
    folder: str | Path, lookahead_ms: int = 40, *, accept_licence: bool = False
) -> Voice:
    """The stages between sound and motion of an exported model that hears with a learned encoder.

    Args:
        folder: of ``visavis export``.
        lookahead_ms: of the motion net, on top of the encoder's own.
        accept_licence: use an encoder whose weights are not permissively licensed.

    Raises:
        ConfigError: the model hears log-mel, or its encoder cannot be used.
        ModelError: the folder or the encoder's weights cannot be read.
    """
    path = Path(folder) / "model.json"
    try:
        front = json.loads(path.read_text(encoding="utf-8")).get("front")
    except (OSError, ValueError) as err:
        raise ModelError(f"no motion model in {folder}: {err}") from err
    if not front:
        raise ConfigError(f"the model in {folder} hears log-mel; use visavis.train.evaluate.Voice")
    keys = {k: front[k] for k in ("encoder_past", "encoder_chunk", "encoder_future")}
    recipe = MotionRecipe(
        encoder=front["encoder"], encoder_weights=front["weights"],
        encoder_layers=front["tuned_layers"], pools={}, **keys,
    )  # fmt: skip
    encoder = load_encoder(recipe, accept_licence)
    if recipe.encoder_layers:
        encoder.load_state_dict(load_file(Path(folder) / "encoder.safetensors"), strict=False)
    motion = MotionNet(folder, lookahead_ms, encoder=front["encoder"])
    return Voice(EncoderStage(encoder), motion, Smoother())
