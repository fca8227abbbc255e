"""Protocols: TOML files that fix what is scored, so that two people get the same table."""

from __future__ import annotations

import hashlib
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from visavis.errors import ConfigError

ROWS = ("real", "ceiling", "ours_posed", "ours", "shuffled", "silence", "static")
ROW_NOTES = {
    "real": "the real video",
    "ceiling": "real motion, our renderer",
    "ours_posed": "our lips, real head and eyes (protocol of the person-specific literature)",
    "ours": "our system",
    "shuffled": "our system on the sound of another clip, begun at another moment",
    "silence": "our system on digital silence",
    "static": "the photo, still",
}


class Split(BaseModel):
    """One set of clips.

    ``reconstruct``: films; the first frame is the photo, every row is scored against the film.
    ``person``: the same with one photo (the first clip's) for the whole set, and only the clips in
    the last eleventh of its frames scored: the contiguous 10/11-1/11 split of the literature.
    ``drive``: photos x sounds; there is no film, so only measures without reference apply.
    ``long``: photos x sounds joined to ``seconds`` of speech, drawn at ``fps``: identity over time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["reconstruct", "person", "drive", "long"]
    films: str = ""  # glob under the data folder
    photos: str = ""
    sounds: str = ""
    pick: list[str] = []  # stems; empty takes the glob
    tenth: bool = False  # only the tenth of the stems that training leaves out (see `withheld`)
    new_voices: bool = False  # only sounds of the talkers that training leaves out
    stride: int = Field(1, ge=1)  # every n-th of what is left
    limit: int = Field(0, ge=0)  # 0: all
    seconds: float = Field(0, ge=0)  # of each clip; 0: whole
    fps: int = Field(30, ge=1)  # of driven clips
    rows: list[str] = list(ROWS)


class Protocol(BaseModel):
    """A protocol file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    seed: int = 0
    size: int = Field(512, ge=256, le=1024)  # px, side of the frame in which everything is compared
    image_every: int = Field(1, ge=1)  # frames between image measures
    temporal_every: int = Field(1, ge=1)  # runs of frames: 1 = all of them
    temporal_size: int = Field(256, ge=64)  # px, flow and warping error are measured at this size
    identity_every: int = Field(10, ge=1)
    seeds: int = Field(1, ge=1)  # motion runs for diversity
    splits: list[Split]


def available() -> list[str]:
    """Names of the protocols that ship with the package."""
    folder = files("visavis.eval").joinpath("protocols")
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def load(name: str | Path) -> Protocol:
    """A shipped protocol by name, or one from a TOML file.

    Raises ``ConfigError`` for an unknown name, bad TOML, unknown keys or rows.
    """
    text = str(name)
    if text in available():
        raw = files("visavis.eval").joinpath(f"protocols/{text}.toml").read_text("utf-8")
    elif Path(name).is_file():
        raw = Path(name).read_text("utf-8")
    else:
        raise ConfigError(
            f"{name}: no such protocol; there are {', '.join(available())}, or a file"
        )
    try:
        protocol = Protocol.model_validate(tomllib.loads(raw))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        said = "; ".join(str(error).splitlines()[:4])
        raise ConfigError(f"{name}: not a protocol: {said}") from error
    for split in protocol.splits:
        for row in split.rows:
            if row not in ROWS:
                raise ConfigError(f"{name}: unknown row '{row}'; there are {', '.join(ROWS)}")
    return protocol


def withheld(stem: str) -> bool:
    """Whether a clip is in the tenth that training leaves out: sha256 of its name, mod 10.

    The same rule as ``visavis.train.clips.is_held_out``; a test holds the two together, because the
    judge does not import training code.
    """
    return int(hashlib.sha256(stem.encode()).hexdigest(), 16) % 10 == 0


def withheld_voice(stem: str) -> bool:
    """Whether a LibriSpeech talker (the name up to the first hyphen) is kept from training.

    The same rule as ``visavis.train.clips.is_held_out_talker``: sha256 of ``ls`` and the
    talker's number, mod 4.
    """
    talker = "ls" + stem.split("-")[0]
    return int(hashlib.sha256(talker.encode()).hexdigest(), 16) % 4 == 0


def select_sounds(split: Split, data: Path) -> list[Path]:
    """Every sound a split may use, in a fixed order; ``ConfigError`` when there is none."""
    plain = {"pick": [], "tenth": False, "stride": 1, "limit": 0}
    sounds = select(split.model_copy(update=plain), data, split.sounds)
    if split.new_voices:
        sounds = [p for p in sounds if withheld_voice(p.stem)]
    if not sounds:
        raise ConfigError(f"split '{split.name}': no sound of a withheld talker in {data}")
    return sounds


def select(split: Split, data: Path, pattern: str) -> list[Path]:
    """Files of a split in a fixed order; ``ConfigError`` when there is none."""
    found = sorted(data.glob(pattern))
    if split.pick:
        found = [p for p in found if p.stem in split.pick]
    if split.tenth:
        found = [p for p in found if withheld(p.stem)]
    found = found[:: split.stride]
    found = found[: split.limit] if split.limit else found
    if not found:
        raise ConfigError(
            f"split '{split.name}': nothing matches {data / pattern}; give --data the folder"
        )
    return found
