"""``visavis eval``: run a protocol, build and score rating studies.

Mounted by ``visavis.cli`` (``app.add_typer(app, name="eval")``), whose ``main`` turns our errors
into one line and an exit status; importing this module is cheap.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from visavis.errors import ConfigError, InputError

app = typer.Typer(
    help="Score the system against real footage.",
    no_args_is_help=False,
    invoke_without_command=True,
)
mos_app = typer.Typer(
    help="Ask people: build a rating page, score its answers.", no_args_is_help=True
)
app.add_typer(mos_app, name="mos")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


@app.callback()
def run(
    context: typer.Context,
    protocol: Annotated[str, typer.Option(help="quick, full, or a TOML file.")] = "quick",
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the report.")] = Path(
        "runs/eval"
    ),
    data: Annotated[Path, typer.Option(help="Folder of the data sets.")] = Path("../shared/data"),
    models: Annotated[
        Path | None, typer.Option(help="Folder of the judge's models; default $VISAVIS_MODELS.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Cache of tracks.")] = Path("runs/eval-cache"),
    tier: Annotated[str, typer.Option(help="Renderer tier.")] = "patch",
    motion_model: Annotated[
        Path | None, typer.Option("--model", help="Motion model folder; default the shipped one.")
    ] = None,
    lookahead_ms: Annotated[int, typer.Option(help="0, 40, 80 or 160.")] = 80,
    against: Annotated[
        list[Path] | None, typer.Option(help="Folder of a peer's films CLIP.mp4; may be repeated.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
    speed: Annotated[bool, typer.Option(help="Also time the pipeline.")] = True,
    as_json: Json = False,
) -> None:
    """Score the system: table, report.json and report.html. Stopped runs go on where they were."""
    if context.invoked_subcommand:
        return
    from visavis.eval import protocol as protocols
    from visavis.eval.runner import Bench, SystemUnderTest

    if against and (missing := [p for p in against if not p.is_dir()]):
        raise InputError(f"{missing[0]}: not a folder of films to score against")
    system = SystemUnderTest(tier, str(motion_model) if motion_model else None, lookahead_ms)
    bench = Bench(
        protocols.load(protocol), system, data, find_models(models), out, cache,
        tuple(against or ()), system.fingerprint(),
    )  # fmt: skip
    report = evaluate(bench, workers, speed)
    if as_json:
        typer.echo(json.dumps(brief(report, out)))


def find_models(models: Path | None) -> Path:
    """The folder of the judge's own models. ``ConfigError`` says what belongs there."""
    from visavis.eval.identity import MODEL_NAME

    folder = models or (
        Path(os.environ["VISAVIS_MODELS"]) if "VISAVIS_MODELS" in os.environ else None
    )
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"{folder or 'no folder'}: the judge needs {MODEL_NAME}, squeezenet_v1.1_notop.h5 and "
            "lpips_lin_squeeze_v0.1.pth; give their folder by --models or $VISAVIS_MODELS"
        )
    return folder


def evaluate(bench: Any, workers: int, speed: bool) -> dict[str, Any]:
    """Run, sum up, write, print the tables; returns the report."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from visavis.eval import report as reports
    from visavis.eval import runner
    from visavis.eval import speed as speeds
    from visavis.eval.jobs import jobs_of

    began = time.monotonic()
    bench.out.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("clips", total=len(jobs_of(bench.protocol, bench.data)))
        results = runner.run_jobs(bench, workers, lambda _: bar.advance(task))
        timing: dict[str, Any] = {}
        if speed:
            bar.add_task("speed and look-ahead", total=None)
            timing = speed_section(bench, speeds)
    summary = reports.summarise(runner.facts_of(bench), results, timing)
    summary["wall_s"] = time.monotonic() - began
    as_json, as_html = reports.write(summary, bench.out)
    for split in summary["splits"]:
        typer.echo(reports.text_table(split))
        for refused in split["refused"]:
            typer.echo(f"  refused: {refused['name']}: {refused['reason']}")
        typer.echo(f"  frames left out (no face): {split['frames_left_out']}")
        typer.echo(order_line(split["order"]))
    typer.echo("* shuffled, silence or static does better than ours")
    typer.echo(f"{as_html}\n{as_json}")
    return summary


def order_line(checks: list[dict[str, Any]]) -> str:
    """How many of the orders hold, and those that do not."""
    broken = [
        f"{c['measure']}: {c['worse']} beats {c['better']} by {-c['gain']:.3g} (p {c['p']:.2g}, "
        f"{c['clips_in_order']} of {c['clips']} clips in order)"
        for c in checks
        if not c["holds"]
    ]
    line = f"  orders that hold: {len(checks) - len(broken)} of {len(checks)}"
    return "\n".join([line, *(f"  broken: {b}" for b in broken)])


def speed_section(bench: Any, speeds: Any) -> dict[str, Any]:
    """Timing on the first portrait and voice of a ``drive`` split, and the look-ahead curve."""
    from visavis.eval.jobs import jobs_of

    jobs = jobs_of(bench.protocol, bench.data)
    drive = next((j for j in jobs if j.split.kind == "drive"), None)
    clocks = time.perf_counter, time.process_time
    timing = speeds.measure(bench, drive.photo, drive.sounds[0], 6.0, clocks) if drive else {}
    if timing:
        timing["lookahead"] = speeds.lookahead_sweep(bench)
    return timing


def brief(report: dict[str, Any], out: Path) -> dict[str, Any]:
    """The one-line summary of ``--json``: our means, what is red, what order fails."""
    from visavis.eval.report import _plain

    return _plain(
        {
            "protocol": report["protocol"]["name"],
            "report": str(out / "report.json"),
            "wall_s": round(report["wall_s"], 1),
            "splits": {
                s["name"]: {
                    "clips": len(s["clips"]),
                    "refused": len(s["refused"]),
                    "ours": {m: c["ours"]["mean"] for m, c in s["table"].items() if "ours" in c},
                    "red": sorted(s["red"]),
                    "order_broken": [
                        f"{c['measure']}: {c['better']} < {c['worse']}"
                        for c in s["order"]
                        if not c["holds"]
                    ],
                }
                for s in report["splits"]
            },
        }
    )


@mos_app.command("build")
def mos_build(
    folder: Annotated[
        Path, typer.Argument(help="FOLDER/SYSTEM/CLIP.mp4|webm, with a system 'real'.")
    ],
    page: Annotated[Path, typer.Option("-o", "--out", help="The HTML page to write.")] = Path(
        "mos.html"
    ),
    pair: Annotated[
        list[str] | None,
        typer.Option(help="A,B: compare two systems side by side; may be repeated."),
    ] = None,
    gold: Annotated[
        list[str] | None, typer.Option(help="SYSTEM=VOTE known quality (±1); default real=5.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Talking heads",
    seed: Annotated[int, typer.Option(help="Of gold and trap clips.")] = 0,
    link: Annotated[
        bool, typer.Option("--link", help="Link the films instead of embedding them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a rating page (P.910 ACR-HR and preference) and its key file."""
    from visavis.eval import mos

    pairs = [_pair(p) for p in pair or ()]
    known = dict(_gold(g) for g in gold) if gold else None
    key = mos.build(folder, page, pairs, known, title, seed, embed=not link)
    typer.echo(f"{page}: give it to the raters; {key}: keep it, scoring needs it")
    if as_json:
        typer.echo(json.dumps({"page": str(page), "key": str(key)}))


def _pair(text: str) -> tuple[str, str]:
    parts = text.split(",")
    if len(parts) != 2 or not all(parts):
        raise ConfigError(f"--pair {text}: expected two systems, A,B")
    return parts[0], parts[1]


def _gold(text: str) -> tuple[str, int]:
    name, _, vote = text.partition("=")
    if not name or vote not in "12345" or len(vote) != 1:
        raise ConfigError(f"--gold {text}: expected SYSTEM=VOTE with a vote of 1 to 5")
    return name, int(vote)


@mos_app.command("score")
def mos_score(
    results: Annotated[list[Path], typer.Argument(help="The JSON files that the page saved.")],
    key: Annotated[Path, typer.Option(help="The key file that the page was built with.")],
    as_json: Json = False,
) -> None:
    """MOS and DMOS with 95 % intervals, paired tests, preferences; raters left out are named."""
    from dataclasses import asdict

    from visavis.eval import mos
    from visavis.eval.report import _plain

    try:
        known = json.loads(key.read_text("utf-8"))
        known["items"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{key}: not a key file of `visavis eval mos build`") from error
    scores = mos.score(mos.read_results(results, known), known)
    for name, why in scores.rejected.items():
        typer.echo(f"left out {name}: {why}")
    typer.echo(f"{len(scores.raters)} raters")
    for system, m in sorted(scores.mos.items(), key=lambda item: -item[1].mean):
        d = scores.dmos.get(system)
        extra = (
            f"   DMOS {d.mean:.2f} ({d.low:.2f} to {d.high:.2f})" if d else "   hidden reference"
        )
        typer.echo(f"{system:20} MOS {m.mean:.2f} ({m.low:.2f} to {m.high:.2f}){extra}")
    for t in scores.tests:
        sample = f"{t['count']} {t['unit']}s"
        typer.echo(f"{t['a']} - {t['b']}: {t['difference']:+.2f}, p = {t['p']:.4f} over {sample}")
    for p in scores.preferences:
        typer.echo(
            f"{p['a']} {p['a_wins']} : {p['ties']} : {p['b_wins']} {p['b']}, p = {p['p']:.4f}"
        )
    if as_json:
        typer.echo(json.dumps(_plain(asdict(scores))))
