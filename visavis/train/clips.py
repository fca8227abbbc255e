"""Training clips on disk: one safetensors file each, sound with motion, phones or both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save_file

from visavis.types import CHANNELS, FEATURE_HOP, MOTION_HOP


@dataclass(frozen=True)
class Clip:
    """One utterance.

    Attributes:
        name: file name without suffix, unique in its corpus.
        corpus: the data set it came from.
        talker: who speaks; talkers are left out as a whole.
        pcm: ``(n,)`` int16 at 16 kHz.
        motion: ``(T, 21)`` float32 at 50 Hz, or None where no face was filmed.
        phones: ``(n // 160,)`` uint8 classes of ``phones.PHONES``, or None.
        meta: offset_ms, text, source, licence.
    """

    name: str
    corpus: str
    talker: str
    pcm: np.ndarray
    motion: np.ndarray | None = None
    phones: np.ndarray | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> int:
        """Whole 10 ms hops."""
        return len(self.pcm) // FEATURE_HOP

    @property
    def steps(self) -> int:
        """Whole motion steps."""
        return len(self.pcm) // MOTION_HOP


def is_held_out(name: str, share: int = 10) -> bool:
    """Whether a clip belongs to the tenth that is never trained on: by a hash of its name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % share == 0


def is_held_out_talker(talker: str, share: int = 4) -> bool:
    """Whether a voice belongs to the quarter never trained on.

    Args:
        talker: of LibriSpeech with or without ``ls`` before its number; of eSpeak NG a voice and,
            after ``+``, the variant of the vocal tract, which alone counts.
        share: one in so many is held out.
    """
    name = talker.partition("+")[2] or (f"ls{talker}" if talker.isdigit() else talker)
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % share == 0


def is_withheld(clip: Clip) -> bool:
    """Whether a clip is kept for scoring: a tenth of ``grid_s1``, a quarter of the unfilmed voices."""
    if clip.corpus.partition("_")[0] in ("librispeech", "espeak"):
        return is_held_out_talker(clip.talker)
    return clip.corpus == "grid_s1" and is_held_out(clip.name)


def save_clip(clip: Clip, folder: str | Path) -> Path:
    """Write ``folder/corpus/name.safetensors``."""
    path = Path(folder) / clip.corpus / f"{clip.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"pcm": np.ascontiguousarray(clip.pcm, np.int16)}
    if clip.motion is not None:
        arrays["motion"] = np.ascontiguousarray(clip.motion, np.float32)
    if clip.phones is not None:
        arrays["phones"] = np.ascontiguousarray(clip.phones, np.uint8)
    facts = clip.meta | {"talker": clip.talker, "channels": list(CHANNELS), "version": 1}
    save_file(arrays, path, metadata={"clip": json.dumps(facts)})
    return path


def load_clip(path: str | Path) -> Clip:
    """Read one file of ``save_clip``."""
    path = Path(path)
    return clip_from_bytes(path.read_bytes(), path.stem, path.parent.name)


def clip_from_bytes(data: bytes, name: str, corpus: str) -> Clip:
    """A clip from the bytes of its file.

    The metadata is in the file's header: eight bytes of length, then JSON (safetensors format).
    """
    size = int.from_bytes(data[:8], "little")
    facts = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["clip"])
    arrays = load(data)
    assert tuple(facts.pop("channels")) == CHANNELS, f"{name}: prepared for other channels"
    talker = facts.pop("talker")
    return Clip(
        name, corpus, talker, arrays["pcm"], arrays.get("motion"), arrays.get("phones"), facts,
    )  # fmt: skip


def load_corpus(folder: str | Path, corpus: str) -> list[Clip]:
    """Every clip of one corpus, by name; from ``folder/shards`` where there are no single files."""
    files = sorted((Path(folder) / corpus).glob("*.safetensors"))
    if files or not (Path(folder) / "shards" / f"{corpus}.parquet").exists():
        return [load_clip(p) for p in files]
    from visavis.train.shards import read_shards

    return list(read_shards(Path(folder) / "shards", corpus))
