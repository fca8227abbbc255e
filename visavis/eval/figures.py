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
DPI = 150
STRIP_TILE = 116  # px
INK, SOFT = "#1d2127", "#5a6472"
CLOSED_AT = 0.02  # eye distances: the lips meet at or under it


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plain_axes(axes: Any, keep: tuple[str, ...] = ("left", "bottom")) -> None:
    """Only the spines that carry a scale, in soft ink."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in keep)
        spine.set_color(SOFT)
    axes.tick_params(colors=SOFT, labelsize=8, length=3)


def name_of(row: str) -> str:
    """A row as it is written for people."""
    return row.replace("_", " ")


def spectrogram_db(pcm: np.ndarray, hop: int = 160, window: int = 400) -> np.ndarray:
    """``(T, 201)`` dB at 100 Hz, 0..8 kHz, Hann windows of 25 ms."""
    padded = np.pad(np.asarray(pcm, float), (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][: len(pcm) // hop]
    return 20 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(window))) + 1e-4)


def lip_curves(rows: dict[str, Evidence], pcm: np.ndarray, title: str) -> bytes:
    """Lip opening of the real video and of our rows over the sound's spectrogram."""
    from matplotlib.patheffects import Normal, Stroke

    figure = _figure(9.6, 3.1)
    below = figure.add_subplot()
    seconds = float(rows["real"].times[-1])
    if len(pcm):
        sound = spectrogram_db(pcm)
        top = float(np.quantile(sound, 0.995))
        below.imshow(
            sound.T,
            origin="lower",
            aspect="auto",
            extent=(0, len(sound) / 100, 0, SAMPLE_RATE / 2000),
            cmap="Greys",
            vmin=top - 60,
            vmax=top + 25,
            interpolation="bilinear",
        )
    below.set_xlabel("seconds", color=SOFT, fontsize=9)
    below.set(xlim=(0, seconds), ylim=(0, 8), yticks=(0, 2, 4, 6, 8))
    below.set_ylabel("sound, kHz", color=SOFT, fontsize=9)
    over = below.twinx()
    halo = [Stroke(linewidth=3.6, foreground="white", alpha=0.85), Normal()]
    for name, evidence in rows.items():
        over.plot(
            evidence.times,
            evidence.motion[:, CHANNEL["jaw_open"]],
            color=COLOURS.get(name, PEER),
            linewidth=2.2 if name == "real" else 1.6,
            label=name_of(name),
            path_effects=halo,
            zorder=3 if name == "ours" else 2,
        )
    over.axhline(CLOSED_AT, color=INK, linewidth=0.7, linestyle=(0, (2, 3)))
    over.annotate("closed", (seconds, CLOSED_AT), (-3, 2), textcoords="offset points", ha="right",
                  fontsize=7, color=INK)  # fmt: skip
    first, last = (rows["real"].times[k] for k in strip_moments(rows["real"])[[0, -1]])
    over.set_ylabel("lip opening, eye distances", color=SOFT, fontsize=9)
    over.set_ylim(0, max(0.05, 1.12 * over.dataLim.y1))
    over.plot([first, last], [over.get_ylim()[1]] * 2, color=INK, linewidth=4, clip_on=False,
              solid_capstyle="butt")  # fmt: skip
    _plain_axes(below)
    _plain_axes(over, ("right",))
    over.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=len(rows), fontsize=8,
                frameon=False, borderaxespad=0.3)  # fmt: skip
    below.set_title(title, fontsize=9, loc="left", color=INK)
    return _png(figure)


def strip_moments(real: Evidence, count: int = 12) -> np.ndarray:
    """Frames spread over the clip's most moving second, ``(<= count,)`` indices."""
    opening = real.motion[:, CHANNEL["jaw_open"]]
    run = min(len(opening), max(count, round(real.rate)))
    change = np.convolve(np.abs(np.diff(opening, prepend=opening[0])), np.ones(run), "valid")
    start = int(np.argmax(change))
    return np.unique(np.linspace(start, start + run - 1, min(count, run)).astype(int))


def mouth_strip(rows: dict[str, Evidence], count: int = 12) -> bytes:
    """Mouth crops of the rows at ``count`` moments of the clip's most moving second.

    Pixels of the crops are shown one to one after a resize to ``STRIP_TILE``.
    """
    from matplotlib.figure import Figure

    real = rows["real"]
    picks, tile = strip_moments(real, count), STRIP_TILE
    boxes = {
        t: image.mouth_box(real.points[t], real.frames[t].shape) for t in picks if real.seen[t]
    }
    sheet = np.full((tile * len(rows), tile * len(picks), 3), 255, np.uint8)
    for r, evidence in enumerate(rows.values()):
        for c, t in enumerate(picks):
            # each row's own face, so that a turned head does not hide its mouth
            own = evidence.points[t] if evidence.seen[t] else None
            box = boxes.get(t) if own is None else image.mouth_box(own, evidence.frames[t].shape)
            if box is None:
                continue
            shown = cv2.resize(
                image.crop(evidence.frames[t], box), (tile - 3,) * 2, interpolation=cv2.INTER_CUBIC
            )
            y, x = r * tile, c * tile
            sheet[y : y + tile - 3, x : x + tile - 3] = shown
    left, foot = 118, 30
    height, width = sheet.shape[0] + foot, sheet.shape[1] + left
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(sheet, left, foot, origin="upper")
    for r, name in enumerate(rows):
        y = 1 - (r + 0.5) * tile / height
        figure.text(12 / width, y, name_of(name), va="center", fontsize=8.5, color=INK)
    for c, t in enumerate(picks):
        x = (left + (c + 0.5) * tile) / width
        figure.text(x, 0.45 * foot / height, f"{real.times[t]:.2f} s", ha="center", va="center",
                    fontsize=7.5, color=SOFT)  # fmt: skip
    return _png(figure)


def stage_waterfall(rows: list[tuple[str, float, float]], budget_ms: float) -> bytes:
    """Median milliseconds of the stages of one frame, end to end, against the frame's budget."""
    figure = _figure(6.8, 0.34 * len(rows) + 1.0)
    axes = figure.add_subplot()
    end = rows[-1][1] + rows[-1][2]
    limit = 1.08 * max(end, budget_ms)
    axes.axvspan(budget_ms, limit, color="#fdecea", linewidth=0)
    axes.axvline(budget_ms, color=COLOURS["ours"], linewidth=1.2)
    for k, (_, start, length) in enumerate(rows):
        axes.barh(k, length, left=start, height=0.62, color=COLOURS["ceiling"])
        inside = length > 0.18 * limit
        axes.annotate(
            f"{length:.2f}",
            (start + (length / 2 if inside else length), k),
            (0 if inside else 4, 0),
            textcoords="offset points",
            ha="center" if inside else "left",
            va="center",
            fontsize=8,
            color="white" if inside else INK,
        )
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set(xlim=(0, limit), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlabel(f"milliseconds, median; {end:.1f} in all", fontsize=8.5, color=SOFT)
    axes.set_title(f"budget of a frame {budget_ms:.1f} ms", fontsize=8.5, loc="right", color=SOFT)
    _plain_axes(axes, ("bottom",))
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    return _png(figure)


def lookahead_curve(points: list[dict[str, float]]) -> bytes:
    """Correlation of lip opening against look-ahead, with the 95 % interval over clips."""
    figure = _figure(5.2, 2.8)
    axes = figure.add_subplot()
    x = [p["lookahead_ms"] for p in points]
    y = np.array([[p["mean"], p["low"], p["high"]] for p in points])
    y = np.where(np.isnan(y), y[:, :1], y)
    axes.fill_between(x, y[:, 1], y[:, 2], color=COLOURS["ours"], alpha=0.15, linewidth=0)
    axes.plot(x, y[:, 0], color=COLOURS["ours"], marker="o", markersize=5)
    for at, (mean, _, _) in zip(x, y, strict=True):
        axes.annotate(f"{mean:.3f}", (at, mean), (0, 7), textcoords="offset points", ha="center",
                      fontsize=8, color=INK)  # fmt: skip
    axes.set(xticks=x)
    axes.margins(x=0.06, y=0.18)
    axes.set_xlabel("look-ahead, ms", fontsize=9, color=SOFT)
    axes.set_ylabel("lip opening, r", fontsize=9, color=SOFT)
    axes.grid(axis="y", alpha=0.25)
    _plain_axes(axes)
    return _png(figure)


def row_chart(table: dict[str, dict[str, dict[str, float]]], panels: dict[str, str]) -> bytes:
    """Means of the rows with their 95 % intervals, one panel per measure, best above.

    Args:
        table: of ``report.table_of``.
        panels: measure to panel title; measures that the table lacks are left out.
    """
    shown = [m for m in panels if m in table]
    names = [r for r in COLOURS if any(r in table[m] for m in shown)]
    names += sorted({r for m in shown for r in table[m]} - set(names))
    figure = _figure(2.35 * len(shown) + 0.6, 0.27 * len(names) + 0.75)
    grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, measure in zip(grid, shown, strict=True):
        for k, name in enumerate(names):
            cell = table[measure].get(name)
            if cell is None or not np.isfinite(cell["mean"]):
                continue
            colour = COLOURS.get(name, PEER)
            if np.isfinite(cell["low"]) and np.isfinite(cell["high"]):
                axes.plot([cell["low"], cell["high"]], [k, k], color=colour, linewidth=2.2)
            axes.plot(cell["mean"], k, "o", color=colour, markersize=5.5)
        axes.set_title(panels[measure], fontsize=8.5, color=INK)
        axes.grid(axis="x", alpha=0.25)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.margins(x=0.12)
        _plain_axes(axes, ("bottom",))
        axes.tick_params(axis="y", length=0, labelsize=8.5, labelcolor=INK)
    grid[0].set_yticks(range(len(names)), [name_of(n) for n in names])
    return _png(figure)
