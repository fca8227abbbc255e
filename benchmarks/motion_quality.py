"""Motion heard against motion tracked, on clips never trained on. One JSON line.

Run: ``python benchmarks/motion_quality.py CLIPS [--model DIR] [--corpus grid_s1] [--plot DIR]``,
where CLIPS is the output folder of ``visavis prepare``. Of ``grid_s1`` the tenth held out by name
is used, of other corpora every clip. Path: features, net, smoothing. Bars: correlation of lip
opening at least 0.90, of mouth width 0.75; jitter (second difference) at most 1.2 times the real.

Found clips lag by up to 80 ms each in its own way. ``own_offset`` scores opening and width once more
after each clip's lag, found on the jaw's rotation and on nothing else, is taken out. ``shuffled`` is
the opening of one clip against the films of the others: at most 0.10 on the addresses (on GRID every
sentence has one rhythm, so it is more).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from visavis.train.clips import Clip, is_held_out, load_corpus
from visavis.train.evaluate import Voice, correlation, score, speak_clips
from visavis.train.pseudo import best_lag
from visavis.types import CHANNEL

SHOWN = ("jaw_open", "mouth_width", "lip_rounding", "jaw_rotation", "lower_lip_drop")


def plot(clip: Clip, answer: np.ndarray, tracked: np.ndarray, folder: Path) -> None:
    """Predicted and tracked curves over the spectrogram, one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from visavis.train.data import extract

    figure, axes = pyplot.subplots(len(SHOWN) + 1, 1, figsize=(14, 12), sharex=True)
    bands = extract(clip.pcm.astype(np.float32) / 32768)[:, :80]
    end = len(clip.pcm) / 16_000
    axes[0].imshow(bands.T, origin="lower", aspect="auto", extent=(0, end, 0, 80))
    axes[0].set_title(f"{clip.corpus} {clip.name}: {clip.meta.get('text', '')[:90]}")
    time = np.arange(len(answer)) / 50
    for axis, name in zip(axes[1:], SHOWN, strict=True):
        channel = CHANNEL[name]
        axis.plot(time, tracked[:, channel], "k", label="tracked")
        axis.plot(time, answer[:, channel], "r", label="heard")
        r = correlation(answer[:, channel], tracked[:, channel])
        axis.set_ylabel(f"{name} {r:.2f}")
    axes[1].legend()
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{clip.corpus}-{clip.name}.png", dpi=60)
    pyplot.close(figure)


def own_offset(pairs: list[tuple[np.ndarray, np.ndarray]], reach: int = 4) -> dict:
    """Opening and width with each clip's lag taken out; ``lags`` counts clips by steps of 20 ms."""
    jaw, found, rows = CHANNEL["jaw_rotation"], [], []
    for answer, tracked in pairs:
        lag, _ = best_lag(answer[:, jaw], tracked[:, jaw], reach)
        n = len(tracked)
        a = answer[max(0, -lag) : n - max(0, lag)]
        b = tracked[max(0, lag) : n - max(0, -lag)]
        found.append(lag)
        rows.append([correlation(a[:, c], b[:, c]) for c in map(CHANNEL.get, SHOWN[:2])])
    opening, width = np.mean(rows, axis=0).round(3).tolist()
    lags = {str(k): found.count(k) for k in sorted(set(found))}
    return {"opening": opening, "width": width, "lags": lags}


def shuffled(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean correlation of the opening over all pairs of a sound and another clip's film."""
    jaw, found = CHANNEL["jaw_open"], []
    for i, (answer, _) in enumerate(pairs):
        for j, (_, tracked) in enumerate(pairs):
            n = min(len(answer), len(tracked))
            if i != j and n > 25:
                found.append(correlation(answer[:n, jaw], tracked[:n, jaw]))
    return round(float(np.mean(found)), 3)


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--corpus", default="grid_s1")
    parser.add_argument("--lookahead-ms", type=int, default=80)
    parser.add_argument("--gain-db", type=float, default=0.0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    options = parser.parse_args()
    voice = Voice.load(options.model, options.lookahead_ms)
    clips = load_corpus(options.clips, options.corpus)
    if options.corpus == "grid_s1":
        clips = [c for c in clips if is_held_out(c.name)]
    clips = clips[: options.limit or None]
    rows = []
    if options.gain_db:
        gain = 10 ** (options.gain_db / 20)
        clips = [replace(c, pcm=np.round(c.pcm * gain).astype(np.int16)) for c in clips]
    pairs = speak_clips(voice, clips)
    for i, (answer, tracked) in enumerate(pairs):
        rows.append(score(answer, tracked))
        if options.plot and i < 8:
            plot(clips[i], answer, tracked, options.plot)
    mean = {k: round(float(np.mean([r[k] for r in rows])), 3) for k in rows[0]}
    mean["jitter"] = round(float(np.median([r["jitter"] for r in rows])), 3)
    mean["amplitude"] = round(float(np.median([r["amplitude"] for r in rows])), 3)
    ok = mean["opening"] >= 0.90 and mean["width"] >= 0.75 and mean["jitter"] <= 1.2
    facts = {"corpus": options.corpus, "clips": len(clips), "lookahead_ms": options.lookahead_ms}
    mean["own_offset"] = own_offset(pairs)
    mean["shuffled"] = shuffled(pairs[:60]) if len(pairs) > 1 else None
    print(json.dumps({"benchmark": "motion_quality", **facts, **mean, "ok": ok}))


if __name__ == "__main__":
    main()
