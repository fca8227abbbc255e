"""Who is in the studio and what the face does: random identities, mouths, expressions, speech.

Everything is drawn from a random generator that is handed in, so a seed gives one person.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

VISEMES = ("PP", "FF", "TH", "DD", "kk", "CH", "SS", "nn", "RR", "aa", "E", "I", "O", "U")
SHUT = ("PP", "FF", "U")  # visemes that leave next to no opening
LOCAL = ("cheek", "chin", "eyes", "forehead", "head", "mouth", "nose", "eyebrows")
CALM = 0.35  # standard deviation of a local shape's weight
STRONG = ("head/head-age", "head/head-fat")  # these alone may go far


@dataclass(frozen=True)
class Looks:
    """One identity; see `draw_looks`.

    Attributes:
        shapes: name of a shape target to its weight.
        skins: indices of two skins, and the share of the second.
        tone: gain per channel on the skin's linear colour.
        lips: gain per channel on the lips.
        pores: strength of fine light and dark in the skin.
        gloss: roughness of skin, lips, teeth.
        enamel: linear colour of the brightest enamel.
        stain: how far each tooth falls behind it, ``(32,)``.
        gum: linear colour of the gums.
        tongue: gain per channel on the tongue.
        teeth: per tooth width, turn (rad), push (dm) and rise (dm), ``(32, 4)``.
        arch: scale of both rows, rise of the upper and of the lower one (dm).
        iris: hue shift, gain, and whether the eyes are blue.
    """

    shapes: dict[str, float]
    skins: tuple[int, int, float]
    tone: np.ndarray
    lips: np.ndarray
    pores: float
    gloss: tuple[float, float, float]
    enamel: np.ndarray
    stain: np.ndarray
    gum: np.ndarray
    tongue: np.ndarray
    teeth: np.ndarray
    arch: tuple[float, float, float]
    iris: tuple[float, float, bool]


def draw_looks(rng: np.random.Generator, names: list[str], skins: list[str]) -> Looks:
    """A random person.

    Args:
        rng: of this person.
        names: every shape target there is.
        skins: names of the skin maps.
    """
    sex, old = rng.random() < 0.5, float(np.clip(rng.beta(1.2, 2.0), 0, 1))
    shapes: dict[str, float] = {}
    descent = rng.dirichlet((0.6, 0.6, 0.6))
    for who, share in zip(("african", "asian", "caucasian"), descent, strict=True):
        for age, weight in (("young", 1 - old), ("old", old)):
            for kind, part in (("female", 0.85 if sex else 0.15), ("male", 0.15 if sex else 0.85)):
                shapes[f"macrodetails/{who}-{kind}-{age}"] = float(share * weight * part)
    for pair in opposites(tuple(names)):
        spread = 0.6 if pair[0].startswith(STRONG) else CALM
        weight = float(np.clip(rng.normal(0, spread), -0.9, 0.9))
        shapes[pair[0] if weight < 0 else pair[1]] = abs(weight)
    first = _skin(rng, skins, sex, old)
    second = _like(rng, skins, first)
    yellow, light = rng.beta(1.6, 3.0), rng.uniform(0.78, 0.96)
    return Looks(
        shapes,
        (first, second, float(rng.uniform(0, 0.6))),
        np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.025, 3)),
        np.exp(rng.normal((0.10, -0.05, -0.05), (0.14, 0.12, 0.12))),
        float(rng.uniform(0.01, 0.05)),
        (rng.uniform(0.35, 0.6), rng.uniform(0.2, 0.5), rng.uniform(0.08, 0.3)),
        light * np.array([1.0, 0.96 - 0.10 * yellow, 0.88 - 0.34 * yellow]),
        np.clip(np.abs(rng.normal(0, 0.05, 32)), 0, 0.2),
        np.array([0.50, 0.17, 0.17]) * np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.08, 3)),
        np.exp(rng.normal(-0.1, 0.12) + rng.normal(0, 0.05, 3)),
        _draw_teeth(rng),
        (rng.normal(1.0, 0.03), rng.normal(-0.045, 0.015), rng.normal(-0.025, 0.015)),
        (rng.normal(0, 0.03), np.exp(rng.normal(0, 0.3)), bool(rng.random() < 0.8 * descent[2])),
    )


def _draw_teeth(rng: np.random.Generator) -> np.ndarray:
    """Small irregularities; one mouth in six is crooked, one in fifteen has a gap in front."""
    crooked = 2.2 if rng.random() < 0.16 else 1.0
    teeth = rng.normal(
        (1.03, 0, 0, 0), (0.012, 0.03 * crooked, 0.003 * crooked, 0.003 * crooked), (32, 4)
    )
    if rng.random() < 0.066:
        teeth[:, 0] -= 0.07
    return teeth


def _skin(rng: np.random.Generator, skins: list[str], female: bool, old: float) -> int:
    age = "old" if old > 0.66 else "middleage" if old > 0.4 else "young"
    sex = "female" if female else "male"
    odds = [(3.0 if _sex(s) == sex else 0.3) * (3.0 if s.startswith(age) else 1.0) for s in skins]
    return int(rng.choice(len(skins), p=np.array(odds) / sum(odds)))


def _like(rng: np.random.Generator, skins: list[str], first: int) -> int:
    """Another skin of the same shade, so that a mixture is a skin."""
    dark = "dark" in skins[first]
    return int(rng.choice([i for i, s in enumerate(skins) if ("dark" in s) == dark]))


def _sex(skin: str) -> str:
    return "female" if "female" in skin else "male"


@lru_cache(maxsize=4)
def opposites(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Pairs of local shapes that are each other's opposite, such as ``-decr`` and ``-incr``."""
    words = {
        "decr": "incr", "down": "up", "in": "out", "backward": "forward", "concave": "convex",
        "compress": "uncompress",
    }  # fmt: skip
    known, pairs = set(names), []
    for name in names:
        if not name.startswith(LOCAL) or "/" not in name or ("trans-" in name and "head" in name):
            continue
        found = re.match(r"(.*-)(\w+)$", name)
        other = found and found[1] + words.get(found[2], "?")
        if other in known:
            pairs.append((name, str(other)))
    return pairs


def draw_expression(rng: np.random.Generator, teeth: bool = True) -> dict[str, float]:
    """Weights of the ARKit and viseme targets for one still.

    Args:
        rng: of this still.
        teeth: ask for an open mouth.
    """
    weights: dict[str, float] = {}
    kind = rng.choice(["speech", "smile", "wide", "free"], p=[0.45, 0.25, 0.15, 0.15])
    if kind == "speech":
        for name in rng.choice(VISEMES, 2, replace=False):
            weights[f"viseme_{name}"] = float(rng.uniform(0.1, 0.7))
        weights["jawOpen"] = float(rng.beta(1.2, 4.0)) * 0.6
    elif kind == "smile":
        _both(weights, "mouthSmile", rng.uniform(0.4, 1.0), rng)
        _both(weights, "mouthUpperUp", rng.uniform(0.1, 0.7), rng)
        _both(weights, "mouthLowerDown", rng.uniform(0.0, 0.6), rng)
        _both(weights, "cheekSquint", rng.uniform(0.0, 0.6), rng)
        weights["jawOpen"] = float(rng.beta(1.0, 5.0)) * 0.5
    elif kind == "wide":
        weights["jawOpen"] = float(rng.uniform(0.3, 1.0))
        _both(weights, "mouthLowerDown", rng.uniform(0.0, 0.6), rng)
        _both(weights, "mouthUpperUp", rng.uniform(0.0, 0.4), rng)
    else:
        for name in ("mouthFunnel", "mouthPucker", "mouthShrugLower", "mouthRollLower"):
            weights[name] = float(rng.uniform(0, 0.5)) * (rng.random() < 0.4)
        for name in ("mouthStretch", "mouthFrown", "mouthDimple", "mouthPress"):
            _both(weights, name, rng.uniform(0, 0.5) * (rng.random() < 0.4), rng)
        weights["jawOpen"] = float(rng.uniform(0.05, 0.6))
    if teeth and kind in ("speech", "free"):
        _both(weights, "mouthUpperUp", rng.uniform(0.0, 0.5), rng)
        _both(weights, "mouthLowerDown", rng.uniform(0.0, 0.5), rng)
    side = rng.normal(0, 0.12)
    weights["jawLeft" if side > 0 else "jawRight"] = abs(float(side))
    weights["jawForward"] = float(max(rng.normal(0, 0.1), 0))
    if rng.random() < 0.15:
        weights["tongueOut"] = float(rng.uniform(0.1, 0.6))
    return weights | draw_eyes(rng)


def draw_eyes(rng: np.random.Generator) -> dict[str, float]:
    """Lids and brows of one still; one in seven blinks."""
    weights: dict[str, float] = {}
    shut = rng.beta(0.6, 0.6) if rng.random() < 0.15 else max(rng.normal(0.08, 0.08), 0.0)
    _both(weights, "eyeBlink", shut, rng, even=True)
    _both(weights, "eyeSquint", rng.uniform(0, 0.5) * (rng.random() < 0.4), rng)
    _both(weights, "eyeWide", rng.uniform(0, 0.5) * (rng.random() < 0.2), rng)
    _both(weights, "browDown", rng.uniform(0, 0.6) * (rng.random() < 0.3), rng)
    weights["browInnerUp"] = float(rng.uniform(0, 0.6) * (rng.random() < 0.3))
    return weights


def _both(weights: dict, name: str, value: float, rng: np.random.Generator, even: bool = False):
    """Left and right alike, a little lopsided unless ``even``."""
    for side in ("Left", "Right"):
        lean = 1.0 if even else float(np.exp(rng.normal(0, 0.15)))
        weights[name + side] = weights.get(name + side, 0.0) + float(min(value * lean, 1.2))


@dataclass(frozen=True)
class Performance:
    """A short take.

    Attributes:
        weights: per frame, name of a target to its weight.
        gaze: ``(T, 2)`` degrees, to the person's left and down.
        head: ``(T, 3)`` degrees: pitch (down), yaw (to the person's left), roll.
    """

    weights: list[dict[str, float]]
    gaze: np.ndarray
    head: np.ndarray


def draw_performance(rng: np.random.Generator, frames: int, fps: float) -> Performance:
    """Speech of visemes 70 to 180 ms long that run into each other, pauses, blinks, a slow head.

    Args:
        rng: of this take.
        frames: how many.
        fps: frames a second.
    """
    time = np.arange(frames) / fps
    marks, shapes, now = [-0.2], [{}], 0.0
    while now < time[-1] + 0.3:
        pause = rng.random() < 0.08
        shape = {} if pause else {f"viseme_{rng.choice(VISEMES)}": float(rng.uniform(0.4, 0.95))}
        if not pause:
            shape["jawOpen"] = float(rng.uniform(0, 0.12))
        marks.append(now)
        shapes.append(shape)
        now += rng.uniform(0.25, 0.4) if pause else rng.uniform(0.07, 0.18)
    mood = {k: v * 0.4 for k, v in draw_expression(rng, False).items() if "viseme" not in k}
    mood["jawOpen"] = 0.0
    names = sorted({n for s in shapes for n in s} | set(mood))
    table = np.array([[s.get(n, 0.0) for n in names] for s in shapes])
    tracks = _ease(np.array(marks), table, time) + [mood.get(n, 0.0) for n in names]
    for blink in np.cumsum(rng.uniform(0.8, 4.0, 8)):
        lid = np.clip(1 - np.abs(time - blink) / 0.13, 0, 1)
        for side in ("Left", "Right"):
            column = names.index(f"eyeBlink{side}")
            tracks[:, column] = np.maximum(tracks[:, column], lid)
    weights = [dict(zip(names, map(float, row), strict=True)) for row in np.clip(tracks, 0, 1.2)]
    return Performance(
        weights, _wander(rng, time, (4.0, 2.5), 1.5), _wander(rng, time, (3.5, 6.0, 2.0), 0.5)
    )


def _ease(marks: np.ndarray, table: np.ndarray, time: np.ndarray) -> np.ndarray:
    """From mark to mark along a raised cosine, ``(T, N)``."""
    at = np.clip(np.searchsorted(marks, time, "right") - 1, 0, len(marks) - 2)
    share = np.clip((time - marks[at]) / (marks[at + 1] - marks[at]), 0, 1)
    share = (0.5 - 0.5 * np.cos(np.pi * share))[:, None]
    return table[at] * (1 - share) + table[at + 1] * share


def _wander(rng: np.random.Generator, time: np.ndarray, sizes: tuple, hertz: float) -> np.ndarray:
    """Slow smooth motion about a random rest, one column per size (degrees)."""
    out = np.zeros((len(time), len(sizes)))
    for k, size in enumerate(sizes):
        out[:, k] = rng.normal(0, size)
        for _ in range(3):
            rate, phase = hertz * rng.uniform(0.3, 1.2), rng.uniform(0, 2 * np.pi)
            out[:, k] += 0.35 * size * np.sin(2 * np.pi * rate * time + phase)
    return out
