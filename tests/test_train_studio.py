"""The studio: meshes are refined, people drawn by seed, pictures made, shards read for training."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from visavis.errors import InputError
from visavis.facemodel import load_face_model
from visavis.mouth import INNER_LOWER, INNER_UPPER
from visavis.train import studio
from visavis.train.renderer_data import degrade, joined, studio_data
from visavis.train.shards import Entry, write_shards
from visavis.train.studio_assets import StudioAssets, components, split_corners, subdivide
from visavis.train.studio_person import draw_expression, draw_looks, draw_performance, opposites
from visavis.train.studio_points import fit_lips, place_landmarks
from visavis.train.studio_scene import Camera, denoise, develop, draw_light

CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
CUBE = np.array(
    [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
)
NAMES = [
    f"macrodetails/{who}-{sex}-{age}"
    for who in ("african", "asian", "caucasian")
    for sex in ("female", "male")
    for age in ("young", "old")
] + [
    "nose/nose-hump-decr",
    "nose/nose-hump-incr",
    "chin/chin-jaw-drop-up",
    "chin/chin-jaw-drop-down",
]
SKINS = [
    "old_darkskinned_male.jpg",
    "young_darkskinned_female.jpg",
    "young_lightskinned_male.jpg",
] * 2


class TestMeshes:
    def test_a_cube_is_rounded_as_catmull_and_clark_say(self):
        pytest.importorskip("scipy")
        uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
        refine, faces, corner_uv = subdivide(CUBE, np.tile(np.arange(4), (6, 1)), uv, 8)
        at = refine @ CORNERS
        assert at.shape == (8 + 12 + 6, 3)
        assert np.allclose(np.abs(at[:8]), 5 / 9)
        assert np.allclose(np.sort(np.abs(at[8:20]), 1), [0, 0.75, 0.75])
        assert np.allclose(np.sort(np.abs(at[20:]), 1), [0, 0, 1])
        assert faces.shape == (48, 3) and corner_uv.shape == (48, 3, 2)
        across = np.cross(at[faces[:, 1]] - at[faces[:, 0]], at[faces[:, 2]] - at[faces[:, 0]])
        assert ((across * at[faces].mean(1)).sum(1) > 0).all() or (
            (across * at[faces].mean(1)).sum(1) < 0
        ).all()

    def test_an_open_rim_follows_its_own_curve(self):
        pytest.importorskip("scipy")
        square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
        refine, _, _ = subdivide(np.arange(4)[None], np.arange(4)[None], square[:, :2], 4)
        at = refine @ square
        assert np.allclose(at[0], [0.125, 0.125, 0])
        assert np.allclose(at[4:8].mean(0), [0.5, 0.5, 0])

    def test_corners_split_where_the_texture_does(self):
        faces = np.array([[0, 1, 2], [2, 1, 3]])
        uv = np.zeros((2, 3, 2))
        uv[1, 0] = 0.5  # vertex 2 lies elsewhere in the second triangle
        piece = split_corners(faces, uv)
        assert len(piece.source) == 5
        assert (piece.source[piece.faces] == faces).all()
        assert np.allclose(piece.uv[piece.faces], uv)

    def test_components_are_told_apart(self):
        assert (
            components(7, np.array([[0, 1, 2], [2, 3, 1], [5, 6, 4]])).tolist() == [0] * 4 + [4] * 3
        )


class TestPeople:
    def test_a_seed_is_a_person(self):
        one, same, other = (draw_looks(np.random.default_rng(s), NAMES, SKINS) for s in (3, 3, 4))
        assert one.shapes == same.shapes and np.array_equal(one.teeth, same.teeth)
        assert one.shapes != other.shapes
        macro = [v for k, v in one.shapes.items() if k.startswith("macro")]
        assert sum(macro) == pytest.approx(1)
        dark = ["dark" in SKINS[i] for i in one.skins[:2]]
        assert dark[0] == dark[1]

    def test_opposites_are_never_worn_together(self):
        pairs = opposites(tuple(NAMES))
        assert ("nose/nose-hump-decr", "nose/nose-hump-incr") in pairs
        for seed in range(5):
            shapes = draw_looks(np.random.default_rng(seed), NAMES, SKINS).shapes
            assert not any(a in shapes and b in shapes for a, b in pairs)

    def test_stills_show_mouths_of_every_opening(self):
        jaws = [draw_expression(np.random.default_rng(s)).get("jawOpen", 0) for s in range(60)]
        assert min(jaws) < 0.1 and max(jaws) > 0.6

    def test_a_take_is_smooth_and_blinks(self):
        play = draw_performance(np.random.default_rng(2), 120, 25.0)
        names = sorted(play.weights[0])
        table = np.array([[w[n] for n in names] for w in play.weights])
        speech = [k for k, n in enumerate(names) if n.startswith("viseme")]
        assert np.abs(np.diff(table[:, speech], axis=0)).max() < 0.95  # 70 ms are two frames
        assert table[:, speech].max() > 0.3
        assert table[:, names.index("eyeBlinkLeft")].max() > 0.6
        assert play.head.shape == (120, 3) and np.abs(np.diff(play.head, axis=0)).max() < 2


class TestPictures:
    def test_the_camera_projects_where_its_rays_go(self):
        camera = Camera((1.0, 7.0, 12.0), (0.2, 6.8, 1.0), 6.0, 64)
        px = np.array([[3.0, 5.0], [40.5, 60.25]])
        way = camera.directions(px[:, 0] + 0.5, px[:, 1] + 0.5)  # centres are whole numbers
        seen = camera.project(np.array(camera.eye) + way * [[9.0], [11.0]])
        assert np.allclose(seen[:, :2], px, atol=1e-3)
        assert seen[0, 2] < seen[1, 2]  # nearer is smaller

    def test_noise_goes_and_texture_stays(self):
        rng = np.random.default_rng(0)
        albedo = np.where(np.arange(64) // 8 % 2, 0.6, 0.3).astype(np.float32)
        albedo = np.broadcast_to(albedo[None, :, None], (64, 64, 3)).copy()
        clean = albedo * 0.7
        noisy = (clean * rng.gamma(6, 1 / 6, (64, 64, 1))).astype(np.float32)
        masks = {"skin": np.ones((64, 64), np.float32)}
        smooth = denoise(noisy, albedo, masks)
        inner = (slice(8, -8), slice(8, -8))
        assert np.abs(smooth - clean)[inner].mean() < 0.4 * np.abs(noisy - clean)[inner].mean()
        steps = np.abs(np.diff(smooth.mean(2), axis=1))[inner]
        assert steps.max() > 0.6 * np.abs(np.diff(clean.mean(2), axis=1)).max()

    def test_light_is_finite_and_differs(self):
        one, two = (draw_light(np.random.default_rng(s)) for s in (0, 1))
        assert one.shape == (48, 96, 3) and np.isfinite(one).all() and (one > 0).all()
        assert not np.allclose(one, two)
        assert develop(one, 100.0).max() == 255

    def test_inner_lips_lie_on_the_rim_that_is_seen(self):
        points = np.zeros((478, 3))
        for k, (up, low) in enumerate(zip(INNER_UPPER, INNER_LOWER, strict=True)):
            points[[up, low], :2] = [[20 + 2 * k, 30]] * 2
        inner = np.zeros((64, 64), np.float32)
        inner[28:36, 22:38] = 1
        inner[27, 22:38] = 0.25
        fitted = fit_lips(points, inner)
        assert fitted[13, 1] == pytest.approx(27.25) and fitted[14, 1] == pytest.approx(35.5)
        assert fitted[INNER_UPPER[0], 1] == 30  # corners stay
        shut = fit_lips(points, np.zeros((64, 64), np.float32))
        assert shut[13, 1] == shut[14, 1] == 30


def a_unit(views: list[str]) -> tuple[bytes, dict[int, bytes]]:
    """Points and pictures of one face whose mouth is open."""
    from safetensors.numpy import save

    face = load_face_model().template.astype(np.float64) * 110 + 128
    face[face[:, 1] > (face[13, 1] + face[14, 1]) / 2, 1] += 12
    picture = np.full((256, 256, 3), 90, np.uint8)
    picture[..., 2] = 200  # red, as OpenCV has it
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    points = np.stack([face] * len(views)).astype(np.float32)
    return save({"points": points}), dict.fromkeys(range(len(views)), jpeg)


class TestShards:
    def test_mouths_of_the_studio_are_training_data(self, tmp_path):
        pytest.importorskip("pyarrow")
        views = ["mouth", "eyes", "mouth"]
        data, pictures = a_unit(views)
        facts = {"frames": 3, "kind": "person", "views": json.dumps(views)}
        entries = [Entry(f"person-{k:05d}", data, pictures, facts) for k in range(2)]
        write_shards(entries, tmp_path, studio.CORPUS)
        found = studio_data(tmp_path)
        assert len(found) == 4 and set(found.domains) == {"studio"}
        assert len(set(found.people)) == 2 and len(set(found.names)) == 4
        assert np.abs(found.images[0, 96, 96].astype(int) - [200, 90, 90]).max() < 6
        assert (found.gaps > 0.05).all()
        assert len(joined(found, found)) == 8

    def test_poor_photos_lose_detail_and_keep_their_size(self):
        rng = np.random.default_rng(0)
        picture = rng.integers(0, 256, (128, 128, 3)).astype(np.uint8)
        for seed in range(12):
            poor = degrade(picture, np.random.default_rng(seed))
            assert poor.shape == picture.shape and poor.dtype == np.uint8
            assert np.abs(np.diff(poor.astype(int), axis=1)).mean() < 84  # of 85 in pure noise

    def test_a_folder_without_open_mouths_is_refused(self, tmp_path):
        pytest.importorskip("pyarrow")
        data, pictures = a_unit(["eyes"])
        write_shards([Entry("a", data, pictures, {"views": '["eyes"]'})], tmp_path, studio.CORPUS)
        with pytest.raises(InputError, match="no open mouth"):
            studio_data(tmp_path)

    def test_a_bad_unit_stops_nothing_and_a_good_one_is_kept(self, tmp_path, monkeypatch):
        def unit(job):
            if job.number == 1:
                raise ValueError("a mesh without a mouth")
            return job.name.encode()

        monkeypatch.setattr(studio, "take_unit", unit)
        monkeypatch.setattr(
            studio, "_run", lambda jobs, _: ((job, studio.make_unit(job)) for job in jobs)
        )
        jobs = [studio.Job("", "", str(tmp_path), 0, k, 8) for k in range(3)]
        told = []
        failed = studio._work(jobs, 1, lambda *n: told.append(n))
        assert failed == {"person-00001": "ValueError: a mesh without a mouth"}
        assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
        kept = tmp_path / "person-00000.safetensors"
        kept.write_bytes(b"kept")
        studio._work(jobs, 1, None)
        assert kept.read_bytes() == b"kept"  # not made again

    def test_a_process_that_dies_is_tried_once_more_alone(self, tmp_path, monkeypatch):
        runs = []

        def run(jobs, _):
            runs.append([j.number for j in jobs])
            alone = len(jobs) == 1
            yield from ((j, "" if alone and j.number == 0 else None) for j in jobs)

        monkeypatch.setattr(studio, "_run", run)
        jobs = [studio.Job("", "", str(tmp_path), 0, k, 8) for k in range(2)]
        assert studio._work(jobs, 2, None) == {"person-00001": "the process died"}
        assert runs == [[0, 1], [0], [1]]

    def test_counts(self):
        assert studio.count_units(17, 4) == 3 + 4


def test_assets_without_a_base_mesh_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"base\.obj"):
        StudioAssets(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_mouth_twice_is_the_same_mouth(shared_data):
    """Rendered: seed gives picture; teeth show when the mouth opens, and hide when it is shut."""
    pytest.importorskip("mitsuba", reason="needs Mitsuba 3: pip install 'visavis[studio]'")
    from visavis.train.studio_model import Model
    from visavis.train.studio_scene import Studio

    assets = StudioAssets(shared_data / "face3d" / "mpfb")
    looks = draw_looks(
        np.random.default_rng(1), sorted(assets.targets), [p.name for p in assets.skins]
    )
    model = Model(assets, looks)
    room = Studio(model, draw_light(np.random.default_rng(1)))
    shown = {}
    for name, weights in (("shut", {}), ("open", {"jawOpen": 0.6})):
        vertices = model.vertices(model.body(weights))
        room.pose(vertices)
        middle = tuple(vertices["teeth"].mean(0) + [0, 0, 0.3])
        camera = Camera((middle[0], middle[1], middle[2] + 12), middle, 4.0, 48)
        shown[name] = room.look(camera)
    teeth = {k: float(s.masks["teeth"].sum()) for k, s in shown.items()}
    assert teeth["shut"] < 3 and teeth["open"] > 30
    assert (sum(shown["open"].masks.values()) < 1.001).all()
    counts = np.full((48, 48), 2)
    one, same, other = (room.shoot(camera, counts, seed) for seed in (5, 5, 6))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    masks = shown["open"].masks
    wet, skin = masks["cavity"] + masks["tongue"] > 0.9, masks["skin"] > 0.9
    assert wet.sum() > 5
    assert one[wet].mean() < 0.5 * one[skin].mean()  # dark behind the teeth
    places = {
        "piece": np.zeros(478, int), "weights": np.full((478, 3), 1 / 3),
        "corners": np.tile(model.pieces["skin"].faces[100], (478, 1)),
    }  # fmt: skip
    assert np.ptp(place_landmarks(places, model.pieces, vertices, camera), 0).max() < 1e-9
