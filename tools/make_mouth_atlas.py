"""Render the generic mouth of tier `mesh` from MakeHuman's CC0 teeth and tongue.

    python tools/make_mouth_atlas.py --parts ../shared/data/face3d/mpfb -o visavis/assets

Writes ``mouth_atlas.png`` (RGBA, straight alpha) and ``mouth_atlas.json`` (where each layer lies, px
per eye distance, anchor). ``upper``: upper gum and teeth, fixed to the skull, anchored at the middle
of the incisal edge. ``lower``: lower gum, teeth and tongue, anchored at the lower incisal edge, moves
with the jaw. The viewer looks along the face's axis, orthographically.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

EYE_DISTANCE_DM = 0.90  # outer eye corners of an adult, decimetres (MakeHuman's unit)
PX_PER_EYE = 480
PANEL = (352, 224)  # px, width and height of a layer: 0.73 x 0.47 eye distances
OVER = 4  # supersampling per axis
IVORY = np.array([1.04, 0.97, 0.84])  # the texture's enamel is neutral grey; teeth are warm
REACH_DM = 0.55  # nothing farther behind the incisors is drawn: it would be in the dark
LIGHT = np.array([0.15, 0.45, 0.88]) / np.linalg.norm([0.15, 0.45, 0.88])


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices ``(V, 3)``, texture coordinates ``(U, 2)``, triangles and their uv ``(T, 3)``."""
    vertices, uvs, faces, face_uvs = [], [], [], []
    for line in path.read_text().splitlines():
        kind, *rest = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in rest[:3]])
        elif kind == "vt":
            uvs.append([float(x) for x in rest[:2]])
        elif kind == "f":
            corners = [tuple(int(n) - 1 for n in c.split("/")[:2]) for c in rest]
            for i in range(1, len(corners) - 1):
                tri = (corners[0], corners[i], corners[i + 1])
                faces.append([c[0] for c in tri])
                face_uvs.append([c[-1] for c in tri])
    return np.array(vertices), np.array(uvs or [[0, 0]]), np.array(faces), np.array(face_uvs)


def fit_part(folder: Path, name: str, base: np.ndarray) -> np.ndarray:
    """Vertices of a part placed on the base body by its binding file (three vertices + offset)."""
    scale, rows, reading = np.ones(3), [], False
    for line in (folder / "parts" / f"{name}.mhclo").read_text().splitlines():
        words = line.split()
        if len(words) == 4 and words[0] in ("x_scale", "y_scale", "z_scale"):
            axis = "xyz".index(words[0][0])
            apart = abs(base[int(words[1]), axis] - base[int(words[2]), axis])
            scale[axis] = apart / float(words[3])
        elif words[:1] == ["verts"]:
            reading = True
        elif reading and len(words) == 9:
            rows.append([float(w) for w in words])
        elif reading and len(words) == 1 and words[0].isdigit():
            rows.append([float(words[0])] * 3 + [1, 0, 0, 0, 0, 0])
        elif reading and words:
            reading = False
    rows = np.array(rows)
    corners = base[rows[:, :3].astype(int)]
    return (corners * rows[:, 3:6, None]).sum(1) + rows[:, 6:] * scale


def components(count: int, faces: np.ndarray) -> np.ndarray:
    """A label per vertex; connected vertices share it."""
    label = np.arange(count)
    while True:
        low = label[faces].min(1)
        new = label.copy()
        np.minimum.at(new, faces.ravel(), np.repeat(low, 3))
        if (new == label).all():
            return label
        label = new


def normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit vertex normals."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    out = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(out, faces[:, i], np.cross(b - a, c - a))
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def rasterise(screen: np.ndarray, faces: np.ndarray, shape: tuple[int, int]):
    """Z-buffer: per pixel the nearest triangle (-1: none) and its barycentric weights.

    Args:
        screen: ``(V, 3)`` x right, y down in px, z larger is nearer.
    """
    depth = np.full(shape, -np.inf)
    index = np.full(shape, -1)
    weights = np.zeros((*shape, 3))
    for t, corners in enumerate(screen[faces]):
        (x0, y0, _), (x1, y1, _), (x2, y2, _) = corners
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        left, top = np.maximum(np.floor(corners[:, :2].min(0)).astype(int), 0)
        right, low = np.minimum(np.ceil(corners[:, :2].max(0)).astype(int) + 1, shape[::-1])
        if abs(area) < 1e-9 or right <= left or low <= top:
            continue
        y, x = np.mgrid[top:low, left:right] + 0.5
        w1 = ((x - x0) * (y2 - y0) - (x2 - x0) * (y - y0)) / area
        w2 = ((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) / area
        w = np.stack([1 - w1 - w2, w1, w2], -1)
        z = w @ corners[:, 2]
        box = (slice(top, low), slice(left, right))
        hit = (w >= -1e-9).all(-1) & (z > depth[box])
        depth[box][hit], index[box][hit], weights[box][hit] = z[hit], t, w[hit]
    return index, weights, depth


class Part:
    """A textured mesh."""

    def __init__(self, folder: Path, name: str, texture: str, base: np.ndarray):
        _, self.uvs, self.faces, self.face_uvs = read_obj(folder / "parts" / f"{name}.obj")
        self.vertices = fit_part(folder, name, base)
        self.normals = normals(self.vertices, self.faces)
        self.texture = cv2.imread(str(folder / "parts" / texture))[..., ::-1] / 255.0

    def keep(self, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The triangles chosen and their uv indices."""
        return self.faces[faces], self.face_uvs[faces]

    def colour(self, uv: np.ndarray) -> np.ndarray:
        """Linear colour at texture coordinates ``(N, 2)``, bilinear."""
        height, width = self.texture.shape[:2]
        at = (uv % 1.0) * (width, height)
        at[:, 1] = height - at[:, 1]
        rows = -(-len(at) // 1024)  # remap wants sides under 32768
        grid = np.resize(at.astype(np.float32), (rows, 1024, 2))
        picked = cv2.remap(
            self.texture.astype(np.float32), grid[..., 0], grid[..., 1], cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        return picked.reshape(-1, 3)[: len(at)] ** 2.2


def draw(parts, anchor: np.ndarray, anchor_px: tuple[float, float], fade: dict) -> np.ndarray:
    """Render parts into one panel: ``PANEL`` RGBA float 0..1, straight alpha, gamma-coded.

    Args:
        parts: pairs of a `Part` and the triangles of it to draw.
        anchor: the 3D point that lands on ``anchor_px`` (px of the panel).
        fade: ``depth_dm`` behind the anchor and ``side_dm`` beside it over which light falls to 1/e.
    """
    shape = (PANEL[1] * OVER, PANEL[0] * OVER)
    zoom = PX_PER_EYE / EYE_DISTANCE_DM * OVER
    rgb, best = np.zeros((*shape, 3)), np.full(shape, -np.inf)
    for part, chosen in parts:
        near = part.vertices[part.faces].mean(1)[:, 2] > anchor[2] - REACH_DM
        faces, face_uvs = part.keep(chosen & near)
        flat = (part.vertices - anchor) * (1, -1, 1) * zoom
        flat[:, :2] += np.array(anchor_px) * OVER
        index, weights, depth = rasterise(flat, faces, shape)
        hit = (index >= 0) & (depth > best)
        w, t = weights[hit][:, :, None], index[hit]
        place = (part.vertices[faces[t]] * w).sum(1) - anchor
        facing = (part.normals[faces[t]] * w).sum(1)
        facing /= np.maximum(np.linalg.norm(facing, axis=1, keepdims=True), 1e-9)
        facing *= np.sign(facing[:, 2:] + 1e-9)
        lambert = np.clip(facing @ LIGHT, 0, 1)
        gloss = np.clip(facing @ (LIGHT + [0, 0, 1]) / np.linalg.norm(LIGHT + [0, 0, 1]), 0, 1) ** 60
        dim = np.exp(np.minimum(place[:, 2], 0) / fade["depth_dm"])
        dim *= np.exp(-((place[:, 0] / fade["side_dm"]) ** 2))
        colour = part.colour((part.uvs[face_uvs[t]] * w).sum(1))
        colour = colour * np.where(colour.min(1, keepdims=True) > 0.25, IVORY, 1.0)
        lit = colour * (0.42 + 0.58 * lambert)[:, None] + 0.10 * gloss[:, None]
        rgb[hit], best[hit] = lit * dim[:, None], depth[hit]
    cover = (best > -np.inf).astype(np.float64)
    small = cv2.resize(cover, PANEL, interpolation=cv2.INTER_AREA)
    pre = cv2.resize(rgb, PANEL, interpolation=cv2.INTER_AREA)
    straight = pre / np.maximum(small, 1e-6)[..., None]
    return np.dstack([np.clip(straight, 0, 1) ** (1 / 2.2), small])


def spread(panel: np.ndarray) -> np.ndarray:
    """Carry colour outward under zero alpha, so that resampling draws no dark rim."""
    colour, alpha = panel[..., :3].copy(), panel[..., 3]
    known = alpha > 0.02
    for _ in range(24):
        weight = cv2.blur(known.astype(np.float64), (3, 3))
        mean = cv2.blur(colour * known[..., None], (3, 3)) / np.maximum(weight, 1e-9)[..., None]
        grow = ~known & (weight > 0)
        colour[grow] = mean[grow]
        known |= grow
    return np.dstack([colour, alpha])


def render_layers(folder: Path) -> tuple[np.ndarray, dict]:
    """Both layers side by side ``(H, 2 W, 4)`` uint8 RGBA, and their description."""
    base = read_obj(folder / "base.obj")[0]
    teeth = Part(folder, "teeth_base", "teeth.png", base)
    tongue = Part(folder, "tongue01", "tongue01_diffuse.png", base)
    label = components(len(teeth.vertices), teeth.faces)
    upper = split_arches(teeth.vertices, label)
    is_upper = upper[teeth.faces[:, 0]]
    edge_up, edge_low = incisal_edges(teeth.vertices, label, upper)
    whole = np.ones(len(tongue.faces), bool)
    width, height = PANEL
    at_up, at_low = (width / 2, height * 0.62), (width / 2, height * 0.30)
    fade_up, fade_low = {"depth_dm": 0.22, "side_dm": 0.32}, {"depth_dm": 0.17, "side_dm": 0.30}
    layers = [
        draw([(teeth, is_upper)], edge_up, at_up, fade_up),
        draw([(teeth, ~is_upper), (tongue, whole)], edge_low, at_low, fade_low),
    ]
    atlas = np.concatenate([spread(p) for p in layers], 1)
    about = {
        "px_per_eye_distance": PX_PER_EYE,
        "colour": "RGBA, straight alpha, sRGB",
        "layers": {
            "upper": {"rect": [0, 0, width, height], "anchor": list(at_up), "moves_with": "skull"},
            "lower": {"rect": [width, 0, width, height], "anchor": list(at_low), "moves_with": "jaw"},
        },
        "anchor": "px within the layer: middle of the incisal edge",
        "cavity_rgb": [38, 14, 14],
        "source": "MakeHuman teeth_base, tongue01 (CC0)",
    }
    return np.rint(atlas * 255).astype(np.uint8), about


def split_arches(vertices: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Per vertex: whether it belongs to the upper jaw.

    Every tooth is a piece of its own, both gums are one; the plane fitted through the middles of
    all teeth parts them.
    """
    names, sizes = np.unique(label, return_counts=True)
    middles = np.array([vertices[label == n].mean(0) for n in names])
    teeth = sizes < sizes.max()
    design = np.column_stack([np.ones(teeth.sum()), middles[teeth, 2]])
    plane = np.linalg.lstsq(design, middles[teeth, 1], rcond=None)[0]
    above = vertices[:, 1] > plane[0] + plane[1] * vertices[:, 2]
    for name, middle, tooth in zip(names, middles, teeth, strict=True):
        if tooth:
            above[label == name] = middle[1] > plane[0] + plane[1] * middle[2]
    return above


def incisal_edges(
    vertices: np.ndarray, label: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Middle of the upper and of the lower incisal edge, each ``(3,)``."""
    names, sizes = np.unique(label, return_counts=True)
    front = (label != names[sizes.argmax()]) & (np.abs(vertices[:, 0]) < 0.08)
    front &= vertices[:, 2] > vertices[front, 2].max() - 0.12
    up, low = vertices[front & upper], vertices[front & ~upper]
    edge_up = np.array([0.0, up[:, 1].min(), up[:, 2].max()])
    edge_low = np.array([0.0, low[:, 1].max(), low[:, 2].max()])
    return edge_up, edge_low


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=Path, default=Path("../shared/data/face3d/mpfb"))
    parser.add_argument("-o", "--out", type=Path, default=Path("visavis/assets"))
    given = parser.parse_args()
    atlas, about = render_layers(given.parts)
    given.out.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(given.out / "mouth_atlas.png"), cv2.cvtColor(atlas, cv2.COLOR_RGBA2BGRA))
    (given.out / "mouth_atlas.json").write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps({"png": str(given.out / "mouth_atlas.png"), "shape": atlas.shape}))


if __name__ == "__main__":
    main()
