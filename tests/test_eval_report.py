"""Protocols, the sums and the page, on made-up figures."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from visavis.errors import ConfigError
from visavis.eval import figures, protocol, report, speed
from visavis.eval.jobs import MAKERS
from visavis.eval.measures import MEASURES, Evidence
from visavis.types import N_CHANNELS

QUALITY = {"real": 1.0, "ceiling": 0.95, "ours": 0.8, "shuffled": -0.2, "static": 0.0}


def results(flip: bool = False) -> list[dict]:
    """Four clips; with ``flip`` the still photo beats us on PSNR."""
    out = []
    for k in range(4):
        rows = {}
        for name, quality in QUALITY.items():
            psnr = 40.0 if flip and name == "static" else 20 + 10 * quality + k
            rows[name] = {"open_r": quality, "open_r2": quality, "av_r": quality, "psnr": psnr}
            rows[name] |= {"psnr_lips": 20 + 10 * quality, "psnr_mouth": 20 + 10 * quality}
            rows[name] |= {"mouth_nme": 5 - 4 * quality, "blink_rate": 12.0, "lmd": math.nan}
        rows["real"] |= {"psnr": math.inf, "psnr_lips": math.inf}
        facts = {"sha256": "ab" * 32, "fps": "25", "frames": 75, "faceless": 2, "codec": "h264"}
        out.append(
            {"split": "grid tenth", "name": f"clip{k}", "rows": rows, "notes": [], "clip": facts}
        )
    out.append({"split": "grid tenth", "name": "bad", "refused": "1 frames, at least 8 are needed"})
    return out


def facts() -> dict:
    split = {"name": "grid tenth", "kind": "reconstruct"}
    return {
        "protocol": {"name": "t", "description": "d", "seed": 0, "size": 320, "splits": [split]},
        "system": {"tier": "mesh", "motion_dir": None, "lookahead_ms": 80, "fingerprint": "0"},
        "commit": "c",
        "machine": "m",
        "peers": [],
    }


def test_means_flags_and_order():
    split = report.summarise(facts(), results())["splits"][0]
    assert split["table"]["psnr"]["ours"]["mean"] == pytest.approx(29.5)
    assert split["table"]["psnr"]["real"]["mean"] == math.inf
    assert "lmd" not in split["table"]
    assert split["red"] == {}
    links = {(c["measure"], c["better"], c["worse"]): c for c in split["order"]}
    assert len(links) == sum(map(len, report.ORDER.values()))
    assert all(c["holds"] and c["clips_in_order"] == c["clips"] == 4 for c in links.values())
    assert links["open_r2", "ours", "shuffled"]["gain"] == pytest.approx(1.0)
    assert links["open_r2", "ours", "shuffled"]["p"] == pytest.approx(2 / 16)
    assert links["psnr_lips", "real", "ceiling"]["gain"] == math.inf
    assert split["frames_left_out"] == 8
    assert [r["name"] for r in split["refused"]] == ["bad"]


def test_what_beats_us_is_red():
    split = report.summarise(facts(), results(flip=True))["splits"][0]
    assert split["red"] == {"psnr": ["static"]}
    page = report.render_html(report.summarise(facts(), results(flip=True)), None)
    assert re.search(r'<tr class="red">\s*<td>PSNR, frame', page)


def test_an_order_is_broken_by_the_mean_over_clips():
    wrong = results()[:4]
    for k, r in enumerate(wrong):
        r["rows"]["shuffled"]["open_r2"] = 0.0 if k else 0.4  # above the still photo on one clip
    broken = [c for c in report.order_test(wrong) if not c["holds"]]
    assert [(c["measure"], c["better"], c["worse"]) for c in broken] == [
        ("open_r2", "static", "shuffled")
    ]
    assert broken[0]["gain"] == pytest.approx(-0.1)
    assert broken[0]["clips_in_order"] == 3
    assert broken[0]["p"] == 1  # one clip of four decides nothing, and the report says so


def test_random_lags_have_no_merit_by_cancelling():
    made = results()[:4]
    for k, r in enumerate(made):
        r["rows"]["ours"]["lag_ms"] = 30.0
        r["rows"]["shuffled"]["lag_ms"] = 400.0 * (-1) ** k
    table = report.table_of(made, 0)
    assert table["lag_ms"]["shuffled"]["mean"] == 0
    assert table["lag_ms"]["shuffled"]["goodness"] == -400
    assert "lag_ms" not in report.red_flags(table)


def test_report_is_strict_json_and_one_page(tmp_path):
    hostile = results()
    hostile[0]["notes"] = ["<script>alert(1)</script>"]
    stages = {n: vars(speed.latency.spread(np.arange(9.0))) for n in ("motion", "render", "all")}
    timing = {
        "facts": {"real-time factor": 2.0, "energy": "not readable here"},
        "stages": stages,
        "waterfall": [["motion", 0.0, 1.0], ["render", 1.0, 8.0]],
        "budget_ms": 33.3,
        "lookahead": [
            {"lookahead_ms": 0, "mean": 0.7, "low": 0.6, "high": 0.8, "count": 4},
            {"lookahead_ms": 80, "mean": 0.9, "low": math.nan, "high": math.nan, "count": 1},
        ],
    }
    as_json, as_html = report.write(report.summarise(facts(), hostile, timing), tmp_path)
    stored = json.loads(as_json.read_text(), parse_constant=lambda c: pytest.fail(c))
    assert stored["splits"][0]["table"]["psnr"]["real"]["mean"] == "inf"
    page = as_html.read_text()
    assert "<script>alert" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 3  # rows, waterfall, look-ahead


def test_paired_test_against_a_peer():
    mine = results()[:4]
    for k, r in enumerate(mine):
        r["rows"]["peer"] = {"psnr": r["rows"]["ours"]["psnr"] - 1 - 0.1 * k}
    row = next(t for t in report.paired(mine, "peer") if t["measure"] == "psnr")
    assert row["gain"] == pytest.approx(1.15)
    assert row["p"] == pytest.approx(2 / 16)


def test_numbers_for_people():
    got = [report.number(v) for v in (math.nan, math.inf, 0.9996, 12.34, 1234.5, 0.0123, 0.00001)]
    assert got == ["–", "∞", "1.00", "12.3", "1230", "0.012", "1.0e-05"]


def test_pictures_are_drawn():
    t = np.arange(50) / 25
    rng = np.random.default_rng(0)
    points = np.tile(rng.uniform(20, 140, (478, 3)), (50, 1, 1)).astype(np.float32)
    points[5] = np.nan
    motion = np.zeros((50, N_CHANNELS), np.float32)
    motion[:, 0] = 0.1 + 0.1 * np.sin(t * 9)
    frames = [rng.integers(0, 255, (160, 160, 3), np.uint8)] * 50
    rows = {
        "real": Evidence(frames, points, motion, t),
        "ours": Evidence(frames, points, motion, t),
    }
    sound = (0.1 * rng.standard_normal(32_000)).astype(np.float32)
    for png in (figures.lip_curves(rows, sound, "x"), figures.mouth_strip(rows)):
        assert png.startswith(b"\x89PNG")
    assert figures.lip_curves(rows, np.zeros(0, np.float32), "mute").startswith(b"\x89PNG")


# protocols


@pytest.mark.parametrize("name", ["quick", "full"])
def test_shipped_protocols_load(name):
    got = protocol.load(name)
    assert got.name == name
    assert {"reconstruct", "drive"} <= {s.kind for s in got.splits}
    assert "person" in {s.kind for s in got.splits} or name == "quick"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense = [", "not a protocol"),
        ('name = "x"\ndescription = "y"\nsplits = []\nfrobnicate = 1', "not a protocol"),
        (
            'name = "x"\ndescription = ""\n[[splits]]\nname = "a"\nkind = "drive"\nrows = ["best"]',
            "unknown row 'best'",
        ),
    ],
)
def test_bad_protocols_say_why(tmp_path, text, said):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        protocol.load(path)
    with pytest.raises(ConfigError, match="no such protocol; there are full, quick"):
        protocol.load("nothing")


def test_the_judge_and_the_trainer_leave_out_the_same_tenth():
    clips = pytest.importorskip("visavis.train.clips")
    voices = [f"{i}-{i * 7}-0000" for i in range(300)]
    ours = [protocol.withheld_voice(v) for v in voices]
    assert ours == [clips.is_held_out_talker(v.split("-")[0]) for v in voices]
    assert 40 < sum(ours) < 110
    names = [f"clip{i}" for i in range(300)]
    assert [protocol.withheld(n) for n in names] == [clips.is_held_out(n) for n in names]
    assert 15 < sum(map(protocol.withheld, names)) < 50


def touch(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_the_shuffled_row_hears_a_far_clip_at_an_even_phase(tmp_path):
    touch(tmp_path, *(f"films/{k:02}.mp4" for k in range(22)))
    films = {"name": "a", "films": "films/*.mp4"}
    jobs = MAKERS["reconstruct"](protocol.Split(kind="reconstruct", **films), tmp_path)
    assert [j.other.stem for j in jobs[:2]] == ["11", "12"]
    assert all(j.other != j.film for j in jobs)
    assert np.diff([j.phase for j in jobs]) == pytest.approx(1 / 22)
    person = MAKERS["person"](protocol.Split(kind="person", **films), tmp_path)
    assert [j.name for j in person] == ["20", "21"]  # the last eleventh, one photo for all
    assert {j.photo.stem for j in person} == {"00"}


def test_voices_are_withheld_talkers_only(tmp_path):
    touch(tmp_path, *(f"v/{k}-1-0.opus" for k in range(40)), "p/a.jpg", "p/b.jpg")
    split = protocol.Split(
        name="a", kind="drive", photos="p/*.jpg", sounds="v/*", new_voices=True, limit=1
    )
    (job,) = MAKERS["drive"](split, tmp_path)
    assert protocol.withheld_voice(job.sounds[0].stem)
    assert protocol.withheld_voice(job.other.stem)
    assert job.other != job.sounds[0]
    long = MAKERS["long"](split.model_copy(update={"kind": "long"}), tmp_path)
    assert len(long[0].sounds) == sum(protocol.withheld_voice(f"{k}-1-0") for k in range(40))


def test_an_empty_split_says_where_it_looked(tmp_path):
    split = protocol.Split(name="a", kind="reconstruct", films="*.mp4")
    with pytest.raises(ConfigError, match="nothing matches"):
        protocol.select(split, tmp_path, split.films)


def test_every_measure_has_a_direction():
    assert {m.better for m in MEASURES.values()} <= {"high", "low", "one", "zero", "info"}


def test_steps_are_booked_to_the_frames_they_made():
    steps = [
        {"motion": 1.0, "frames": 0},
        {"motion": 2.0, "render": 5.0, "frames": 1},
        {"motion": 3.0, "render": 8.0, "frames": 2},
    ]
    stages, total = speed.per_frame(steps)
    assert stages["motion"].tolist() == [3.0, 1.5, 1.5]
    assert total.tolist() == [8.0, 5.5, 5.5]
