"""Photographs of a studio person by path tracing (Mitsuba 3, BSD): colour and exact masks.

Light bounces inside the mouth as it does in one, so what lies behind the teeth is dark of itself.
The image has its origin in the upper left corner; depth is in pixels, negative toward the camera,
as the tracker gives it.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from visavis.errors import ConfigError
from visavis.train.studio_assets import (
    Piece,
    StudioAssets,
    components,
    read_texture,
    split_corners,
)
from visavis.train.studio_person import Looks

VARIANTS = ("llvm_ad_rgb", "scalar_rgb")  # the first that runs here is used
SIZE = 256  # px, side of a picture
BOUNCES = 4
CLASSES = ("skin", "cavity", "teeth", "gums", "tongue", "eyes", "lashes")
HEAD_UV = np.array([0.635, 0.14, 1.0, 0.825])  # of the skin maps: where the face is
SKIN_PX = 640  # side of the face's texture


def open_renderer():
    """The Mitsuba module with a variant set.

    Raises:
        ConfigError: Mitsuba is not installed.
    """
    if importlib.util.find_spec("mitsuba") is None:
        raise ConfigError("the studio needs Mitsuba 3: pip install 'visavis[studio]'")
    import mitsuba

    if mitsuba.variant() is None:
        mitsuba.set_variant("llvm_ad_rgb" if llvm_library() else "scalar_rgb")
        if mitsuba.variant().startswith("llvm"):
            import drjit

            drjit.set_thread_count(1)
    return mitsuba


@lru_cache(maxsize=1)
def llvm_library() -> str:
    """Path of an LLVM from 16 on, or an empty string; named to Dr.Jit, which takes any it finds.

    LLVM 15 and older end the process on machines with AVX-512 ("Cannot select: fminimum").
    """
    named = os.environ.get("DRJIT_LIBLLVM_PATH", "")
    if named:
        return named
    found = []
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
        for path in Path(folder).glob("libLLVM*.so*"):
            digits = "".join(c if c.isdigit() else " " for c in path.name).split()
            if digits and 16 <= int(digits[0]) < 100:
                found.append((int(digits[0]), str(path)))
    if not found:
        return ""
    os.environ["DRJIT_LIBLLVM_PATH"] = max(found)[1]
    return max(found)[1]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; see `Camera.project`.

    Attributes:
        eye: where it stands, dm.
        target: what it looks at, the middle of the picture.
        field: degrees across the picture.
        size: px.
    """

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    field: float
    size: int = SIZE

    def axes(self) -> np.ndarray:
        """Rows: right, down, forward; unit vectors."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 1.0, 0.0))
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points ``(N, 3)`` dm to ``(N, 3)`` px: x, y, and depth against the target."""
        seen = (points - np.array(self.eye)) @ self.axes().T
        away = float(np.linalg.norm(np.subtract(self.target, self.eye)))
        focal = self.size / 2 / np.tan(np.deg2rad(self.field / 2))
        flat = seen[:, :2] / seen[:, 2:] * focal + (self.size - 1) / 2
        return np.column_stack([flat, (seen[:, 2] - away) * focal / away])


class Model:
    """One person as meshes: vertices follow the expression, texture stays.

    Args:
        assets: the studio's.
        looks: who.
    """

    def __init__(self, assets: StudioAssets, looks: Looks):
        self.assets, self.looks = assets, looks
        self.neutral = assets.body(looks.shapes)
        self.pieces = dict(_pieces(assets))
        self._places = {n: p for n, p in assets.parts.items()}
        self._which, self._enamel = _teeth_layout(assets)

    def textures(self) -> dict[str, np.ndarray]:
        """Base colour of every class, ``(H, W, 3)`` float32 linear."""
        looks, parts = self.looks, self.assets.folder / "parts"
        teeth = _linear(_teeth_picture(parts / "teeth.png"))
        light = teeth @ np.array([0.3, 0.5, 0.2], np.float32)
        enamel = np.clip(light / 0.60, 0, 1.1)[..., None] ** 0.8 * looks.enamel
        gums = np.clip(light / 0.13, 0.35, 2.0)[..., None] ** 0.7 * looks.gum
        tongue = _linear(_picture(parts / "tongue01_diffuse.png", 512)) * looks.tongue * 0.75
        return {
            "skin": self._skin_texture(),
            "cavity": np.full((4, 4, 3), looks.gum * 0.6, np.float32),
            "teeth": enamel.astype(np.float32),
            "gums": gums.astype(np.float32),
            "tongue": tongue.astype(np.float32),
            "eyes": self._eye_texture(),
            "lashes": np.full((4, 4, 3), 0.012, np.float32),
        }

    def vertices(self, weights: dict[str, float], gaze: tuple[float, float] = (0.0, 0.0)) -> dict:
        """Vertices of every class's piece, ``(V, 3)`` dm, for an expression.

        Args:
            weights: of the ARKit and viseme targets.
            gaze: degrees to the person's left and down.
        """
        body = self.neutral.copy()
        for name, weight in (weights | _gaze_lids(gaze)).items():
            if weight:
                index, moved = self.assets.offsets(name)
                body[index] += weight * moved
        teeth = self._teeth(body)
        whole = {
            "skin": self.assets.refine @ body,
            "teeth": teeth,
            "gums": teeth,
            "tongue": self._places["tongue01"].place(body),
            "eyes": self._eyes(body, gaze),
            "lashes": self._places["eyelashes01"].place(body),
        }
        whole["cavity"] = whole["skin"]
        return {n: whole[n][p.source] for n, p in self.pieces.items()}

    def _teeth(self, body: np.ndarray) -> np.ndarray:
        """Both rows: each tooth a little its own, the gums with the row."""
        at = self._places["teeth_base"].place(body)
        scale, up, low = self.looks.arch
        upper = self._which >= 100
        number = self._which % 100
        middle = at[number < 32].mean(0)
        for tooth in range(32):
            own = number == tooth
            width, turn, push, rise = self.looks.teeth[tooth]
            centre = at[own].mean(0)
            away = at[own] - centre
            out = centre - middle
            out[1] = 0
            out /= max(float(np.linalg.norm(out)), 1e-6)
            cos, sin = np.cos(turn), np.sin(turn)
            x, z = away[:, 0] * cos + away[:, 2] * sin, away[:, 2] * cos - away[:, 0] * sin
            at[own] = centre + np.stack([x * width, away[:, 1], z * width], 1) + out * push
            at[own, 1] += rise
        at = middle + (at - middle) * np.array([scale, 1.0, scale])
        at[upper, 1] += up
        at[~upper, 1] += low
        return at

    def _eyes(self, body: np.ndarray, gaze: tuple[float, float]) -> np.ndarray:
        at = self._places["eyes_high_poly"].place(body)
        left, down = np.deg2rad(gaze)
        turn = np.array([
            [np.cos(left), np.sin(left) * np.sin(down), np.sin(left) * np.cos(down)],
            [0, np.cos(down), -np.sin(down)],
            [-np.sin(left), np.cos(left) * np.sin(down), np.cos(left) * np.cos(down)],
        ])  # fmt: skip
        for side in (at[:, 0] > 0, at[:, 0] <= 0):
            centre = at[side].mean(0)
            at[side] = centre + (at[side] - centre) @ turn.T
        return at

    def _skin_texture(self) -> np.ndarray:
        looks, maps = self.looks, self.assets.skins
        first, second, share = looks.skins
        skin = _face_map(str(maps[first]))
        skin = skin * (1 - share) + _face_map(str(maps[second])) * share
        skin = skin * looks.tone
        red = _lip_cover(skin)[..., None]
        skin = skin * (1 - red) + skin * looks.lips * red
        grain = np.random.default_rng(int(abs(looks.pores) * 1e9)).normal(0, 1, skin.shape[:2])
        grain = cv2.GaussianBlur(grain, (0, 0), 0.8) * 2 + cv2.GaussianBlur(grain, (0, 0), 3) * 4
        return np.clip(skin * np.exp(looks.pores * grain)[..., None], 0.002, 0.9).astype(np.float32)

    def _eye_texture(self) -> np.ndarray:
        hue, gain, blue = self.looks.iris
        name = "blue_eye.png" if blue else "brown_eye.png"
        picture = _linear(_picture(self.assets.folder / "parts" / name, 512))
        colour = picture.max(2) - picture.min(2)
        cover = cv2.GaussianBlur(np.clip(colour * 8 - 0.6, 0, 1), (0, 0), 1.5)[..., None]
        tint = np.array([1 + 4 * hue, 1.0, 1 - 4 * hue]) * gain
        return np.clip(picture * (1 - cover + cover * tint), 0, 0.9).astype(np.float32)


class Studio:
    """Renders one person under one light; expressions and cameras may change.

    Args:
        model: who.
        light: ``(H, 2 H, 3)`` linear radiance around the head, as `draw_light` makes it.
    """

    def __init__(self, model: Model, light: np.ndarray):
        self.mi = open_renderer()
        self.model, self._light = model, light
        still = model.vertices({})
        gloss = dict(zip(("skin", "lips", "teeth"), model.looks.gloss, strict=True))
        rough = {
            "skin": gloss["skin"], "teeth": gloss["teeth"], "gums": 0.25, "tongue": 0.35,
            "cavity": 0.3, "eyes": 0.06, "lashes": 0.6,
        }  # fmt: skip
        wet = {"teeth": 0.6, "gums": 0.8, "tongue": 0.6, "cavity": 0.5, "eyes": 1.0}
        colours = model.textures()
        self._shapes = {
            name: self._mesh(name, still[name], piece, colours[name], rough[name], wet.get(name, 0.0))
            for name, piece in model.pieces.items()
        }
        mi = self.mi
        turn = mi.ScalarTransform4f().rotate([0, 1, 0], -90)
        self._scene = mi.load_dict(
            {"type": "scene"}
            | self._shapes
            | {"light": {"type": "envmap", "bitmap": mi.Bitmap(light), "to_world": turn}}
        )
        self._params = mi.traverse(self._scene)
        self._path = mi.load_dict({"type": "path", "max_depth": BOUNCES, "rr_depth": 99})

    def pose(self, vertices: dict[str, np.ndarray]) -> None:
        """Move every mesh: ``(V, 3)`` dm by class."""
        for name, at in vertices.items():
            self._params[f"{name}.vertex_positions"] = at.astype(np.float32).ravel()
            normals = vertex_normals(at, self.model.pieces[name])
            self._params[f"{name}.vertex_normals"] = normals.astype(np.float32).ravel()
        self._params.update()

    def shoot(self, camera: Camera, samples: int, seed: int) -> np.ndarray:
        """One picture, ``(S, S, 3)`` float32 linear.

        Args:
            camera: from where.
            samples: paths per pixel.
            seed: of the paths.
        """
        sensor = self._sensor(camera, samples)
        shot = self.mi.render(
            self._scene, sensor=sensor, integrator=self._path, spp=samples, seed=seed
        )
        return np.array(shot, np.float32)[..., :3]

    def masks(self, camera: Camera, over: int = 3) -> dict[str, np.ndarray]:
        """How much of each pixel each class covers, ``(S, S)`` float32 in 0..1; the rest is behind.

        Args:
            camera: from where.
            over: rays per pixel and axis.
        """
        index = self.hit(camera, over)[0]
        shape = (camera.size, over, camera.size, over)
        return {
            name: (index == k).reshape(shape).mean((1, 3)).astype(np.float32)
            for k, name in enumerate(self._shapes)
        }

    def hit(self, camera: Camera, over: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a regular grid of rays meets: class index (-1: nothing), triangle, barycentrics.

        Each ``(S * over, S * over)`` (barycentrics with two more columns, of corners 2 and 3).
        """
        mi, side = self.mi, camera.size * over
        axes = camera.axes().astype(np.float32)
        half = np.tan(np.deg2rad(camera.field / 2))
        ramp = ((np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1) * half
        y, x = np.meshgrid(ramp, ramp, indexing="ij")
        way = x[..., None] * axes[0] + y[..., None] * axes[1] + axes[2]
        way = (way / np.linalg.norm(way, axis=-1, keepdims=True)).reshape(-1, 3).astype(np.float32)
        if mi.variant().startswith("scalar"):
            found = [self._scene.ray_intersect_preliminary(mi.Ray3f(camera.eye, w)) for w in way]
            names = {id_: k for k, id_ in enumerate(self._shapes)}
            index = [names[f.shape.id()] if f.is_valid() else -1 for f in found]
            table = np.array([(f.prim_index, *f.prim_uv) for f in found])
        else:
            ray = mi.Ray3f(mi.Point3f(*map(float, camera.eye)), mi.Vector3f(*np.ascontiguousarray(way.T)))
            found = self._scene.ray_intersect_preliminary(ray, coherent=True)
            kind = np.full(len(way), -1)
            for k, shape in enumerate(self._shapes.values()):
                kind[np.array(found.shape == mi.ShapePtr(shape))] = k
            index = kind
            table = np.stack([np.array(found.prim_index), *np.array(found.prim_uv)], 1)
        square = (side, side)
        return (
            np.array(index).reshape(square),
            table[:, 0].astype(int).reshape(square),
            table[:, 1:].reshape(*square, 2),
        )

    def _sensor(self, camera: Camera, samples: int):
        mi = self.mi
        view = mi.ScalarTransform4f().look_at(
            origin=list(camera.eye), target=list(camera.target), up=[0, 1, 0]
        )
        return mi.load_dict({
            "type": "perspective", "fov": camera.field, "to_world": view,
            "near_clip": 0.5, "far_clip": 200.0,
            "film": {
                "type": "hdrfilm", "width": camera.size, "height": camera.size,
                "rfilter": {"type": "box"}, "pixel_format": "rgb", "component_format": "float32",
            },
            "sampler": {"type": "multijitter", "sample_count": samples},
        })  # fmt: skip

    def _mesh(self, name, at, piece: Piece, colour, rough: float, wet: float):
        mi = self.mi
        bitmap = mi.Bitmap(np.ascontiguousarray(colour))
        surface = {
            "type": "principled",
            "base_color": {"type": "bitmap", "bitmap": bitmap, "raw": True},
            "roughness": rough, "specular": 0.5,
            "clearcoat": wet, "clearcoat_gloss": 0.97,
        }  # fmt: skip
        props = mi.Properties()
        props["surface"] = mi.load_dict({"type": "twosided", "bsdf": surface})
        mesh = mi.Mesh(
            name, len(at), len(piece.faces), has_vertex_normals=True, has_vertex_texcoords=True, props=props
        )
        mesh.set_id(name) if hasattr(mesh, "set_id") else None
        params = mi.traverse(mesh)
        params["vertex_positions"] = at.astype(np.float32).ravel()
        params["vertex_normals"] = vertex_normals(at, piece).astype(np.float32).ravel()
        params["faces"] = piece.faces.astype(np.uint32).ravel()
        uv = piece.uv * (1, -1) + (0, 1)
        params["vertex_texcoords"] = uv.astype(np.float32).ravel()
        params.update()
        return mesh


def vertex_normals(at: np.ndarray, piece: Piece) -> np.ndarray:
    """Area-weighted unit normals ``(V, 3)``; corners split for the texture share theirs."""
    faces = piece.faces
    across = np.cross(at[faces[:, 1]] - at[faces[:, 0]], at[faces[:, 2]] - at[faces[:, 0]])
    count = int(piece.source.max()) + 1
    out = np.stack(
        [
            np.bincount(piece.source[faces].ravel(), np.repeat(across[:, k], 3), count)
            for k in range(3)
        ],
        1,
    )[piece.source]
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def draw_light(rng: np.random.Generator, rows: int = 48) -> np.ndarray:
    """Light around the head, ``(rows, 2 rows, 3)`` float32: a room or a sky, and one to four lamps."""
    y, x = np.mgrid[:rows, : 2 * rows].astype(np.float32)
    up = 1 - 2 * (y + 0.5) / rows
    across = (x + 0.5) / rows * np.pi  # the front is in the middle
    warm = np.array([1.0, 0.93, 0.85])
    tint = np.exp(rng.normal(0, 0.12, 3))
    sky = (0.5 + rng.uniform(0, 0.5) * up)[..., None] * tint * rng.uniform(0.15, 0.8)
    blobs = rng.normal(0, 1, (6, 12, 3)).astype(np.float32)
    walls = np.exp(cv2.resize(blobs, (2 * rows, rows), interpolation=cv2.INTER_CUBIC) * [0.35] * 3)
    light = np.maximum(sky, 0.02) * walls
    for k in range(int(rng.integers(1, 5))):
        side = rng.normal(0, 0.9 if k == 0 else 1.6)
        height = np.clip(rng.normal(0.35, 0.3), -0.6, 0.95)
        wide = rng.uniform(0.12, 0.5)
        away = np.angle(np.exp(1j * (across - np.pi - side)))
        lamp = np.exp(-0.5 * ((away / wide) ** 2 + ((up - height) / wide) ** 2) ** 2)
        colour = warm ** rng.uniform(-1.0, 2.0)
        light = light + lamp[..., None] * colour * rng.uniform(0.4, 1.6) / wide
    return np.ascontiguousarray(light, np.float32)


def develop(shot: np.ndarray, exposure: float) -> np.ndarray:
    """A linear picture to ``(S, S, 3)`` uint8 sRGB, highlights rolled off.

    Args:
        shot: linear.
        exposure: gain.
    """
    x = np.maximum(shot, 0) * exposure
    x = np.where(x < 0.6, x, 0.6 + 0.4 * np.tanh((x - 0.6) / 0.4))
    coded = np.where(x < 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-8) ** (1 / 2.4) - 0.055)
    return np.clip(np.rint(coded * 255), 0, 255).astype(np.uint8)


def _pieces(assets: StudioAssets) -> list[tuple[str, Piece]]:
    """Class to mesh: the skin in two (the mouth's wall apart), the teeth in enamel and gums."""
    skin = assets.skin
    wall = (skin.uv[:, 1] < 0.138) & (skin.uv[:, 0] > 0.70)
    inside = wall[skin.faces].all(1)
    corner = skin.uv.astype(np.float64)
    corner = (corner - HEAD_UV[:2]) / (HEAD_UV[2:] - HEAD_UV[:2])
    outer = Piece(skin.faces, skin.source, np.clip(corner, 0, 1).astype(np.float32))
    found = [("skin", _keep(outer, ~inside)), ("cavity", _keep(skin, inside))]
    _, enamel = _teeth_layout(assets)
    for name, cls, keep in (
        ("teeth_base", "teeth", enamel), ("teeth_base", "gums", ~enamel),
        ("tongue01", "tongue", None), ("eyes_high_poly", "eyes", _eyeballs(assets)),
    ):  # fmt: skip
        part = assets.parts[name]
        piece = split_corners(part.faces, part.uv[part.face_uv])
        found.append((cls, piece if keep is None else _keep(piece, keep)))
    return found


def _keep(piece: Piece, faces: np.ndarray) -> Piece:
    used, faces = np.unique(piece.faces[faces], return_inverse=True)
    return Piece(faces.reshape(-1, 3), piece.source[used], piece.uv[used])


def _eyeballs(assets: StudioAssets) -> np.ndarray:
    """Triangles of the eyeballs without the clear shells in front of them."""
    part = assets.parts["eyes_high_poly"]
    return (part.uv[part.face_uv][..., 0] < 0.86).any(1) | (part.uv[part.face_uv][..., 1] > 0.2).any(1)


@lru_cache(maxsize=2)
def _teeth_layout(assets: StudioAssets) -> tuple[np.ndarray, np.ndarray]:
    """Per vertex the tooth (0 to 31, 99: gums; 100 more in the upper jaw); per triangle: enamel."""
    part = assets.parts["teeth_base"]
    at = part.place(assets.base)
    label = components(len(at), part.faces)
    names, sizes = np.unique(label, return_counts=True)
    gums = names[sizes.argmax()]
    middles = np.array([at[label == n].mean(0) for n in names if n != gums])
    design = np.column_stack([np.ones(len(middles)), middles[:, 2]])
    plane = np.linalg.lstsq(design, middles[:, 1], rcond=None)[0]
    upper = at[:, 1] > plane[0] + plane[1] * at[:, 2]
    which = np.full(len(at), 99)
    for k, name in enumerate(n for n in names if n != gums):
        own = label == name
        which[own] = k
        upper[own] = at[own].mean(0)[1] > plane[0] + plane[1] * at[own].mean(0)[2]
    return which + 100 * upper, label[part.faces[:, 0]] != gums


def _gaze_lids(gaze: tuple[float, float]) -> dict[str, float]:
    """How lids follow the eyes."""
    left, down = gaze
    lids = {}
    for side, sign in (("Left", 1), ("Right", -1)):
        lids[f"eyeLook{'Down' if down > 0 else 'Up'}{side}"] = min(abs(down) / 30, 1.0)
        lids[f"eyeLook{'Out' if left * sign > 0 else 'In'}{side}"] = min(abs(left) / 40, 1.0)
    return lids


def _linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb < 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@lru_cache(maxsize=8)
def _picture(path: Path, size: int) -> np.ndarray:
    return read_texture(path, size)[..., :3]


@lru_cache(maxsize=1)
def _teeth_picture(path: Path) -> np.ndarray:
    """The teeth's map at half size, its colour carried out over the black between islands."""
    rgba = read_texture(path, 1024)
    colour, known = rgba[..., :3].copy(), rgba[..., 3] > 0.9
    for _ in range(12):
        weight = cv2.blur(known.astype(np.float32), (3, 3))
        mean = cv2.blur(colour * known[..., None], (3, 3)) / np.maximum(weight, 1e-6)[..., None]
        grow = ~known & (weight > 0)
        colour[grow] = mean[grow]
        known |= grow
    return colour


@lru_cache(maxsize=32)
def _face_map(path: str) -> np.ndarray:
    """The face's part of a skin map, ``(SKIN_PX, SKIN_PX, 3)`` linear."""
    whole = read_texture(Path(path))[..., :3]
    size = whole.shape[0]
    left, low, right, top = HEAD_UV * size
    part = whole[round(size - top) : round(size - low), round(left) : round(right)]
    how = cv2.INTER_AREA if part.shape[0] > SKIN_PX else cv2.INTER_CUBIC
    return _linear(np.clip(cv2.resize(part, (SKIN_PX, SKIN_PX), interpolation=how), 0, 1))


def _lip_cover(skin: np.ndarray) -> np.ndarray:
    """Where the skin is redder than around the mouth, 0..1, inside the box of the lips."""
    red = skin[..., 0] / (skin[..., 1] + 0.02)
    rows, columns = slice(int(0.40 * SKIN_PX), int(0.62 * SKIN_PX)), slice(int(0.60 * SKIN_PX), int(0.78 * SKIN_PX))
    cover = np.zeros(skin.shape[:2], np.float32)
    box = red[rows, columns]
    usual = np.median(box)
    cover[rows, columns] = np.clip((box / usual - 1.08) * 5, 0, 1)
    return cv2.GaussianBlur(cover, (0, 0), 1.5)
