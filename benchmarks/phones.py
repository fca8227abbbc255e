"""Phones named right by the net on talkers it never heard, by look-ahead. One JSON line.

Run: ``python benchmarks/phones.py CLIPS --run RUN [--corpus librispeech librispeech_rest]``; CLIPS is
the output of ``visavis prepare``, RUN a training run (the exported graph has no phone head). Only the
withheld quarter of the talkers is used (all with ``--all-talkers``, for nets that were trained on
none of a corpus). The bar: at 80 ms 60 % of the 20 ms steps, 40
classes, silence among them. Labels are pocketsphinx's, from what it recognised itself: about a third
of its words are wrong, so no net reaches 100 %.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from visavis.models.motion import LOOKAHEAD_STEPS
from visavis.train.clips import is_withheld, load_corpus
from visavis.train.hearing import hear, load_hearing, phone_odds, phone_scores


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--corpus", nargs="+", default=["librispeech", "librispeech_rest"])
    parser.add_argument("--all-talkers", action="store_true")
    options = parser.parse_args()
    net = load_hearing(options.run)
    every = [c for corpus in options.corpus for c in load_corpus(options.clips, corpus)]
    clips = [c for c in every if options.all_talkers or is_withheld(c)]
    heard = hear(clips)
    curve = {ms: phone_scores(phone_odds(net, clips, ms, heard), clips) for ms in LOOKAHEAD_STEPS}
    facts = {
        "corpus": options.corpus, "talkers": len({c.talker for c in clips}),
        "seconds": round(sum(len(c.pcm) for c in clips) / 16_000), "by_lookahead_ms": curve,
        "ok": curve[80]["phones"] >= 0.6,
    }  # fmt: skip
    print(json.dumps({"benchmark": "phones", "run": str(options.run), **facts}))


if __name__ == "__main__":
    main()
