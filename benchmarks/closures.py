"""Lips that meet on p, b and m, and nowhere else, after smoothing. One JSON line.

Run: ``python benchmarks/closures.py CLIPS WORDS.tsv [--model DIR]``; CLIPS is the output folder of
``visavis prepare``, WORDS the word times of ``grid_s1``.

``share``: of the places in the held-out tenth of ``grid_s1`` where a word with p, b or m begins or
ends and the filmed lips meet, how many ours meet at (0.02 eye distances); ``open_kept`` is the
reverse: of the steps well open in the film (above 0.06), how many are open here.

``grid`` and ``synthetic``: recall at precision of at least 0.8, at the threshold on the lip opening
that serves best, and ``shut`` at 0.02. A closure is a dip of the opening to the threshold or below
within speech. On GRID it is right where the filmed lips meet within 40 ms; what should be met are the
places above. On eSpeak NG's speech by voices never trained on (corpus ``espeak``) phone times are
exact: every p, b and m should be met, a dip is right where one lies within 40 ms, and dips in f, v or
a pause are not judged. Bars: 0.8 and 0.7. ``flite`` is trained on and only shown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from visavis.train.clips import Clip, is_held_out, is_withheld, load_corpus
from visavis.train.evaluate import (
    SHUT,
    Voice,
    closure_counts,
    closure_windows,
    closures,
    read_words,
    recall_at_precision,
    runs_of,
    speak_clips,
    speak_sounds,
)
from visavis.train.phones import PHONE_INDEX
from visavis.types import CHANNEL

THRESHOLDS = tuple(round(float(t), 4) for t in np.arange(0.002, 0.0801, 0.002))
JAW = CHANNEL["jaw_open"]
LIPS = [PHONE_INDEX[p] for p in "PBM"]
UNJUDGED = [PHONE_INDEX[p] for p in ("SIL", "F", "V")]


def both(counts: dict[float, np.ndarray]) -> dict:
    """At the threshold that serves best, and at the one that means shut."""
    shut = recall_at_precision({SHUT: counts[SHUT]}, 0.0)
    return recall_at_precision(counts) | {"shut": [shut["recall"], shut["precision"]]}


def filmed(pairs: list, words: list[list]) -> dict:
    """Recall at precision where the film tells what is right."""
    counts = {t: np.zeros(4, int) for t in THRESHOLDS}
    for (answer, tracked), spoken in zip(pairs, words, strict=True):
        shut = tracked[:, JAW] <= SHUT
        wanted = [
            (s.start, min(s.stop, len(shut))) for s in closure_windows(spoken) if shut[s].any()
        ]
        judged = np.zeros(len(shut), bool)
        said = [(a, b) for a, b, word in spoken if word not in ("sil", "sp")]
        if said:
            judged[round(said[0][0] * 50) : round(said[-1][1] * 50)] = True
        for t in THRESHOLDS:
            counts[t] += closure_counts(answer[:, JAW], wanted, shut, judged, t)
    return both(counts)


def synthetic(voice: Voice, clips: list[Clip]) -> dict:
    """Recall at precision where phone times are exact."""
    counts = {t: np.zeros(4, int) for t in THRESHOLDS}
    for clip, motion in zip(clips, speak_sounds(voice, clips), strict=True):
        phones = clip.phones[: 2 * len(motion) : 2]
        opening = motion[: len(phones), JAW]
        lips = np.isin(phones, LIPS)
        judged = ~np.isin(phones, UNJUDGED)
        for t in THRESHOLDS:
            counts[t] += closure_counts(opening, runs_of(lips), lips, judged, t)
    return both(counts) | {"clips": len(clips)}


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("words", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--lookahead-ms", type=int, default=80)
    options = parser.parse_args()
    voice = Voice.load(options.model, options.lookahead_ms)
    words = read_words(options.words)
    clips = [c for c in load_corpus(options.clips, "grid_s1") if is_held_out(c.name)]
    pairs = speak_clips(voice, clips)
    spoken = [words.get(c.name, []) for c in clips]
    real = met = 0
    for (answer, tracked), said in zip(pairs, spoken, strict=True):
        a, b = closures(answer, tracked, closure_windows(said))
        real, met = real + a, met + b
    wide = np.concatenate([a[t[:, JAW] > 0.06, JAW] > SHUT for a, t in pairs])
    grid = filmed(pairs, spoken)
    espeak = [c for c in load_corpus(options.clips, "espeak") if is_withheld(c)]
    unseen = synthetic(voice, [c for c in espeak if c.meta["language"] == "en"])
    facts = {
        "tracked": real, "met": met, "share": round(met / max(real, 1), 3),
        "open_kept": round(float(wide.mean()), 3), "grid": grid, "synthetic": unseen,
        "synthetic_nine_languages": synthetic(voice, espeak),
        "flite": synthetic(voice, load_corpus(options.clips, "flite")[:60]),
    }  # fmt: skip
    ok = grid["recall"] >= 0.8 and grid["precision"] >= 0.8
    ok = ok and unseen["recall"] >= 0.7 and unseen["precision"] >= 0.8
    print(json.dumps({"benchmark": "closures", **facts, "ok": ok}))


if __name__ == "__main__":
    main()
