"""One studio person as meshes and textures: vertices follow the expression, colour stays."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from visavis.train.studio_assets import (
    Piece,
    StudioAssets,
    components,
    read_texture,
    split_corners,
)
from visavis.train.studio_person import Looks

HEAD_UV = np.array([0.635, 0.14, 1.0, 0.825])  # of the skin maps: where the face is
SKIN_PX = 640  # side of the face's texture
GUMS_DM = (0.16, 0.12)  # how far above and below the bite gums go on outside the arch


class Model:
    """One person as meshes: vertices follow the expression, texture stays.

    Args:
        assets: the studio's.
        looks: who.
    """

    def __init__(self, assets: StudioAssets, looks: Looks):
        self.assets, self.looks = assets, looks
        self.neutral = assets.body(looks.shapes)
        self.pieces = dict(pieces_of(assets))
        self._places = {n: p for n, p in assets.parts.items()}
        self._which = _teeth_layout(assets)[0]

    def textures(self) -> dict[str, np.ndarray]:
        """Base colour of every class, ``(H, W, 3)`` float32 linear."""
        looks, parts = self.looks, self.assets.folder / "parts"
        teeth = _linear(_teeth_picture(parts / "teeth.png"))
        light = teeth @ np.array([0.3, 0.5, 0.2], np.float32)
        enamel = np.clip(light / 0.55, 0.3, 1.05)[..., None] ** 0.45 * looks.enamel
        gums = np.clip(light / 0.13, 0.35, 2.0)[..., None] ** 0.7 * looks.gum
        tongue = _linear(_picture(parts / "tongue01_diffuse.png", 512)) * looks.tongue * 0.75
        return {
            "skin": self._skin_texture(),
            "cavity": np.full((4, 4, 3), looks.gum * 0.6, np.float32),
            "teeth": enamel.astype(np.float32),
            "gums": gums.astype(np.float32),
            "tongue": tongue.astype(np.float32),
            "eyes": self._eye_texture(),
        }

    def body(self, weights: dict[str, float], gaze: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
        """The base body ``(19158, 3)`` dm with an expression.

        Args:
            weights: of the ARKit and viseme targets.
            gaze: degrees to the person's left and down; the lids follow.
        """
        body = self.neutral.copy()
        for name, weight in (weights | _gaze_lids(gaze)).items():
            if weight:
                index, moved = self.assets.offsets(name)
                body[index] += weight * moved
        return body

    def vertices(
        self, body: np.ndarray, gaze: tuple[float, float] = (0.0, 0.0)
    ) -> dict[str, np.ndarray]:
        """Vertices of every class's piece, ``(V, 3)`` dm, on a body of `body`."""
        teeth = self._teeth(body)
        whole = {
            "skin": self.assets.refine @ body,
            "teeth": teeth,
            "gums": teeth,
            "tongue": self._places["tongue01"].place(body),
            "eyes": self._eyes(body, gaze),
        }
        whole["cavity"] = whole["skin"]
        return {n: whole[n][p.source] for n, p in self.pieces.items()}

    @classmethod
    def average(cls, assets: StudioAssets) -> dict[str, np.ndarray]:
        """Skin and eyes of the base body, ``(V, 3)`` dm, by class."""
        eyes = assets.parts["eyes_high_poly"].place(assets.base)
        whole = {"skin": assets.refine @ assets.base, "eyes": eyes}
        return {n: whole[n][p.source] for n, p in pieces_of(assets) if n in whole}

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
        return np.clip(skin * np.exp(looks.pores * grain)[..., None], 0.002, 0.85).astype(
            np.float32
        )

    def _eye_texture(self) -> np.ndarray:
        hue, gain, blue = self.looks.iris
        name = "blue_eye.png" if blue else "brown_eye.png"
        picture = _linear(_picture(self.assets.folder / "parts" / name, 512))
        colour = picture.max(2) - picture.min(2)
        cover = cv2.GaussianBlur(np.clip(colour * 8 - 0.6, 0, 1), (0, 0), 1.5)[..., None]
        tint = np.array([1 + 4 * hue, 1.0, 1 - 4 * hue]) * gain
        return np.clip(picture * (1 - cover + cover * tint), 0, 0.9).astype(np.float32)


def pieces_of(assets: StudioAssets) -> list[tuple[str, Piece]]:
    """Class to mesh: the skin in two (the mouth's wall apart), the teeth in enamel and gums."""
    skin = assets.skin
    wall = (skin.uv[:, 1] < 0.138) & (skin.uv[:, 0] > 0.70)
    inside = wall[skin.faces].all(1)
    whole = (assets.refine @ assets.base)[skin.source]
    middles, plane = _bite(assets)
    roof = whole[:, 1] - plane[0] - plane[1] * whole[:, 2] > GUMS_DM[0]  # the palate is the gums'
    hidden = roof | _beyond_arch(whole, middles, plane)
    shown = inside & ~hidden[skin.faces].any(1)
    corner = skin.uv.astype(np.float64)
    corner = (corner - HEAD_UV[:2]) / (HEAD_UV[2:] - HEAD_UV[:2])
    outer = Piece(skin.faces, skin.source, np.clip(corner, 0, 1).astype(np.float32))
    found = [("skin", _keep(outer, ~inside)), ("cavity", _keep(skin, shown))]
    _, enamel, gums = _teeth_layout(assets)
    for name, cls, keep in (
        ("teeth_base", "teeth", enamel), ("teeth_base", "gums", gums),
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
    return (part.uv[part.face_uv][..., 0] < 0.86).any(1) | (
        part.uv[part.face_uv][..., 1] > 0.2
    ).any(1)


@lru_cache(maxsize=2)
def _bite(assets: StudioAssets) -> tuple[np.ndarray, np.ndarray]:
    """Middles of the 32 teeth ``(32, 3)`` dm; height where they meet and its slope along z."""
    part = assets.parts["teeth_base"]
    at = part.place(assets.base)
    label = components(len(at), part.faces)
    names, sizes = np.unique(label, return_counts=True)
    middles = np.array([at[label == n].mean(0) for n in names if n != names[sizes.argmax()]])
    design = np.column_stack([np.ones(len(middles)), middles[:, 2]])
    return middles, np.linalg.lstsq(design, middles[:, 1], rcond=None)[0]


@lru_cache(maxsize=2)
def _teeth_layout(assets: StudioAssets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per vertex the tooth (0 to 31, 99: gums; 100 more above); per triangle: enamel, gums shown."""
    part = assets.parts["teeth_base"]
    at = part.place(assets.base)
    label = components(len(at), part.faces)
    names, sizes = np.unique(label, return_counts=True)
    gums = names[sizes.argmax()]
    middles, plane = _bite(assets)
    upper = at[:, 1] > plane[0] + plane[1] * at[:, 2]
    which = np.full(len(at), 99)
    for k, name in enumerate(n for n in names if n != gums):
        own = label == name
        which[own] = k
        upper[own] = at[own].mean(0)[1] > plane[0] + plane[1] * at[own].mean(0)[2]
    enamel = label[part.faces[:, 0]] != gums
    beyond = _beyond_arch(at, middles, plane)
    hidden = beyond[part.faces].any(1)
    return which + 100 * upper, enamel, ~enamel & ~hidden


def _beyond_arch(at: np.ndarray, middles: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """Per vertex ``(V,)``: behind lips and cheeks, where it would come out through a thin face.

    Args:
        at: ``(V, 3)`` dm, of the base body.
        middles: ``(32, 3)`` of the teeth.
        plane: height where the teeth meet, and its slope along z.
    """
    centre = middles[:, [0, 2]].mean(0)
    nearest = np.linalg.norm(at[:, None, [0, 2]] - middles[None][..., [0, 2]], axis=2).argmin(1)
    reach = np.linalg.norm(middles[:, [0, 2]] - centre, axis=1)[nearest]
    outer = np.linalg.norm(at[:, [0, 2]] - centre, axis=1) > 0.85 * reach
    height = at[:, 1] - plane[0] - plane[1] * at[:, 2]
    return outer & ((height > GUMS_DM[0]) | (height < -GUMS_DM[1]))


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
    rows, columns = (
        slice(int(0.40 * SKIN_PX), int(0.62 * SKIN_PX)),
        slice(int(0.60 * SKIN_PX), int(0.78 * SKIN_PX)),
    )
    cover = np.zeros(skin.shape[:2], np.float32)
    box = red[rows, columns]
    usual = np.median(box)
    cover[rows, columns] = np.clip((box / usual - 1.08) * 5, 0, 1)
    return cv2.GaussianBlur(cover, (0, 0), 1.5)
