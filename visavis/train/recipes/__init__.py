"""Training recipes: TOML files, read into frozen configs that refuse unknown keys."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from visavis.errors import ConfigError

FOLDER = Path(__file__).parent


class PoolRecipe(BaseModel):
    """One kind of clips and how much of each batch it fills."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpora: tuple[str, ...]
    share: float
    copies: int = 3  # recording conditions drawn per clip, besides the clean one
    weight: float = 1.0  # of the motion loss
    pseudo: bool = False  # motion comes from the phone teacher
    limit: int = 0  # clips used, 0 for all


class MotionRecipe(BaseModel):
    """Everything a motion training needs to be done again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: str = "base"
    architecture: str = "tcn_gru"  # or transformer
    encoder: str = "log_mel"  # or hubert, wav2vec2, wavlm
    encoder_weights: str = ""  # folder or hub name, where the encoder is a learned one
    encoder_layers: int = 0  # of its uppermost layers tuned along; 0: frozen
    encoder_past: int = 50  # steps of 20 ms it hears before a chunk
    encoder_chunk: int = 4  # steps it answers at once
    encoder_future: int = 4  # steps it hears after a chunk
    dropout: float = 0.1
    accumulate: int = 1  # parts a batch is worked off in; the result is that of the whole
    start: str = ""  # a run (its run.pt) whose averaged weights to start from; empty: fresh ones
    lookahead_weight: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)  # of the motion at 0, 40, 80, 160 ms
    seed: int = 0
    iterations: int = 3000
    batch: int = 16
    steps: int = 150
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    average: float = 0.998  # decay of the averaged weights
    checkpoint_every: int = 100
    bf16: bool = False  # forward pass in bfloat16; weights and losses stay in float32
    quiet: int = 60  # generated clips of nobody speaking
    quiet_share: float = 0.1
    chatter_corpora: tuple[str, ...] = ()  # whose voices talk in the background; empty: all pools'
    teacher_iterations: int = 1500
    teacher_corpora: tuple[str, ...] = ()
    teacher_talkers: tuple[str, ...] = ()  # whose style labels speech in turn; empty: the average
    loss: dict[str, float] = {}
    pools: dict[str, PoolRecipe]


SHAPES_NET = (
    "size", "architecture", "encoder", "encoder_weights", "encoder_layers", "encoder_past",
    "encoder_chunk", "encoder_future",
)  # fmt: skip
"""Keys that a run must go on with as it was begun."""


def read_motion_recipe(name: str | Path) -> MotionRecipe:
    """A recipe by the name of a shipped one or by path.

    Raises:
        ConfigError: no such file, not TOML, unknown or impossible keys.
    """
    path = Path(name)
    if not path.suffix:
        path = FOLDER / f"{name}.toml"
    try:
        return MotionRecipe(**tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as err:
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("motion*.toml")))
        raise ConfigError(f"no recipe {name}; shipped ones are {known}, or give a path") from err
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{path} is not TOML: {err}") from err
    except ValidationError as err:
        raise _refusal(str(path), err) from err


def change(recipe: MotionRecipe, changes: dict) -> MotionRecipe:
    """A recipe with some keys set otherwise; keys of ``None`` are left alone.

    Raises:
        ConfigError: unknown or impossible keys.
    """
    asked = {k: v for k, v in changes.items() if v is not None}
    try:
        return MotionRecipe(**(recipe.model_dump() | asked))
    except ValidationError as err:
        raise _refusal("changed recipe", err) from err


def _refusal(what: str, err: ValidationError) -> ConfigError:
    first = err.errors()[0]
    return ConfigError(f"{what}: {'.'.join(map(str, first['loc']))}: {first['msg']}")
