"""The likeness: kernels against plain twins, what learning recovers, the file, hostile files."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest

from visavis.avatar import load_avatar
from visavis.errors import AvatarError
from visavis.idle import IdleConfig
from visavis.learn import (
    SIDE,
    Sample,
    fit_layer,
    learn_likeness,
    ridge_on_tail,
    tail_of,
    typical_motions,
)
from visavis.likeness import (
    FINE,
    ZERO,
    Layer,
    Likeness,
    add_crop,
    blend,
    carry,
    decode,
    encode,
    likeness_from,
)
from visavis.mouth import crop_transform
from visavis.render import Renderer
from visavis.style import idle_of, style_of
from visavis.types import CHANNEL, N_CHANNELS

SHEET = np.array([[0, 1, 2], [1, 3, 2]], np.int32)


def corners(side: int, shift: float = 0.0) -> np.ndarray:
    """Corners of a square picture, ``(4, 2)`` float32."""
    last = side - 1
    return np.array([[0, 0], [last, 0], [0, last], [last, last]], np.float32) + np.float32(shift)


def made_likeness(seed: int = 0, strength: float = 0.2) -> Likeness:
    """A likeness of random maps."""
    random = np.random.default_rng(seed)
    motion = random.normal(0, 0.3, (50, N_CHANNELS)).astype(np.float32)
    features = typical_motions(motion, random)

    def layer(side: int) -> Layer:
        maps = random.integers(-100, 101, (3, side, side, 3)).astype(np.int8)
        mix = random.normal(0, strength / 10, (features.count, 3)).astype(np.float32)
        return Layer(maps, mix)

    return Likeness(features, layer(64), layer(64), layer(32))


def test_blend_is_the_rounded_weighted_sum():
    random = np.random.default_rng(0)
    maps = random.integers(-127, 128, (7, 5000), dtype=np.int8)  # more than one block
    weights = random.integers(-3000, 3000, 7).astype(np.int32)
    out = np.empty(5000, np.int16)
    blend(maps, weights, out)
    exact = maps.astype(np.int64).T @ weights / 2**FINE
    assert np.abs(out - exact).max() <= 0.5


def test_changes_survive_being_pictures():
    change = np.arange(-140, 140, dtype=np.int16).reshape(-1, 1, 1).repeat(3, 2)
    assert np.array_equal(decode(encode(change)), np.clip(change, -128, 127))


def test_a_picture_is_carried_by_its_mesh_and_nowhere_else():
    random = np.random.default_rng(1)
    picture = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    moved = carry(picture, corners(64), corners(64, 5), SHEET, np.arange(2))
    assert np.array_equal(moved[5:63, 5:63], picture[:58, :58])
    assert (moved[:5] == ZERO).all() and (moved[:, :5] == ZERO).all()


def test_a_crop_is_added_where_it_lies():
    frame = np.full((100, 100, 3), 100, np.uint8)
    add_crop(frame, np.full((20, 20, 3), -30, np.int16), np.array([[1.0, 0, -40], [0, 1.0, -50]]))
    assert (frame[52:68, 42:58] == 70).all()
    assert (frame[:49] == 100).all() and (frame[:, :39] == 100).all()
    off = frame.copy()
    add_crop(off, np.full((20, 20, 3), 9, np.int16), np.array([[1.0, 0, 500], [0, 1.0, 500]]))
    assert np.array_equal(off, frame)


def test_features_are_clipped_to_what_was_seen():
    likeness = made_likeness()
    high = likeness.features.high
    assert np.allclose(likeness.features(high), likeness.features(high + 5))
    assert likeness.features(np.zeros((4, N_CHANNELS))).shape == (4, likeness.features.count)


def test_leave_one_out_predictions_are_those_of_refitting():
    random = np.random.default_rng(2)
    seen = np.concatenate([np.ones((33, 1)), random.normal(0, 1, (33, 4))], 1)
    scores = seen @ random.normal(0, 1, (5, 2)) + random.normal(0, 0.5, (33, 2))
    held = tail_of(33)
    _, predicted = ridge_on_tail(seen, scores, held)
    learn = np.flatnonzero(~held)
    ridge = min(
        (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        key=lambda r: (
            (seen[held] @ fitted(seen[learn], scores[learn], r) - scores[held]) ** 2
        ).sum(),
    )
    without = learn[learn != 3]
    assert np.allclose(predicted[3], seen[3] @ fitted(seen[without], scores[without], ridge))


def fitted(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    penalty = np.diag([1e-6, *[ridge] * (x.shape[1] - 1)])
    return np.linalg.solve(x.T @ x + penalty, x.T @ y)


def test_a_layer_recovers_pictures_that_follow_a_channel():
    random = np.random.default_rng(3)
    motion = random.normal(0, 1, (220, N_CHANNELS)).astype(np.float32)
    held = tail_of(len(motion))
    features = typical_motions(motion[~held], random)
    seen = features(motion)
    one, two = (cv2.resize(random.normal(0, 25, (4, 4, 3)), (32, 32)) for _ in range(2))
    truth = 10 + motion[:, 0, None, None, None] * one + motion[:, 8, None, None, None] * two
    space = np.clip(np.rint(truth + ZERO), 0, 255).astype(np.uint8)
    layer, guess = fit_layer(space, seen, held, 6, np.ones((2, 32, 32), np.float32))
    for k in np.flatnonzero(held):
        error = layer.picture(seen[k]).astype(float) - (space[k].astype(float) - ZERO)
        assert np.sqrt((error**2).mean()) < 0.25 * truth.std()
        assert np.abs(layer.picture(seen[k]) - guess(k)).max() <= 1


@pytest.fixture(scope="module")
def person(drawn_avatar):
    """A drawn face whose 'film' is itself, darker the wider the mouth, with a moving stripe."""
    avatar = load_avatar(drawn_avatar)
    renderer = Renderer(avatar, "mesh")
    random = np.random.default_rng(4)
    samples = []
    for k in range(66):
        motion = np.zeros(N_CHANNELS, np.float32)
        motion[CHANNEL["jaw_open"]] = 0.12 * (0.5 + 0.5 * np.sin(k / 3))
        motion[CHANNEL["head_yaw"]] = 4 * np.sin(k / 7) + random.normal(0, 0.1)
        _, frames = renderer.step({}, motion[None, None])
        drawn = frames[0, 0]
        real = drawn.astype(np.int16) - np.int16(round(200 * float(motion[0])))
        real[-20:] += np.int16(round(5 * float(motion[CHANNEL["head_yaw"]])))
        target, face, _ = renderer.mesh.vertices(motion)
        samples.append(
            Sample.of(
                np.clip(real, 0, 255).astype(np.uint8), drawn, motion, target,
                renderer.mesh.order(face), crop_transform(face),
            )
        )  # fmt: skip
    likeness, before, after = learn_likeness(samples, renderer.mesh)
    return replace(avatar, likeness=likeness), samples, before, after


def test_learning_brings_the_film_closer(person):
    avatar, samples, before, after = person
    assert after > before + 6
    # and what is drawn says the same as what was predicted while learning
    renderer, plain = Renderer(avatar, "mesh"), Renderer(replace(avatar, likeness=None), "mesh")
    errors = []
    for sample in samples[-6:]:
        ours, bare = (r.step({}, sample.motion[None, None])[1][0, 0] for r in (renderer, plain))
        small = [
            cv2.resize(x, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
            for x in (ours, bare)
        ]
        wanted = decode(sample.change)
        errors.append([np.square(small[0] - small[1] - wanted).mean(), np.square(wanted).mean()])
    ours, bare = np.mean(errors, axis=0)
    assert ours < bare / 4


def test_the_general_mouth_net_does_not_paint_over_a_likeness(person):
    avatar = person[0]
    motion = person[1][3].motion[None, None]
    patch, mesh = Renderer(avatar, "patch"), Renderer(avatar, "mesh")
    assert patch.init_state() == {}
    assert np.array_equal(patch.step({}, motion)[1], mesh.step({}, motion)[1])


def test_the_background_far_from_the_person_never_moves(person):
    avatar, samples = person[:2]
    renderer = Renderer(avatar, "mesh")
    frames = [renderer.step({}, s.motion[None, None])[1][0, 0] for s in samples[::8]]
    reach = 2 * (avatar.size // 4) + 1
    far = cv2.dilate(avatar.matte, np.ones((reach, reach), np.uint8)) == 0
    far[renderer.mesh.spans[:, 1] > 0] = False
    if far.any():
        assert all(np.array_equal(f[far], frames[0][far]) for f in frames)


def test_the_file_keeps_all_of_it(person, tmp_path):
    style = style_of(np.array([s.motion for s in person[1]]), np.arange(66) / 25)
    weights = {"head.bias": np.arange(5, dtype=np.float16)}
    avatar = replace(person[0], style=style, mouth_weights=weights)
    again = load_avatar(avatar.save(tmp_path / "p.avatar"))
    assert again.style == style
    assert np.array_equal(again.mouth_weights["head.bias"], weights["head.bias"])
    ours, theirs = avatar.likeness.arrays(), again.likeness.arrays()
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
    assert (tmp_path / "p.avatar").stat().st_size < 30e6


def test_a_photo_avatar_has_none_of_it(drawn_avatar):
    avatar = load_avatar(drawn_avatar)
    assert avatar.likeness is None and avatar.mouth_weights is None and avatar.style is None


@pytest.mark.parametrize(
    "harm",
    [
        {"features/spread": np.zeros(N_CHANNELS, np.float32)},
        {"head/maps": np.zeros((3, 4, 5, 3), np.int8)},
        {"head/maps": np.zeros((3, 2000, 2000, 3), np.int8)},
        {"mouth/mix": np.full((2, 2), np.nan, np.float32)},
        {"features/poses": np.zeros((2000, 6), np.float32)},
        {"still/maps": np.zeros((3, 64, 64, 3), np.float32)},
        {"head/mix": None},
    ],
)
def test_hostile_arrays_are_refused(harm):
    arrays = made_likeness().arrays() | harm
    with pytest.raises(ValueError):
        likeness_from({k: v for k, v in arrays.items() if v is not None})
    likeness_from(made_likeness().arrays())


def test_a_damaged_likeness_is_named(person, tmp_path):
    path = person[0].save(tmp_path / "p.avatar")
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.namelist():
            new.writestr(item, b"no" if item.startswith("likeness") else old.read(item))
    path.write_bytes(out.getvalue())
    with pytest.raises(AvatarError, match="film"):
        load_avatar(path)


def test_style_counts_blinks_and_sees_the_head():
    times = np.arange(1500) / 25
    motion = np.zeros((1500, N_CHANNELS), np.float32)
    for at in range(50, 1500, 100):  # 15 in a minute
        motion[at : at + 5, CHANNEL["eye_blink_left"]] = 1
        motion[at : at + 5, CHANNEL["eye_blink_right"]] = 1
    motion[:, CHANNEL["head_yaw"]] = 5 * np.sin(2 * np.pi * times / 1.5)
    style = style_of(motion, times)
    assert style["blinks_per_minute"] == pytest.approx(15, abs=0.1)
    assert style["head_sd"][1] == pytest.approx(5 / np.sqrt(2), rel=0.02)
    assert style["range"]["head_yaw"][0] < -4.5 < 4.5 < style["range"]["head_yaw"][2]


def test_a_person_idles_as_on_film():
    usual = IdleConfig()
    assert idle_of(None, usual) is usual
    calm = {"seconds": 60.0, "blinks_per_minute": 10.0, "head_sd": [0.6, 0.6, 0.6]}
    own = idle_of(calm, usual)
    assert own.blink_interval == 6
    assert 0.3 * usual.nod <= own.nod < usual.nod
    assert own.head_sd[0] / usual.head_sd[0] == pytest.approx(own.nod / usual.nod)


@pytest.mark.parametrize("value", [None, "x", float("nan"), -3, [1], True, 1e999])
def test_nonsense_in_a_style_changes_nothing(value):
    usual = IdleConfig()
    odd = {"seconds": value, "blinks_per_minute": value, "head_sd": [value] * 3}
    assert idle_of(odd, usual) == usual
