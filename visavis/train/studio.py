"""The synthetic studio: crops of mouths and eyes and short takes of people who do not exist.

``visavis train studio -o DIR`` writes shards as ``visavis prepare`` does: an entry per person (its
crops) or take (its frames), with JPEG pictures and a safetensors file of what is known exactly:
``points (T, 478, 3)`` px in the tracker's layout, ``motion (T, D)``, ``head (T, V, 3)`` float16 dm
(the base mesh's vertices of the head), ``weights (T, W)`` of the named shape targets, and per frame
``labels/K`` and ``inner/K`` (PNG: class of each pixel, cover of the inner mouth).
A unit is a function of the seed and its number, so the same command gives the same data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from visavis.errors import InputError
from visavis.facemodel import fit_pose, load_face_model, rotation_of
from visavis.mouth import OUTER_LOWER, OUTER_UPPER
from visavis.track import Track, motion_of_track
from visavis.train.shards import Entry, write_shards
from visavis.train.studio_assets import StudioAssets
from visavis.train.studio_model import Model
from visavis.train.studio_person import draw_expression, draw_eyes, draw_looks, draw_performance
from visavis.train.studio_points import fit_lips, landmark_places, place_landmarks, save_places
from visavis.train.studio_scene import (
    CLASSES,
    SIZE,
    Camera,
    Studio,
    denoise,
    develop,
    draw_light,
    open_renderer,
)

PER_PERSON = 8  # crops
EYES_EVERY = 4  # of them every so many shows eyes
TAKE_FRAMES, TAKE_FPS = 16, 25.0
DISTANCE_DM = 12.0
HALF_DM = {"mouth": 0.66, "eyes": 0.62, "face": 1.30}  # half the width of a view at the face
SAMPLES, FINE = 4, 16  # paths per pixel: everywhere, and in the mouth beside
PIVOT_DM = np.array([0.0, 6.7, 0.2])  # the head turns about the top of the neck
OTHER = {"inner": 100, "lips": 101}  # labels beside those of `CLASSES`; 255: background
CORPUS = "studio"


@dataclass(frozen=True)
class Job:
    """What one process needs to know to make a unit.

    Attributes:
        assets: the folder ``face3d/mpfb``.
        places: path of the landmarks' places on the mesh (`landmark_places`).
        out: folder of finished units.
        seed: of the whole set.
        number: of the unit.
        crops: how many, for a person; 0 for a take.
        frames: of a take.
    """

    assets: str
    places: str
    out: str
    seed: int
    number: int
    crops: int
    frames: int = TAKE_FRAMES

    @property
    def name(self) -> str:
        """Of the unit."""
        return f"{'person' if self.crops else 'take'}-{self.number:05d}"


def make_studio(
    out: str | Path,
    *,
    crops: int = 5000,
    sequences: int = 200,
    seed: int = 0,
    workers: int = 1,
    assets: str | Path = "../shared/data/face3d/mpfb",
    models: str | Path | None = None,
    frames: int = TAKE_FRAMES,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Make the data set, or go on making it: units already in ``out`` are kept.

    Args:
        out: folder; ``units`` are kept in it, ``studio-*.tar`` and ``studio.parquet`` are written.
        crops: mouths and eyes in all, `PER_PERSON` of each person.
        sequences: takes of ``frames`` frames.
        seed: of everything.
        workers: processes side by side.
        assets: the folder ``face3d/mpfb`` of the data.
        models: folder of the face graphs, for the landmarks' places.
        frames: of a take.
        progress: called with units done and units in all.

    Returns:
        counts: ``units``, ``crops``, ``sequences``, ``failed`` (name to reason).

    Raises:
        ConfigError: Mitsuba is not installed.
        InputError: no assets, or nothing could be made.
    """
    open_renderer()
    out = Path(out)
    (out / "units").mkdir(parents=True, exist_ok=True)
    places = out / "places.npz"
    if not places.is_file():
        save_places(places, landmark_places(StudioAssets(assets), models))
    left = [min(PER_PERSON, crops - k) for k in range(0, crops, PER_PERSON)]
    common = (str(assets), str(places), str(out / "units"), seed)
    jobs = [Job(*common, k, n, frames) for k, n in enumerate(left)]
    jobs += [Job(*common, k, 0, frames) for k in range(sequences)]
    failed = _work(jobs, workers, progress)
    if len(failed) == len(jobs):
        raise InputError(f"nothing was made: {next(iter(failed.values()), 'ask for crops')}")
    write_shards(_entries(jobs), out, CORPUS)
    kept = [j for j in jobs if j.name not in failed]
    facts = {
        "units": len(kept),
        "crops": sum(j.crops for j in kept),
        "sequences": sum(not j.crops for j in kept),
        "failed": failed,
    }
    (out / "studio.json").write_text(json.dumps(facts | {"seed": seed}, indent=1) + "\n")
    return facts


def _work(jobs: list[Job], workers: int, progress) -> dict[str, str]:
    """Run what is not done yet; name to reason of what failed. A bad unit stops nothing."""
    todo = [j for j in jobs if not (Path(j.out) / f"{j.name}.safetensors").is_file()]
    done, failed = len(jobs) - len(todo), {}
    if progress:
        progress(done, len(jobs))
    if not todo:
        return failed
    broken = []
    for job, reason in _run(todo, workers):
        if reason is None:
            broken.append(job)
            continue
        failed |= {job.name: reason} if reason else {}
        done += 1
        if progress:
            progress(done, len(jobs))
    for job in broken:  # beside one that killed its process: tried alone
        reason = next(_run([job], 1))[1]
        failed |= {job.name: "the process died"} if reason is None else {}
        failed |= {job.name: reason} if reason else {}
        done += 1
        if progress:
            progress(done, len(jobs))
    return failed


def _run(jobs: list[Job], workers: int) -> Iterator[tuple[Job, str | None]]:
    """Each job as it ends with the reason of its failure, if any; ``None``: its process died."""
    # Spawned, not forked: the renderer holds threads.
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"))
    try:
        tasks = {pool.submit(make_unit, job): job for job in jobs}
        for task in as_completed(tasks):
            error = task.exception()
            if isinstance(error, BrokenProcessPool):
                yield tasks[task], None
            else:
                yield tasks[task], f"{type(error).__name__}: {error}" if error else task.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def count_units(crops: int, sequences: int) -> int:
    """People and takes that this many crops and sequences are made in."""
    return -(-crops // PER_PERSON) + sequences


def make_unit(job: Job) -> str:
    """Make one person's crops or one take and write it; the reason if it cannot be."""
    try:
        data = take_unit(job)
    except (ArithmeticError, ValueError, IndexError, InputError, RuntimeError) as err:
        return f"{type(err).__name__}: {err}"
    path = Path(job.out) / f"{job.name}.safetensors"
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)
    return ""


def take_unit(job: Job) -> bytes:
    """The bytes of one unit: its tensors, and its JPEG pictures as ``jpeg/K``."""
    assets, places = _assets(job.assets), _places(job.places)
    rng = np.random.default_rng((job.seed, int(job.crops == 0), job.number))
    looks = draw_looks(rng, sorted(assets.targets), [p.name for p in assets.skins])
    model = Model(assets, looks)
    studio = Studio(model, draw_light(rng))
    shots = list(_crop_shots(rng, job.crops) if job.crops else _take_shots(rng, job.frames))
    found: dict[str, np.ndarray] = {}
    points, heads, exposure = [], [], None
    names = sorted({n for s in shots for n in s.weights})
    used = np.unique(assets.refine.indices)
    for k, shot in enumerate(shots):
        body = model.body(shot.weights, shot.gaze)
        vertices = _turned(model.vertices(body, shot.gaze), shot.head)
        studio.pose(vertices)
        camera = shot.camera(vertices)
        picture, masks = _photograph(studio, camera, shot.view, job.seed + 97 * job.number + k)
        if exposure is None or job.crops:
            exposure = _exposure(rng, picture, masks)
        landmarks = place_landmarks(places, model.pieces, vertices, camera)
        inner = np.clip(sum(masks[c] for c in ("cavity", "teeth", "gums", "tongue")), 0, 1)
        points.append(fit_lips(landmarks, inner))
        heads.append(body[used].astype(np.float16))
        found[f"jpeg/{k:05d}"] = _encoded(develop(picture, exposure)[..., ::-1], ".jpg")
        found[f"labels/{k:05d}"] = _encoded(_labels(masks, points[-1], inner), ".png")
        found[f"inner/{k:05d}"] = _encoded(np.rint(inner * 255).astype(np.uint8), ".png")
    found["points"] = np.array(points, np.float32)
    found["motion"] = _motion(model, places, found["points"])
    found["head"] = np.array(heads)
    found["weights"] = np.array([[s.weights.get(n, 0.0) for n in names] for s in shots], np.float32)
    found["turn"] = np.array([s.head for s in shots], np.float32)
    about = {
        "weights": json.dumps(names), "views": json.dumps([s.view for s in shots]),
        "shapes": json.dumps(looks.shapes), "fps": str(TAKE_FPS), "seed": str(job.seed),
    }  # fmt: skip
    return save({k: np.ascontiguousarray(v) for k, v in found.items()}, about)


@dataclass(frozen=True)
class Shot:
    """One picture to take.

    Attributes:
        weights: of the shape targets.
        gaze: degrees to the person's left and down.
        head: degrees: pitch, yaw, roll.
        view: a key of `HALF_DM`.
        offset: where the camera stands beside the axis, dm.
        wide: how much more than the view is taken in.
    """

    weights: dict[str, float]
    gaze: tuple[float, float]
    head: tuple[float, float, float]
    view: str
    offset: tuple[float, float]
    wide: float

    def camera(self, vertices: dict[str, np.ndarray]) -> Camera:
        """Where the camera stands for these (turned) vertices."""
        eyes, teeth = vertices["eyes"].mean(0), vertices["teeth"]
        mouth = teeth[np.argsort(-teeth[:, 2])[: len(teeth) // 20]].mean(0)
        up = (eyes - mouth) / max(float(np.linalg.norm(eyes - mouth)), 1e-6)
        target = {
            "mouth": mouth - 0.02 * up,
            "eyes": eyes,
            "face": eyes - 0.30 * up,
        }[self.view]
        eye = target + np.array([*self.offset, DISTANCE_DM])
        field = 2 * np.degrees(np.arctan(HALF_DM[self.view] * self.wide / DISTANCE_DM))
        return Camera(tuple(eye), tuple(target), float(field))


def _crop_shots(rng: np.random.Generator, count: int) -> Iterator[Shot]:
    offset = tuple(rng.normal(0, (1.2, 0.8)))
    for k in range(count):
        eyes = k % EYES_EVERY == EYES_EVERY - 1
        yield Shot(
            draw_expression(rng) if not eyes else draw_expression(rng, False) | draw_eyes(rng),
            tuple(np.clip(rng.normal(0, (7, 4)), -18, 18)),
            tuple(np.clip(rng.normal(0, (5, 9, 3)), -26, 26)),
            "eyes" if eyes else "mouth", offset, float(np.exp(rng.normal(0.03, 0.05))),
        )  # fmt: skip


def _take_shots(rng: np.random.Generator, frames: int) -> Iterator[Shot]:
    play = draw_performance(rng, frames, TAKE_FPS)
    view = "face" if rng.random() < 0.5 else "mouth"
    offset, wide = tuple(rng.normal(0, (1.2, 0.8))), float(np.exp(rng.normal(0.08, 0.04)))
    for weights, gaze, head in zip(play.weights, play.gaze, play.head, strict=True):
        yield Shot(weights, tuple(gaze), tuple(head), view, offset, wide)


def _turned(vertices: dict[str, np.ndarray], head: tuple) -> dict[str, np.ndarray]:
    """Vertices with the head turned about `PIVOT_DM`; degrees as in the motion channels."""
    flip = np.diag([1.0, -1.0, -1.0])  # the face frame has y down and z away
    turn = flip @ rotation_of(*head) @ flip
    return {n: (v - PIVOT_DM) @ turn.T + PIVOT_DM for n, v in vertices.items()}


def _photograph(
    studio: Studio, camera: Camera, view: str, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Linear picture, skin smoothed against the noise of few paths, and the masks."""
    found = studio.look(camera)
    counts = np.full((SIZE, SIZE), SAMPLES)
    names = ("eyes",) if view == "eyes" else ("cavity", "teeth", "gums", "tongue")
    wet = sum(found.masks[n] for n in names) > 0.05
    counts[cv2.dilate(wet.astype(np.uint8), np.ones((5, 5))) > 0] += FINE
    picture = studio.shoot(camera, counts, seed)
    return denoise(picture, found.albedo, found.masks), found.masks


def _exposure(rng: np.random.Generator, picture: np.ndarray, masks: dict) -> float:
    """As a camera would: the skin's light near a middle tone, darker skin a little darker."""
    light = float(np.median(picture.mean(2)[masks["skin"] > 0.5]))
    return (
        float(np.exp(rng.normal(np.log(0.24), 0.22)))
        / max(light, 1e-3)
        * min((light / 0.25) ** 0.2, 1.4)
    )


def _labels(masks: dict[str, np.ndarray], points: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The class of each pixel, ``(S, S)`` uint8: index in `CLASSES`, 101 lips, 255 background."""
    stack = np.stack([masks[c] if c in masks else np.zeros_like(inner) for c in CLASSES])
    label = stack.argmax(0).astype(np.uint8)
    label[stack.sum(0) < 0.5] = 255
    ring = np.concatenate([points[list(OUTER_UPPER)], points[list(OUTER_LOWER)][::-1]])[:, :2]
    lips = cv2.fillPoly(np.zeros(label.shape, np.uint8), [np.rint(ring).astype(np.int32)], 1)
    label[(lips > 0) & (label == 0) & (inner < 0.5)] = OTHER["lips"]
    return label


def _encoded(image: np.ndarray, kind: str) -> np.ndarray:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 96] if kind == ".jpg" else []
    return cv2.imencode(kind, image, quality)[1].ravel()


def _motion(model: Model, places: dict, points: np.ndarray) -> np.ndarray:
    """Channels ``(T, D)`` against the person's own neutral."""
    still = model.vertices(model.neutral)
    camera = Camera((0.0, 6.9, 1.2 + DISTANCE_DM), (0.0, 6.9, 1.2), 12.0)
    front = place_landmarks(places, model.pieces, still, camera)
    template = load_face_model().template
    neutral = fit_pose(front, template).remove(front)
    times, count = np.arange(len(points)) / TAKE_FPS, len(points)
    track = Track(points, times, np.ones(count, np.float32), (SIZE, SIZE))
    return motion_of_track(track, neutral=neutral)


@lru_cache(maxsize=1)
def _assets(folder: str) -> StudioAssets:
    return StudioAssets(folder)


@lru_cache(maxsize=1)
def _places(path: str) -> dict:
    with np.load(path) as kept:
        return dict(kept)


def _entries(jobs: list[Job]) -> Iterator[Entry]:
    """Finished units on their way into shards."""
    for job in jobs:
        path = Path(job.out) / f"{job.name}.safetensors"
        if not path.is_file():
            continue
        with safe_open(path, "numpy") as kept:
            about = kept.metadata()
            names = sorted(kept.keys())
            pictures = {
                int(n[5:]): kept.get_tensor(n).tobytes() for n in names if n.startswith("jpeg/")
            }
            data = save({n: kept.get_tensor(n) for n in names if not n.startswith("jpeg/")}, about)
            frames = len(kept.get_tensor("points"))
        facts = {"frames": frames, "kind": job.name.split("-")[0], "views": about["views"]}
        yield Entry(job.name, data, pictures, facts)
