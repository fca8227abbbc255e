"""Ten minutes of speech: does the face stay the person's? Heard in full, drawn now and then."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from visavis.errors import ConfigError, InputError
from visavis.eval.clips import read_sound
from visavis.eval.identity import FaceEmbedder, cosine
from visavis.facemesh import FaceMesh
from visavis.pipeline import Pipeline
from visavis.types import SAMPLE_RATE


def joined_sound(paths: tuple[Path, ...], seconds: float, notes: list[str]) -> np.ndarray:
    """Sounds one after another, from the first again if they end: ``(seconds * 16000,)`` float32.

    Raises:
        ConfigError: no length is given.
        InputError: none of the files can be read.
    """
    if not seconds:
        raise ConfigError("a split of kind 'long' needs seconds")
    parts, have, count, wanted = [], 0, 0, round(seconds * SAMPLE_RATE)
    while have < wanted:
        part = read_sound(paths[count % len(paths)], None, notes)
        parts.append(part)
        have, count = have + len(part), count + 1
        if count == len(paths) and not have:
            raise InputError(f"{paths[0].parent}: no sound can be read in this split")
    notes.append(f"{count} sounds joined")
    return np.concatenate(parts)[:wanted]


def identity_over_time(
    pipe: Pipeline, motion: np.ndarray, every: int, mesh: FaceMesh, embedder: FaceEmbedder
) -> np.ndarray:
    """Cosine to the photo of every ``every``-th frame, ``(ceil(T / every),)``; NaN without a face.

    Frames are drawn in order with the renderer's state carried on, looked at and dropped.

    Args:
        motion: ``(T, D)``, a row per frame.
    """
    avatar = pipe.renderer.avatar
    base = embedder(avatar.image, avatar.points)
    state, cosines = pipe.renderer.init_state(), []
    for k, row in enumerate(motion):
        state, images = pipe.renderer.step(state, row[None, None])
        if k % every:
            continue
        image = images[0, 0]
        faces = mesh.find(image)
        cosines.append(cosine(embedder(image, faces[0].points), base) if faces else np.nan)
    return np.array(cosines)
