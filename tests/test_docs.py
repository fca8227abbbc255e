"""Code blocks in README and docs run as they stand."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(language):
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}:{number}")
        for page in PAGES
        for number, (kind, text) in enumerate(BLOCK.findall(page.read_text()))
        if kind == language
    ]


@pytest.fixture
def place(tmp_path):
    """A folder that looks like the checkout, with a photo and sounds of the names the pages use."""
    import cv2

    from visavis.avatar import load_avatar

    (tmp_path / "visavis").mkdir()
    (tmp_path / "visavis" / "assets").symlink_to(ROOT / "visavis" / "assets")
    avatar = load_avatar(ROOT / "visavis" / "assets" / "demo.avatar")
    cv2.imwrite(str(tmp_path / "photo.jpg"), avatar.image[..., ::-1])
    shutil.copy(ROOT / "visavis" / "assets" / "demo.avatar", tmp_path / "me.avatar")
    return tmp_path


@pytest.mark.parametrize("code", blocks("python"))
def test_python_block_runs(code, place):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=place, capture_output=True, text=True,
        timeout=300, check=False, env=_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_named_command_exists():
    """Each `visavis ...` line in a shell block names a command that has a --help."""
    names = set()
    for page in PAGES:
        for kind, text in BLOCK.findall(page.read_text()):
            if kind == "":
                names |= set(re.findall(r"^visavis (\w+)", text, re.M))
    assert {"create", "render", "animate", "track"} <= names
    for name in sorted(names):
        done = subprocess.run(
            [sys.executable, "-m", "visavis", name, "--help"], capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"visavis {name} --help: {done.stderr[-500:]}"


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def _environment():
    import os

    return os.environ | {"VISAVIS_MODELS": str(SHARED / "models")}
