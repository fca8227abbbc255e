"""Videos to motion: follow the face, remove the pose, measure the named channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from visavis.errors import VideoError
from visavis.facemesh import FaceMesh
from visavis.facemodel import (
    EYES,
    PIVOT,
    FaceModel,
    Pose,
    angles_of,
    fit_pose,
    load_face_model,
    measure,
)
from visavis.types import CHANNEL, CHANNELS, MOTION_RATE, Motion

MIN_FACE_SHARE = 0.5  # of the frames of a clip must show the face


@dataclass(frozen=True)
class Track:
    """What was seen in one clip.

    Attributes:
        points: ``(T, 478, 3)`` float32 pixels, NaN where no face was seen.
        times: ``(T,)`` float64 seconds, increasing.
        scores: ``(T,)`` float32 presence.
        size: ``(height, width)`` pixels.
    """

    points: np.ndarray
    times: np.ndarray
    scores: np.ndarray
    size: tuple[int, int]

    @property
    def seen(self) -> np.ndarray:
        """``(T,)`` bool: frames with a face."""
        return np.isfinite(self.points[:, 0, 0])


def track_points(
    frames: Iterable[tuple[float, np.ndarray]],
    mesh: FaceMesh,
    progress: Callable[[int], None] | None = None,
) -> Track:
    """Follow the largest face through a clip.

    Args:
        frames: pairs of time in seconds and ``(H, W, 3)`` uint8 RGB.
        mesh: the tracker.
        progress: called with the number of frames done.

    Raises:
        VideoError: no frame at all.
    """
    state = mesh.init_state()
    points, times, scores, size = [], [], [], None
    for time, image in frames:
        state, face = mesh.track(state, image)
        points.append(np.full((478, 3), np.nan, np.float32) if face is None else face.points)
        scores.append(0.0 if face is None else face.score)
        times.append(float(time))
        size = image.shape[:2]
        if progress:
            progress(len(times))
    if size is None:
        raise VideoError("the video has no frame; give one that shows a face")
    return Track(np.array(points), np.array(times), np.array(scores, np.float32), size)


def neutral_of_track(vertices: np.ndarray) -> np.ndarray:
    """The clip's own neutral: lips as in its most closed frames, lids as in its open-eyed ones.

    Args:
        vertices: ``(T, 478, 3)`` face frame.

    Returns:
        ``(478, 3)``. This looks at the whole clip: tracking is offline by nature.
    """
    gap = vertices[:, 14, 1] - vertices[:, 13, 1]
    quiet = np.median(vertices[gap <= np.quantile(gap, 0.25) + 1e-6], axis=0)
    for eye in EYES.values():
        opening = (vertices[:, eye["lower"], 1] - vertices[:, eye["upper"], 1]).mean(1)
        is_open = opening >= np.median(opening)
        rows = np.concatenate([v for k, v in eye.items() if k not in ("corners", "iris")])
        quiet[rows] = np.median(vertices[is_open][:, rows], axis=0)
    return quiet


def clip_geometry(
    points: np.ndarray, template: np.ndarray
) -> tuple[list[Pose], np.ndarray, np.ndarray]:
    """Poses, pose-removed vertices ``(T, 478, 3)`` and neutral ``(478, 3)`` of a clip."""
    rough = np.array([fit_pose(p, template).remove(p) for p in points])
    neutral = neutral_of_track(rough)
    # the person's own bones fit better than the mean face's
    poses = [fit_pose(p, neutral) for p in points]
    vertices = np.array([pose.remove(p) for pose, p in zip(poses, points, strict=True)])
    return poses, vertices, neutral_of_track(vertices)


def motion_of_track(
    track: Track,
    model: FaceModel | None = None,
    *,
    neutral: np.ndarray | None = None,
    rest: Pose | None = None,
) -> np.ndarray:
    """Channels of every frame of a track, at the track's own times.

    Args:
        track: a clip in which a face was seen.
        model: face model; the shipped one by default.
        neutral: ``(478, 3)`` of the person when known; otherwise estimated from the clip.
        rest: pose that counts as zero head shift and scale; the clip's median by default. Angles
            are always against the camera.

    Returns:
        ``(T, D)`` float32; frames without a face are interpolated from their neighbours.

    Raises:
        VideoError: a face in fewer than half of the frames.
    """
    seen = track.seen
    if seen.mean() < MIN_FACE_SHARE:
        raise VideoError(
            f"a face was found in {int(seen.sum())} of {len(seen)} frames, at least half are needed;"
            " give one of a person facing the camera"
        )
    points = track.points[seen]
    if neutral is None:
        poses, vertices, neutral = clip_geometry(points, (model or load_face_model()).template)
    else:
        poses = [fit_pose(p, neutral) for p in points]
        vertices = np.array([pose.remove(p) for pose, p in zip(poses, points, strict=True)])
    values = measure(vertices, neutral)
    values[:, [CHANNEL[c] for c in ("head_pitch", "head_yaw", "head_roll")]] = [
        angles_of(p.rotation) for p in poses
    ]
    pivots = np.array([p.apply(PIVOT) for p in poses])
    scales = np.array([p.scale for p in poses])
    home = rest.apply(PIVOT) if rest else np.median(pivots, axis=0)
    unit = rest.scale if rest else float(np.median(scales))
    values[:, CHANNEL["shift_x"]] = (pivots[:, 0] - home[0]) / unit
    values[:, CHANNEL["shift_y"]] = (pivots[:, 1] - home[1]) / unit
    values[:, CHANNEL["scale"]] = np.log(scales / unit)
    return _fill(values, track.times[seen], track.times)


def resample(values: np.ndarray, times: np.ndarray, rate: int = MOTION_RATE) -> np.ndarray:
    """Channels at their own times ``(T, D)`` to a steady rate from time zero, linear."""
    count = max(1, round((times[-1] + _step(times)) * rate))
    return _fill(values, times, np.arange(count) / rate)


def track_video(
    path: str | Path,
    *,
    mesh: FaceMesh | None = None,
    progress: Callable[[int], None] | None = None,
) -> Motion:
    """Measure the motion of the person in a video.

    Args:
        path: any video file that shows one face.
        mesh: tracker; opened from the model store by default.
        progress: called with the number of frames done.

    Returns:
        Motion at 50 Hz, all channels. Angles are against the camera, head shift against the clip's
        median.

    Raises:
        VideoError: unreadable, or a face in fewer than half of the frames.
    """
    from visavis.video import read_video

    stream = ((float(time), image) for _, time, image in read_video(path))
    track = track_points(stream, mesh or FaceMesh.open(), progress)
    values = resample(motion_of_track(track), track.times - track.times[0])
    meta = {"source": Path(path).name, "frames": len(track.times), "seen": int(track.seen.sum())}
    return Motion(values, Fraction(MOTION_RATE), CHANNELS, meta)


def _fill(values: np.ndarray, at: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    columns = [np.interp(wanted, at, values[:, d]) for d in range(values.shape[1])]
    return np.stack(columns, 1).astype(np.float32)


def _step(times: np.ndarray) -> float:
    return float(np.median(np.diff(times))) if len(times) > 1 else 1 / 30
