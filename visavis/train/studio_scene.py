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
from visavis.train.studio_assets import Piece
from visavis.train.studio_model import Model

VARIANTS = ("llvm_ad_rgb", "scalar_rgb")  # the first that runs here is used
SIZE = 256  # px, side of a picture
BOUNCES = 4
FIREFLY = 12.0  # radiance above which one path is cut off
CLASSES = ("skin", "cavity", "teeth", "gums", "tongue", "eyes")


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
    for folder in (
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ):
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

    def directions(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Unit vectors ``(N, 3)`` float32 through places in the picture, px from its corner."""
        half = np.tan(np.deg2rad(self.field / 2))
        flat = np.stack([x, y, np.full(len(x), self.size)], 1) / self.size * 2 - 1
        flat[:, :2] *= half
        way = flat @ self.axes()
        return (way / np.linalg.norm(way, axis=1, keepdims=True)).astype(np.float32)

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points ``(N, 3)`` dm to ``(N, 3)`` px: x, y, and depth against the target."""
        seen = (points - np.array(self.eye)) @ self.axes().T
        away = float(np.linalg.norm(np.subtract(self.target, self.eye)))
        focal = self.size / 2 / np.tan(np.deg2rad(self.field / 2))
        flat = seen[:, :2] / seen[:, 2:] * focal + (self.size - 1) / 2
        return np.column_stack([flat, (seen[:, 2] - away) * focal / away])


@dataclass(frozen=True)
class Seen:
    """What rays through a picture meet, ``over`` of them per pixel and axis.

    Attributes:
        kinds: ``(S * over, S * over)`` index of the class, -1 behind.
        triangle: likewise, of that class's mesh.
        bary: with two more columns, the weights of corners 2 and 3.
        masks: by class ``(S, S)`` float32, the share of each pixel it covers.
        albedo: ``(S, S, 3)`` float32, colour of the skin; 1 elsewhere.
    """

    kinds: np.ndarray
    triangle: np.ndarray
    bary: np.ndarray
    masks: dict[str, np.ndarray]
    albedo: np.ndarray


class Studio:
    """Renders one person under one light; expressions and cameras may change.

    Args:
        model: who.
        light: ``(H, 2 H, 3)`` linear radiance around the head, as `draw_light` makes it.
    """

    def __init__(self, model: Model, light: np.ndarray):
        self.mi = open_renderer()
        self.model, self._light = model, light
        still = model.vertices(model.neutral)
        gloss = dict(zip(("skin", "lips", "teeth"), model.looks.gloss, strict=True))
        rough = {
            "skin": gloss["skin"], "teeth": gloss["teeth"], "gums": 0.25, "tongue": 0.35,
            "cavity": 0.3, "eyes": 0.06,
        }  # fmt: skip
        wet = {"teeth": 0.6, "gums": 0.8, "tongue": 0.6, "cavity": 0.5, "eyes": 1.0}
        colours = model.textures()
        self._skin = colours["skin"]
        self._shapes = {
            name: self._mesh(
                name, still[name], piece, colours[name], rough[name], wet.get(name, 0.0)
            )
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

    def shoot(self, camera: Camera, counts: np.ndarray, seed: int) -> np.ndarray:
        """One picture, ``(S, S, 3)`` float32 linear.

        The paths are handed over one by one, not as a camera of Mitsuba's: the numbers of a camera
        would be compiled into the code, a second each time.

        Args:
            camera: from where.
            counts: ``(S, S)`` int, paths for each pixel, at least 1.
            seed: of the paths.
        """
        mi = self.mi
        which = np.repeat(np.arange(counts.size), counts.ravel())
        jitter = np.random.default_rng(seed).random((2, len(which)), np.float32)
        y, x = np.divmod(which, camera.size)
        way = camera.directions(x + jitter[0], y + jitter[1])
        ray = mi.RayDifferential3f(
            mi.Point3f(*map(float, camera.eye)), mi.Vector3f(*np.ascontiguousarray(way.T))
        )
        sampler = mi.load_dict({"type": "independent"})
        sampler.seed(seed, len(which))
        light = np.array(self._path.sample(self._scene, sampler, ray)[0], np.float32)
        light = np.minimum(light.reshape(3, -1), FIREFLY)
        sums = [np.bincount(which, c, counts.size) for c in light]
        picture = np.stack(sums, 1) / counts.reshape(-1, 1)
        return picture.reshape(camera.size, camera.size, 3).astype(np.float32)

    def look(self, camera: Camera, over: int = 2) -> Seen:
        """What a regular grid of ``over`` by ``over`` rays per pixel meets."""
        mi, side = self.mi, camera.size * over
        ramp = (np.arange(side) + 0.5) / over
        way = camera.directions(np.tile(ramp, side), np.repeat(ramp, side))
        if mi.variant().startswith("scalar"):
            found = [self._scene.ray_intersect_preliminary(mi.Ray3f(camera.eye, w)) for w in way]
            names = {shape.id(): k for k, shape in enumerate(self._shapes.values())}
            kinds = np.array([names[f.shape.id()] if f.is_valid() else -1 for f in found])
            triangle = np.array([f.prim_index for f in found])
            bary = np.array([f.prim_uv for f in found]).reshape(-1, 2)
        else:
            ray = mi.Ray3f(
                mi.Point3f(*map(float, camera.eye)), mi.Vector3f(*np.ascontiguousarray(way.T))
            )
            found = self._scene.ray_intersect_preliminary(ray, coherent=True)
            place = mi.Float(-1.0)
            for k, shape in enumerate(self._shapes.values()):
                place[found.shape == mi.ShapePtr(shape)] = mi.Float(k)
            kinds = np.array(place).astype(int)
            triangle, bary = np.array(found.prim_index).astype(int), np.array(found.prim_uv).T
        shape = (camera.size, over, camera.size, over)
        masks = {
            name: (kinds == k).reshape(shape).mean((1, 3)).astype(np.float32)
            for k, name in enumerate(self._shapes)
        }
        skin = np.flatnonzero(kinds == list(self._shapes).index("skin"))
        albedo = np.ones((side * side, 3), np.float32)
        albedo[skin] = self._skin_colour(triangle[skin], bary[skin])
        albedo = albedo.reshape(*shape, 3).mean((1, 3))
        grid = (side, side)
        return Seen(
            kinds.reshape(grid), triangle.reshape(grid), bary.reshape(*grid, 2), masks, albedo
        )

    def _skin_colour(self, triangle: np.ndarray, bary: np.ndarray) -> np.ndarray:
        """Texture of the skin ``(N, 3)`` at places on its triangles."""
        piece = self.model.pieces["skin"]
        corners = piece.uv[piece.faces[triangle]]
        weights = np.column_stack([1 - bary.sum(1), bary])[..., None]
        u, v = (corners * weights).sum(1).T
        size = self._skin.shape[0]
        rows = np.clip((1 - v) * size, 0, size - 1).astype(int)
        return self._skin[rows, np.clip(u * size, 0, size - 1).astype(int)]

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
            name,
            len(at),
            len(piece.faces),
            has_vertex_normals=True,
            has_vertex_texcoords=True,
            props=props,
        )
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
    tint = np.exp(rng.normal(0, 0.06, 3))
    sky = (0.5 + rng.uniform(0, 0.5) * up)[..., None] * tint * rng.uniform(0.15, 0.8)
    blobs = rng.normal(0, 0.5, (6, 12, 1)) + rng.normal(0, 0.06, (6, 12, 3))
    walls = np.exp(cv2.resize(blobs, (2 * rows, rows), interpolation=cv2.INTER_CUBIC))
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


def denoise(picture: np.ndarray, albedo: np.ndarray, masks: dict[str, np.ndarray]) -> np.ndarray:
    """Smooth the light on skin and behind, not its texture; what is wet is smoothed a little.

    Args:
        picture: ``(S, S, 3)`` linear.
        albedo: ``(S, S, 3)`` colour of the skin without light; 1 elsewhere.
        masks: cover by class.
    """
    base = albedo + 0.03
    light = np.log(np.maximum(picture, 0) / base + 0.02).astype(np.float32)
    light = np.dstack(
        [cv2.medianBlur(np.ascontiguousarray(c), 5) for c in np.moveaxis(light, 2, 0)]
    )
    for reach, tone in ((13, 1.2), (11, 0.6)):
        light = cv2.bilateralFilter(light, reach, tone, reach / 3)
    smooth = (np.exp(light) - 0.02) * base
    coded = np.log(np.maximum(picture, 0) + 0.02).astype(np.float32)
    coded = np.dstack(
        [cv2.medianBlur(np.ascontiguousarray(c), 3) for c in np.moveaxis(coded, 2, 0)]
    )
    sharp = np.exp(cv2.bilateralFilter(coded, 5, 0.35, 1.0)) - 0.02
    inside = 1 - cv2.erode((masks["skin"] > 0.99).astype(np.uint8), np.ones((3, 3)))
    behind = sum(masks.values()) < 0.01
    wet = cv2.GaussianBlur((inside * ~behind).astype(np.float32), (0, 0), 0.7)[..., None]
    return smooth + (sharp - smooth) * wet


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
