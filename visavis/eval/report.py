"""Sum up: means with intervals over clips, red flags, the order test; JSON and one HTML file."""

from __future__ import annotations

import base64
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from visavis.eval import figures
from visavis.eval.measures import MEASURES, goodness
from visavis.eval.protocol import ROW_NOTES, ROWS
from visavis.eval.stats import bootstrap, sign_flip_test

BASELINES = ("shuffled", "silence", "static")  # a measure on which one of these beats us is red
ORDER = ("real", "ceiling", "ours", "shuffled")  # each at least as good as the next
# On this, shuffled is at most as good as static. Correlations cannot say so: they do not punish
# wrong
# motion, and two GRID sentences share their rhythm (shuffled r 0.58, still 0).
SYNC = ("open_r2",)
# Heard against seen, without the film: a regular face scores above a real one there (SyncNet's
# known
# fault), so only the wrong sound must come last.
BY_EAR = ("av_r",)
ORDERED = ("open_r2", "open_r", "mouth_nme", "psnr_mouth", "av_r")


def table_of(results: list[dict[str, Any]], seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """``{measure: {row: {mean, low, high, count}}}`` over the clips of one split."""
    scored = [r for r in results if "rows" in r]
    names = dict.fromkeys(row for r in scored for row in r["rows"])
    table: dict[str, dict[str, dict[str, float]]] = {}
    for measure in MEASURES:
        cells = {}
        for row in names:
            values = [r["rows"].get(row, {}).get(measure, math.nan) for r in scored]
            interval = bootstrap(np.array(values, float), seed)
            if interval.count:
                cells[row] = vars(interval)
        if cells:
            table[measure] = cells
    return table


def red_flags(table: dict[str, dict[str, dict[str, float]]]) -> dict[str, list[str]]:
    """Measures on which a baseline's mean beats ours: ``{measure: [baselines]}``."""
    flags = {}
    for measure, cells in table.items():
        if "ours" not in cells or math.isnan(goodness(measure, cells["ours"]["mean"])):
            continue
        ours = goodness(measure, cells["ours"]["mean"])
        better = [
            b
            for b in BASELINES
            if b in cells and goodness(measure, cells[b]["mean"]) > ours + 1e-12
        ]
        if better:
            flags[measure] = better
    return flags


def order_test(table: dict[str, dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """Do the measures rank what we know: real >= ceiling >= ours >= shuffled; shuffled <=
    static.
    """
    checks = []
    for measure in ORDERED:
        cells = table.get(measure, {})
        pairs = (
            [("real", "shuffled"), ("ours", "shuffled")] if measure in BY_EAR else pairwise(ORDER)
        )
        chain = [(a, b) for a, b in pairs if a in cells and b in cells]
        if measure in SYNC and "static" in cells and "shuffled" in cells:
            chain.append(("static", "shuffled"))
        for better, worse in chain:
            a, b = cells[better]["mean"], cells[worse]["mean"]
            holds = goodness(measure, a) >= goodness(measure, b) - 1e-9
            checks.append(
                {"measure": measure, "better": better, "worse": worse, "holds": bool(holds)}
                | {"better_mean": a, "worse_mean": b}
            )
    return checks


def paired(results: list[dict[str, Any]], against: str) -> list[dict[str, Any]]:
    """Ours minus another row, clip by clip, with a sign-flip test; every directed measure."""
    rows = [r["rows"] for r in results if {"ours", against} <= set(r.get("rows", {}))]
    out = []
    for measure, facts in MEASURES.items():
        if facts.better == "info":
            continue
        pairs = np.array(
            [
                [goodness(measure, r[n].get(measure, math.nan)) for n in ("ours", against)]
                for r in rows
            ]
        ).reshape(-1, 2)
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        if len(pairs) >= 2:
            p = sign_flip_test(pairs[:, 0], pairs[:, 1])
            gain = float((pairs[:, 0] - pairs[:, 1]).mean())
            out.append({"measure": measure, "gain": gain, "p": p, "clips": len(pairs)})
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
                "order": order_test(table),
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
    return f"{value:.3f}" if size >= 0.001 or value == 0 else f"{value:.1e}"


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
