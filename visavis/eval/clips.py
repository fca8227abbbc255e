"""Clips under judgement: film, sound and tracked face, read once; tracks cached by content.

The cache key is the sha256 of the file together with that of the tracker's source, so an edited
film or a changed tracker is tracked anew and nothing else is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from visavis.errors import AudioError, VideoError
from visavis.facemesh import FaceMesh
from visavis.track import Track, motion_of_track
from visavis.types import SAMPLE_RATE

LEAST_FRAMES = 8  # fewer show no motion


@dataclass(frozen=True)
class Clip:
    """One film. Arrays cover the first ``seconds`` that were asked for.

    Attributes:
        frames: T images ``(H, W, 3)`` uint8 RGB.
        times: ``(T,)`` float64 seconds from the start of the film.
        track: the face in every frame (NaN points where none was seen).
        pcm: ``(S,)`` float32 16 kHz from the start of the film; empty without sound.
        fps: of the median step between frames; ``steady`` tells whether the frames keep to it
        within 2 ms.
        notes: what was odd and how it was dealt with, one line each, for the report.
    """

    name: str
    path: Path
    sha256: str
    frames: list[np.ndarray]
    times: np.ndarray
    track: Track
    pcm: np.ndarray
    fps: Fraction
    steady: bool
    codec: str
    notes: list[str] = field(default_factory=list)

    @property
    def faceless(self) -> int:
        """Frames in which no face was seen; they are left out of every landmark measure."""
        return int((~self.track.seen).sum())


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tracker_version() -> str:
    """Short hash of the tracker's source: a changed tracker empties the cache by itself."""
    import visavis.facemesh

    return sha256_of(Path(visavis.facemesh.__file__))[:12]


def read_frames(
    path: Path, seconds: float | None, notes: list[str], shape: Callable | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Frames and their times; ``shape`` maps each image (for example a crop) before it is kept."""
    from visavis.video import read_video

    frames, times = [], []
    for _, time, image in read_video(path, on_warning=notes.append):
        if seconds is not None and time >= seconds:
            break
        frames.append(shape(image) if shape else image)
        times.append(float(time))
    return frames, np.array(times)


def read_sound(path: Path, seconds: float | None, notes: list[str]) -> np.ndarray:
    """``(S,)`` float32 16 kHz, empty (with a note) when the film has no sound that can be read."""
    from visavis.audio import read_audio

    limit = None if seconds is None else round(seconds * SAMPLE_RATE)
    parts, count = [], 0
    try:
        for chunk in read_audio(path):
            parts.append(chunk)
            count += len(chunk)
            if limit is not None and count >= limit:
                break
    except AudioError as error:
        notes.append(f"no sound: {error}; sync, prosody and silence are not measured")
        return np.zeros(0, np.float32)
    return np.concatenate(parts)[:limit] if parts else np.zeros(0, np.float32)


def track_frames(
    frames: list[np.ndarray], times: np.ndarray, mesh: FaceMesh, cached: Path | None
) -> Track:
    """Track, or read the track of the same content from ``cached`` (written when missing)."""
    if cached is not None and cached.is_file():
        with np.load(cached) as stored:
            return Track(stored["points"], stored["times"], stored["scores"], tuple(stored["size"]))
    state, points, scores, last = mesh.init_state(), [], [], None
    for image in frames:
        # The tracker feeds its region back and wanders by tenths of a pixel on a still picture; the
        # same picture must have the same points, or a frozen film would move.
        if last is None or not np.array_equal(image, last):
            state, face = mesh.track(state, image)
        points.append(np.full((478, 3), np.nan, np.float32) if face is None else face.points)
        scores.append(0.0 if face is None else face.score)
        last = image
    size = frames[0].shape[:2]
    track = Track(np.array(points), np.asarray(times), np.array(scores, np.float32), size)
    if cached is not None:
        cached.parent.mkdir(parents=True, exist_ok=True)
        part = cached.with_suffix(".part.npz")
        np.savez_compressed(
            part, points=track.points, times=track.times, scores=track.scores, size=track.size
        )
        part.replace(cached)
    return track


def read_clip(
    path: Path, mesh: FaceMesh, cache: Path | None = None, seconds: float | None = None
) -> Clip:
    """Read and track one film.

    Raises:
        VideoError: unreadable, fewer than 8 frames, or no face in half of them. The runner prints
            the reason and counts the film as refused.
    """
    from visavis.video import probe_video

    path, notes = Path(path), []
    info = probe_video(path)
    digest = sha256_of(path)
    frames, times = read_frames(path, seconds, notes)
    if len(frames) < LEAST_FRAMES:
        raise VideoError(
            f"{path}: {len(frames)} frames, at least {LEAST_FRAMES} are needed to score"
        )
    end = "" if seconds is None else f"-{seconds:g}s"
    cached = cache / "tracks" / f"{digest[:24]}-{tracker_version()}{end}.npz" if cache else None
    track = track_frames(frames, times, mesh, cached)
    seen = int(track.seen.sum())
    if 2 * seen < len(frames):
        raise VideoError(
            f"{path}: a face in {seen} of {len(frames)} frames, half are needed to score"
        )
    if seen < len(frames):
        notes.append(f"{len(frames) - seen} of {len(frames)} frames show no face and are left out")
    first = int(np.flatnonzero(track.seen)[0])
    if first:
        notes.append(f"no face before frame {first}: that one is the photo")
    faces = len(mesh.find(frames[first]))
    if faces > 1:
        notes.append(f"{faces} faces; the largest is scored")
    steps = np.diff(times)
    steady = bool(np.ptp(steps) < 0.004)
    if not steady:
        notes.append(f"variable frame rate ({1 / steps.max():.1f} to {1 / steps.min():.1f} fps)")
    pcm = read_sound(path, seconds, notes)
    fps = Fraction(1 / float(np.median(steps))).limit_denominator(1001)
    return Clip(path.stem, path, digest, frames, times, track, pcm, fps, steady, info.codec, notes)


def motion_of(clip: Clip) -> np.ndarray:
    """Channels of ``types.CHANNELS`` at the clip's own frame times, ``(T, D)`` float32."""
    return motion_of_track(clip.track)


def nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the frame on show at each wanted time, ``(W,)``: films of other rates are compared
    so.
    """
    middle = (times[1:] + times[:-1]) / 2
    return np.searchsorted(middle, wanted)
