"""From folders of films and sound files to training clips. Offline, parallel, resumable.

Every file is looked at by itself (``survey.py``), in any number of processes. What needs the whole
folder follows here: a talker's neutral face, the offset between mouth and voice, clips, shards and
the report. A file that fails is named with its reason and skipped; it never stops the rest.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visavis.errors import InputError
from visavis.facemodel import load_face_model
from visavis.track import Track, clip_geometry, motion_of_track
from visavis.train.clips import Clip, save_clip
from visavis.train.evaluate import Voice
from visavis.train.offsets import clip_lags, settle
from visavis.train.phones import flite_speech, to_frames
from visavis.train.prepare_report import write_report
from visavis.train.quality import Limits, refusal
from visavis.train.shards import Entry, write_shards
from visavis.train.survey import Source, Survey, read_survey
from visavis.train.workers import Progress, survey_all, survey_all_with_ray
from visavis.types import FEATURE_HOP, MOTION_HOP, MOTION_RATE

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi")
AUDIO_SUFFIXES = (".opus", ".ogg", ".wav", ".flac", ".mp3", ".m4a")
FLITE_VOICES = ("slt", "rms", "awb", "kal16", "kal")
INDEXED = (
    "seconds", "fps", "width", "height", "seen", "eye_px", "yaw", "pitch", "score", "speech",
    "level_db", "source",
)  # fmt: skip


@dataclass(frozen=True)
class CorpusConfig:
    """How to read one folder.

    Attributes:
        name: folder of the clips written.
        talker: ``all`` (one talker), ``prefix`` (name up to the first underscore), ``dash`` (up to
            the first dash) or ``clip``.
        offset_ms: what the mouth lags the sound by, per clip name or ``*``; estimated where neither
            is given.
        words: clip name -> text, for forced alignment; recognised where it is missing.
        phones: whether phone times are wanted.
        jobs: processes side by side.
        ray: whether Ray runs them.
        ray_address: of a running cluster.
        models: folder of the face graphs.
        limits: of quality.
    """

    name: str
    talker: str = "clip"
    offset_ms: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    phones: bool = True
    jobs: int = 1
    ray: bool = False
    ray_address: str = ""
    models: str | None = None
    limits: Limits = field(default_factory=Limits)

    def talker_of(self, name: str) -> str:
        """Who speaks in a clip."""
        if self.talker == "all":
            return self.name
        marks = {"prefix": "_", "dash": "-"}
        return f"{self.name}_{name.split(marks[self.talker])[0] if self.talker in marks else name}"


def monotone_resample(values: np.ndarray, times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Cubic through ``(T, D)`` samples that never overshoots them; constant outside.

    Fritsch and Butland, "A method for constructing local monotone piecewise cubic interpolants",
    SIAM J. Sci. Stat. Comput. 5 (1984): tangents are harmonic means of the neighbouring slopes.
    """
    if len(times) < 3:
        return np.stack([np.interp(at, times, v) for v in values.T], axis=1)
    step = np.diff(times)[:, None]
    slope = np.diff(values, axis=0) / step
    product = slope[1:] * slope[:-1]
    total = slope[1:] + slope[:-1]
    inner = np.where(product > 0, 2 * product / np.where(total == 0, 1, total), 0.0)
    tangent = np.concatenate([slope[:1] * 0, inner, slope[:1] * 0])
    clipped = np.clip(at, times[0], times[-1])
    i = np.clip(np.searchsorted(times, clipped, side="right") - 1, 0, len(times) - 2)
    h = step[i]
    u = ((clipped - times[i])[:, None]) / h
    a, b = values[i], values[i + 1]
    out = (
        (1 + 2 * u) * (1 - u) ** 2 * a + u * (1 - u) ** 2 * h * tangent[i]
        + u * u * (3 - 2 * u) * b + u * u * (u - 1) * h * tangent[i + 1]
    )  # fmt: skip
    return out.astype(np.float32)


def sources_of(directory: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder by suffix, in order; names without suffix must differ.

    Raises:
        InputError: two files that would become one clip.
    """
    paths = sorted(p for p in Path(directory).iterdir() if p.suffix.lower() in suffixes)
    for one, other in itertools.pairwise(sorted(paths, key=lambda p: p.stem)):
        if one.stem == other.stem:
            raise InputError(f"{one} and {other.name} would be one clip; rename one of them")
    return paths


def prepare_videos(
    source: str | Path, out: str | Path, config: CorpusConfig, progress: Progress | None = None
) -> dict[str, Any]:
    """Talking videos to clips with motion, shards and a report.

    Args:
        source: folder of video files.
        out: folder of all clips; ``out/survey`` keeps what each file showed, for the next run.
        config: how to read the folder.
        progress: called with files done and files in all.

    Returns:
        Report: counts, seconds, a reason for every clip refused, offsets.
    """
    out = Path(out)
    facts = _survey(source, out, config, VIDEO_SUFFIXES, True, progress)
    refused = _refused(facts, config.limits)
    kept = [f["name"] for f in facts if f["name"] not in refused]

    def read(name: str) -> Survey:
        return read_survey(out / "survey" / config.name / name)

    neutrals = _neutrals(kept, read, config)
    raw = {}
    for name in kept:
        found = read(name)
        raw[name] = (motion_of_track(found.track, neutral=neutrals[config.talker_of(name)]), found)
    lags = _lags(raw, config)
    clips = []
    for name, offset in _offsets(lags, kept, config).items():
        values, found = raw[name]
        clip = _clip(name, found, values, offset, config)
        lag, r = lags.get(name, (float("nan"), float("nan")))
        clip.meta.update(lag_ms=_finite(lag), sync=_finite(r))
        save_clip(clip, out)
        clips.append(clip)
    _forget(out / config.name, refused)
    write_shards(_entries(clips, read, out), out / "shards", config.name)
    return write_report(out, config.name, facts, refused, clips, read)


def prepare_speech(
    source: str | Path, out: str | Path, config: CorpusConfig, progress: Progress | None = None
) -> dict[str, Any]:
    """Sound files to clips with phones and no motion, shards and a report; as ``prepare_videos``."""
    out = Path(out)
    facts = _survey(source, out, config, AUDIO_SUFFIXES, False, progress)
    refused = _refused(facts, config.limits)
    clips = []

    def read(name: str) -> Survey:
        return read_survey(out / "survey" / config.name / name)

    for name in [f["name"] for f in facts if f["name"] not in refused]:
        found = read(name)
        if config.phones and not found.alignment.phones:
            refused[name] = "no phones: what is said was not made out"
            continue
        clips.append(_clip(name, found, None, 0.0, config))
        save_clip(clips[-1], out)
    _forget(out / config.name, refused)
    write_shards(_entries(clips, read, out), out / "shards", config.name)
    return write_report(out, config.name, facts, refused, clips, read)


def prepare_flite(sentences: list[str], out: str | Path, name: str = "flite") -> int:
    """Speak every sentence with one of flite's voices in turn, at varied speed; exact phones."""
    rng = np.random.default_rng(0)
    for i, text in enumerate(sentences):
        voice = FLITE_VOICES[i % len(FLITE_VOICES)]
        pcm, segments = flite_speech(text, voice, float(np.exp(rng.uniform(-0.2, 0.35))))
        phones = to_frames(segments, len(pcm) // FEATURE_HOP)
        save_clip(Clip(f"{voice}-{i:04d}", name, voice, pcm, None, phones, {"text": text}), out)
    return len(sentences)


def _survey(
    source: str | Path, out: Path, config: CorpusConfig, suffixes: tuple[str, ...], filmed: bool,
    progress: Progress | None,
) -> list[dict]:  # fmt: skip
    """Facts of every file of the folder."""
    paths = sources_of(source, suffixes)
    sources = {
        p.stem: Source(
            str(p.resolve()), str((out / "survey" / config.name / p.stem).resolve()), filmed,
            config.words.get(p.stem, ""), config.phones, config.models,
        )
        for p in paths
    }  # fmt: skip
    todo = list(sources.values())
    if config.ray:
        return survey_all_with_ray(todo, config.jobs, progress, config.ray_address)
    return survey_all(todo, config.jobs, progress)


def _refused(facts: list[dict], limits: Limits) -> dict[str, str]:
    reasons = {f["name"]: refusal(f, limits) for f in facts}
    return {name: why for name, why in reasons.items() if why}


def _neutrals(
    names: list[str], read: Callable[[str], Survey], config: CorpusConfig
) -> dict[str, np.ndarray]:
    """One neutral per talker, from up to 24 of their clips."""
    template = load_face_model().template
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(config.talker_of(name), []).append(name)
    neutrals = {}
    for talker, clips in groups.items():
        tracks = [read(name).track for name in clips[:: max(1, len(clips) // 24)]]
        points = np.concatenate([t.points[t.seen] for t in tracks])
        neutrals[talker] = clip_geometry(points, template)[2]
    return neutrals


def _motion_at(values: np.ndarray, track: Track, samples: int, offset_ms: float) -> np.ndarray:
    """Channels at the film's frames to 50 Hz in time with the sound."""
    at = np.arange(samples // MOTION_HOP) / MOTION_RATE
    return monotone_resample(values, track.times - offset_ms / 1000.0, at)


def _clip(
    name: str, found: Survey, values: np.ndarray | None, offset_ms: float, config: CorpusConfig
) -> Clip:
    """A survey and its motion to a clip."""
    pcm, said = found.pcm, found.alignment
    motion = None
    if values is not None:
        motion = _motion_at(values, found.track, len(pcm), offset_ms)
    phones = to_frames(said.phones, len(pcm) // FEATURE_HOP) if said.phones else None
    meta = {
        "offset_ms": offset_ms, "text": said.text, "source": found.facts["source"],
        "words": [list(w) for w in said.words],
    }  # fmt: skip
    return Clip(name, config.name, config.talker_of(name), pcm, motion, phones, meta)


def _lags(
    raw: dict[str, tuple[np.ndarray, Survey]], config: CorpusConfig
) -> dict[str, tuple[float, float]]:
    """Lag and trust of each clip by the shipped voice net; none where all offsets are given."""
    if "*" in config.offset_ms or raw.keys() <= config.offset_ms.keys():
        return {}
    clips = [_clip(name, found, values, 0.0, config) for name, (values, found) in raw.items()]
    return clip_lags(clips, Voice.load())


def _offsets(
    lags: dict[str, tuple[float, float]], names: list[str], config: CorpusConfig
) -> dict[str, float]:
    """Offset to take out of each clip, ms: given, else found."""
    found = settle(lags)
    given = config.offset_ms
    return {n: given.get(n, given.get("*", found.get(n, 0.0))) for n in names}


def _entries(
    clips: list[Clip], read: Callable[[str], Survey], out: Path
) -> Iterator[Entry]:  # fmt: skip
    for clip in clips:
        found = read(clip.name)
        facts = {k: found.facts.get(k) for k in INDEXED}
        facts |= {k: clip.meta.get(k) for k in ("offset_ms", "lag_ms", "sync", "text")}
        facts |= {
            "talker": clip.talker, "sound_seconds": len(clip.pcm) / 16_000,
            "has_motion": clip.motion is not None, "has_phones": clip.phones is not None,
            "box": json.dumps([round(v, 2) for v in found.box]),
        }  # fmt: skip
        data = (out / clip.corpus / f"{clip.name}.safetensors").read_bytes()
        yield Entry(clip.name, data, found.pictures, facts)


def _forget(folder: Path, refused: dict[str, str]) -> None:
    """Remove clips of an earlier run that are refused now."""
    for name in refused:
        (folder / f"{name}.safetensors").unlink(missing_ok=True)


def _finite(value: float) -> float | None:
    return round(value, 3) if np.isfinite(value) else None
