"""The 3D assets of the studio: a head that can be anyone, its mouth and eyes, as arrays.

Sources: MakeHuman's base mesh, targets, skins and parts (CC0) and the ARKit and viseme targets that
TalkingHead made for that mesh (MIT); see the data README. Lengths are decimetres, y up, the face
looks along +z. The head is subdivided once (Catmull and Clark 1978), so that lips are round.
"""

from __future__ import annotations

import gzip
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from visavis.errors import InputError

BODY_VERTICES = 13380
HEAD_FROM_DM = 1.1  # the neck is cut this far below the teeth
Offsets = tuple[np.ndarray, np.ndarray]  # vertex indices (K,), displacements (K, 3) dm


@dataclass(frozen=True)
class Piece:
    """A mesh whose corners are split where its texture is.

    Attributes:
        faces: ``(T, 3)`` int, into the split vertices.
        source: ``(V,)`` int, the vertex of the whole part each split vertex is.
        uv: ``(V, 2)`` float32, v up.
    """

    faces: np.ndarray
    source: np.ndarray
    uv: np.ndarray


@dataclass(frozen=True)
class Part:
    """A mesh bound to the base body: three of its vertices, weights, and an offset.

    Attributes:
        corners: ``(V, 3)`` int.
        weights: ``(V, 3)``.
        offsets: ``(V, 3)`` in units of ``spans``.
        spans: per axis two body vertices and their distance, dm, on the body it was made for.
        faces, face_uv: ``(T, 3)`` int.
        uv: ``(U, 2)``.
    """

    corners: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    spans: tuple[tuple[int, int, float], ...]
    faces: np.ndarray
    face_uv: np.ndarray
    uv: np.ndarray

    def place(self, body: np.ndarray) -> np.ndarray:
        """Vertices ``(V, 3)`` on a body ``(19158, 3)``."""
        scale = [abs(body[a, k] - body[b, k]) / d for k, (a, b, d) in enumerate(self.spans)]
        return (body[self.corners] * self.weights[..., None]).sum(1) + self.offsets * scale


class StudioAssets:
    """Everything read from the asset folder once; constants only.

    Args:
        folder: ``face3d/mpfb`` of the data.

    Raises:
        InputError: the folder lacks the base mesh or its targets.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "base.obj").is_file():
            raise InputError(f"no base.obj in {folder}; give the folder face3d/mpfb of the data")
        self.base, uv, quads, quad_uv = _read_obj(self.folder / "base.obj", "body")
        self.parts = {n: self._part(n) for n in ("teeth_base", "tongue01", "eyes_high_poly")}
        teeth = self.parts["teeth_base"].place(self.base)
        near = self.base[quads][..., 1].min(1) > teeth[:, 1].min() - HEAD_FROM_DM
        self.refine, faces, corner_uv = subdivide(quads[near], quad_uv[near], uv, len(self.base))
        self.skin = split_corners(faces, corner_uv)
        self.targets = self._targets()
        self.skins = sorted((self.folder / "skins").glob("*.jpg"))

    def offsets(self, name: str) -> Offsets:
        """One shape target by name, such as ``jawOpen`` or ``nose/nose-hump-incr``.

        Raises:
            InputError: there is none.
        """
        if name not in self.targets:
            raise InputError(f"no shape target {name!r} in {self.folder}")
        found = self.targets[name]
        if isinstance(found, Path):
            found = self.targets[name] = _read_target(gzip.open(found, "rt").read())
        return found

    def body(self, shapes: dict[str, float]) -> np.ndarray:
        """The whole base body, ``(19158, 3)`` dm, with weighted shape targets added."""
        body = self.base.copy()
        for name, weight in shapes.items():
            if weight:
                index, moved = self.offsets(name)
                body[index] += weight * moved
        return body

    def _targets(self) -> dict[str, Offsets | Path]:
        found: dict[str, Offsets | Path] = {}
        for path in sorted((self.folder / "targets").glob("*/*.target.gz")):
            found[f"{path.parent.name}/{path.name.removesuffix('.target.gz')}"] = path
        with zipfile.ZipFile(self.folder / "arkit_viseme_targets.zip") as pack:
            for name in pack.namelist():
                if name.endswith(".target") and "__MACOSX" not in name:
                    text = pack.read(name).decode("utf-8", "replace")
                    found[Path(name).stem] = _read_target(text)
        return found

    def _part(self, name: str) -> Part:
        home = self.folder / "parts"
        _, uv, faces, face_uv = _read_obj(home / f"{name}.obj")
        rows, spans, reading = [], {}, False
        for line in (home / f"{name}.mhclo").read_text(encoding="utf-8").splitlines():
            words = line.split()
            if len(words) == 4 and words[0] in ("x_scale", "y_scale", "z_scale"):
                spans[words[0][0]] = int(words[1]), int(words[2]), float(words[3])
            elif words[:1] == ["verts"]:
                reading = True
            elif reading and len(words) == 9:
                rows.append([float(w) for w in words])
            elif reading and len(words) == 1 and words[0].isdigit():
                rows.append([float(words[0])] * 3 + [1.0, 0, 0, 0, 0, 0])
            elif words:
                reading = False
        bound = np.array(rows)
        return Part(
            bound[:, :3].astype(int), bound[:, 3:6], bound[:, 6:],
            tuple(spans[axis] for axis in "xyz"), triangles(faces), triangles(face_uv), uv,
        )  # fmt: skip


def _read_obj(path: Path, group: str = "") -> tuple[np.ndarray, ...]:
    """Vertices ``(V, 3)``, uv ``(U, 2)``, quads ``(Q, 4)`` and their uv indices; of one group.

    A triangle is a quad whose last corner is repeated.
    """
    vertices, uv, faces, face_uv, now = [], [], [], [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, *rest = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in rest[:3]])
        elif kind == "vt":
            uv.append([float(x) for x in rest[:2]])
        elif kind == "g":
            now = rest[0]
        elif kind == "f" and (not group or now == group):
            corners = [tuple(int(n) - 1 for n in c.split("/")[:2]) for c in rest]
            corners += corners[-1:] * (4 - len(corners))
            faces.append([c[0] for c in corners])
            face_uv.append([c[-1] for c in corners])
    return np.array(vertices), np.array(uv), np.array(faces), np.array(face_uv)


def _read_target(text: str) -> Offsets:
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    rows = [r for r in rows if len(r) == 4]
    index = np.array([int(r[0]) for r in rows], int)
    return index, np.array([[float(x) for x in r[1:]] for r in rows]).reshape(-1, 3)


def triangles(quads: np.ndarray) -> np.ndarray:
    """``(Q, 4)`` to ``(T, 3)``; quads whose last corner is repeated give one triangle."""
    both = np.concatenate([quads[:, :3], quads[:, [0, 2, 3]]])
    whole = np.concatenate([np.ones(len(quads), bool), quads[:, 2] != quads[:, 3]])
    return both[whole]


def split_corners(faces: np.ndarray, corner_uv: np.ndarray) -> Piece:
    """Faces ``(T, 3)`` with texture coordinates per corner ``(T, 3, 2)`` to one index per corner."""
    key = np.concatenate([faces.reshape(-1, 1), np.rint(corner_uv.reshape(-1, 2) * 1e6)], 1)
    kept, inverse = np.unique(key.astype(np.int64), axis=0, return_inverse=True)
    return Piece(inverse.reshape(-1, 3), kept[:, 0].copy(), (kept[:, 1:] / 1e6).astype(np.float32))


def subdivide(
    quads: np.ndarray, quad_uv: np.ndarray, uv: np.ndarray, count: int
) -> tuple[object, np.ndarray, np.ndarray]:
    """One step of Catmull-Clark subdivision of quads; texture coordinates are halved straight.

    Args:
        quads: ``(Q, 4)`` vertex indices.
        quad_uv: ``(Q, 4)`` indices into ``uv``.
        uv: ``(U, 2)``.
        count: vertices of the mesh.

    Returns:
        a sparse ``(V', count)`` matrix that gives the new vertices, triangles ``(8 Q, 3)``, and
        their texture coordinates ``(8 Q, 3, 2)``.
    """
    from scipy import sparse

    size = len(quads)
    rim = np.stack([quads, np.roll(quads, -1, 1)], -1).reshape(-1, 2)  # edge k leaves corner k
    edges, which, uses = np.unique(np.sort(rim, 1), axis=0, return_inverse=True, return_counts=True)
    which = which.reshape(size, 4)
    corner = np.repeat(np.arange(size), 4)
    middle = sparse.csr_matrix((np.full(4 * size, 0.25), (corner, quads.ravel())), (size, count))
    ends = sparse.csr_matrix(
        (np.full(2 * len(edges), 0.5), (np.repeat(np.arange(len(edges)), 2), edges.ravel())),
        (len(edges), count),
    )
    beside = sparse.csr_matrix(
        (np.full(4 * size, 0.5), (which.ravel(), corner)), (len(edges), size)
    )
    inner = sparse.diags((uses == 2).astype(float))
    edge_points = (
        inner @ (0.5 * ends + 0.5 * beside @ middle) + (sparse.identity(len(edges)) - inner) @ ends
    )
    used = np.unique(quads)
    old = _corner_rule(quads, edges, uses, middle, ends, count)[used]
    renumber = np.zeros(count, int)
    renumber[used] = np.arange(len(used))
    e, f = len(used) + which, len(used) + len(edges) + np.arange(size)
    small = np.stack(
        [np.stack([renumber[quads[:, k]], e[:, k], f, e[:, k - 1]], 1) for k in range(4)], 1
    ).reshape(-1, 4)
    at = uv[quad_uv]
    half, centre = (at + np.roll(at, -1, 1)) / 2, at.mean(1)
    small_uv = np.stack(
        [np.stack([at[:, k], half[:, k], centre, half[:, k - 1]], 1) for k in range(4)], 1
    ).reshape(-1, 4, 2)
    faces = np.concatenate([small[:, :3], small[:, [0, 2, 3]]])
    corner_uv = np.concatenate([small_uv[:, :3], small_uv[:, [0, 2, 3]]])
    return sparse.vstack([old, edge_points, middle]).tocsr(), faces, corner_uv


def _corner_rule(quads, edges, uses, middle, ends, count):
    """The rows that move old vertices: (F + 2 R + (n - 3) P) / n inside, the curve rule on a rim."""
    from scipy import sparse

    corner = np.repeat(np.arange(len(quads)), 4)
    valence = np.maximum(np.bincount(quads.ravel(), minlength=count), 1)
    around = sparse.csr_matrix(
        (1 / valence[quads.ravel()], (quads.ravel(), corner)), (count, len(quads))
    )
    degree = np.maximum(np.bincount(edges.ravel(), minlength=count), 1)
    touch = np.repeat(np.arange(len(edges)), 2)
    star = sparse.csr_matrix(
        (1 / degree[edges.ravel()], (edges.ravel(), touch)), (count, len(edges))
    )
    n = np.maximum(degree, 3).astype(float)
    inside = sparse.diags(1 / n) @ (
        around @ middle + 2 * star @ ends + sparse.diags(n - 3) @ sparse.identity(count)
    )
    border = edges[uses == 1]
    rim = np.zeros(count, bool)
    rim[border.ravel()] = True
    pairs = sparse.csr_matrix(
        (np.ones(2 * len(border)), (border.ravel(), border[:, ::-1].ravel())), (count, count)
    )
    curve = 0.75 * sparse.identity(count) + 0.125 * pairs
    on = sparse.diags(rim.astype(float))
    return (on @ curve + (sparse.identity(count) - on) @ inside).tocsr()


def read_texture(path: Path, size: int | None = None) -> np.ndarray:
    """A texture as ``(H, W, 3 or 4)`` float32 in 0..1, sRGB; the skins reduced to ``size``.

    Raises:
        InputError: it cannot be read.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise InputError(f"{path} is no readable picture; copy the assets again")
    if image.shape[2] == 4:
        image = image[..., [2, 1, 0, 3]]
    else:
        image = image[..., ::-1]
    if size and image.shape[0] != size:
        how = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_CUBIC
        image = cv2.resize(image, (size, size), interpolation=how)
    return np.ascontiguousarray(image, np.float32) / 255


def components(count: int, faces: np.ndarray) -> np.ndarray:
    """A label per vertex ``(count,)``: the smallest vertex it is connected to."""
    label = np.arange(count)
    while True:
        low = label.copy()
        np.minimum.at(low, faces.ravel(), np.repeat(label[faces].min(1), 3))
        if (low == label).all():
            return label
        label = low
