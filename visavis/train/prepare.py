"""From folders of videos and sound files to training clips. Offline, resumable, one file each.

A clip that fails is named in the report and skipped; it never stops the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visavis.audio import read_audio
from visavis.errors import InputError
from visavis.facemesh import FaceMesh
from visavis.facemodel import load_face_model
from visavis.track import Track, clip_geometry, motion_of_track, track_points
from visavis.train.clips import Clip, save_clip
from visavis.train.phones import PHONE_INDEX, Aligner, flite_speech, to_frames
from visavis.types import MOTION_RATE
from visavis.video import read_video

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi")
AUDIO_SUFFIXES = (".opus", ".ogg", ".wav", ".flac", ".mp3", ".m4a")
MIN_SCORE = 0.5
MIN_EYE_PIXELS = 30.0
FLITE_VOICES = ("slt", "rms", "awb", "kal16", "kal")


@dataclass(frozen=True)
class CorpusConfig:
    """How to read one folder.

    Attributes:
        name: folder of the clips written.
        talker: ``all`` (one talker), ``prefix`` (name up to the first underscore) or ``clip``.
        offset_ms: what the mouth lags the sound by, per clip name or ``*``; taken out.
        words: clip name -> text, for forced alignment; recognised where it is missing.
    """

    name: str
    talker: str = "clip"
    offset_ms: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def talker_of(self, name: str) -> str:
        """Who speaks in a clip."""
        if self.talker == "all":
            return self.name
        return f"{self.name}_{name.split('_')[0] if self.talker == 'prefix' else name}"


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


def prepare_videos(
    source: str | Path,
    out: str | Path,
    config: CorpusConfig,
    mesh: FaceMesh,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Talking videos to clips with motion.

    Args:
        source: folder of video files.
        out: folder of the clips; tracks are kept in ``out/tracks`` and used again.
        config: how to read the folder.
        mesh: tracker.
        progress: called with clips done and clips in all.

    Returns:
        Report: counts and a reason for every clip refused.
    """
    paths = [p for p in sorted(Path(source).iterdir()) if p.suffix.lower() in VIDEO_SUFFIXES]
    tracks, refused = {}, {}
    for done, path in enumerate(paths):
        try:
            tracks[path] = _check(_track(path, Path(out) / "tracks" / config.name, mesh))
        except (InputError, ValueError) as err:
            refused[path.stem] = str(err)
        if progress:
            progress(done + 1, len(paths))
    neutrals = _neutrals(tracks, config)
    aligner = Aligner()
    for path, track in tracks.items():
        pcm = _pcm(path)
        talker = config.talker_of(path.stem)
        offset = config.offset_ms.get(path.stem, config.offset_ms.get("*", 0.0))
        values = motion_of_track(track, neutral=neutrals[talker])
        at = np.arange(len(pcm) // 320) / MOTION_RATE
        motion = monotone_resample(values, track.times - offset / 1000.0, at)
        text = config.words.get(path.stem) or aligner.transcribe(pcm)
        meta = {"offset_ms": offset, "text": text, "source": path.name}
        phones = to_frames(aligner.align(pcm, text), len(pcm) // 160)
        save_clip(Clip(path.stem, config.name, talker, pcm, motion, phones, meta), out)
    report = {"corpus": config.name, "clips": len(tracks), "refused": refused}
    (Path(out) / f"{config.name}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def prepare_speech(
    source: str | Path,
    out: str | Path,
    config: CorpusConfig,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Sound files to clips with phones and no motion; those already there are kept."""
    paths = [p for p in sorted(Path(source).iterdir()) if p.suffix.lower() in AUDIO_SUFFIXES]
    aligner, refused = Aligner(), {}
    for done, path in enumerate(paths):
        if not (Path(out) / config.name / f"{path.stem}.safetensors").exists():
            try:
                pcm = _pcm(path)
            except InputError as err:
                refused[path.stem] = str(err)
                continue
            text = config.words.get(path.stem) or aligner.transcribe(pcm)
            segments = aligner.align(pcm, text)
            if segments:
                phones = to_frames(segments, len(pcm) // 160)
                clip = Clip(path.stem, config.name, path.stem.split("-")[0], pcm, None, phones)
                save_clip(clip, out)
            else:
                refused[path.stem] = "no phone alignment"
        if progress:
            progress(done + 1, len(paths))
    return {"corpus": config.name, "refused": refused}


def prepare_flite(sentences: list[str], out: str | Path, name: str = "flite") -> int:
    """Speak every sentence with one of flite's voices in turn, at varied speed; exact phones."""
    rng = np.random.default_rng(0)
    for i, text in enumerate(sentences):
        voice = FLITE_VOICES[i % len(FLITE_VOICES)]
        pcm, segments = flite_speech(text, voice, float(np.exp(rng.uniform(-0.2, 0.35))))
        phones = to_frames(segments, len(pcm) // 160)
        assert PHONE_INDEX["SIL"] == 0
        save_clip(Clip(f"{voice}-{i:04d}", name, voice, pcm, None, phones, {"text": text}), out)
    return len(sentences)


def _pcm(path: Path) -> np.ndarray:
    """A file's sound by the runtime's own reader, ``(n,)`` int16."""
    sound = np.concatenate([*read_audio(path), np.zeros(0, np.float32)])
    return np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)


def _track(path: Path, cache: Path, mesh: FaceMesh) -> Track:
    """Track a video, or take the track kept from before."""
    kept = cache / f"{path.stem}.npz"
    if kept.exists():
        with np.load(kept) as a:
            return Track(a["points"], a["times"], a["scores"], tuple(a["size"]))
    frames = ((float(t), image) for _, t, image in read_video(path))
    track = track_points(frames, mesh)
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(
        kept, points=track.points, times=track.times, scores=track.scores, size=track.size
    )  # fmt: skip
    return track


def _check(track: Track) -> Track:
    """Refuse tracks that would teach nonsense."""
    if track.seen.mean() < 0.95:
        raise ValueError(f"face seen in only {track.seen.mean():.0%} of the frames")
    eyes = track.points[track.seen][:, 33, :2] - track.points[track.seen][:, 263, :2]
    width = float(np.median(np.linalg.norm(eyes, axis=1)))
    if width < MIN_EYE_PIXELS:
        raise ValueError(f"eyes only {width:.0f} px apart; {MIN_EYE_PIXELS:.0f} needed")
    return track


def _neutrals(tracks: dict[Path, Track], config: CorpusConfig) -> dict[str, np.ndarray]:
    """One neutral per talker, from up to 24 of their clips."""
    template = load_face_model().template
    groups: dict[str, list[np.ndarray]] = {}
    for path, track in tracks.items():
        groups.setdefault(config.talker_of(path.stem), []).append(track.points[track.seen])
    return {
        talker: clip_geometry(np.concatenate(clips[:: max(1, len(clips) // 24)]), template)[2]
        for talker, clips in groups.items()
    }
