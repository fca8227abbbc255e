"""A personal avatar from film: the best photo, the person's own bones, style and looks.

Film in, `Avatar` out, with plain linear algebra and no training library: the film is tracked, drawn
again by the renderer from its own motion, and what the drawing lacks is regressed on the motion
(`visavis.likeness`). The film's last eleventh only chooses how smooth that regression is and tells
how good it became.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from visavis.avatar import DEFAULT_SIZE, Avatar, create_avatar
from visavis.errors import FaceError, VideoError
from visavis.facemesh import FaceMesh
from visavis.facemodel import fit_pose, load_face_model, measure
from visavis.film import Canvas, canvas_of, driving_motion
from visavis.learn import LEAST, Sample, learn_likeness
from visavis.mouth import crop_transform
from visavis.photo import check_face
from visavis.render import Renderer
from visavis.style import style_of
from visavis.track import Track, clip_geometry, track_points
from visavis.types import CHANNEL

LEAST_SECONDS = 20.0
SAMPLES = 4000  # frames learned from; 0.6 MB each while it learns
CANDIDATES = 12  # frames looked at for the photo

Source = Callable[[], Iterable[tuple[float, np.ndarray]]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class FilmReport:
    """What came of a film.

    Attributes:
        seconds: of film.
        frames, seen: all, and those with a face.
        photo_at: seconds, where the photo was taken from.
        learned: frames learned from, held-out ones included.
        psnr_photo, psnr: dB over the held-out tail at the maps' scale, the moved photo alone and
            with the likeness.
    """

    seconds: float
    frames: int
    seen: int
    photo_at: float
    learned: int
    psnr_photo: float
    psnr: float


def _silent(stage: str, done: int, total: int) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Study:
    """A film once it is tracked and its photo chosen.

    Attributes:
        source: starts the film anew.
        avatar: made from the photo, with the bones of the whole film.
        canvas: where the film lies in the avatar's square.
        times: ``(T,)`` seconds of all frames.
        seen: ``(T,)`` bool, frames with a face.
        motion: ``(T, D)`` of all frames, in the avatar's terms.
        rows: frames to learn from.
        photo_at: seconds, where the photo was taken from.
    """

    source: Source
    avatar: Avatar
    canvas: Canvas
    times: np.ndarray
    seen: np.ndarray
    motion: np.ndarray
    rows: np.ndarray
    photo_at: float


def create_from_film(
    film: str | Path | Source,
    *,
    size: int = DEFAULT_SIZE,
    mesh: FaceMesh | None = None,
    progress: Progress = _silent,
    **about: str,
) -> tuple[Avatar, FilmReport]:
    """Make an avatar from a film of 20 s or more of one person.

    Args:
        film: a video file, or a function that starts the film anew: ``(seconds, (H, W, 3) uint8
            RGB)`` pairs.
        size: side of the crop in pixels, 256..1024.
        mesh: face tracker; opened from the model store by default.
        progress: called with the stage, steps done, steps in all (0: not known).
        about: ``name``, ``source_licence``, ``consent``, ``provenance`` of the avatar.

    Raises:
        VideoError: unreadable, too short, or without a face in half of its frames.
        FaceError: no frame will do as a photo.
    """
    study = study_film(film, size=size, mesh=mesh, progress=progress, **about)
    return learn_looks(study, progress)


def study_film(
    film: str | Path | Source,
    *,
    size: int = DEFAULT_SIZE,
    mesh: FaceMesh | None = None,
    progress: Progress = _silent,
    **about: str,
) -> Study:
    """Track a film, choose its photo and measure its motion; see `create_from_film`."""
    mesh = mesh or FaceMesh.open()
    source = film if callable(film) else _reader(film)
    track = track_points(source(), mesh, lambda done: progress("track", done, 0))
    seconds = float(track.times[-1] - track.times[0])
    if seconds < LEAST_SECONDS - 0.5 or track.seen.sum() < LEAST:
        raise VideoError(
            f"the film shows a face in {int(track.seen.sum())} frames of {seconds:.0f} s, at least"
            f" {LEAST_SECONDS:.0f} s are needed to learn a person; give a longer one, or a photo"
        )
    photo, at = choose_photo(source, track, mesh, progress)
    avatar, canvas = person_of(photo, track, mesh, size, **about)
    local = replace(track, points=canvas.points(track.points), size=(size, size))
    motion = driving_motion(local, avatar)
    rows = spread_rows(track.seen, SAMPLES)
    return Study(source, avatar, canvas, track.times, track.seen, motion, rows, at)


def learn_looks(study: Study, progress: Progress = _silent) -> tuple[Avatar, FilmReport]:
    """The avatar of a studied film with its likeness and style, and what came of it."""
    samples = watch_person(study, progress)
    mesh = Renderer(study.avatar, "mesh").mesh
    likeness, before, after = learn_likeness(samples, mesh, progress)
    style = style_of(study.motion[study.seen], study.times[study.seen])
    seconds, frames = float(np.ptp(study.times)), len(study.times)
    seen, learned = int(study.seen.sum()), len(study.rows)
    report = FilmReport(seconds, frames, seen, study.photo_at, learned, before, after)
    return replace(study.avatar, likeness=likeness, style=style), report


def _reader(path: str | Path) -> Source:
    from visavis.video import read_video

    def frames() -> Iterable[tuple[float, np.ndarray]]:
        return ((float(time), image) for _, time, image in read_video(path))

    return frames


def choose_photo(
    source: Source, track: Track, mesh: FaceMesh, progress: Progress = _silent
) -> tuple[np.ndarray, float]:
    """The frame that makes the best photo: the usual pose, mouth shut, eyes open, sharp.

    Returns:
        ``(H, W, 3)`` uint8 RGB and its time in seconds.

    Raises:
        FaceError: none of the best will do; the message has the last reason.
    """
    wanted = set(photo_candidates(track).tolist())
    best: tuple[float, np.ndarray, float] | None = None
    reason = "it has no frame with a face"
    for k, (time, image) in enumerate(source()):
        if k not in wanted:
            continue
        try:
            face = check_face(image, mesh.find(image))
        except FaceError as err:
            reason = str(err)
            continue
        sharp = _sharpness(image, face.points)
        if best is None or sharp > best[0]:
            best = sharp, image.copy(), float(time)
        wanted.discard(k)
        progress("photo", CANDIDATES - len(wanted), CANDIDATES)
        if not wanted:
            break
    if best is None:
        raise FaceError(f"no frame of the film will do as a photo: {reason}")
    return best[1], best[2]


def photo_candidates(track: Track, count: int = CANDIDATES) -> np.ndarray:
    """Frames nearest to the person's usual pose with shut lips and open eyes, ``(count,)``."""
    rows = np.flatnonzero(track.seen)
    poses, vertices, neutral = clip_geometry(track.points[rows], load_face_model().template)
    values = measure(vertices, neutral)
    angles = np.array([pose.angles for pose in poses])
    turned = np.abs(angles - np.median(angles, axis=0)).sum(1) / 10
    blink = values[:, [CHANNEL["eye_blink_left"], CHANNEL["eye_blink_right"]]].max(1)
    gaze = np.hypot(values[:, CHANNEL["gaze_x"]], values[:, CHANNEL["gaze_y"]]) / 20
    smile = np.abs(values[:, CHANNEL["mouth_width"]]) * 5
    cost = turned + 25 * values[:, CHANNEL["jaw_open"]] + 3 * np.abs(blink) + gaze + smile
    return rows[np.argsort(cost, kind="stable")[:count]]


def _sharpness(image: np.ndarray, points: np.ndarray) -> float:
    """Sharpness of the face relative to its contrast."""
    low, high = (np.clip(f(points[:, :2], axis=0), 0, None).astype(int) for f in (np.min, np.max))
    face = cv2.cvtColor(image[low[1] : high[1], low[0] : high[0]], cv2.COLOR_RGB2GRAY)
    face = cv2.resize(face, (128, 160), interpolation=cv2.INTER_AREA).astype(np.float32)
    return float(cv2.Laplacian(face, cv2.CV_32F).std() / max(face.std(), 1.0))


def person_of(
    photo: np.ndarray, track: Track, mesh: FaceMesh, size: int, **about: str
) -> tuple[Avatar, Canvas]:
    """Avatar of a film's photo with the neutral face of the whole film, and the film's place in it.

    One view guesses how a mouth looks when shut and a lid when open; a film has shown it.
    """
    avatar = create_avatar(photo, size=size, mesh=mesh, **about)
    canvas = canvas_of(avatar, mesh.find(photo)[0].points)
    points = canvas.points(track.points[track.seen]).astype(np.float64)
    _, _, neutral = clip_geometry(points, load_face_model().template)
    rest = fit_pose(avatar.points.astype(np.float64), neutral)
    motion = measure(rest.remove(avatar.points.astype(np.float64))[None], neutral)[0]
    changed = replace(avatar, neutral=neutral.astype(np.float32), rest=rest, motion=motion)
    return changed, canvas


def spread_rows(seen: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the frames with a face, evenly spread."""
    rows = np.flatnonzero(seen)
    pick = np.linspace(0, len(rows) - 1, min(most, len(rows)))
    return rows[np.round(pick).astype(int)]


def watch_person(study: Study, progress: Progress = _silent) -> list[Sample]:
    """What the film showed and what the plain renderer makes of the same motion."""
    renderer = Renderer(study.avatar, "mesh")
    wanted, samples = set(study.rows.tolist()), []
    for k, (_, image) in enumerate(study.source()):
        if k not in wanted:
            continue
        samples.append(sample_of(renderer, study.canvas.frame(image), study.motion[k]))
        progress("watch", len(samples), len(study.rows))
        if len(samples) == len(study.rows):
            break
    return samples


def sample_of(renderer: Renderer, real: np.ndarray, motion: np.ndarray) -> Sample:
    """One frame, ``(S, S, 3)`` uint8, beside the renderer's own drawing of its motion ``(D,)``."""
    _, frames = renderer.step({}, motion[None, None].astype(np.float32))
    target, face, _ = renderer.mesh.vertices(motion)
    return Sample.of(
        real, frames[0, 0], motion, target, renderer.mesh.order(face), crop_transform(face)
    )
