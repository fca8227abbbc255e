"""How each row of the table is made: real, ceiling, ours, shuffled, silence, static, a peer's
film.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visavis.avatar import Avatar, create_avatar
from visavis.eval.clips import Clip, nearest, read_clip, track_frames
from visavis.eval.measures import Evidence
from visavis.facemesh import FaceMesh
from visavis.film import Canvas, canvas_of, driving_motion
from visavis.track import Track, motion_of_track
from visavis.types import CHANNEL, MOTION_RATE, SAMPLE_RATE, SPEECH_CHANNELS

SPEECH = [CHANNEL[c] for c in SPEECH_CHANNELS]


@dataclass(frozen=True)
class Stage:
    """One clip set up for judging: its avatar, canvas and what the film really shows there."""

    clip: Clip
    avatar: Avatar
    canvas: Canvas
    real: Evidence
    driving: np.ndarray  # (T, D) the film's motion as the renderer wants it


def set_stage(clip: Clip, mesh: FaceMesh, size: int, photo: tuple[Avatar, Canvas] | None) -> Stage:
    """Make the avatar from the clip's first face (or take another clip's, ``person`` splits).

    Raises:
        FaceError: that frame is no photo that can be animated; the runner reports it.
    """
    if photo is None:
        still = clip.frames[int(np.flatnonzero(clip.track.seen)[0])]
        avatar = create_avatar(still, size=size, mesh=mesh, name=clip.name)
        photo = avatar, canvas_of(avatar, mesh.find(still)[0].points)
    avatar, canvas = photo
    frames = [canvas.frame(image) for image in clip.frames]
    points = canvas.points(clip.track.points)
    track = Track(points, clip.times, clip.track.scores, (size, size))
    real = Evidence(frames, points, motion_of_track(track), clip.times)
    return Stage(clip, avatar, canvas, real, driving_motion(track, avatar))


def at_times(motion: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Motion at 50 Hz read at frame times by linear interpolation, ``(T, D)`` float32."""
    grid = np.arange(len(motion)) / MOTION_RATE
    columns = [np.interp(times, grid, motion[:, d]) for d in range(motion.shape[1])]
    return np.stack(columns, axis=1).astype(np.float32)


def wrong_sound(other: np.ndarray, samples: int, phase: float) -> np.ndarray:
    """The shuffled row's sound: another clip's, repeated, entered at ``phase``; ``(samples,)``.

    Clips of one corpus share a template (GRID: half a second of rest, six words, rest), so another
    clip's sound begun at the same moment still tells when the mouth is open. Entered at a moment
    that has nothing to do with the film, it tells nothing: over phases spread evenly, the mean
    covariance with any signal of the clip is zero (circular-shift surrogate; Andrzejak et al.,
    Phys. Rev. E 68, 2003).

    Args:
        other: ``(S,)`` float32 16 kHz; its ends are faded over 10 ms, so that the joint is no
            click.
        samples: how many are wanted.
        phase: 0..1 of the other sound's length.
    """
    if not len(other):
        return np.zeros(samples, np.float32)
    sound = other.astype(np.float32)
    edge = min(SAMPLE_RATE // 100, len(sound) // 2)
    ramp = (np.arange(edge, dtype=np.float32) + 0.5) / max(edge, 1)
    sound[:edge] *= ramp
    sound[len(sound) - edge :] *= ramp[::-1]
    return np.resize(np.roll(sound, -round(phase * len(sound))), samples)


def with_real_head(ours: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Our lips on the real head, eyes and brows: the literature's protocol, ``(T, D)``."""
    mixed = real.copy()
    mixed[:, SPEECH] = ours[:, SPEECH]
    return mixed


def watch(frames: list[np.ndarray], times: np.ndarray, mesh: FaceMesh) -> Evidence:
    """Track what was rendered, exactly as films are tracked."""
    track = track_frames(frames, times, mesh, None)
    if 2 * track.seen.sum() < len(frames):
        motion = np.zeros((len(frames), len(CHANNEL)), np.float32)
    else:
        motion = motion_of_track(track)
    return Evidence(frames, track.points, motion, times)


def peer_film(
    path: Path, stage: Stage, mesh: FaceMesh, cache: Path | None
) -> tuple[Evidence, list[str]]:
    """A peer's film of the same words, brought onto the canvas; with notes of what was done.

    A film of the same size as the real one is taken to share its framing; any other is placed by a
    scale and shift that fit its face points to the real ones over the whole clip.
    """
    film = read_clip(path, mesh, cache)
    notes = list(film.notes)
    picks = nearest(film.times, stage.clip.times)
    if abs(float(film.times[-1] - stage.clip.times[-1])) > 0.25:
        notes.append(f"lasts {film.times[-1]:.2f} s, the real film {stage.clip.times[-1]:.2f} s")
    canvas = stage.canvas
    if film.frames[0].shape != stage.clip.frames[0].shape:
        canvas = _placed(film.track.points[picks], stage.real.points, canvas.size)
        height, width = film.frames[0].shape[:2]
        notes.append(f"{width}x{height}, placed on the real film by its face points")
    frames = [canvas.frame(film.frames[i]) for i in picks]
    points = canvas.points(film.track.points[picks])
    track = Track(points, stage.clip.times, film.track.scores[picks], (canvas.size,) * 2)
    return Evidence(frames, points, motion_of_track(track), stage.clip.times), notes


def _placed(points: np.ndarray, wanted: np.ndarray, size: int) -> Canvas:
    """Uniform scale and shift from film points ``(T, 478, 3)`` to canvas points, medians over
    time.
    """
    both = np.isfinite(points[:, 0, 0]) & np.isfinite(wanted[:, 0, 0])
    a, b = points[both][..., :2].astype(float), wanted[both][..., :2].astype(float)
    spread_a = np.linalg.norm(a[:, 263] - a[:, 33], axis=-1)
    spread_b = np.linalg.norm(b[:, 263] - b[:, 33], axis=-1)
    scale = np.full(2, np.median(spread_b) / np.median(spread_a))
    shift = np.median((b.mean(axis=1) + 0.5) - (a.mean(axis=1) + 0.5) * scale, axis=0)
    return Canvas(scale, shift, size)
