"""LPIPS as an extra column, with packages of the same interface in place of the real ones."""

from __future__ import annotations

import numpy as np
import pytest

from visavis.eval import lpips_alex
from visavis.eval.measures import Evidence, image_figures

torch = pytest.importorskip("torch")

FAKE = """
import torch


class LPIPS(torch.nn.Module):
    def __init__(self, pretrained=True, net="alex", version="0.1", verbose=True):
        super().__init__()
        assert (net, version) == ("alex", "0.1")

    def forward(self, in0, in1, normalize=False):
        assert in0.shape == in1.shape and in0.shape[:2] == (1, 3) and not normalize
        assert -1 <= in0.min() and in0.max() <= 1
        return (in0 - in1).abs().mean().reshape(1, 1, 1, 1)
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Empty site folder and torch cache; returns (site, cache of weights)."""
    site, hub = tmp_path / "site", tmp_path / "hub"
    (site / "torchvision").mkdir(parents=True)
    (site / "lpips").mkdir()
    (hub / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    monkeypatch.delitem(__import__("sys").modules, "lpips", raising=False)
    monkeypatch.syspath_prepend(site)
    lpips_alex.alex_note.cache_clear()
    yield site, hub / "checkpoints"
    __import__("sys").modules.pop("lpips", None)
    lpips_alex.alex_note.cache_clear()


def test_without_package_or_weights_the_report_says_which(packages):
    site, weights = packages
    (site / "torchvision").rmdir()
    assert lpips_alex.alex_note() == "not measured: the package torchvision is not installed"
    (site / "lpips").rmdir()
    assert lpips_alex.missing() == "not measured: the package lpips is not installed"
    assert lpips_alex.open_alex() is None


def test_nothing_is_downloaded(packages):
    site, weights = packages
    for name in ("lpips", "torchvision"):
        (site / name / "__init__.py").write_text("raise AssertionError('must not be imported')")
    assert f"not at {weights / lpips_alex.WEIGHTS}" in lpips_alex.missing()
    assert lpips_alex.open_alex() is None


def test_with_both_it_is_a_column(packages):
    site, weights = packages
    (site / "torchvision" / "__init__.py").write_text("")
    (site / "lpips" / "__init__.py").write_text(FAKE)
    (weights / lpips_alex.WEIGHTS).write_bytes(b"weights")
    alex = lpips_alex.open_alex()
    assert lpips_alex.alex_note() == "AlexNet, lpips of unknown version"
    dark, light = np.zeros((64, 80, 3), np.uint8), np.full((64, 80, 3), 51, np.uint8)
    assert alex(dark, dark) == 0
    assert alex(light, dark) == pytest.approx(51 / 127.5)

    rng = np.random.default_rng(0)
    points = np.tile(rng.uniform(60, 140, (478, 3)), (6, 1, 1)).astype(np.float32)
    points[:, 33, :2], points[:, 263, :2] = (60, 90), (140, 90)
    frames = [rng.integers(0, 200, (200, 200, 3), np.uint8)] * 6
    real = Evidence(frames, points, np.zeros((6, 21), np.float32), np.arange(6) / 25)
    shown = Evidence([f + 51 for f in frames], points, real.motion, real.times)
    figures = image_figures(shown, real, 2, lambda a, b: 0.0, alex)
    for crop in ("lpips", "lpips_face", "lpips_mouth"):
        assert figures[crop] == pytest.approx(51 / 127.5, abs=1e-3)
    assert "lpips" not in image_figures(shown, real, 2, lambda a, b: 0.0)
