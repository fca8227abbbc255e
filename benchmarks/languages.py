"""Nine languages spoken by eSpeak NG voices never trained on: mouth shapes named right. One JSON line.

Run: ``python benchmarks/languages.py CLIPS --run RUN [--model DIR]``; CLIPS holds the corpus
``espeak`` (``visavis.train.espeak``), RUN is a training run, DIR the model exported from it.
``visemes``: share of 20 ms steps put in the right one of 11 classes by the phone head at 80 ms look-
ahead; ``chance`` is the share of the commonest class. ``closures``: of p, b and m, how often the
lips meet after smoothing (0.02 eye distances). No bar.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from visavis.train.clips import is_withheld, load_corpus
from visavis.train.evaluate import SHUT, Voice, runs_of, speak_sounds
from visavis.train.hearing import hear, load_hearing, phone_odds, phone_scores
from visavis.train.phones import PHONE_INDEX, viseme_of_phone
from visavis.types import CHANNEL

LIPS = [PHONE_INDEX[p] for p in "PBM"]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--model")
    options = parser.parse_args()
    net, voice = load_hearing(options.run), Voice.load(options.model)
    clips = [c for c in load_corpus(options.clips, "espeak") if is_withheld(c)]
    found = {}
    for language in sorted({c.meta["language"] for c in clips}):
        group = [c for c in clips if c.meta["language"] == language]
        scores = phone_scores(phone_odds(net, group, 80, hear(group)), group)
        labels = np.concatenate([viseme_of_phone()[c.phones[c.phones > 0]] for c in group])
        met = []
        for clip, motion in zip(group, speak_sounds(voice, group), strict=True):
            opening = motion[:, CHANNEL["jaw_open"]]
            spans = runs_of(np.isin(clip.phones[::2], LIPS))
            met += [opening[max(0, a - 2) : b + 2].min() <= SHUT for a, b in spans]
        found[language] = {
            "visemes": scores["visemes"], "visemes_in_speech": scores["visemes_in_speech"],
            "chance_in_speech": round(float(np.bincount(labels).max() / len(labels)), 3),
            "closures": round(float(np.mean(met)), 3), "clips": len(group),
        }  # fmt: skip
    facts = {"run": str(options.run), "languages": found}
    print(json.dumps({"benchmark": "languages", **facts}))


if __name__ == "__main__":
    main()
