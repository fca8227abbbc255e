"""What makes a film unfit to learn from: measured once per clip, judged by named limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from visavis.facemodel import fit_pose
from visavis.features import FeatureExtractor
from visavis.track import Track
from visavis.types import FEATURE_RATE, N_MELS

RIGHT_EYE, LEFT_EYE, NOSE = 33, 263, 1
VOICED = 0.45


@dataclass(frozen=True)
class Limits:
    """Bounds of a usable clip; shares are of the frames, sampled ones where that is cheaper."""

    min_seconds: float = 1.0
    min_seen: float = 0.95
    min_eye_px: float = 30.0  # between the outer eye corners
    max_yaw: float = 35.0  # degrees
    max_pitch: float = 30.0
    max_turned: float = 0.10  # share of frames beyond either angle
    max_hidden: float = 0.20  # share of looks with mask, hand or dark glasses
    min_score: float = 0.60  # tenth percentile of the tracker's presence
    max_others: float = 0.20  # share of looks with a second face of comparable size
    max_jump: float = 0.60  # eye distances the face moves from one frame to the next: a cut
    min_speech: float = 0.08  # share of 10 ms that are voiced and loud


def track_facts(track: Track, template: np.ndarray) -> dict[str, float]:
    """Figures of the face in a clip: size, angles, presence, jumps.

    Args:
        track: of the whole clip.
        template: ``(478, 3)`` neutral that poses are fitted to.
    """
    seen = track.seen
    facts = {
        "frames": len(seen), "seconds": _seconds(track.times), "seen": float(seen.mean()),
        "fps": round((len(seen) - 1) / max(float(track.times[-1] - track.times[0]), 1e-6), 3),
    }  # fmt: skip
    if not seen.any():
        return facts
    points = track.points[seen]
    eyes = np.linalg.norm(points[:, RIGHT_EYE, :2] - points[:, LEFT_EYE, :2], axis=1)
    unit = float(np.median(eyes))
    angles = np.abs([fit_pose(p, template).angles for p in points[::5]])
    moves = np.linalg.norm(np.diff(points[:, NOSE, :2], axis=0), axis=1) / max(unit, 1e-6)
    return facts | {
        "eye_px": unit, "pitch": float(np.quantile(angles[:, 0], 0.95)),
        "yaw": float(np.quantile(angles[:, 1], 0.95)),
        "turned": float(
            ((angles[:, 0] > Limits.max_pitch) | (angles[:, 1] > Limits.max_yaw)).mean()
        ),
        "score": float(np.quantile(track.scores[seen], 0.1)),
        "jump": float(moves.max()) if len(moves) else 0.0,
    }  # fmt: skip


def speech_facts(pcm: np.ndarray) -> dict[str, float]:
    """Share of speech and loudness of ``(n,)`` int16 at 16 kHz.

    A 10 ms step counts as speech when it is voiced, and 10 dB above the clip's quietest twentieth
    (a bound kept between -60 and -30 dBFS).
    """
    stage = FeatureExtractor()
    sound = pcm[None].astype(np.float32) / 32768.0
    features = stage.step(stage.init_state(), sound)[1][0]
    if not len(features):
        return {"speech": 0.0, "level_db": -90.0, "sound_seconds": 0.0}
    level = (features[:, N_MELS] + 1.0) * 40.0 - 90.0
    least = np.clip(np.quantile(level, 0.05) + 10.0, -60.0, -30.0)
    voiced = (features[:, N_MELS + 2] > VOICED) & (level > least)
    return {
        "speech": float(voiced.mean()),
        "level_db": float(np.quantile(level, 0.9)),
        "sound_seconds": len(features) / FEATURE_RATE,
    }


def refusal(facts: Mapping[str, Any], limits: Limits) -> str | None:
    """Why a clip is not used, in one line that holds the figure and the bound; None if it is.

    Args:
        facts: of ``track_facts`` and ``speech_facts``, with ``hidden`` and ``others`` (shares) and
            ``error`` where the file could not be read.
        limits: the bounds.
    """
    if facts.get("error"):
        return str(facts["error"])
    checks = [
        ("seconds", limits.min_seconds, 1, "too short: {:.1f} s of film, {:.1f} s needed"),
        ("seen", limits.min_seen, 1, "no face: seen in {:.0%} of the frames, {:.0%} needed"),
        ("eye_px", limits.min_eye_px, 1, "face too small: eyes {:.0f} px apart, {:.0f} needed"),
        ("others", limits.max_others, -1, "several people: in {:.0%} of the looks, {:.0%} allowed"),
        (
            "jump",
            limits.max_jump,
            -1,
            "cut: the face jumps by {:.1f} eye distances, {:.1f} allowed",
        ),
        ("turned", limits.max_turned, -1, "turned away: in {:.0%} of the frames, {:.0%} allowed"),
        ("hidden", limits.max_hidden, -1, "face hidden: in {:.0%} of the looks, {:.0%} allowed"),
        ("score", limits.min_score, 1, "face unclear: presence {:.2f}, {:.2f} needed"),
        ("speech", limits.min_speech, 1, "no speech: {:.0%} of the sound voiced, {:.0%} needed"),
    ]
    for name, bound, sign, text in checks:
        if name in facts and sign * facts[name] < sign * bound:
            return text.format(facts[name], bound)
    return None


def _seconds(times: np.ndarray) -> float:
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.04
    return float(times[-1] - times[0]) + step
