"""``visavis eval`` end to end: rating studies from the command line, a small protocol, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from visavis.errors import ConfigError, InputError
from visavis.eval.cli import app

PROTOCOL = """
name = "small"
description = "two withheld clips, small frames"
size = 256
image_every = 12
temporal_every = 4
temporal_size = 96
identity_every = 25
[[splits]]
name = "grid"
kind = "reconstruct"
films = "grid_s1/*.mp4"
tenth = true
stride = 20
limit = 2
rows = ["real", "ceiling", "ours", "shuffled", "static"]
"""


def run(*arguments: object) -> str:
    """The last line said; errors come through as exceptions, as ``visavis.cli.main`` wants them."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output.strip().splitlines()[-1]


@pytest.fixture
def stimuli(tmp_path) -> Path:
    for system in ("real", "ours"):
        (tmp_path / "s" / system).mkdir(parents=True)
        (tmp_path / "s" / system / "one.mp4").write_bytes(system.encode())
        (tmp_path / "s" / system / "two.mp4").write_bytes(system.encode() * 2)
    return tmp_path / "s"


def test_mos_from_the_command_line(stimuli, tmp_path):
    page = tmp_path / "mos.html"
    said = json.loads(
        run(
            "mos", "build", stimuli, "-o", page, "--pair", "ours,real", "--gold", "real=4", "--json"
        )
    )
    key = json.loads(Path(said["key"]).read_text())
    answers = []
    for item, known in key["items"].items():
        vote = known.get("expected") or {"real": 4, "ours": 3}.get(known.get("system"))
        answers.append({"id": item, "kind": known["kind"], "answer": vote or "right"})
    answer = tmp_path / "a.json"
    answer.write_text(json.dumps({"study": key["study"], "rater": "a", "answers": answers}))
    got = json.loads(run("mos", "score", answer, "--key", said["key"], "--json"))
    assert got["mos"]["ours"]["mean"] == 3
    assert got["dmos"]["ours"]["mean"] == 4
    assert got["mos"]["ours"]["low"] is None  # one rater has no interval
    assert got["preferences"][0]["b_wins"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mos", "build", "nowhere"], "not a folder"),
        (["mos", "score", "x.json", "--key", "nothing.json"], "not a key file"),
        (["--protocol", "nothing", "--models", "."], "no such protocol"),
        (["--models", "nowhere"], "the judge needs"),
        (["--against", "nowhere"], "not a folder of films"),
    ],
)
def test_bad_input_says_what_to_do(arguments, said):
    with pytest.raises(InputError, match=said):
        run(*arguments)


def test_pairs_and_gold_are_checked(stimuli):
    with pytest.raises(ConfigError, match="expected two systems"):
        run("mos", "build", stimuli, "--pair", "ours")
    with pytest.raises(ConfigError, match="a vote of 1 to 5"):
        run("mos", "build", stimuli, "--gold", "real=9")


@pytest.mark.slow
def test_a_protocol_ranks_what_is_known_and_resumes(shared_data, tmp_path):
    """Real >= ceiling >= ours >= shuffled, shuffled <= static on sync; then reads its cells."""
    from visavis.errors import ModelError
    from visavis.eval.runner import SystemUnderTest
    from visavis.motion import MotionNet

    try:
        MotionNet()
    except ModelError as error:
        pytest.skip(f"needs the shipped motion model: {error}")
    pytest.importorskip("h5py")
    models = shared_data.parent / "models"
    if not (models / "face-reidentification-retail-0095.xml").is_file():
        pytest.skip("needs the judge's models at ../shared/models")
    protocol = tmp_path / "small.toml"
    protocol.write_text(PROTOCOL)
    arguments = [
        *(
            "--protocol",
            protocol,
            "-o",
            tmp_path / "out",
            "--data",
            shared_data,
            "--models",
            models,
        ),
        *("--cache", tmp_path / "cache", "--tier", "mesh", "--workers", 1, "--no-speed", "--json"),
    ]
    before = SystemUnderTest("mesh").fingerprint()
    brief = json.loads(run(*arguments))
    split = brief["splits"]["grid"]
    assert (split["clips"], split["refused"]) == (2, 0)
    assert split["order_broken"] == []
    cells = sorted((tmp_path / "out" / "cells").rglob("*.json"))
    written = [c.stat().st_mtime_ns for c in cells]
    again = json.loads(run(*arguments))
    if SystemUnderTest("mesh").fingerprint() != before:
        pytest.skip("the package's source or weights changed while the test ran")
    assert [c.stat().st_mtime_ns for c in cells] == written
    assert again["splits"] == brief["splits"]
    assert (tmp_path / "out" / "report.html").stat().st_size > 50_000
