"""The renderer against its slow twin, and the promises a viewer would notice broken."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import motion_row as row

from visavis.errors import ConfigError
from visavis.headmesh import TORSO
from visavis.raster import HARD, OUTLINE
from visavis.raster import draw as draw_triangles
from visavis.render import Renderer
from visavis.types import N_CHANNELS, RANGE_HIGH, RANGE_LOW


@pytest.fixture(scope="module")
def renderer(demo_avatar):
    return Renderer(demo_avatar, "mesh", 256)


def draw(renderer, *rows):
    state = renderer.init_state()
    return renderer.step(state, np.array(rows, np.float32)[None])[1][0]


def slow_draw(target, source, triangles, order, atlas, base, out):
    """Every pixel against every triangle by barycentric coordinates, fetched and laid in floats."""
    picture = atlas.view(np.uint8).reshape(*atlas.shape, 4).astype(np.float64)
    for k in order:
        a, b, c = (target[i].astype(np.float64) for i in triangles[k])
        area = cross(b - a, c - a)
        if abs(area) < 1e-6:
            continue
        for y, x in np.ndindex(out.shape[:2]):
            p = np.array([x, y], np.float64)
            w = np.array([cross(b - p, c - p), cross(c - p, a - p), cross(a - p, b - p)]) / area
            if (w >= -1e-9).all():
                sx, sy = np.clip(w @ source[triangles[k]], 0, np.array(atlas.shape[::-1]) - 1.001)
                ix, iy, fx, fy = int(sx), int(sy), sx % 1, sy % 1
                four = picture[iy : iy + 2, ix : ix + 2]
                one = np.array([1 - fy, fy]) @ (four.transpose(2, 0, 1) @ [1 - fx, fx]).T
                out[y, x] = np.minimum(one[:3] + base[y, x] * (1 - one[3] / 255), 255)


def cross(u, v):
    return u[0] * v[1] - u[1] * v[0]


def scene(rng, alpha):
    """A premultiplied atlas of 40 px, a base of 24 px and where four triangles lie on both."""
    colour = rng.integers(0, 256, (40, 40, 3)) * alpha // 255
    atlas = np.dstack([colour, alpha]).astype(np.uint8).view("<u4")[..., 0]
    base = rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)
    target = rng.uniform(-4, 28, (9, 2)).astype(np.float32)
    source = rng.uniform(2, 36, (9, 2)).astype(np.float32)
    triangles = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 4, 8]], np.int32)
    return target, source, triangles, atlas, base


@pytest.mark.parametrize("opaque", [True, False])
def test_draw_is_its_slow_twin(opaque):
    rng = np.random.default_rng(3)
    alpha = np.full((40, 40, 1), 255) if opaque else rng.integers(0, 256, (40, 40, 1))
    target, source, triangles, atlas, base = scene(rng, alpha)
    order, beside = np.array([2, 0, 3, 1]), np.full((4, 3), HARD, np.int32)
    spans = np.tile(np.array([2, 20], np.int32), (24, 1))
    fast, slow = np.full_like(base, 7), np.full(base.shape, 7.0)
    draw_triangles(target, source, triangles, beside, order, atlas, base, spans, fast)
    slow_draw(target, source, triangles, order, atlas, base, slow)
    assert (fast[:, :2] == 7).all()
    assert (fast[:, 20:] == 7).all()
    error = np.abs(fast.astype(float) - slow).max(-1)[:, 2:20]
    # eight bits of weight between texels that differ by up to 255
    assert np.quantile(error, 0.985) <= 2.5, "only pixels on an edge may differ"
    assert (fast[:, 2:20] != 7).any(-1).mean() > 0.3


def test_a_flat_colour_stays_exactly_itself():
    rng = np.random.default_rng(5)
    target, source, triangles, atlas, base = scene(rng, np.full((40, 40, 1), 255))
    atlas[:] = np.uint32(0xFF332211)
    out = np.zeros_like(base)
    spans = np.tile(np.array([0, 24], np.int32), (24, 1))
    beside = np.full((4, 3), HARD, np.int32)
    draw_triangles(target, source, triangles, beside, np.arange(4), atlas, base, spans, out)
    drawn = out.any(-1)
    assert drawn.sum() > 50
    assert (out[drawn] == (0x11, 0x22, 0x33)).all()


def test_an_outline_fades_over_one_pixel_and_nothing_inside_is_lost():
    """At 12 degrees of yaw the cheek's outline against the hair was a staircase."""
    target = np.array([[4, 2], [4.4, 20], [18, 11]], np.float32)
    triangle = np.array([[0, 1, 2]], np.int32)
    atlas = np.full((40, 40), 0xFFFFFFFF, np.uint32)
    spans = np.tile(np.array([0, 24], np.int32), (24, 1))
    drawn = {}
    for kind in (HARD, OUTLINE):
        base, out = np.zeros((2, 24, 24, 3), np.uint8)
        beside = np.array([[kind, HARD, HARD]], np.int32)
        order = np.arange(1)
        draw_triangles(target, target, triangle, beside, order, atlas, base, spans, out)
        drawn[kind] = out[..., 0]
    assert set(np.unique(drawn[HARD])) == {0, 255}
    assert (drawn[OUTLINE][drawn[HARD] == 255] == 255).all()
    fringe = drawn[OUTLINE][8:14, :5].max(1, initial=0, where=drawn[HARD][8:14, :5] == 0)
    assert (np.diff(fringe.astype(int)) < 0).all(), "the slanting edge moves pixel by pixel"
    assert ((fringe > 0) & (fringe < 255)).all()


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


def test_the_torso_follows_the_head_part_of_the_way_and_turns_with_nothing(renderer):
    mesh, size = renderer.mesh, renderer.size
    rest = mesh.vertices(row())[0]
    torso = (mesh.source[:, 1] > 0.85 * size) & (np.abs(mesh.source[:, 0] - size / 2) < 0.2 * size)
    border = (np.minimum(mesh.source, size - 1 - mesh.source) < 1).any(1)
    torso &= mesh.source[:, 1] < 0.93 * size
    assert torso.sum() >= 3
    assert border.sum() > 20
    shifted, turned = (
        mesh.vertices(row(**m))[0] - rest for m in (dict(shift_x=0.1), dict(head_yaw=10))
    )
    head = shifted[[33, 263]].mean(0)  # outer eye corners
    assert head[0] == pytest.approx(0.1 * mesh.rest.scale, rel=0.1)
    assert shifted[torso, 0] == pytest.approx(TORSO * head[0], rel=0.1)
    assert np.abs(turned[torso]).max() < 0.02
    assert np.abs(shifted[border]).max() < 1e-3


def test_a_face_that_moves_away_leaves_nothing_behind(renderer):
    """Regression: pieces of the resting cheek stood beside a head that had moved and turned."""
    import cv2

    from visavis.facemodel import FACE_OVAL

    face = np.zeros((256, 256), np.uint8)
    cv2.fillPoly(face, [renderer.mesh.source[FACE_OVAL].round().astype(np.int32)], 1)
    rng, bared = np.random.default_rng(5), 0
    for _ in range(12):  # films go that far
        way = dict(
            zip(("head_pitch", "head_yaw", "head_roll"), rng.uniform(-16, 16, 3), strict=True)
        )
        motion = row(shift_x=rng.uniform(-0.5, 0.5), shift_y=rng.uniform(-0.3, 0.2), **way)
        frame = draw(renderer, motion)[0].astype(int)
        away = (face > 0) & (cv2.dilate(renderer.matte(motion), np.ones((5, 5))) == 0)
        bared += away.sum()
        left = np.abs(frame - renderer.avatar.plate).max(-1) > 2
        assert (left & away).sum() <= 8, "no more than specks"
    assert bared > 1000


@pytest.mark.parametrize("tier", ["mesh", "patch"])
@pytest.mark.parametrize("soft", [0.0, 2.5])
def test_no_background_shines_through_the_rims_of_eyes_and_mouth(demo_avatar, tier, soft):
    """Regression: a bright line ran round the lips where the plate lay beneath a softened edge."""
    import cv2

    from visavis.facemodel import FACE_OVAL

    green = np.zeros_like(demo_avatar.plate)
    green[..., 1] = 255
    image = cv2.GaussianBlur(demo_avatar.image, (0, 0), soft) if soft else demo_avatar.image
    renderer = Renderer(replace(demo_avatar, plate=green, image=image), tier)
    plain = Renderer(replace(demo_avatar, image=image), tier)
    for gap, blink in (
        (0.0, 0.0),
        (0.005, 0.3),
        (0.012, 0.6),
        (0.05, 0.9),
        (0.12, 1.0),
        (0.3, 0.0),
    ):
        motion = row(
            jaw_open=gap,
            jaw_rotation=30 * gap,
            eye_blink_left=blink,
            eye_blink_right=blink,
            head_yaw=3,
        )
        inner = np.zeros(green.shape[:2], np.uint8)
        oval = renderer.mesh.face(motion)[0][FACE_OVAL, :2]
        cv2.fillPoly(inner, [oval.round().astype(np.int32)], 1)
        inside = cv2.erode(inner, np.ones((41, 41), np.uint8)) > 0
        with_green, without = (draw(r, motion)[0][inside].astype(int) for r in (renderer, plain))
        assert np.abs(with_green - without).max() <= 24, (gap, blink)  # the matte is not all 1


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


def test_oo_is_round_and_keeps_its_gap_and_corners(renderer):
    """ "oo" was drawn as a slightly narrower "ee"."""
    model, neutral = renderer.mesh.model, renderer.avatar.neutral.astype(np.float64)
    plain = model.deform(neutral, row(jaw_open=0.05))
    narrow = model.deform(neutral, row(jaw_open=0.05, mouth_width=-0.08))
    pursed = model.deform(neutral, row(jaw_open=0.05, lip_rounding=1))

    def width(v, left, right):
        return v[right, 0] - v[left, 0]

    assert width(narrow, 61, 291) == pytest.approx(width(plain, 61, 291) - 0.08, abs=0.012)
    assert width(narrow, 78, 308) < width(plain, 78, 308) - 0.15, "the inner rim draws together"
    assert width(pursed, 61, 291) < 0.8 * width(plain, 61, 291)
    for face in (plain, narrow, pursed):
        assert face[14, 1] - face[13, 1] == pytest.approx(0.05, abs=1e-6)
    red = [v[13, 1] - v[0, 1] + v[17, 1] - v[14, 1] for v in (plain, narrow, pursed)]
    assert red[1] > red[0] + 0.02, "fuller lips"
    assert red[2] > red[0] + 0.02
