"""Run a protocol: make every row of every clip, score it, keep it, sum it up.

Each clip's figures are a JSON file under ``OUT/cells``; a run that was stopped goes on where it
was, as long as system, protocol and clip are the same (a hash of all three is in the file).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visavis.errors import InputError
from visavis.eval import expressiveness, figures, measures, rows
from visavis.eval.clips import Clip, read_clip, read_sound, sha256_of
from visavis.eval.drift import identity_over_time, joined_sound
from visavis.eval.identity import MODEL_NAME, FaceEmbedder, summarise
from visavis.eval.image import PerceptualDistance
from visavis.eval.jobs import Job, jobs_of
from visavis.eval.listener import load as load_listener
from visavis.eval.lpips_alex import AlexDistance, alex_note, open_alex
from visavis.eval.measures import HEAD, Evidence
from visavis.eval.protocol import Protocol
from visavis.facemesh import FaceMesh
from visavis.pipeline import Pipeline, PipelineConfig
from visavis.types import SAMPLE_RATE


@dataclass(frozen=True)
class SystemUnderTest:
    """What is scored. ``motion_dir`` None is the shipped model."""

    tier: str = "patch"
    motion_dir: str | None = None
    lookahead_ms: int = 80
    threads: int = 1

    def fingerprint(self) -> str:
        """Hash of the settings, the weights and the package's source (without ``eval``)."""
        import visavis

        root = Path(visavis.__file__).parent
        sources = sorted(p for p in root.glob("*.py") if p.name != "cli.py")
        weights = sorted((root / "assets" / "models").rglob("*"))
        weights += sorted(Path(self.motion_dir).rglob("*")) if self.motion_dir else []
        parts = [repr(self), *(sha256_of(p) for p in [*sources, *weights] if p.is_file())]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Bench:
    """Everything fixed during a run; picklable, so that worker processes can take it."""

    protocol: Protocol
    system: SystemUnderTest
    data: Path
    models: Path
    out: Path
    cache: Path
    peers: tuple[Path, ...] = ()
    fingerprint: str = ""


@dataclass
class Tools:
    """The opened models of one process."""

    mesh: FaceMesh
    embedder: FaceEmbedder
    distance: PerceptualDistance
    listener: Any
    alex: AlexDistance | None = None
    photos: dict[str, Any] = field(default_factory=dict)


def open_tools(models: Path) -> Tools:
    """Open every net the judge uses; ``ModelError`` names the file that is missing."""
    return Tools(
        FaceMesh.open(models),
        FaceEmbedder(models / MODEL_NAME),
        PerceptualDistance(
            models / "squeezenet_v1.1_notop.h5", models / "lpips_lin_squeeze_v0.1.pth"
        ),
        load_listener(),
        open_alex(),
    )


def speak(pipe: Pipeline, pcm: np.ndarray, seed: int) -> np.ndarray:
    """The pipeline's 50 Hz motion for a sound, ``(M, D)``: the stream, drained, not drawn.

    Heard a second at a time, which is twice as fast; the size of the pieces changes nothing.
    """
    state, parts = pipe.init_state(seed=seed), []
    for start in range(0, len(pcm), SAMPLE_RATE):
        state, steps = pipe.hear(state, pcm[None, start : start + SAMPLE_RATE])
        parts.append(steps[0])
    parts.append(pipe.hear_rest(state, pipe_timer)[1][0])
    return np.concatenate(parts)


def pipe_timer(stage: str) -> Any:
    """A timer that measures nothing."""
    from contextlib import nullcontext

    return nullcontext()


def draw(pipe: Pipeline, motion: np.ndarray) -> list[np.ndarray]:
    """Frames for motion rows ``(T, D)``."""
    state, frames = pipe.renderer.init_state(), []
    for row in motion:
        state, images = pipe.renderer.step(state, row[None, None])
        frames.append(images[0, 0])
    return frames


def cell_key(bench: Bench, job: Job) -> str:
    """What a stored cell must match to be used again."""
    facts = bench.protocol.model_dump(mode="json") | {"splits": job.split.model_dump(mode="json")}
    files = [sha256_of(p) for p in job.files]
    peers = [sha256_of(p) for d in bench.peers for p in sorted(d.rglob(f"{job.name}.*"))]
    apart = ("cli.py", "report.py", "figures.py", "mos.py", "stats.py", "speed.py")
    judge = [
        sha256_of(p) for p in sorted(Path(__file__).parent.glob("*.py")) if p.name not in apart
    ]
    more = [job.phase, alex_note()]
    text = json.dumps([facts, bench.fingerprint, files, peers, judge, more], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def run_job(bench: Bench, job: Job, tools: Tools) -> dict[str, Any]:
    """Score one clip, or take the stored result. A clip that cannot be scored says why."""
    cell = bench.out / "cells" / job.split.name / f"{job.name}.json"
    key = cell_key(bench, job)
    if cell.is_file():
        stored = json.loads(cell.read_text("utf-8"))
        if stored.get("key") == key:
            return stored
    cell.parent.mkdir(parents=True, exist_ok=True)
    try:
        result = SCORERS[job.split.kind](bench, job, tools)
    except InputError as error:  # a missing model stops the run instead
        result = {"refused": str(error)}
    result |= {"key": key, "split": job.split.name, "name": job.name}
    part = cell.with_suffix(".part")
    part.write_text(json.dumps(result), "utf-8")
    part.replace(cell)
    return result


def _film(bench: Bench, job: Job, tools: Tools) -> dict[str, Any]:
    protocol, seconds = bench.protocol, job.split.seconds or None
    clip = read_clip(job.film, tools.mesh, bench.cache, seconds)
    photo = _person_photo(bench, job, tools) if job.photo else None
    stage = rows.set_stage(clip, tools.mesh, protocol.size, photo)
    pipe = open_pipeline(bench, stage.avatar)
    other = read_sound(job.other, seconds, [])
    shown, notes = film_rows(bench, job, stage, pipe, other, tools)
    result = {
        "rows": {},
        "notes": [*clip.notes, *notes],
        "clip": clip_facts(clip),
        "worst": float("nan"),
    }
    outside = outside_person(stage.avatar.matte)
    real = measures.passages(
        stage.real, protocol.temporal_size, protocol.temporal_every, tools.distance
    )
    for name, evidence in shown.items():
        lost = int((~evidence.seen).sum()) - clip.faceless * (name == "real")
        if lost:
            result["notes"].append(f"{name}: {lost} of {len(evidence.seen)} frames show no face")
        figures_ = measures.landmark_figures(evidence, stage.real)
        figures_ |= measures.lip_figures(evidence, stage.real)
        figures_ |= measures.image_figures(
            evidence, stage.real, protocol.image_every, tools.distance, tools.alex
        )
        figures_ |= measures.temporal_figures(
            evidence, real, protocol.temporal_size, tools.distance
        )
        result["rows"][name] = figures_ | _alone(bench, evidence, stage, clip.pcm, outside, tools)
    if "ours" in shown and protocol.seeds > 1:
        result["rows"]["ours"]["diversity"] = head_diversity(pipe, clip.pcm, protocol)
    result["worst"] = result["rows"].get("ours", {}).get("open_r", float("nan"))
    return result | _pictures(bench, job, shown, clip)


def _alone(
    bench: Bench, evidence: Evidence, stage: Any, pcm: np.ndarray, outside: np.ndarray, tools: Tools
) -> dict[str, float]:
    """The measures that need no reference film (life takes its spectrum where there is one)."""
    every = bench.protocol.identity_every
    real = getattr(stage, "real", None)
    figures_ = measures.sound_figures(evidence, pcm, tools.listener)
    figures_ |= measures.life_figures(evidence, real, pcm)
    return figures_ | measures.look_figures(
        evidence, stage.avatar.image, stage.avatar.points, outside, tools.embedder, every
    )


HEARING = ("ours_posed", "ours", "shuffled")  # rows that a mute film cannot have


def film_rows(
    bench: Bench, job: Job, stage: rows.Stage, pipe: Pipeline, other: np.ndarray, tools: Tools
) -> tuple[dict[str, Evidence], list[str]]:
    """Evidence of every row of a split's list, then of the peers that have a film of that name."""
    clip, seed = stage.clip, bench.protocol.seed
    times = clip.times - clip.times[0]
    spoken: dict[str, np.ndarray] = {}

    need = max(1, int(np.ceil((float(clip.times[-1]) + 0.1) * SAMPLE_RATE)))

    def motion_for(pcm: np.ndarray) -> np.ndarray:
        key = hashlib.sha256(pcm.tobytes()).hexdigest()
        if key not in spoken:
            padded = np.zeros(need, np.float32)
            padded[: min(need, len(pcm))] = pcm[:need]
            spoken[key] = speak(pipe, padded, seed)
        return rows.at_times(spoken[key], clip.times)

    makers: dict[str, Callable[[], Evidence]] = {
        "real": lambda: stage.real,
        "static": lambda: rows.watch([stage.avatar.image] * len(times), clip.times, tools.mesh),
    }
    driven: dict[str, Callable[[], np.ndarray]] = {
        "ceiling": lambda: stage.driving,
        "ours": lambda: motion_for(clip.pcm),
        "ours_posed": lambda: rows.with_real_head(motion_for(clip.pcm), stage.driving),
        "shuffled": lambda: motion_for(rows.wrong_sound(other, need, job.phase)),
        "silence": lambda: motion_for(np.zeros(0, np.float32)),
    }
    shown, notes = {}, []
    for name in job.split.rows:
        if name in makers:
            shown[name] = makers[name]()
        elif name in HEARING and not len(clip.pcm):
            notes.append(f"{name}: left out, there is no sound to speak")
        else:
            shown[name] = rows.watch(draw(pipe, driven[name]()), clip.times, tools.mesh)
    for folder in bench.peers:
        found = sorted(p for p in folder.rglob(f"{job.name}.*") if p.suffix in (".mp4", ".webm"))
        if not found:
            notes.append(f"{folder.name}: no film of this clip")
            continue
        try:
            shown[folder.name], said = rows.peer_film(found[0], stage, tools.mesh, bench.cache)
            notes += [f"{folder.name}: {n}" for n in said]
        except InputError as error:
            notes.append(f"{folder.name}: refused: {error}")
    return shown, notes


@dataclass(frozen=True)
class _Portrait:
    avatar: Any


def _drive(bench: Bench, job: Job, tools: Tools) -> dict[str, Any]:
    from visavis.avatar import create_avatar

    protocol, split = bench.protocol, job.split
    avatar = create_avatar(job.photo, size=protocol.size, mesh=tools.mesh)
    pipe = open_pipeline(bench, avatar)
    notes: list[str] = []
    seconds = split.seconds or None
    pcm, other = read_sound(job.sounds[0], seconds, notes), read_sound(job.other, seconds, [])
    times = np.arange(round(len(pcm) / SAMPLE_RATE * split.fps)) / split.fps
    shown: dict[str, Evidence] = {}
    wrong = rows.wrong_sound(other, len(pcm), job.phase)
    sounds = {"ours": pcm, "shuffled": wrong, "silence": np.zeros_like(pcm)}
    for name in split.rows:
        if name in sounds:
            motion = rows.at_times(speak(pipe, sounds[name], protocol.seed), times)
            shown[name] = rows.watch(draw(pipe, motion), times, tools.mesh)
        elif name == "static":
            shown[name] = rows.watch([avatar.image] * len(times), times, tools.mesh)
    lost = {name: int((~e.seen).sum()) for name, e in shown.items()}
    notes += [f"{n}: {k} of {len(times)} frames show no face" for n, k in lost.items() if k]
    outside, stage = outside_person(avatar.matte), _Portrait(avatar)
    scored = {n: _alone(bench, e, stage, pcm, outside, tools) for n, e in shown.items()}
    if protocol.seeds > 1:
        scored["ours"]["diversity"] = head_diversity(pipe, pcm, protocol)
    clip = {"sha256": sha256_of(job.photo), "sound": job.sounds[0].name, "frames": len(times)}
    return {
        "rows": scored,
        "notes": notes,
        "clip": clip | {"fps": str(split.fps), "faceless": lost.get("ours", 0)},
    }


def _long(bench: Bench, job: Job, tools: Tools) -> dict[str, Any]:
    """Identity over minutes: all of the sound is heard, ``fps`` frames a second are drawn."""
    from visavis.avatar import create_avatar

    protocol, split = bench.protocol, job.split
    avatar = create_avatar(job.photo, size=protocol.size, mesh=tools.mesh)
    pipe = open_pipeline(bench, avatar)
    notes = [f"{split.fps} frames of each second drawn, one in {protocol.identity_every} compared"]
    pcm = joined_sound(job.sounds, split.seconds, notes)
    times = np.arange(round(len(pcm) / SAMPLE_RATE * split.fps)) / split.fps
    sounds = {"ours": pcm, "silence": np.zeros_like(pcm)}
    scored, faceless, every = {}, 0, protocol.identity_every
    for name in (n for n in split.rows if n in sounds):
        motion = rows.at_times(speak(pipe, sounds[name], protocol.seed), times)
        seen = identity_over_time(pipe, motion, every, tools.mesh, tools.embedder)
        found = summarise(seen[~np.isnan(seen)], times[::every][~np.isnan(seen)])
        faceless += int(np.isnan(seen).sum())
        scored[name] = {"id_mean": found.mean, "id_min": found.minimum}
        scored[name]["id_slope"] = found.slope_per_minute
    clip = {"sha256": sha256_of(job.photo), "sound": "joined sounds", "frames": len(times)}
    facts = {"fps": str(split.fps), "faceless": faceless}
    return {"rows": scored, "notes": notes, "clip": clip | facts}


SCORERS = {"reconstruct": _film, "person": _film, "drive": _drive, "long": _long}


def open_pipeline(bench: Bench, avatar: Any) -> Pipeline:
    """The system under test for one avatar."""
    system = bench.system
    config = PipelineConfig.of(
        tier=system.tier,
        size=avatar.size,
        lookahead_ms=system.lookahead_ms,
        seed=bench.protocol.seed,
        threads=system.threads,
    )
    return Pipeline(avatar, config, motion_dir=system.motion_dir)


def _person_photo(bench: Bench, job: Job, tools: Tools) -> Any:
    from visavis.avatar import create_avatar
    from visavis.film import canvas_of
    from visavis.video import read_video

    known = tools.photos.get(str(job.photo))
    if known is None:
        frame = next(iter(read_video(job.photo)))[2]
        avatar = create_avatar(frame, size=bench.protocol.size, mesh=tools.mesh)
        known = avatar, canvas_of(avatar, tools.mesh.find(frame)[0].points)
        tools.photos[str(job.photo)] = known
    return known


def outside_person(matte: np.ndarray, reach: int = 40) -> np.ndarray:
    """Pixels that no head turn reaches: outside the photo's matte dilated by ``reach`` px."""
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
    return cv2.dilate((matte > 0).astype(np.uint8), kernel) == 0


def head_diversity(pipe: Pipeline, pcm: np.ndarray, protocol: Protocol) -> float:
    """Mean difference of the head angles between seeds, degrees."""
    clips = [speak(pipe, pcm, protocol.seed + k)[:, HEAD] for k in range(protocol.seeds)]
    return expressiveness.diversity(np.stack(clips))


def clip_facts(clip: Clip) -> dict[str, Any]:
    """What a figure must name: file, hash, rate, codec, counts."""
    height, width = clip.frames[0].shape[:2]
    return {
        "sha256": clip.sha256,
        "fps": str(clip.fps),
        "codec": clip.codec,
        "size": f"{width}x{height}",
        "frames": len(clip.frames),
        "faceless": clip.faceless,
    }


def _pictures(bench: Bench, job: Job, shown: dict[str, Evidence], clip: Clip) -> dict[str, str]:
    folder = bench.out / "pictures" / job.split.name
    folder.mkdir(parents=True, exist_ok=True)
    pick = {
        n: e
        for n, e in shown.items()
        if n in ("real", "ceiling", "ours") or n not in measures_rows()
    }
    curves, strip = folder / f"{job.name}-lips.png", folder / f"{job.name}-mouths.png"
    curves.write_bytes(figures.lip_curves(pick, clip.pcm, f"{job.split.name} / {job.name}"))
    strip.write_bytes(figures.mouth_strip({n: e for n, e in shown.items() if n != "static"}))
    relative = bench.out
    return {"curves": str(curves.relative_to(relative)), "strip": str(strip.relative_to(relative))}


def measures_rows() -> tuple[str, ...]:
    """Names of the rows that are not a peer's."""
    from visavis.eval.protocol import ROWS

    return ROWS


_tools: Tools | None = None


def _work(bench: Bench, job: Job) -> dict[str, Any]:
    """In a worker process: models are opened once per process."""
    global _tools
    if _tools is None:
        import cv2

        cv2.setNumThreads(1)  # the processes are the parallelism
        _tools = open_tools(bench.models)
    return run_job(bench, job, _tools)


def run_jobs(
    bench: Bench, workers: int = 1, progress: Callable[[dict[str, Any]], None] | None = None
) -> list[dict[str, Any]]:
    """Score all clips; results in the order of ``jobs_of``, whatever the number of processes."""
    jobs = jobs_of(bench.protocol, bench.data)
    if workers <= 1:
        tools, results = open_tools(bench.models), []
        for job in jobs:
            results.append(run_job(bench, job, tools))
            if progress:
                progress(results[-1])
        return results
    return _in_processes(bench, jobs, workers, progress or (lambda _: None))


def _in_processes(
    bench: Bench, jobs: list[Job], workers: int, progress: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    from multiprocessing import active_children, get_context

    before = set(active_children())
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_work, bench, job) for job in jobs]
        try:
            for done in as_completed(futures):
                progress(done.result())
        except BaseException:  # stopped: cells are written whole or not at all, so end at once
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(active_children()) - before:
                child.terminate()
            raise
        return [future.result() for future in futures]


def facts_of(bench: Bench) -> dict[str, Any]:
    """Protocol, system, machine and commit, for the head of the report."""
    import platform
    import subprocess

    import visavis

    root = Path(visavis.__file__).parent.parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"
    return {
        "protocol": bench.protocol.model_dump(mode="json"),
        "system": asdict(bench.system) | {"fingerprint": bench.fingerprint},
        "commit": commit,
        "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
        "data": str(bench.data),
        "peers": [p.name for p in bench.peers],
        "lpips": alex_note(),
    }
