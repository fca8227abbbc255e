"""The blur of photos, and paint that is no sharper than they are."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import motion_row as row

from visavis.eval.image import sharpness
from visavis.render import Renderer
from visavis.softness import WIDEST, edge_blur, soften_edge


def shapes(size=160):
    """Crisp discs on grey, drawn large and reduced."""
    rng = np.random.default_rng(3)
    big = np.full((size * 8, size * 8, 3), 120, np.uint8)
    for _ in range(14):
        x, y, r = rng.integers(0, size * 8, 3)
        colour = tuple(int(c) for c in rng.integers(0, 255, 3))
        cv2.circle(big, (int(x), int(y)), 60 + int(r) // 10, colour, -1, cv2.LINE_AA)
    return cv2.resize(big, (size, size), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.2])
def test_a_known_blur_is_found(sigma):
    picture, everywhere = shapes(), np.ones((160, 160), np.float32)
    found = edge_blur(cv2.GaussianBlur(picture, (0, 0), sigma), everywhere)
    own = edge_blur(picture, everywhere)
    assert own < 0.9
    assert np.sqrt(found**2 - own**2) == pytest.approx(sigma, rel=0.2)


def test_where_nothing_can_be_told_nothing_is_claimed():
    flat = np.full((160, 160, 3), 90, np.uint8)
    everywhere, nowhere = np.ones((160, 160), np.float32), np.zeros((160, 160), np.float32)
    assert edge_blur(flat, everywhere) == 0
    assert edge_blur(shapes(), nowhere) == 0
    assert 0 <= edge_blur(cv2.GaussianBlur(shapes(), (0, 0), 9), everywhere) <= WIDEST


def test_only_the_edge_is_softened():
    area, cover = shapes(), np.zeros((160, 160), np.float32)
    cover[:, 80:] = 1
    before = area.copy()
    soften_edge(area, cover, 1.5)
    changed = (area != before).any(-1).any(0)
    assert changed[76:84].all()
    assert not changed[:68].any()
    assert not changed[92:].any()


@pytest.mark.parametrize("tier", ["mesh", "patch"])
def test_a_soft_photo_gets_a_soft_mouth(demo_avatar, tier):
    soft = replace(demo_avatar, image=cv2.GaussianBlur(demo_avatar.image, (0, 0), 2.5))
    assert np.sqrt(sharpness_of_teeth(demo_avatar, tier) / sharpness_of_teeth(soft, tier)) > 1.5


def sharpness_of_teeth(avatar, tier):
    """Of the inner mouth alone, opened."""
    renderer = Renderer(avatar, tier)
    motion = row(jaw_open=0.2, jaw_rotation=8)
    frame = renderer.step(renderer.init_state(), motion[None, None])[1][0, 0]
    face = renderer.mesh.face(motion)[0]
    x0, y0 = face[[78, 13], :2].min(0).astype(int) + 3
    x1, y1 = face[[308, 14], :2].max(0).astype(int) - 3
    return sharpness(frame[y0:y1, x0:x1])
