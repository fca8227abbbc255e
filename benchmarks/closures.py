"""Lips that meet on p, b and m, after smoothing, where the filmed lips do. One JSON line.

Run: ``python benchmarks/closures.py CLIPS WORDS.tsv [--model DIR]``; CLIPS is the output folder of
``visavis prepare``, WORDS the word times of ``grid_s1``. Only the tenth held out by name counts.
The bar: at least 80 %. ``open_kept`` is the reverse: of the steps well open in the film (above
0.06), how many are open (above 0.02) here; a mouth that never opens would pass the first figure.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from visavis.train.clips import is_held_out, load_corpus
from visavis.train.evaluate import SHUT, Voice, closure_windows, closures, read_words, speak_clips
from visavis.types import CHANNEL


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
    real = met = 0
    opened = []
    clips = [c for c in load_corpus(options.clips, "grid_s1") if is_held_out(c.name)]
    for clip, (answer, tracked) in zip(clips, speak_clips(voice, clips), strict=True):
        a, b = closures(answer, tracked, closure_windows(words.get(clip.name, [])))
        real, met = real + a, met + b
        jaw = CHANNEL["jaw_open"]
        opened.append(answer[tracked[:, jaw] > 0.06, jaw] > SHUT)
    share = met / max(real, 1)
    facts = {
        "tracked": real, "met": met, "share": round(share, 3),
        "open_kept": round(float(np.concatenate(opened).mean()), 3), "ok": share >= 0.8,
    }  # fmt: skip
    print(json.dumps({"benchmark": "closures", **facts}))


if __name__ == "__main__":
    main()
