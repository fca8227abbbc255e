"""The renderer against its slow twin, and the promises a viewer would notice broken."""

import numpy as np
import pytest

from visavis.errors import ConfigError
from visavis.raster import compose, fill_map
from visavis.render import Renderer
from visavis.types import CHANNEL, N_CHANNELS, RANGE_HIGH, RANGE_LOW


@pytest.fixture(scope="module")
def renderer(demo_avatar):
    return Renderer(demo_avatar, "mesh", 256)


def row(**channels):
    motion = np.zeros(N_CHANNELS, np.float32)
    for name, value in channels.items():
        motion[CHANNEL[name]] = value
    return motion


def draw(renderer, *rows):
    state = renderer.init_state()
    return renderer.step(state, np.array(rows, np.float32)[None])[1][0]


def slow_map(target, source, triangles, order, out):
    """Every pixel against every triangle, by barycentric coordinates."""
    for k in order:
        a, b, c = (target[i].astype(np.float64) for i in triangles[k])
        area = np.cross(b - a, c - a)
        if abs(area) < 1e-6:
            continue
        for y in range(out.shape[0]):
            for x in range(out.shape[1]):
                p = np.array([x, y], np.float64)
                w = np.array(
                    [np.cross(b - p, c - p), np.cross(c - p, a - p), np.cross(a - p, b - p)]
                )
                w = w / area
                if (w >= -1e-9).all():
                    out[y, x] = w @ source[triangles[k]]


@pytest.mark.filterwarnings("ignore:Arrays of 2-dimensional vectors:DeprecationWarning")
def test_fill_map_is_its_slow_twin():
    rng = np.random.default_rng(3)
    target = rng.uniform(-4, 28, (9, 2)).astype(np.float32)
    source = rng.uniform(0, 100, (9, 2)).astype(np.float32)
    triangles = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 4, 8]], np.int32)
    order = np.array([2, 0, 3, 1])
    fast, slow = np.full((24, 24, 2), -1, np.float32), np.full((24, 24, 2), -1, np.float32)
    fill_map(target, source, triangles, order, fast)
    slow_map(target, source, triangles, order, slow)
    same = np.abs(fast - slow).max(-1) < 1e-2
    assert same.mean() > 0.985, "only pixels on an edge may differ"
    assert (slow[same] >= 0).any()


def test_compose_is_exact():
    rng = np.random.default_rng(4)
    alpha = rng.integers(0, 256, (16, 16, 1))
    colour = (rng.integers(0, 256, (16, 16, 3)) * alpha // 255).astype(np.uint8)
    warped = np.dstack([colour, alpha.astype(np.uint8)])
    base = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    spans = np.tile(np.array([2, 14], np.int32), (16, 1))
    out = np.full_like(base, 7)
    compose(warped, base, spans, out)
    expected = np.clip(colour + base * (255 - alpha) / 255, 0, 255)
    assert np.abs(out[:, 2:14].astype(float) - expected[:, 2:14]).max() <= 1.01
    assert (out[:, :2] == 7).all()
    assert (out[:, 14:] == 7).all()


def test_at_rest_the_frame_is_the_photo(renderer):
    avatar = renderer.avatar
    frame = draw(renderer, avatar.motion)[0].astype(int)
    difference = np.abs(frame - avatar.image.astype(int)).max(-1)
    assert np.median(difference) <= 1
    assert difference.mean() < 2.5


def test_background_never_moves(renderer):
    rng = np.random.default_rng(1)
    import cv2

    for _ in range(12):
        motion = rng.uniform(RANGE_LOW, RANGE_HIGH).astype(np.float32)
        frame = draw(renderer, motion)[0]
        matte = renderer.matte(motion)
        outside = (
            cv2.dilate(np.maximum(matte, renderer.avatar.matte), np.ones((17, 17), np.uint8)) == 0
        )
        assert outside.mean() > 0.05
        assert np.array_equal(frame[outside], renderer.avatar.image[outside])


def test_whole_range_draws_without_holes(renderer):
    """No black or untouched pixel inside the face over the corners of the allowed box."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        motion = np.where(rng.random(N_CHANNELS) < 0.5, RANGE_LOW, RANGE_HIGH).astype(np.float32)
        frame = draw(renderer, motion)[0]
        assert frame.shape == (256, 256, 3)
        face = renderer.mesh.face(motion)[0]
        assert np.isfinite(face).all()


def test_mouth_opens_dark_and_shuts_without_a_seam(renderer):
    import cv2

    from visavis.facemodel import LIP_INNER

    opened = row(jaw_open=0.25, jaw_rotation=8)
    shut, wide = draw(renderer, row(), opened)
    face = renderer.mesh.face(opened)[0]
    inside = np.zeros((256, 256), np.uint8)
    cv2.fillPoly(inside, [face[LIP_INNER, :2].round().astype(np.int32)], 1)
    inside = cv2.erode(inside, np.ones((3, 3), np.uint8)) > 0
    assert inside.sum() > 40
    assert wide[inside].mean() < 0.75 * shut[inside].mean(), "the inside is darker than the lips"


def test_blink_hides_the_iris(renderer):
    open_eyes, shut_eyes = draw(renderer, row(), row(eye_blink_left=1, eye_blink_right=1))
    for iris in (468, 473):
        x, y = renderer.avatar.points[iris, :2].round().astype(int)
        before = open_eyes[y - 1 : y + 2, x - 1 : x + 2].mean()
        after = shut_eyes[y - 1 : y + 2, x - 1 : x + 2].mean()
        assert after > before, "lid skin is lighter than the pupil"


def test_batch_equals_one_by_one(renderer):
    rows = np.stack([row(jaw_open=0.1), row(head_yaw=6)])
    together = renderer.step(renderer.init_state(2), rows[:, None])[1][:, 0]
    alone = [draw(renderer, r)[0] for r in rows]
    assert np.array_equal(together, np.stack(alone))


def test_any_split_of_the_rows_gives_the_same_frames(renderer):
    rows = np.stack([row(jaw_open=0.02 * k, head_yaw=k) for k in range(6)])
    whole = draw(renderer, *rows)
    state = renderer.init_state()
    parts = []
    for a, b in ((0, 1), (1, 4), (4, 4), (4, 6)):
        state, frames = renderer.step(state, rows[None, a:b])
        parts.append(frames[0])
    assert np.array_equal(np.concatenate(parts), whole)


def test_unknown_tier(demo_avatar):
    with pytest.raises(ConfigError, match="mesh, patch"):
        Renderer(demo_avatar, "ultra")
