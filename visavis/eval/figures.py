"""Pictures of the report: lip curves over the spectrogram, mouth strips, waterfall, look-ahead.

Each function returns PNG bytes; matplotlib's object interface, no global state.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np

from visavis.eval import image
from visavis.eval.measures import Evidence
from visavis.types import CHANNEL, SAMPLE_RATE

# Okabe-Ito: distinct for colour-blind eyes; the real video is always black.
COLOURS = {
    "real": "#000000",
    "ceiling": "#0072B2",
    "ours_posed": "#56B4E9",
    "ours": "#D55E00",
    "shuffled": "#CC79A7",
    "silence": "#E69F00",
    "static": "#888888",
}
PEER = "#009E73"
STRIP_TILE = 88  # px


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def spectrogram_db(pcm: np.ndarray, hop: int = 160, window: int = 400) -> np.ndarray:
    """``(T, 201)`` dB at 100 Hz, 0..8 kHz, Hann windows of 25 ms."""
    padded = np.pad(np.asarray(pcm, float), (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][: len(pcm) // hop]
    return 20 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(window))) + 1e-4)


def lip_curves(rows: dict[str, Evidence], pcm: np.ndarray, title: str) -> bytes:
    """Lip opening of the real video and of our rows over the sound's spectrogram."""
    figure = _figure(11, 3.4)
    below = figure.add_subplot()
    seconds = float(rows["real"].times[-1])
    if len(pcm):
        sound = spectrogram_db(pcm)
        below.imshow(
            sound.T,
            origin="lower",
            aspect="auto",
            extent=(0, len(sound) / 100, 0, SAMPLE_RATE / 2000),
            cmap="Greys",
            vmin=float(sound.max()) - 70,
            vmax=float(sound.max()) + 15,
        )
    below.set(xlabel="seconds", ylabel="sound, kHz", xlim=(0, seconds), ylim=(0, 8))
    over = below.twinx()
    for name, evidence in rows.items():
        over.plot(
            evidence.times,
            evidence.motion[:, CHANNEL["jaw_open"]],
            color=COLOURS.get(name, PEER),
            linewidth=2.4 if name == "real" else 1.6,
            label=name,
        )
    over.axhline(0.02, color="#000000", linewidth=0.6, linestyle=":")
    over.set(ylabel="lip opening, eye distances")
    over.set_ylim(0, max(0.05, 1.15 * over.dataLim.y1))
    over.legend(loc="upper right", ncols=len(rows), fontsize=8, framealpha=0.9)
    below.set_title(title, fontsize=10, loc="left")
    return _png(figure)


def mouth_strip(rows: dict[str, Evidence], count: int = 12) -> bytes:
    """Mouth crops of the rows at ``count`` moments spread over the clip's most moving second."""
    real = rows["real"]
    opening = real.motion[:, CHANNEL["jaw_open"]]
    run = min(len(opening), max(count, round(real.rate)))
    change = np.convolve(np.abs(np.diff(opening, prepend=opening[0])), np.ones(run), "valid")
    start = int(np.argmax(change))
    picks = np.unique(np.linspace(start, start + run - 1, min(count, run)).astype(int))
    left = 96
    sheet = np.full((STRIP_TILE * len(rows) + 22, left + STRIP_TILE * len(picks), 3), 255, np.uint8)
    boxes = {
        t: image.mouth_box(real.points[t], real.frames[t].shape) for t in picks if real.seen[t]
    }
    for r, (name, evidence) in enumerate(rows.items()):
        top = r * STRIP_TILE
        _write(sheet, name, (4, top + STRIP_TILE // 2 + 5))
        for c, t in enumerate(picks):
            # each row's own face, so that a turned head does not hide its mouth
            own = evidence.points[t] if evidence.seen[t] else None
            box = boxes.get(t) if own is None else image.mouth_box(own, evidence.frames[t].shape)
            if box is None:
                continue
            tile = cv2.resize(image.crop(evidence.frames[t], box), (STRIP_TILE - 2,) * 2)
            x = left + c * STRIP_TILE
            sheet[top : top + STRIP_TILE - 2, x : x + STRIP_TILE - 2] = tile
    for c, t in enumerate(picks):
        _write(
            sheet, f"{real.times[t]:.2f} s", (left + c * STRIP_TILE + 18, sheet.shape[0] - 6), 0.4
        )
    return cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()


def _write(sheet: np.ndarray, text: str, at: tuple[int, int], scale: float = 0.45) -> None:
    cv2.putText(sheet, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (30, 30, 30), 1, cv2.LINE_AA)


def stage_waterfall(rows: list[tuple[str, float, float]], budget_ms: float) -> bytes:
    """Median milliseconds of the stages of one frame, end to end; the frame's budget is the
    line.
    """
    figure = _figure(8, 0.5 * len(rows) + 1.2)
    axes = figure.add_subplot()
    for k, (name, start, length) in enumerate(rows):
        axes.barh(k, length, left=start, color="#0072B2")
        axes.text(start + length, k, f"  {name} {length:.2f} ms", va="center", fontsize=9)
    end = rows[-1][1] + rows[-1][2]
    axes.axvline(budget_ms, color="#D55E00", linewidth=1.5)
    axes.text(
        budget_ms, -0.75, f"one frame: {budget_ms:.1f} ms ", ha="right", va="bottom", fontsize=9
    )
    axes.set(yticks=[], xlabel="milliseconds (median)", xlim=(0, 1.25 * max(end, budget_ms)))
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    return _png(figure)


def lookahead_curve(points: list[dict[str, float]]) -> bytes:
    """Correlation of lip opening against look-ahead, with the 95 % interval over clips."""
    figure = _figure(6, 3.2)
    axes = figure.add_subplot()
    x = [p["lookahead_ms"] for p in points]
    y = np.array([[p["mean"], p["low"], p["high"]] for p in points])
    y = np.where(np.isnan(y), y[:, :1], y)
    axes.errorbar(
        x, y[:, 0], yerr=np.abs(y[:, 1:] - y[:, :1]).T, color="#D55E00", marker="o", capsize=3
    )
    axes.set(xlabel="look-ahead, ms", ylabel="lip opening, r", xticks=x)
    axes.grid(alpha=0.3)
    return _png(figure)
