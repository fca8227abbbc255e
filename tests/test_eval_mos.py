"""The rating kit: the page is answered in a headless browser, the scores have known answers."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from visavis.errors import InputError
from visavis.eval import mos

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def clip(path: Path, grey: int, frames: int = 4) -> None:
    """A fraction of a second of WebM (VP8), one grey level."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(frames):
            image = np.full((64, 64, 3), grey, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())


@pytest.fixture
def stimuli(tmp_path) -> Path:
    for k, system in enumerate(("real", "ours", "static")):
        for c, name in enumerate(("one", "two")):
            clip(tmp_path / "stimuli" / system / f"{name}.webm", 60 * k + 20 * c + 10)
    return tmp_path / "stimuli"


def answer_all(page, key: dict, votes: dict[str, int]) -> dict:
    """Go through the page as a rater would: play, choose, next; returns the saved JSON."""
    page.fill("#rater", "anna k.")
    page.click("#begin")
    for _ in range(len(key["items"])):
        assert page.is_disabled("#next")  # nothing can be answered unseen
        assert page.is_disabled("#answers button >> nth=0")
        page.click("#play")
        page.wait_for_selector("#answers button:not([disabled])", timeout=15_000)
        known = key["items"][page.evaluate("current.item.id")]
        if known["kind"] == "pair":
            left_is_better = votes[known["left"]] > votes[known["right"]]
            flip = page.evaluate("current.flip")
            value = "left" if left_is_better != flip else "right"
        elif known["kind"] == "trap":
            assert f"choose {known['expected']}" in page.inner_text("#cover")
            value = known["expected"]
        else:
            value = votes[known["system"]]
        page.click(f'#answers button[data-value="{value}"]')
        page.click("#next")
    with page.expect_download() as saved:
        page.click("#save")
    return json.loads(Path(saved.value.path()).read_text())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("embed", [True, False])
def test_page_is_answered_in_a_browser(stimuli, tmp_path, embed):
    sync_api = pytest.importorskip("playwright.sync_api")
    key = json.loads(
        mos.build(stimuli, tmp_path / "mos.html", [("ours", "static")], embed=embed).read_text()
    )
    source = (tmp_path / "mos.html").read_text()
    assert not embed or "static" not in source.split('id="study">')[1].split("</script>")[0]
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda e: errors.append(str(e)))
        asked: list[str] = []
        page.on("request", lambda r: asked.append(r.url))
        page.goto((tmp_path / "mos.html").as_uri())
        result = answer_all(page, key, {"real": 5, "ours": 4, "static": 2})
        browser.close()
    assert errors == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)  # nothing from outside
    assert result["rater"] == "anna k."
    got = mos.score([result], key)
    assert got.rejected == {}
    assert {s: v.mean for s, v in got.mos.items()} == {"real": 5, "ours": 4, "static": 2}
    assert got.dmos["ours"].mean == 4
    assert [(p["a_wins"], p["b_wins"]) for p in got.preferences] == [(2, 0)]


def rater(name: str, key: dict, votes: dict[str, float], **wrong) -> dict:
    answers = []
    for item, known in key["items"].items():
        if known["kind"] == "pair":
            diff = votes[known["left"]] - votes[known["right"]]
            value = "left" if diff > 0 else "right" if diff < 0 else "same"
        else:
            value = known["expected"] if known["kind"] == "trap" else votes[known["system"]]
        answers.append(
            {"id": item, "kind": known["kind"], "answer": wrong.get(known["kind"], value)}
        )
    return {"study": key["study"], "rater": name, "answers": answers}


def test_scores_intervals_and_tests(stimuli, tmp_path):
    key = json.loads(mos.build(stimuli, tmp_path / "m.html", [("ours", "static")]).read_text())
    group = [
        rater(f"r{i}", key, {"real": 5, "ours": 3 + i % 2, "static": 1 + i % 2}) for i in range(8)
    ]
    got = mos.score(group, key)
    assert got.mos["ours"].mean == 3.5
    half = 2.3646 * np.std([3, 4] * 4, ddof=1) / np.sqrt(8)
    assert got.mos["ours"].high - 3.5 == pytest.approx(half, rel=1e-3)
    test = next(t for t in got.tests if (t["a"], t["b"]) == ("ours", "static"))
    assert test["difference"] == 2
    assert test["p"] == pytest.approx(2 / 256)
    assert got.preferences[0]["a_wins"] == 16


def test_raters_who_do_not_watch_are_named(stimuli, tmp_path):
    key = json.loads(mos.build(stimuli, tmp_path / "m.html").read_text())
    votes = {"real": 5, "ours": 4, "static": 2}
    sleepy, blind = rater("sleepy", key, votes, trap=0), rater("blind", key, votes, gold=1)
    one = rater("one", key, {"real": 4, "ours": 4, "static": 4})
    gone = rater("gone", key, votes)
    gone["answers"] = gone["answers"][:4]
    got = mos.score([sleepy, blind, one, gone, rater("good", key, votes)], key)
    assert set(got.rejected) == {"sleepy", "blind", "one", "gone"}
    assert "attention" in got.rejected["sleepy"]
    assert got.raters == ["good"]


def test_unbalanced_or_missing_stimuli_are_refused(stimuli, tmp_path):
    (stimuli / "ours" / "two.webm").unlink()
    with pytest.raises(InputError, match="clips differ"):
        mos.build(stimuli, tmp_path / "m.html")
    shutil.rmtree(stimuli / "real")
    with pytest.raises(InputError, match="hidden reference"):
        mos.build(stimuli, tmp_path / "m.html")
    with pytest.raises(InputError, match="not a folder"):
        mos.build(tmp_path / "nowhere", tmp_path / "m.html")


def test_results_of_another_study_are_refused(stimuli, tmp_path):
    key = json.loads(mos.build(stimuli, tmp_path / "m.html").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"study": "x", "rater": "a", "answers": []}))
    with pytest.raises(InputError, match="of study x"):
        mos.read_results([other], key)
    other.write_text("[]")
    with pytest.raises(InputError, match="not a result"):
        mos.read_results([other], key)
