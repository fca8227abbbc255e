"""``visavis eval`` end to end: rating studies from the command line, a small protocol, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_eval_films import write
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


ODD = """
name = "odd"
description = "films that are odd"
size = 256
image_every = 15
temporal_every = 4
temporal_size = 64
identity_every = 15
[[splits]]
name = "odd"
kind = "reconstruct"
films = "odd/*"
rows = ["real", "ours", "shuffled", "static"]
"""


@pytest.fixture(scope="module")
def odd_films(shared_data, tmp_path_factory) -> Path:
    """A data folder with every kind of film that is not a plain one."""
    import numpy as np

    from visavis.video import read_video

    folder = tmp_path_factory.mktemp("data")
    odd = folder / "odd"
    odd.mkdir()
    source = shared_data / "grid_s1" / "bwim4n.mp4"
    frames = [image for _, _, image in read_video(source)][14:44]
    blank = np.full_like(frames[0], 90)
    write(odd / "1_gap.mp4", [blank if 8 <= k < 13 else f for k, f in enumerate(frames)])
    write(odd / "2_late_face.mp4", [blank] * 3 + frames[:20])
    write(odd / "3_two_faces.mp4", [np.hstack([f, f]) for f in frames[:10]])
    uneven = np.cumsum([0, *([0.03, 0.06] * 10)]).tolist()
    write(odd / "4_variable_rate.mp4", frames[:21], times=uneven)
    write(odd / "5_sixty.mp4", [f for f in frames[:10] for _ in range(2)], fps=60)
    write(odd / "6_one_frame.mp4", frames[:1])
    (odd / "7_cut.mp4").write_bytes(source.read_bytes()[:60_000])
    whole = write(folder / "whole.mp4", frames[:12]).read_bytes()  # its index stands at the end
    (odd / "7_no_index.mp4").write_bytes(whole[: len(whole) * 7 // 10])
    (odd / "8_text.mp4").write_text("no film")
    (odd / "9_spoilt_tail.mp4").write_bytes(spoilt(source))
    return folder


def spoilt(source: Path) -> bytes:
    """A film with sound whose last third is noise; its index stands in front and is whole."""
    import io

    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(str(source)) as film, av.open(buffer, "w", format="mpegts") as out:
        streams = {s: out.add_stream_from_template(s) for s in film.streams}
        for packet in film.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                out.mux(packet)
    data = bytearray(buffer.getvalue())
    tail = len(data) * 2 // 3
    data[tail:] = np.random.default_rng(0).bytes(len(data) - tail)
    return bytes(data)


@pytest.mark.slow
def test_odd_films_are_scored_or_refused_with_a_reason(odd_films, shared_data, tmp_path):
    """Nothing vanishes: every film is in the table or in the list of the refused, and counted."""
    pytest.importorskip("h5py")
    models = shared_data.parent / "models"
    if not (models / "face-reidentification-retail-0095.xml").is_file():
        pytest.skip("needs the judge's models at ../shared/models")
    protocol = tmp_path / "odd.toml"
    protocol.write_text(ODD)
    out = tmp_path / "out"
    arguments = ["--protocol", protocol, "-o", out, "--data", odd_films, "--models", models]
    arguments += ["--cache", tmp_path / "cache", "--tier", "mesh", "--workers", 1, "--no-speed"]
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (split,) = json.loads((out / "report.json").read_text())["splits"]
    notes = {c["name"]: " / ".join(c["notes"]) for c in split["clips"]}
    refused = {c["name"]: c["reason"] for c in split["refused"]}
    assert {*notes, *refused} == {p.stem for p in (odd_films / "odd").iterdir()}
    assert "show no face and are left out" in notes["1_gap"]
    assert "no face before frame" in notes["2_late_face"]
    assert "variable frame rate" in notes["4_variable_rate"]
    assert "no sound" in notes["5_sixty"]
    assert "ours: left out, there is no sound" in notes["5_sixty"]
    assert "faces" in refused["3_two_faces"]
    assert "1 frames, at least 8" in refused["6_one_frame"]
    assert {"7_no_index", "8_text"} <= set(refused)
    assert notes["7_cut"], "what is missing of a cut film is said"
    assert all(reason in done.output for reason in refused.values())
    left_out = sum(c["faceless"] for c in split["clips"])
    assert left_out >= 7
    assert f"frames left out (no face): {left_out}" in done.output
    assert "9_spoilt_tail" in notes or "9_spoilt_tail" in refused
