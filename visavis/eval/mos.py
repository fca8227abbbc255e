"""Ask people: a self-contained rating page (ITU-T P.910 ACR-HR and preference) and its scores.

The page knows clips by opaque ids; which system made which clip stays in the key file, so neither
raters nor a look at the page's source tell. Hidden reference: the real video is rated like any
other and turns votes into differences, ``DV = vote - vote of the reference + 5``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visavis.errors import InputError
from visavis.eval.stats import Interval, sign_flip_test, t_interval

REFERENCE = "real"  # the folder of the hidden reference
VIDEO_TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}
RATING_QUESTION = "How good is the video as a recording of a person who speaks these words?"
PAIR_QUESTION = "Which of the two looks more like a real person who speaks these words?"
INSTRUCTIONS = "This study asks how natural talking heads look and how well the lips fit the voice."
TRAP_ANSWERS = (2, 4, 1, 5, 3)


@dataclass(frozen=True)
class Stimuli:
    """``systems[system][clip]`` is a video file; every system has the same clips."""

    systems: dict[str, dict[str, Path]]

    @property
    def clips(self) -> list[str]:
        return sorted(next(iter(self.systems.values())))


def find_stimuli(folder: Path) -> Stimuli:
    """Read ``FOLDER/SYSTEM/CLIP.mp4|webm``; one system must be called ``real``.

    Raises ``InputError`` when the reference is missing, there is nothing to compare, or a system
    lacks a clip: an unbalanced study cannot be scored by paired tests.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; expected FOLDER/SYSTEM/CLIP.mp4")
    systems = {
        sub.name: {f.stem: f for f in sorted(sub.iterdir()) if f.suffix.lower() in VIDEO_TYPES}
        for sub in sorted(folder.iterdir())
        if sub.is_dir()
    }
    systems = {name: clips for name, clips in systems.items() if clips}
    if REFERENCE not in systems or len(systems) < 2:
        raise InputError(
            f"{folder}: found systems {sorted(systems) or 'none'}; "
            f"expected a folder '{REFERENCE}' (hidden reference) and one more"
        )
    wanted = set(systems[REFERENCE])
    for name, clips in systems.items():
        if set(clips) != wanted:
            odd = sorted(wanted ^ set(clips))
            raise InputError(f"{folder / name}: clips differ from '{REFERENCE}': {', '.join(odd)}")
    return Stimuli(systems)


def _identify(study: str, *parts: str) -> str:
    return hashlib.sha256("/".join((study, *parts)).encode()).hexdigest()[:12]


@dataclass
class _Plan:
    """Items of the page beside the key that says what they are."""

    study: str
    items: list[dict[str, Any]] = field(default_factory=list)
    key: dict[str, dict[str, Any]] = field(default_factory=dict)
    media: dict[str, Path] = field(default_factory=dict)

    def add(
        self, kind: str, sources: Sequence[Path], group: str, known: dict, **shown: Any
    ) -> None:
        item = _identify(self.study, kind, str(len(self.items)), *map(str, sources))
        ids = [_identify(self.study, "media", str(s)) for s in sources]
        self.media.update(zip(ids, sources, strict=True))
        # The group only keeps the same words from being shown twice in a row; it is hashed too.
        self.items.append(
            {"id": item, "kind": kind, "src": ids, "group": _identify(self.study, "g", group)}
            | shown
        )
        self.key[item] = {"kind": kind, **known}


def _plan(
    stimuli: Stimuli, study: str, pairs: Sequence[tuple[str, str]], gold: dict, seed: int
) -> _Plan:
    rng = np.random.default_rng(seed)
    plan, systems, clips = _Plan(study), stimuli.systems, stimuli.clips
    names = sorted(systems)
    for i in range(min(3, len(names))):  # practice shows the whole range of quality
        clip = clips[i % len(clips)]
        plan.add("training", [systems[names[i]][clip]], clip, {"system": names[i], "clip": clip})
    for system in names:
        for clip in clips:
            plan.add("rating", [systems[system][clip]], clip, {"system": system, "clip": clip})
    for system, expected in sorted(gold.items()):
        clip = clips[int(rng.integers(len(clips)))]
        known = {"system": system, "clip": clip, "expected": expected}
        plan.add("gold", [systems[system][clip]], clip, known)
    for index in range(max(1, len(names) * len(clips) // 12)):
        answer = TRAP_ANSWERS[index % len(TRAP_ANSWERS)]
        clip = clips[int(rng.integers(len(clips)))]
        system = names[int(rng.integers(len(names)))]
        message = f"Attention check: whatever you saw, please choose {answer}."
        plan.add(
            "trap", [systems[system][clip]], f"trap{index}", {"expected": answer}, message=message
        )
    for a, b in pairs:
        for clip in clips:
            known = {"left": a, "right": b, "clip": clip}
            plan.add("pair", [systems[a][clip], systems[b][clip]], clip, known)
    return plan


def build(
    folder: Path,
    page: Path,
    pairs: Sequence[tuple[str, str]] = (),
    gold: dict[str, int] | None = None,
    title: str = "Talking heads",
    seed: int = 0,
    embed: bool = True,
) -> Path:
    """Write the rating page and, beside it, ``PAGE.key.json``; returns the key's path.

    Args:
        folder: ``FOLDER/SYSTEM/CLIP.mp4|webm`` with a system ``real``.
        page: the HTML file to write.
        pairs: systems to compare side by side, each on every clip.
        gold: systems whose quality is known and the vote they must get (±1); default: real 5.
        seed: of what serves as gold and trap (the order is drawn per rater, in the page).
        embed: videos inside the page; otherwise links relative to it (serve the folder).
    """
    from importlib.resources import files

    stimuli = find_stimuli(folder)
    gold = {REFERENCE: 5} if gold is None else gold
    for name in [*gold, *(n for pair in pairs for n in pair)]:
        if name not in stimuli.systems:
            raise InputError(
                f"{name}: no such system; there are {', '.join(sorted(stimuli.systems))}"
            )
    page = Path(page)
    content = [
        hashlib.sha256(p.read_bytes()).hexdigest()
        for s in sorted(stimuli.systems)
        for p in stimuli.systems[s].values()
    ]
    study = hashlib.sha256("".join([title, str(seed), *content]).encode()).hexdigest()[:10]
    plan = _plan(stimuli, study, pairs, gold, seed)
    shown = {
        "study": study,
        "title": title,
        "instructions": INSTRUCTIONS,
        "rating_question": RATING_QUESTION,
        "pair_question": PAIR_QUESTION,
        "items": plan.items,
        "media": {key: _source(path, page, embed) for key, path in sorted(plan.media.items())},
    }
    template = files("visavis.eval").joinpath("templates/mos.html").read_text("utf-8")
    data = json.dumps(shown, ensure_ascii=True).replace("<", "\\u003c")
    page.write_text(template.replace("__STUDY__", data), "utf-8")
    key = page.with_suffix(".key.json")
    facts = {"study": study, "title": title, "seed": seed, "gold": gold, "items": plan.key}
    key.write_text(json.dumps(facts, indent=1), "utf-8")
    return key


def _source(path: Path, page: Path, embed: bool) -> str:
    if embed:
        kind = VIDEO_TYPES[path.suffix.lower()]
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    import os
    from urllib.parse import quote

    return quote(os.path.relpath(path, page.parent))


@dataclass(frozen=True)
class Scores:
    """What the raters said. ``rejected`` names each rater left out and why; none vanish
    silently.
    """

    mos: dict[str, Interval]
    dmos: dict[str, Interval]
    tests: list[dict[str, Any]]
    preferences: list[dict[str, Any]]
    raters: list[str]
    rejected: dict[str, str]


def read_results(paths: Sequence[Path], key: dict[str, Any]) -> list[dict[str, Any]]:
    """Result files of one study; ``InputError`` for a file that is none or of another study."""
    results = []
    for path in paths:
        try:
            result = json.loads(Path(path).read_text("utf-8"))
            study, _, _ = result["study"], result["rater"], result["answers"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a result of the rating page: {error!r}") from error
        if study != key["study"]:
            raise InputError(f"{path}: of study {study}, the key is of {key['study']}")
        results.append(result)
    if not results:
        raise InputError("no result files given; expected the JSON files that the page saved")
    return results


def screen(result: dict[str, Any], items: dict[str, dict[str, Any]]) -> str | None:
    """Why a rater's votes cannot be used, or None. Traps exact, gold within ±1, not all one
    vote.
    """
    answers = {a["id"]: a["answer"] for a in result["answers"]}
    missing = [i for i in items if i not in answers]
    if missing:
        return f"answered {len(items) - len(missing)} of {len(items)} items"
    for item, known in items.items():
        if known["kind"] == "trap" and answers[item] != known["expected"]:
            return (
                f"missed an attention check (answered {answers[item]}, asked {known['expected']})"
            )
        if known["kind"] == "gold" and abs(answers[item] - known["expected"]) > 1:
            return (
                f"gold clip of '{known['system']}' rated {answers[item]}, known {known['expected']}"
            )
    votes = {answers[i] for i, known in items.items() if known["kind"] == "rating"}
    if len(votes) == 1:
        return "gave every clip the same vote"
    return None


def score(results: Sequence[dict[str, Any]], key: dict[str, Any]) -> Scores:
    """MOS and DMOS with 95 % intervals over raters, paired tests of every two systems, preferences.

    The rater is the unit: each rater's mean per system (or mean difference of two systems over
    the clips) is one sample, so a rater with many clips does not count as many raters. Intervals:
    Student's t (P.910 clause 8); tests: sign flips over raters, or over clips with one rater.
    """
    items = key["items"]
    rejected = {r["rater"]: why for r in results if (why := screen(r, items))}
    kept = [r for r in results if r["rater"] not in rejected]
    votes: dict[str, dict[str, dict[str, float]]] = {}  # rater, system, clip
    for result in kept:
        table: dict[str, dict[str, float]] = defaultdict(dict)
        for answer in result["answers"]:
            known = items.get(answer["id"], {})
            if known.get("kind") == "rating":
                table[known["system"]][known["clip"]] = float(answer["answer"])
        votes[result["rater"]] = table
    systems = sorted({k["system"] for k in items.values() if k["kind"] == "rating"})
    raters = sorted(votes)

    def per_rater(system: str, hidden: bool) -> np.ndarray:
        return np.array(
            [
                np.mean(
                    [v - (votes[r][REFERENCE][c] - 5) * hidden for c, v in votes[r][system].items()]
                )
                for r in raters
            ]
        )

    return Scores(
        mos={s: t_interval(per_rater(s, False)) for s in systems},
        dmos={s: t_interval(per_rater(s, True)) for s in systems if s != REFERENCE},
        tests=[_compare(votes, a, b) for i, a in enumerate(systems) for b in systems[i + 1 :]],
        preferences=_preferences(kept, items),
        raters=raters,
        rejected=rejected,
    )


def _compare(votes: dict, a: str, b: str) -> dict[str, Any]:
    diffs = [np.array([t[a][c] - t[b][c] for c in sorted(t[a])]) for t in votes.values()]
    if not diffs:
        return {"a": a, "b": b, "difference": float("nan"), "p": 1.0, "unit": "rater", "count": 0}
    unit = "rater" if len(diffs) > 1 else "clip"
    samples = np.array([d.mean() for d in diffs]) if len(diffs) > 1 else diffs[0]
    return {
        "a": a,
        "b": b,
        "difference": float(np.mean(samples)),
        "p": sign_flip_test(samples, np.zeros(len(samples))),
        "unit": unit,
        "count": len(samples),
    }


def _preferences(kept: Sequence[dict], items: dict) -> list[dict[str, Any]]:
    """Per compared pair: wins, ties and a sign-flip test on each rater's mean preference -1..1."""
    value = {"left": 1.0, "same": 0.0, "right": -1.0}
    pairs = sorted({(k["left"], k["right"]) for k in items.values() if k["kind"] == "pair"})
    rows = []
    for a, b in pairs:
        by_rater = []
        for result in kept:
            said = [
                value[x["answer"]]
                for x in result["answers"]
                if items.get(x["id"], {}).get("left") == a and items[x["id"]]["right"] == b
            ]
            by_rater.append(np.array(said))
        said = np.concatenate(by_rater) if by_rater else np.zeros(0)
        samples = np.array([s.mean() for s in by_rater]) if len(by_rater) > 1 else said
        rows.append(
            {
                "a": a,
                "b": b,
                "a_wins": int((said > 0).sum()),
                "ties": int((said == 0).sum()),
                "b_wins": int((said < 0).sum()),
                "p": sign_flip_test(samples, np.zeros(len(samples))),
                "unit": "rater" if len(by_rater) > 1 else "clip",
            }
        )
    return rows
