"""What a user installs: a wheel with its assets, no torch in the base, extras as promised."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import visavis

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("visavis-*-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_package_and_its_assets(wheel):
    names = set(wheel.namelist())
    assets = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "visavis").rglob("*")
        if path.is_file() and "assets" in path.parts
    }
    assert "visavis/assets/demo_speech.opus" in assets
    assert assets <= names
    assert not [n for n in names if "__pycache__" in n or n.startswith(("tests/", "benchmarks/"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_says_what_it_needs(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = wheel.read(name).decode()
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    base = {
        re.match(r"[\w-]+", line.split(": ")[1]).group() for line in base if "extra" not in line
    }
    assert base == {"numpy", "openvino", "opencv-python-headless", "numba", "av", "safetensors",
                    "pydantic", "typer", "rich"}  # fmt: skip
    (entry,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "visavis = visavis.cli:main" in wheel.read(entry).decode()


def test_versions_and_pins_agree():
    assert PROJECT["version"] == visavis.__version__
    extras = PROJECT["optional-dependencies"]
    wanted = {"train", "gpu", "serve", "scale", "livekit", "pipecat", "encoders", "eval", "test"}
    wanted |= {"livekit-worker", "otel", "studio"}
    assert wanted == set(extras)
    constraints = (ROOT / "ci" / "constraints.txt").read_text(encoding="utf-8").split()
    assert "torch==2.13.0" in constraints
    assert "torch==2.13.0" in extras["train"]
    assert extras["scale"] == ["ray[data,serve]==2.56.1"]  # later ones bring a GPL helper


def test_nothing_forbidden_is_asked_for():
    from visavis.licenses import NEVER

    more = {"torchvision", "torchaudio", "torchcodec", "soxr", "tensorrt", "mediapipe"}
    asked = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        asked += extra
    names = {re.match(r"[\w-]+", part).group().lower() for part in asked}
    assert not names & (set(NEVER) | more)


def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True)
