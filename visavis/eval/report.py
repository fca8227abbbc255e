"""Sum up: means with intervals over clips, red flags, the order test; JSON and one HTML file."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from visavis.eval import figures
from visavis.eval.measures import MEASURES, goodness
from visavis.eval.protocol import ROW_NOTES, ROWS
from visavis.eval.stats import bootstrap, sign_flip_test

BASELINES = ("shuffled", "silence", "static")  # a measure on which one of these beats us is red
CHAIN = (("real", "ceiling"), ("ceiling", "ours"), ("ours", "shuffled"))
# Which rows a sound measure must put in which order (better first). Measures of lips with the head
# taken out rank the whole chain. The fixed mouth crop compares heads before mouths, and each row's
# head is its own dice: it ranks only rows that differ in more than words. Correlations do not
# punish wrong motion, variance explained does: on it the wrong words must not beat a still mouth.
# Heard against seen, without the film, a regular face scores above a real one (SyncNet's known
# fault), so only the wrong sound must come last.
ORDER: dict[str, tuple[tuple[str, str], ...]] = {
    "open_r2": (*CHAIN, ("static", "shuffled")),
    "open_r": CHAIN,
    "mouth_nme": CHAIN,
    "psnr_lips": CHAIN,
    "psnr_mouth": CHAIN[:2],
    "av_r": (("real", "shuffled"), ("ours", "shuffled")),
}

PANELS = {  # what the chart of a split shows
    "open_r": "lip opening, r ↑",
    "open_r2": "variance explained ↑",
    "mouth_nme": "mouth NME, % ↓",
    "psnr_lips": "mouth PSNR, head aligned, dB ↑",
    "av_r": "listener's r ↑",
    "id_mean": "identity cosine ↑",
}
HEADLINE = ("open_r", "open_r2", "mouth_nme", "psnr_lips", "av_r", "id_mean", "id_min", "id_slope")


def table_of(results: list[dict[str, Any]], seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """``{measure: {row: {mean, low, high, count, goodness}}}`` over the clips of one split.

    ``goodness`` (more is better) is averaged clip by clip: a row that is 400 ms early on one clip
    and late on the next has a mean lag of 0 and no merit.
    """
    scored = [r for r in results if "rows" in r]
    names = dict.fromkeys(row for r in scored for row in r["rows"])
    table: dict[str, dict[str, dict[str, float]]] = {}
    for measure in MEASURES:
        cells = {}
        for row in names:
            values = [r["rows"].get(row, {}).get(measure, math.nan) for r in scored]
            interval = bootstrap(np.array(values, float), seed)
            if interval.count:
                good = [goodness(measure, v) for v in values if not math.isnan(v)]
                cells[row] = vars(interval) | {"goodness": float(np.mean(good))}
        if cells:
            table[measure] = cells
    return table


def red_flags(table: dict[str, dict[str, dict[str, float]]]) -> dict[str, list[str]]:
    """Measures on which a baseline does better than ours: ``{measure: [baselines]}``."""
    flags = {}
    for measure, cells in table.items():
        ours = cells.get("ours", {}).get("goodness", math.nan)
        better = [b for b in BASELINES if b in cells and cells[b]["goodness"] > ours + 1e-12]
        if better:
            flags[measure] = better
    return flags


def gains(results: list[dict[str, Any]], measure: str, better: str, worse: str) -> np.ndarray:
    """How much ``better`` beats ``worse``, clip by clip, ``(clips,)``, on the measure's own scale.

    Clips on which either has no figure are left out; two infinite figures (PSNR of the film with
    itself) are equal.
    """
    rows = [r["rows"] for r in results if {better, worse} <= set(r.get("rows", {}))]
    pairs = [
        [goodness(measure, r[name].get(measure, math.nan)) for name in (better, worse)]
        for r in rows
    ]
    return np.array([0.0 if a == b else a - b for a, b in pairs if not math.isnan(a + b)])


def order_test(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Do the measures rank what we know? One entry per link of ``ORDER`` that has clips.

    ``holds`` when the mean gain over the clips is not negative; ``p`` says how easily clips as
    these turn the other way (two-sided sign flips; NaN for an infinite gain).
    """
    checks = []
    for measure, links in ORDER.items():
        for better, worse in links:
            gain = gains(results, measure, better, worse)
            if not len(gain):
                continue
            finite = bool(np.isfinite(gain).all())
            checks.append(
                {
                    "measure": measure,
                    "better": better,
                    "worse": worse,
                    "holds": bool(gain.mean() >= -1e-9),
                    "gain": float(gain.mean()),
                    "p": sign_flip_test(gain, np.zeros(len(gain))) if finite else math.nan,
                    "clips": len(gain),
                    "clips_in_order": int((gain >= -1e-9).sum()),
                }
            )
    return checks


def paired(results: list[dict[str, Any]], against: str) -> list[dict[str, Any]]:
    """Ours minus another row, clip by clip, with a sign-flip test; every directed measure."""
    out = []
    for measure, facts in MEASURES.items():
        if facts.better == "info":
            continue
        gain = gains(results, measure, "ours", against)
        gain = gain[np.isfinite(gain)]
        if len(gain) >= 2:
            p = sign_flip_test(gain, np.zeros(len(gain)))
            row = {"measure": measure, "gain": float(gain.mean()), "p": p, "clips": len(gain)}
            out.append(row)
    return out


def summarise(
    facts: dict[str, Any], results: list[dict[str, Any]], speed: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The whole report as JSON-ready data."""
    splits = []
    seed = facts["protocol"]["seed"]
    for split in facts["protocol"]["splits"]:
        mine = [r for r in results if r["split"] == split["name"]]
        table = table_of(mine, seed)
        scored = [r for r in mine if "rows" in r]
        splits.append(
            {
                "name": split["name"],
                "kind": split["kind"],
                "clips": [{"name": r["name"], **r["clip"], "notes": r["notes"]} for r in scored],
                "refused": [
                    {"name": r["name"], "reason": r["refused"]} for r in mine if "refused" in r
                ],
                "frames": int(sum(r["clip"]["frames"] for r in scored)),
                "frames_left_out": int(sum(r["clip"]["faceless"] for r in scored)),
                "table": table,
                "red": red_flags(table),
                "order": order_test(scored),
                "paired": {peer: paired(scored, peer) for peer in facts["peers"]},
                "pictures": _pick(scored),
            }
        )
    return facts | {"splits": splits, "speed": speed or {}}


def _pick(scored: list[dict[str, Any]], count: int = 2) -> list[dict[str, str]]:
    """Pictures of the median clip and of the worst ones, by correlation of lip opening."""
    ranked = sorted(
        (r for r in scored if "curves" in r), key=lambda r: (math.isnan(r["worst"]), r["worst"])
    )
    picks = [("worst", r) for r in ranked[:count]]
    median = ranked[len(ranked) // 2] if ranked else None
    if median is not None and median not in ranked[:count]:
        picks.insert(0, ("median", median))
    return [
        {"why": why, "name": r["name"], "r": r["worst"], "curves": r["curves"], "strip": r["strip"]}
        for why, r in picks
    ]


def write(report: dict[str, Any], out: Path) -> tuple[Path, Path]:
    """``OUT/report.json`` and ``OUT/report.html`` (self-contained); returns both paths."""
    out.mkdir(parents=True, exist_ok=True)
    as_json, as_html = out / "report.json", out / "report.html"
    as_json.write_text(json.dumps(_plain(report), indent=1), "utf-8")
    as_html.write_text(render_html(report, out), "utf-8")
    return as_json, as_html


def _plain(value: Any) -> Any:
    """NaN and infinities as null and strings: the file is strict JSON."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def render_html(report: dict[str, Any], folder: Path) -> str:
    """One page, pictures inside it; nothing is loaded from anywhere."""
    from importlib.resources import files

    import jinja2

    source = files("visavis.eval").joinpath("templates/report.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": number, "signed": lambda v: f"{v:+.3g}"}
    speed = report["speed"]
    drawn = {}
    if speed.get("waterfall"):
        drawn["waterfall"] = _uri(figures.stage_waterfall(speed["waterfall"], speed["budget_ms"]))
    if speed.get("lookahead"):
        drawn["lookahead"] = _uri(figures.lookahead_curve(speed["lookahead"]))
    charts = {
        split["name"]: _uri(figures.row_chart(split["table"], PANELS))
        for split in report["splits"]
        if len(split["clips"]) > 1 and any(m in split["table"] for m in PANELS)
    }
    pictures = {
        path: _uri((folder / path).read_bytes())
        for split in report["splits"]
        for p in split["pictures"]
        for path in (p["curves"], p["strip"])
    }
    families = list(dict.fromkeys(m.family for m in MEASURES.values()))
    return environment.from_string(source).render(
        report=report,
        measures=MEASURES,
        families=families,
        row_notes=ROW_NOTES,
        rows_of=rows_of,
        pictures=pictures,
        charts=charts,
        headline=[m for m in HEADLINE if any(m in s["table"] for s in report["splits"])],
        drawn=drawn,
    )


def rows_of(split: dict[str, Any]) -> list[str]:
    """Rows of a split in the order of the table, peers after ours."""
    present = dict.fromkeys(row for cells in split["table"].values() for row in cells)
    known = [r for r in ROWS if r in present]
    peers = [r for r in present if r not in ROWS]
    at = known.index("ours") + 1 if "ours" in known else len(known)
    return [*known[:at], *peers, *known[at:]]


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def number(value: float | None) -> str:
    """Three significant digits, no exponent for everyday sizes; ∞ and – for what is not a
    number.
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    value = float(f"{value:.3g}")  # 0.9996 is 1.00, not 1.000
    size = abs(value)
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    if size == 0:
        return "0"
    return f"{value:.3f}" if size >= 0.01 else f"{value:.4f}" if size >= 1e-4 else f"{value:.1e}"


def text_table(split: dict[str, Any]) -> str:
    """The table for a terminal: one line per measure, ``*`` where a baseline beats ours."""
    rows = rows_of(split)
    head = f"{'':44}" + "".join(f"{r[:10]:>11}" for r in rows)
    lines = [f"{split['name']}: {len(split['clips'])} clips, {split['frames']} frames", head]
    for measure, cells in split["table"].items():
        mark = "*" if measure in split["red"] else " "
        values = "".join(f"{number(cells[r]['mean']) if r in cells else '':>11}" for r in rows)
        lines.append(f"{mark} {MEASURES[measure].label[:41]:42}{values}")
    return "\n".join(lines)
