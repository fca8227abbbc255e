"""The mouth crop, its maps, the net's runtime; a training run of two steps."""

from __future__ import annotations

import json
from itertools import pairwise

import cv2
import numpy as np
import pytest

from visavis import mouth
from visavis.errors import ModelError


def face(gap_px: float = 0.0, yaw: float = 0.0, scale: float = 12.0) -> np.ndarray:
    """A synthetic face ``(478, 3)``: rigid points of the canonical model, lips as two arcs
    that open mostly downward."""
    points = np.zeros((478, 3))
    points[mouth._INDEX] = mouth._MODEL
    u = np.linspace(-1, 1, 11)
    arch = 1 - u * u
    up, down = 0.15 * gap_px / scale, 0.85 * gap_px / scale
    at = {"x": 2.4 * u, "z": -4.3 - arch}
    points[list(mouth.INNER_UPPER)] = np.stack([at["x"], 4.27 - up * arch, at["z"]], 1)
    points[list(mouth.INNER_LOWER)] = np.stack([at["x"], 4.27 + down * arch, at["z"]], 1)
    points[list(mouth.OUTER_UPPER)] = np.stack([2.6 * u, 4.27 - (0.9 + up) * arch, 0 * u - 5], 1)
    points[list(mouth.OUTER_LOWER)] = np.stack([2.6 * u, 4.27 + (0.9 + down) * arch, 0 * u - 5], 1)
    points[list(mouth.CHIN)] = (0.0, 8.69 + down, -4.4)
    turn = np.deg2rad(yaw)
    spin = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    return points @ spin.T * scale + (256.3, 240.7, 0.0)


def crop_points(points: np.ndarray) -> np.ndarray:
    return mouth.apply_transform(mouth.crop_transform(points), points)


def test_crop_does_not_follow_the_lips():
    still, open_wide = face(0.0), face(40.0)
    np.testing.assert_allclose(
        mouth.crop_transform(still), mouth.crop_transform(open_wide), atol=1e-12
    )


def test_crop_holds_the_widest_mouth_and_has_the_span():
    scale = 12.0
    eyes = np.linalg.norm(face()[33, :2] - face()[263, :2])
    wide = crop_points(face(gap_px=0.45 * eyes, scale=scale))
    lips = wide[list(mouth.LIPS)]
    assert lips.min() > 4
    assert lips.max() < mouth.SIZE - 4
    zoom = np.hypot(*mouth.crop_transform(face())[0, :2])
    assert zoom == pytest.approx(mouth.SIZE / (mouth.SPAN * eyes), rel=1e-6)


def test_crop_keeps_the_teeth_centred_when_the_head_turns():
    for yaw in (-12.0, 12.0):
        middle = crop_points(face(yaw=yaw))[[78, 308], 0].mean()
        assert abs(middle - (mouth.SIZE - 1) / 2) < 4


@pytest.mark.parametrize("bad", range(5))
def test_crop_resists_one_wrong_point(bad):
    clean, broken = face(), face()
    broken[mouth._INDEX[bad], :2] += 20
    moved = mouth.apply_transform(mouth.crop_transform(broken), clean[[13, 14]])
    assert np.abs(moved - crop_points(clean)[[13, 14]]).max() < 6


def test_gap_is_in_eye_distances():
    points = face(gap_px=20.0)
    eyes = np.linalg.norm(points[33, :2] - points[263, :2])
    pairs = np.abs(points[[13, 82, 312], 1] - points[[14, 87, 317], 1]).mean()
    assert mouth.lip_gap(crop_points(points)) == pytest.approx(pairs / eyes, rel=1e-4)


def test_coverage_equals_area_and_is_smooth_in_the_vertices():
    top = np.array([[20.3, 30.2], [40.0, 22.2], [60.7, 30.2]])
    low = np.array([[20.3, 30.2], [41.0, 50.9], [60.7, 30.2]])
    assert mouth.between(top, low).sum() == pytest.approx(40.4 * 28.7 / 2, rel=0.002)
    areas = [
        mouth.between(top + np.array([0, d]), low + np.array([d, 0])) for d in np.linspace(0, 1, 21)
    ]
    steps = [np.abs(b - a).max() for a, b in pairwise(areas)]
    assert max(steps) < 0.12  # a twentieth of a pixel moves no pixel by more


def test_masks_vanish_as_the_lips_meet():
    totals = [mouth.mouth_masks(crop_points(face(gap)))["limit"].sum() for gap in (8, 4, 2, 1, 0)]
    assert totals == sorted(totals, reverse=True)
    crossed = face(-6.0)
    assert mouth.lip_gap(crop_points(crossed)) == 0.0
    assert mouth.mouth_masks(crop_points(crossed))["inner"].max() < 0.6


def test_masks_are_nested():
    masks = mouth.mouth_masks(crop_points(face(20.0)))
    assert (masks["removed"] >= masks["inner"]).all()
    assert (masks["limit"] >= masks["inner"]).all()
    assert masks["limit"].max() <= 1.0


def test_inputs_hide_the_inner_mouth_and_place_the_jaw():
    points = crop_points(face(24.0))
    crop = np.full((mouth.SIZE, mouth.SIZE, 3), 200, np.uint8)
    maps = mouth.mouth_inputs(crop, points)
    inside = maps[3] > 0.99
    assert maps.shape == (mouth.N_CHANNELS, mouth.SIZE, mouth.SIZE)
    assert np.abs(maps[:3, inside]).max() == 0.0
    other = crop.copy()
    other[inside] = 51
    changed = mouth.mouth_inputs(other, points)
    np.testing.assert_array_equal(changed[:12], maps[:12])
    np.testing.assert_allclose(changed[12:16, inside], 0.2, atol=1e-6)
    lower = mouth.mouth_inputs(crop, points + np.array([[0.0, 6.0]], np.float32))
    np.testing.assert_allclose(lower[7], maps[7])  # the skull's frame stays
    np.testing.assert_allclose(lower[9], maps[9] - 6 * 2 / mouth.SIZE, atol=1e-5)  # the jaw's goes


def test_the_fit_is_umeyamas():
    """The compiled fit against the textbook one by singular values, unweighted points included."""
    rng = np.random.default_rng(6)
    for _ in range(20):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        turn *= np.sign(np.linalg.det(turn))
        observed = 30 * mouth._MODEL @ turn.T + rng.normal(0, 3, (len(mouth._MODEL), 3))
        weight = np.ones(len(observed))
        for _ in range(4):
            w = (weight / weight.sum())[:, None]
            m, o = mouth._MODEL - (w * mouth._MODEL).sum(0), observed - (w * observed).sum(0)
            u, s, vt = np.linalg.svd((w * o).T @ m)
            sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
            rotation, scale = (u * sign) @ vt, (s * sign).sum() / (w * m * m).sum()
            shift = (w * (observed - scale * mouth._MODEL @ rotation.T)).sum(0)
            away = np.linalg.norm(
                (observed - scale * mouth._MODEL @ rotation.T - shift)[:, :2], axis=1
            )
            weight = 1 / np.sqrt(1 + (away / (scale * mouth._EYE_DISTANCE * 0.03)) ** 2)
        found = mouth._robust_similarity(mouth._MODEL, observed)
        for a, b in zip(found, (scale, rotation, shift), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-7)


def test_paste_returns_the_picture_where_nothing_is_painted():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (480, 512, 3), dtype=np.uint8)
    transform = mouth.crop_transform(face())
    rgb = np.full((mouth.SIZE, mouth.SIZE, 3), 250, np.uint8)
    kept = frame.copy()
    mouth.paste(kept, transform, rgb, np.zeros((mouth.SIZE, mouth.SIZE), np.float32))
    np.testing.assert_array_equal(kept, frame)
    alpha = np.zeros((mouth.SIZE, mouth.SIZE), np.float32)
    alpha[40:60, 40:90] = 1
    mouth.paste(kept, transform, rgb, alpha)
    back = cv2.invertAffineTransform(transform)
    x, y = np.rint(back[:, :2] @ (65, 50) + back[:, 2]).astype(int)
    assert (kept[y, x] == 250).all()
    np.testing.assert_array_equal(kept[:100], frame[:100])


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A model folder around a graph of one convolution; no training."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(1)
    weight = rng.normal(0, 0.2, (4, mouth.N_CHANNELS, 1, 1)).astype(np.float32)
    shape = ["batch", mouth.N_CHANNELS, mouth.SIZE, mouth.SIZE]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["inputs", "w"], ["y"]),
            helper.make_node("Sigmoid", ["y"], ["rgba"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("inputs", 1, shape)],
        [helper.make_tensor_value_info("rgba", 1, ["batch", 4, mouth.SIZE, mouth.SIZE])],
        [numpy_helper.from_array(weight, "w")],
    )
    folder = tmp_path_factory.mktemp("mouth")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "g.onnx")
    about = {"kind": "mouth", "graph": "g.onnx", "size": mouth.SIZE, "channels": mouth.N_CHANNELS}
    (folder / "model.json").write_text(json.dumps(about))
    return folder


def test_paint_is_batched_and_stays_in_the_limit(tiny_model):
    net = mouth.MouthNet(tiny_model, "f32")
    points = np.stack([crop_points(face(g)) for g in (24.0, 0.0, 9.0)])
    crops = np.random.default_rng(2).integers(0, 255, (3, 128, 128, 3), dtype=np.uint8)
    rgb, alpha = net.paint(crops, points)
    assert rgb.dtype == np.uint8
    assert alpha.dtype == np.float32
    for i in range(3):
        one, cover = net.paint(crops[i : i + 1], points[i : i + 1])
        np.testing.assert_array_equal(one[0], rgb[i])
        np.testing.assert_allclose(cover[0], alpha[i], atol=1e-6)
        assert (alpha[i] <= mouth.mouth_masks(points[i])["limit"] + 1e-6).all()
    assert alpha[1].max() == 0.0
    assert alpha[0].max() > 0.1


def test_alpha_fades_without_a_jump(tiny_model):
    net = mouth.MouthNet(tiny_model, "f32")
    crop = np.full((1, 128, 128, 3), 120, np.uint8)
    covers = [net.paint(crop, crop_points(face(g))[None])[1][0] for g in np.linspace(4.0, 0.0, 41)]
    jumps = [np.abs(b - a).max() for a, b in pairwise(covers)]
    assert covers[-1].max() == 0.0
    assert max(jumps) < 0.2


def test_smoothing_lives_in_the_state(tiny_model):
    net = mouth.MouthNet(tiny_model, "f32", smoothing=0.5)
    points = crop_points(face(20.0))[None]
    dark, light = (np.full((1, 128, 128, 3), v, np.uint8) for v in (40, 200))
    state = net.init_state()
    before = {k: v.copy() for k, v in state.items()}
    state1, first, _ = net.step(state, dark, points)
    for key, value in before.items():
        np.testing.assert_array_equal(state[key], value)  # the old state is left alone
    np.testing.assert_array_equal(first, net.paint(dark, points)[0])
    _, still, _ = net.step(state1, light, points)
    _, moved, _ = net.step(state1, light, points + 9.0)
    fresh = net.paint(light, points)[0].astype(int)
    assert np.abs(still.astype(int) - fresh).max() > 2
    np.testing.assert_array_equal(moved, net.paint(light, points + 9.0)[0])


def test_wrong_model_folder_says_what_is_wrong(tmp_path):
    with pytest.raises(ModelError, match=r"model\.json"):
        mouth.MouthNet(tmp_path)
    (tmp_path / "model.json").write_text('{"kind": "mouth", "size": 64, "channels": 3}')
    with pytest.raises(ModelError, match="not a mouth net"):
        mouth.MouthNet(tmp_path)


def test_shipped_net_paints_a_mouth():
    from importlib.resources import files

    folder = files("visavis") / "assets" / "models" / "mouth"
    net = mouth.MouthNet(str(folder), "f32")
    assert net.card["mega_multiply_adds"] <= 305
    points = crop_points(face(24.0))
    crop = np.full((1, 128, 128, 3), (190, 140, 120), np.uint8)
    laid = np.full((128, 128, 3), (160, 150, 130), np.uint8)
    laid[:, ::10] = 60  # gaps between teeth
    inner = mouth.mouth_masks(points)["inner"] > 0.5
    crop[0][inner] = laid[inner]
    rgb, alpha = net.paint(crop, points[None])
    assert (alpha[0] <= mouth.mouth_masks(points)["limit"] + 1e-6).all()
    assert np.isfinite(alpha).all()
    assert 20 < rgb[0][inner].mean() < 235


# --- training -----------------------------------------------------------------------------------


def generated(count: int = 10):
    """Generated mouth data: smooth noise pictures with a light bar in the mouth."""
    renderer_data = pytest.importorskip("visavis.train.renderer_data")
    rng = np.random.default_rng(3)
    size = renderer_data.CANVAS
    images, points = [], []
    for i in range(count):
        small = rng.integers(60, 200, (12, 12, 3), dtype=np.uint8)
        images.append(cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC))
        points.append(crop_points(face(12.0 + i)))
    domains = np.array(["sfhq", "presenter"] * (count // 2))
    return renderer_data.MouthData(
        np.stack(images),
        np.stack(points),
        np.full(count, 0.1, np.float32),
        np.full(count, 110, np.float32),
        domains,
        np.array([f"{d}/{i}" for i, d in enumerate(domains)]),
        np.array([f"{d}/{i % 2}" for i, d in enumerate(domains)]),
    )


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("recipe")
    run = folder / "run"
    run.mkdir()
    generated().save(run / "data.npz")
    text = f"""
run = "{run}"
steps = 4
batch = 3
warm_up = 1
save_every = 1
[net]
widths = [4, 6, 8, 8]
[loss]
perceptual = 0.0
[mix]
sfhq = 0.6
presenter = 0.4
"""
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def test_two_steps_then_resume_equals_one_run(recipe_file, tmp_path):
    torch = pytest.importorskip("torch")
    from visavis.train import renderer

    recipe = renderer.load_recipe(recipe_file)
    renderer.train_renderer(recipe_file, steps=2)
    renderer.train_renderer(recipe_file, steps=3)
    resumed = torch.load(recipe.run / "last.pt", weights_only=True)
    whole = recipe.model_copy(update={"run": tmp_path / "run"})
    renderer.fit(whole, generated(), stop=3)
    straight = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert resumed["step"] == straight["step"] == 3
    for name, value in straight["net"].items():
        torch.testing.assert_close(resumed["net"][name], value, rtol=0, atol=0)
    lines = (recipe.run / "log.jsonl").read_text().splitlines()
    assert {"pixel", "gradient", "energy"} <= set(json.loads(lines[-1]))


def test_exported_graph_equals_the_net(recipe_file, tmp_path):
    torch = pytest.importorskip("torch")
    from visavis.train import renderer

    recipe = renderer.load_recipe(recipe_file)
    renderer.train_renderer(recipe_file, steps=1)
    folder = renderer.export_mouth(recipe.run, recipe, tmp_path / "out", "# card\n")
    learner = renderer.Learner(recipe)
    learner.load(recipe.run / "last.pt")
    net = mouth.MouthNet(folder, "f32")
    feed = np.random.default_rng(4).normal(0, 1, (2, mouth.N_CHANNELS, 128, 128))
    with torch.no_grad():
        wanted = learner.average(torch.from_numpy(feed.astype(np.float32))).numpy()
    got = net._graph({"inputs": feed.astype(np.float32)})["rgba"]
    np.testing.assert_allclose(got, wanted, atol=5e-3)  # weights rounded to float16


def test_recipe_errors_name_the_key(tmp_path):
    pytest.importorskip("torch")
    from visavis.errors import ConfigError
    from visavis.train import renderer

    bad = tmp_path / "bad.toml"
    bad.write_text("stepps = 3")
    with pytest.raises(ConfigError, match="stepps"):
        renderer.load_recipe(bad)
    bad.write_text('tier = "full"')
    with pytest.raises(ConfigError, match="full"):
        renderer.train_renderer(bad)


def test_raised_lip_hides_teeth_and_leaves_the_upper_ones():
    data = pytest.importorskip("visavis.train.renderer_data")
    made = generated(2)
    canvas, points = made.images[0], made.points[0]
    moved, shut = data.raise_lower_lip(canvas, points, np.random.default_rng(5))
    assert mouth.lip_gap(shut) < mouth.lip_gap(points)
    row = int(points[13, 1]) + data.MARGIN - 3
    np.testing.assert_array_equal(moved[:row], canvas[:row])
    np.testing.assert_array_equal(shut[list(mouth.INNER_UPPER)], points[list(mouth.INNER_UPPER)])


def test_identities_are_held_out_by_name():
    data = pytest.importorskip("visavis.train.renderer_data")
    share = np.mean([data.held_out(f"sfhq/{i}.jpg") for i in range(2000)])
    assert share == pytest.approx(0.15, abs=0.03)
    assert data.held_out("sfhq/variability_expression_104.jpg")
