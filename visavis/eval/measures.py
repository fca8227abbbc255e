"""The list of measures, and one function per family that fills them in for one clip.

Everything is compared in one square canvas per clip (the avatar's frame, side in pixels stated in
the report): ``Evidence`` holds the frames, the tracked points and the measured motion of one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from visavis.eval import expressiveness, image, landmarks, lips, silence, sync, temporal
from visavis.eval.identity import FaceEmbedder, cosine, summarise
from visavis.eval.listener import Listener, lip_columns
from visavis.eval.lpips_alex import AlexDistance
from visavis.types import CHANNEL, CHANNELS, MOTION_RATE

Figures = dict[str, float]


@dataclass(frozen=True)
class Measure:
    """``better``: high, low, one (nearest 1), zero (nearest 0) or info (no direction)."""

    family: str
    label: str
    unit: str
    better: str


MEASURES: dict[str, Measure] = {
    "nme": Measure("landmarks", "NME, 478 points", "% of eye distance", "low"),
    "mouth_nme": Measure("landmarks", "mouth NME, pose removed", "% of eye distance", "low"),
    "lmd": Measure("landmarks", "LMD (mouth)", "px", "low"),
    "f_lmd": Measure("landmarks", "F-LMD", "px", "low"),
    "lve": Measure("lips", "LVE", "1e-3 eye distances²", "low"),
    "fdd": Measure("lips", "FDD", "1e-3 eye distances²", "zero"),
    "open_r": Measure("lips", "lip opening, r", "", "high"),
    "open_r2": Measure("lips", "lip opening, variance explained", "", "high"),
    "open_gain": Measure("lips", "lip opening, amplitude ratio", "", "one"),
    "open_rms": Measure("lips", "lip opening, RMS error", "eye distances", "low"),
    "width_r": Measure("lips", "mouth width, r", "", "high"),
    "round_r": Measure("lips", "lip rounding, r", "", "high"),
    "jaw_r": Measure("lips", "jaw rotation, r", "", "high"),
    "closure_precision": Measure("lips", "lip closures, precision", "", "high"),
    "closure_recall": Measure("lips", "lip closures, recall", "", "high"),
    "closure_f1": Measure("lips", "lip closures, F1", "", "high"),
    "lag_ms": Measure("sync", "lag behind the real lips", "ms", "zero"),
    "lag_confidence": Measure("sync", "confidence of that lag", "", "high"),
    "av_ms": Measure("sync", "audio-visual offset (listener)", "ms", "zero"),
    "av_confidence": Measure("sync", "audio-visual confidence (listener)", "", "high"),
    "av_r": Measure("sync", "listener's r at no lag", "", "high"),
    "psnr": Measure("image", "PSNR, frame", "dB", "high"),
    "psnr_face": Measure("image", "PSNR, face", "dB", "high"),
    "psnr_mouth": Measure("image", "PSNR, mouth", "dB", "high"),
    "ssim": Measure("image", "SSIM, frame", "", "high"),
    "ssim_face": Measure("image", "SSIM, face", "", "high"),
    "ssim_mouth": Measure("image", "SSIM, mouth", "", "high"),
    "pd": Measure("image", "perceptual distance (SqueezeNet 1.1), frame", "", "low"),
    "pd_face": Measure("image", "perceptual distance (SqueezeNet 1.1), face", "", "low"),
    "pd_mouth": Measure("image", "perceptual distance (SqueezeNet 1.1), mouth", "", "low"),
    "psnr_lips": Measure("image", "PSNR, mouth, head moved onto the real one", "dB", "high"),
    "ssim_lips": Measure("image", "SSIM, mouth, head moved onto the real one", "", "high"),
    "lpips": Measure("image", "LPIPS (AlexNet), frame", "", "low"),
    "lpips_face": Measure("image", "LPIPS (AlexNet), face", "", "low"),
    "lpips_mouth": Measure("image", "LPIPS (AlexNet), mouth", "", "low"),
    "sharpness": Measure("image", "mouth sharpness / photo's", "", "one"),
    "tlp": Measure("temporal", "tLP, mouth (our perceptual distance)", "", "low"),
    "tof": Measure("temporal", "tOF", "px", "low"),
    "warping": Measure("temporal", "warping error", "1e-3", "low"),
    "jitter": Measure("temporal", "lip jitter / real", "", "one"),
    "flicker": Measure("temporal", "flicker outside the person", "grey levels", "low"),
    "variance": Measure("temporal", "frame variance", "grey levels²", "info"),
    "id_mean": Measure("identity", "identity cosine, mean", "", "high"),
    "id_min": Measure("identity", "identity cosine, minimum", "", "high"),
    "id_slope": Measure("identity", "identity drift", "per minute", "zero"),
    "blink_rate": Measure("expressiveness", "blinks", "per minute", "info"),
    "blink_ms": Measure("expressiveness", "blink duration", "ms", "info"),
    "blink_asymmetry": Measure("expressiveness", "blink asymmetry", "", "info"),
    "head_range": Measure("expressiveness", "head range (5-95 %), mean axis", "°", "info"),
    "head_spectrum": Measure("expressiveness", "head spectrum against real", "dB", "low"),
    "head_prosody_r": Measure("expressiveness", "head speed and voice energy, r", "", "info"),
    "beats": Measure("expressiveness", "nods and brows on the beat", "", "info"),
    "diversity": Measure("expressiveness", "head diversity over seeds", "°", "info"),
    "silence_std": Measure("silence", "lip motion in silence", "eye distances", "low"),
    "silence_open": Measure("silence", "mean lip opening in silence", "eye distances", "low"),
    "closing_ms": Measure("silence", "speech end to closed mouth", "ms", "low"),
    "seam": Measure("silence", "speed peak at seams / 99th percentile", "", "low"),
}
HEAD = [CHANNEL[c] for c in ("head_pitch", "head_yaw", "head_roll")]


def goodness(name: str, value: float) -> float:
    """A figure on a scale where more is better; NaN for measures without a direction."""
    better = MEASURES[name].better
    if better == "info":
        return float("nan")
    return {"high": value, "low": -value, "one": -abs(value - 1), "zero": -abs(value)}[better]


@dataclass(frozen=True)
class Evidence:
    """One row's showing of one clip.

    Attributes:
        frames: T images ``(S, S, 3)`` uint8 RGB.
        points: ``(T, 478, 3)`` px of the canvas, NaN without a face.
        motion: ``(T, D)`` measured channels.
        times: ``(T,)`` seconds; the same for all rows of a clip.
    """

    frames: list[np.ndarray]
    points: np.ndarray
    motion: np.ndarray
    times: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        return np.isfinite(self.points[:, 0, 0])

    @property
    def rate(self) -> float:
        return (len(self.times) - 1) / float(self.times[-1] - self.times[0])


def landmark_figures(shown: Evidence, real: Evidence) -> Figures:
    """Families 1 and parts of 2: frames with a face in both."""
    both = shown.seen & real.seen
    if both.sum() < 2:
        return {}
    a, b = shown.points[both].astype(float), real.points[both].astype(float)
    return {
        "nme": 100 * landmarks.nme(a, b),
        "mouth_nme": 100 * landmarks.mouth_nme(a, b),
        "lmd": landmarks.lmd(a, b),
        "f_lmd": landmarks.face_lmd(a, b),
        "lve": 1000 * landmarks.lip_vertex_error(a, b),
        "fdd": 1000 * landmarks.upper_face_deviation(a, b),
        "jitter": temporal.jitter_ratio(a, b, landmarks.LIPS),
    }


def lip_figures(shown: Evidence, real: Evidence) -> Figures:
    """Family 2 and the lag of family 3, from the measured channels.

    Frames without a face in either are left out of sums over frames; closures and lag need the
    whole curve, evenly sampled, with such gaps interpolated.
    """
    both = shown.seen & real.seen
    if both.sum() < 2:
        return {}

    def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
        return shown.motion[both, CHANNEL[name]], real.motion[both, CHANNEL[name]]

    opening, width, rounding, jaw = (pair(name) for name in lips.CHANNELS)
    curves = evenly(shown, "jaw_open"), evenly(real, "jaw_open")
    closures = lips.closures(*curves, real.rate)
    lag = sync.offset(*curves, real.rate)
    return {
        "open_r": lips.correlation(*opening),
        "open_r2": lips.explained(*opening),
        "open_gain": lips.amplitude_ratio(*opening),
        "open_rms": lips.rms_error(*opening),
        "width_r": lips.correlation(*width),
        "round_r": lips.correlation(*rounding),
        "jaw_r": lips.correlation(*jaw),
        "closure_precision": closures.precision,
        "closure_recall": closures.recall,
        "closure_f1": closures.f1,
        "lag_ms": lag.offset_ms,
        "lag_confidence": lag.confidence,
    }


def evenly(evidence: Evidence, channel: str) -> np.ndarray:
    """A channel at the clip's mean rate, ``(T,)``: films of variable rate have uneven times."""
    even = np.linspace(evidence.times[0], evidence.times[-1], len(evidence.times))
    return np.interp(even, evidence.times, evidence.motion[:, CHANNEL[channel]])


def at_motion_rate(evidence: Evidence) -> np.ndarray:
    """Channels at 50 Hz from time 0 of the sound, ``(T, D)``."""
    count = max(1, int(np.ceil(float(evidence.times[-1]) * MOTION_RATE)))
    grid = np.arange(count) / MOTION_RATE
    columns = [np.interp(grid, evidence.times, evidence.motion[:, d]) for d in range(len(CHANNELS))]
    return np.stack(columns, axis=1)


def sound_figures(shown: Evidence, pcm: np.ndarray, listener: Listener) -> Figures:
    """Family 3 by the listener, and family 8: the clip's own sound against what is shown."""
    if len(pcm) < MOTION_RATE * 160:
        return {}
    motion = at_motion_rate(shown)
    heard = listener.hear(pcm)
    n = min(len(motion), len(heard))
    seen, heard = lip_columns(motion[:n]), heard[:n]
    found = sync.offset(seen, heard, MOTION_RATE)
    speech = silence.speech_mask(pcm)
    opening = motion[:, CHANNEL["jaw_open"]]
    deviation, mean = silence.motion_in_silence(opening, speech, MOTION_RATE)
    closing = silence.closing_times_ms(opening, speech, MOTION_RATE)
    seams = [edge / 2 for span in silence.spans(speech) for edge in span if 0 < edge < len(speech)]
    return {
        "av_ms": found.offset_ms,
        "av_confidence": found.confidence,
        "av_r": float(sync.lag_correlation(seen, heard, 0)[0]),
        "silence_std": deviation,
        "silence_open": mean,
        "closing_ms": float(closing.mean()) if len(closing) else float("nan"),
        "seam": silence.seam_peak_ratio(motion, np.array(seams), MOTION_RATE),
    }


def image_figures(
    shown: Evidence,
    real: Evidence,
    every: int,
    distance: image.PerceptualDistance,
    alex: AlexDistance | None = None,
) -> Figures:
    """Family 4: crops are those of the real face, the same for every row; means over frames.

    Frame 0 is the photo that rows are made from and is left out. Frames that are identical
    (infinite PSNR) count only if all are. ``alex`` adds LPIPS.
    """
    rows: dict[str, list[float]] = {}
    for t in range(min(every, len(real.frames) - 1), len(real.frames), every):
        if not real.seen[t]:
            continue
        a, b, points = shown.frames[t], real.frames[t], real.points[t]
        boxes = {
            "": (0, 0, b.shape[1], b.shape[0]),
            "_face": image.face_box(points, b.shape),
            "_mouth": image.mouth_box(points, b.shape),
        }
        for suffix, box in boxes.items():
            x, y = image.crop(a, box), image.crop(b, box)
            rows.setdefault("psnr" + suffix, []).append(image.psnr(x, y))
            rows.setdefault("ssim" + suffix, []).append(image.ssim(x, y))
            side = 96 if suffix == "_mouth" else 160
            small = _fit(x, side), _fit(y, side)
            rows.setdefault("pd" + suffix, []).append(distance(*small))
            if alex is not None:
                pair = small if suffix == "_mouth" else (x, y)
                rows.setdefault("lpips" + suffix, []).append(alex(*pair))
        if shown.seen[t]:
            moved = image.onto_face(a, shown.points[t], points)
            x = image.crop(moved, boxes["_mouth"])
            y = image.crop(b, boxes["_mouth"])
            rows.setdefault("psnr_lips", []).append(image.psnr(x, y))
            rows.setdefault("ssim_lips", []).append(image.ssim(x, y))
    return {name: _mean_of_finite(values) for name, values in rows.items()}


def _mean_of_finite(values: list[float]) -> float:
    finite = np.array(values)[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("inf")


def _fit(picture: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class Passage:
    """A run of frames of the real clip as the temporal measures need it: face and mouth crops.

    Attributes:
        part: which frames.
        face, mouth: boxes in the canvas, fixed for all rows.
        real: face crops and their flows; ``steps``: tLP's distances of the mouth crops.
    """

    part: slice
    face: tuple[int, int, int, int]
    mouth: tuple[int, int, int, int]
    real: temporal.RealMotion
    steps: np.ndarray


def passages(
    real: Evidence, size: int, every: int, distance: image.PerceptualDistance
) -> list[Passage]:
    """What the rows of a clip are compared with: all frames, or runs of 12, one run out of
    ``every``.

    Args:
        size: px, side of the face crop in which flow is measured; mouths at 96 px.
    """
    first = int(np.flatnonzero(real.seen)[0])
    face = image.face_box(real.points[first], real.frames[0].shape, margin=0.25)
    mouth = image.mouth_box(real.points[first], real.frames[0].shape)
    count, run = len(real.frames), 12
    starts = range(0, max(1, count - 6), run * every) if every > 1 else [0]
    found = []
    for start in starts:
        part = slice(start, start + run if every > 1 else count)
        faces = _crops(real.frames[part], face, size)
        steps = temporal.step_distances(_crops(real.frames[part], mouth, 96), distance)
        found.append(Passage(part, face, mouth, temporal.real_motion(faces), steps))
    return found


def _crops(frames: list[np.ndarray], box: tuple[int, int, int, int], size: int) -> list[np.ndarray]:
    return [_fit(image.crop(f, box), size) for f in frames]


def temporal_figures(
    shown: Evidence, real: list[Passage], size: int, distance: image.PerceptualDistance
) -> Figures:
    """Family 5: flow measures on the face crop at ``size`` px, tLP on the mouth crop."""
    rows: dict[str, list[float]] = {"tof": [], "warping": [], "tlp": []}
    for passage in real:
        faces = _crops(shown.frames[passage.part], passage.face, size)
        lips_shown = _crops(shown.frames[passage.part], passage.mouth, 96)
        rows["tof"].append(temporal.tof(faces, passage.real))
        rows["warping"].append(1000 * temporal.warping_error(faces, passage.real))
        rows["tlp"].append(temporal.tlp(lips_shown, passage.steps, distance))
    figures = {name: float(np.nanmean(v)) for name, v in rows.items() if not np.all(np.isnan(v))}
    whole = _crops(shown.frames, real[0].face, size)
    return figures | {"variance": temporal.frame_variance(whole)}


def look_figures(
    shown: Evidence,
    photo: np.ndarray,
    photo_points: np.ndarray,
    outside: np.ndarray | None,
    embedder: FaceEmbedder,
    every: int,
) -> Figures:
    """Identity, sharpness against the photo, flicker outside the matte: no reference film needed.

    Args:
        photo: ``(S, S, 3)`` of the canvas; ``photo_points`` its face.
        outside: ``(S, S)`` bool, pixels that belong to the background, or None.
    """
    keep = [t for t in range(0, len(shown.frames), every) if shown.seen[t]]
    if not keep:
        return {}
    base = embedder(photo, photo_points)
    cosines = [cosine(embedder(shown.frames[t], shown.points[t]), base) for t in keep]
    identity = summarise(np.array(cosines), shown.times[keep])
    sharp = [
        image.mouth_sharpness_ratio(shown.frames[t], shown.points[t], photo, photo_points)
        for t in keep
    ]
    figures = {
        "id_mean": identity.mean,
        "id_min": identity.minimum,
        "id_slope": identity.slope_per_minute,
        "sharpness": float(np.median(sharp)),
    }
    if outside is not None:
        figures["flicker"] = temporal.flicker(shown.frames, outside)
    return figures


def life_figures(shown: Evidence, real: Evidence | None, pcm: np.ndarray) -> Figures:
    """Family 7 from the measured channels at 50 Hz."""
    motion = at_motion_rate(shown)
    blinks = expressiveness.blinks(
        motion[:, CHANNEL["eye_blink_left"]], motion[:, CHANNEL["eye_blink_right"]], MOTION_RATE
    )
    head = motion[:, HEAD]
    figures = {
        "blink_rate": blinks.rate_per_minute,
        "blink_ms": blinks.duration_ms,
        "blink_asymmetry": blinks.asymmetry,
        "head_range": float(expressiveness.head_range(head).mean()),
    }
    if real is not None:
        theirs = at_motion_rate(real)[:, HEAD]
        figures["head_spectrum"] = float(
            np.mean(
                [
                    expressiveness.spectrum_distance(head[:, k], theirs[:, k], MOTION_RATE)
                    for k in range(3)
                ]
            )
        )
    if len(pcm) >= MOTION_RATE * 160:
        energy = np.log10((pcm[: len(pcm) // 320 * 320].reshape(-1, 320) ** 2).mean(axis=1) + 1e-6)
        n = min(len(energy), len(motion))
        pace = expressiveness.speed(head[:n], MOTION_RATE)
        figures["head_prosody_r"] = expressiveness.prosody_correlation(pace, energy[:n])
        nods = expressiveness.motion_beats(motion[:n, CHANNEL["head_pitch"]], MOTION_RATE, 2.0)
        brows = expressiveness.motion_beats(motion[:n, CHANNEL["brow_raise"]], MOTION_RATE, 0.05)
        voice = expressiveness.voice_beats(energy[:n], MOTION_RATE, 0.5)
        figures["beats"] = expressiveness.beat_alignment(np.concatenate([nods, brows]), voice)
    return figures
