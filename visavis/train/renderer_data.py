"""Training data of the mouth net: rigid mouth crops of stills and videos, and their augmentation.

A still with an open mouth is its own supervision: the inner mouth is taken away and asked for.
Identities are kept apart by face embedding before 15 % of them are held out, because the
stills repeat faces under several names.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from safetensors.numpy import load

from visavis.backends import Graph
from visavis.errors import InputError
from visavis.facemesh import FaceMesh
from visavis.mouth import (
    INNER_LOWER,
    SIZE,
    SPAN,
    apply_transform,
    crop_transform,
    lip_gap,
    mouth_inputs,
    mouth_masks,
    warp_crop,
)
from visavis.train.renderer_teeth import Teeth, mesh_shade, register_teeth, teeth_light
from visavis.train.shards import read_index, read_pictures

MARGIN = 32  # px around the crop kept in the cache, so that augmentation has pixels to move in
CANVAS = SIZE + 2 * MARGIN
LEAST_GAP = 0.012  # eye distances; stills and frames below show no inner mouth
SAME_PERSON = 0.50  # cosine of embeddings above which two stills are one identity
REID_POINTS = np.array(
    [[0.3156, 0.4616], [0.6826, 0.4616], [0.5003, 0.6405], [0.3495, 0.8247], [0.6534, 0.8247]]
)


@dataclass(frozen=True)
class MouthData:
    """Mouth crops with margin.

    Attributes:
        images: ``(N, CANVAS, CANVAS, 3)`` uint8 RGB; the crop is the middle.
        points: ``(N, 478, 2)`` float32, px of the crop (not of the canvas).
        gaps: ``(N,)`` lip opening in eye distances.
        eye_px: ``(N,)`` eye distance in the source, px: its true resolution.
        domains, names, people: ``(N,)`` str; ``people`` is one name per identity
            (per clip, in videos).
    """

    images: np.ndarray
    points: np.ndarray
    gaps: np.ndarray
    eye_px: np.ndarray
    domains: np.ndarray
    names: np.ndarray
    people: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: np.ndarray) -> MouthData:
        """The rows chosen, in order."""
        return MouthData(*(getattr(self, f)[rows] for f in self.__dataclass_fields__))

    def save(self, path: Path) -> None:
        """Write one ``.npz``."""
        np.savez(path, **{f: getattr(self, f) for f in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: Path) -> MouthData:
        """Read what `save` wrote."""
        with np.load(path) as z:
            return cls(**{f: z[f] for f in cls.__dataclass_fields__})


def held_out(person: str, share: float = 0.15) -> bool:
    """Whether this identity is never trained on (by the hash of its name)."""
    return int(hashlib.sha256(person.encode()).hexdigest()[:8], 16) / 2**32 < share


def cut(image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """One observation to (canvas, points in crop px, gap, source eye distance in px)."""
    transform = crop_transform(points)
    wide = transform.copy()
    wide[:, 2] += MARGIN
    zoom = float(np.hypot(transform[0, 0], transform[0, 1]))
    local = apply_transform(transform, points)
    return warp_crop(image, wide, CANVAS), local, lip_gap(local), SIZE / SPAN / zoom


def build_cache(data: Path, models: Path, out: Path, *, progress=lambda text: None) -> MouthData:
    """Track every still and video under ``data`` and write the crops to ``out`` (``.npz``).

    Args:
        data: the folder of `sfhq`, `official_portraits`, `presenter` and so on.
        models: the folder of the face graphs and the face embedding.
        progress: called with one line now and then.
    """
    mesh = FaceMesh.open(models)
    rows = still_rows(data, models, mesh, progress)
    for folder, domain, every, limit in (
        ("presenter", "presenter", 1, None),
        ("obama_addresses", "addresses", 1, None),
        ("grid_more", "grid", 3, 80),
        ("grid_s1", "grid", 5, 60),
    ):
        for path in sorted((data / folder).glob("*.mp4"))[:limit]:
            rows += _video(path, domain, every, mesh)
            progress(f"{domain} {path.stem}: {len(rows)} crops")
    built = stack(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    built.save(out)
    return built


def stack(rows: list[tuple]) -> MouthData:
    """Rows of `still_rows` as one `MouthData`."""
    kinds = (np.uint8, np.float32, np.float32, np.float32, str, str, str)
    columns = zip(*rows, strict=True)
    return MouthData(*(np.array(c, dtype=k) for c, k in zip(columns, kinds, strict=True)))


def still_rows(data: Path, models: Path, mesh: FaceMesh, progress=lambda text: None) -> list[tuple]:
    """Every still with an open mouth: one tuple in the order of `MouthData`'s attributes."""
    embed = Graph(models / "face-reidentification-retail-0095.xml")
    feed = next(iter(embed.inputs))
    found, vectors = [], []
    for domain in ("sfhq", "official_portraits"):
        for path in sorted((data / domain).glob("*.jpg")):
            image = cv2.imread(str(path))[..., ::-1].copy()
            faces = mesh.find(image)
            if not faces:
                continue
            points = faces[0].points
            five = points[[33, 133, 362, 263, 4, 61, 291], :2]
            marks = np.stack([five[:2].mean(0), five[2:4].mean(0), *five[4:]])
            align, _ = cv2.estimateAffinePartial2D(marks, REID_POINTS * 128)
            face = cv2.warpAffine(image[..., ::-1], align, (128, 128))
            (vector,) = embed({feed: face.transpose(2, 0, 1)[None].astype(np.float32)}).values()
            vectors.append(vector.ravel() / np.linalg.norm(vector))
            found.append((domain, f"{domain}/{path.name}", *cut(image, points)))
        progress(f"{domain}: {len(found)} stills")
    people = _cluster(np.array(vectors), [f[1] for f in found])
    return [
        (canvas, local, gap, eye, domain, name, person)
        for (domain, name, canvas, local, gap, eye), person in zip(found, people, strict=True)
        if gap >= LEAST_GAP
    ]


def studio_data(folder: Path) -> MouthData:
    """Mouths of a folder that ``visavis train studio`` has made; its crops and close takes.

    Domain ``studio``; every person and every take is an identity of its own.

    Raises:
        InputError: the folder holds no studio data, or no open mouth.
    """
    rows = []
    for entry in read_index(folder, "studio"):
        with (folder / entry["shard"]).open("rb") as file:
            file.seek(entry["offset"])
            points = load(file.read(entry["bytes"]))["points"]
        pictures = read_pictures(folder, entry)
        for k, view in enumerate(json.loads(entry["views"])):
            if view != "mouth":
                continue
            picture = cv2.imdecode(np.frombuffer(pictures[k], np.uint8), cv2.IMREAD_COLOR)[
                ..., ::-1
            ]
            canvas, local, gap, eye = cut(np.ascontiguousarray(picture), points[k])
            if gap >= LEAST_GAP:
                name = f"studio/{entry['name']}"
                rows.append((canvas, local, gap, eye, "studio", f"{name}:{k}", name))
    if not rows:
        raise InputError(f"{folder} shows no open mouth; make more with visavis train studio")
    return stack(rows)


def joined(*parts: MouthData) -> MouthData:
    """The rows of all, in order."""
    names = MouthData.__dataclass_fields__
    return MouthData(*(np.concatenate([getattr(p, f) for p in parts]) for f in names))


def _cluster(vectors: np.ndarray, names: list[str]) -> list[str]:
    """Single-linkage identities: everyone is named after the first member of the cluster."""
    leader = np.arange(len(names))
    for i, j in zip(*np.nonzero(np.triu(vectors @ vectors.T > SAME_PERSON, 1)), strict=True):
        low, high = sorted((leader[i], leader[j]))
        leader[leader == high] = low
    return [names[k] for k in leader]


def _video(path: Path, domain: str, every: int, mesh: FaceMesh) -> list[tuple]:
    rows, state = [], mesh.init_state()
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % every:
                continue
            image = frame.to_ndarray(format="rgb24")
            state, seen = mesh.track(state, image)
            if seen is None:
                continue
            canvas, local, gap, eye = cut(image, seen.points)
            if gap >= LEAST_GAP:
                name = f"{domain}/{path.stem}:{index}"
                rows.append((canvas, local, gap, eye, domain, name, f"{domain}/{path.stem}"))
    return rows


def overlay(crop: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The crop with a person's own teeth ``(SIZE, SIZE, 4)`` laid over it, in the skull's frame."""
    cover = reference[..., 3:].astype(np.float32) / 255
    return np.rint(crop + (reference[..., :3].astype(np.float32) - crop) * cover).astype(np.uint8)


@dataclass(frozen=True)
class Sampling:
    """How `MouthSampler` mixes and disturbs.

    Attributes:
        domains: name to share of the batch.
        half_shut: share of stills whose lower lip is raised over part of the teeth.
        torn: share of samples whose jaw is dropped as tier `mesh` does, wider than any photo here.
        own_reference: share of video samples that get another frame of the clip as reference.
        still_reference: share of stills that get themselves, warped hard.
        seam: share of samples whose lip rim is smeared as after a mesh warp.
        stretch: share of samples whose surroundings are blurred along y as after a mesh warp.
        points_px: standard deviation of lip landmark noise, crop px.
        degrade: share of samples with blur or JPEG on input and target alike.
        registered: share of samples whose generic teeth are laid where the real ones are; else where
            a stranger's would be.
    """

    domains: dict[str, float]
    half_shut: float = 0.35
    torn: float = 0.4
    own_reference: float = 0.7
    still_reference: float = 0.15
    seam: float = 0.5
    stretch: float = 0.3
    points_px: float = 0.35
    degrade: float = 0.15
    registered: float = 1.0


class MouthSampler:
    """Draws augmented training samples; every draw is a function of its random generator."""

    def __init__(self, data: MouthData, sampling: Sampling):
        self.data, self.sampling = data, sampling
        self.teeth = Teeth()
        self._fits: dict[int, tuple[float, ...]] = {}  # a memo, no state: see `register_teeth`
        self.rows = {d: np.flatnonzero(data.domains == d) for d in sampling.domains}
        sharp = np.clip(data.eye_px / 100, 0.3, 1.0) * np.clip(data.gaps / 0.05, 0.3, 1.0)
        self.odds = {d: sharp[r] / sharp[r].sum() for d, r in self.rows.items() if len(r)}
        self.clips: dict[str, np.ndarray] = {}
        for person in np.unique(data.people):
            rows = np.flatnonzero((data.people == person) & (data.gaps > 0.03))
            self.clips[str(person)] = rows

    def batch(self, rng: np.random.Generator, size: int, again: int = 0) -> dict[str, np.ndarray]:
        """``size`` samples stacked: inputs, real, under, inner, limit; of the first ``again`` of
        them also jittered (see `sample`)."""
        names = [d for d in self.odds if self.sampling.domains[d] > 0]
        odds = np.array([self.sampling.domains[d] for d in names])
        picks = rng.choice(len(names), size, p=odds / odds.sum())
        drawn = [
            self.sample(rng, int(rng.choice(self.rows[names[k]], p=self.odds[names[k]])), i < again)
            for i, k in enumerate(picks)
        ]
        return {
            key: np.stack([d[key] for d in drawn if key in d])
            for key in sorted(set().union(*drawn))
        }

    def sample(
        self, rng: np.random.Generator, row: int, again: bool = False
    ) -> dict[str, np.ndarray]:
        """One sample, each ``(C, SIZE, SIZE)`` float32.

        ``inputs`` and, with ``again``, ``jittered`` (other landmark noise) for the net; ``real``
        the answer and ``under`` what lies beneath the painting, -1..1; ``inner``, ``removed`` and
        ``limit`` the masks.
        """
        data, s = self.data, self.sampling
        still = data.domains[row] in ("sfhq", "official_portraits")
        canvas, points = data.images[row], data.points[row].copy()
        torn = rng.random() < s.torn
        if torn:
            canvas, points = lower_jaw(canvas, points, rng)
        elif still and rng.random() < s.half_shut:
            canvas, points = raise_lower_lip(canvas, points, rng)
        canvas, points = warp(canvas, points, rng)
        reference = self._reference(rng, row, still)
        colour = draw_colour(rng)
        real = shade(canvas[MARGIN:-MARGIN, MARGIN:-MARGIN], colour)
        if reference is not None:
            reference[..., :3] = shade(reference[..., :3], colour)
        if rng.random() < s.degrade:
            real = degrade(real, rng)
        noise = smooth_noise(rng, points, s.points_px)
        masks = mouth_masks(points + noise)
        fit = self._teeth_fit(row) if rng.random() < s.registered else (0.0, 1.0, 0.0, 0.0)
        fit = fit + rng.normal(0, 1, 4) * (0.5, 0.02, 1.0, 1.5)
        glow = teeth_light(real, masks["lips"]) * np.exp(rng.normal(0, 0.15))
        under = self._under(rng, real, points, masks)

        def filled(at: np.ndarray, inner: np.ndarray) -> np.ndarray:
            laid = self.teeth.lay(at, *fit) * mesh_shade(inner, lip_gap(at)) * (glow * 255)
            laid = np.clip(laid, 0, 255).astype(np.uint8)
            laid = laid if reference is None else overlay(laid, reference)
            return np.rint(under + (laid - under) * inner[..., None]).astype(np.uint8)

        base = filled(points + noise, masks["inner"])
        if torn:  # nothing real is known of what the jaw has bared: keep what was laid
            real = base
        out = {
            "inputs": mouth_inputs(base, points + noise, masks),
            "real": real.transpose(2, 0, 1) / np.float32(127.5) - 1,
            "under": base.transpose(2, 0, 1) / np.float32(127.5) - 1,
            "inner": masks["inner"][None],
            "removed": masks["removed"][None],
            "limit": masks["limit"][None],
            "natural": np.full((1, 1, 1), float(not torn), np.float32),
        }
        if again:
            nearby = points + smooth_noise(rng, points, s.points_px)
            other = mouth_masks(nearby)
            out["jittered"] = mouth_inputs(filled(nearby, other["inner"]), nearby, other)
        if rng.random() < 0.5:
            out = {k: np.ascontiguousarray(v[..., ::-1]) for k, v in out.items()}
            for key in out.keys() & {"inputs", "jittered"}:
                out[key][[6, 8]] *= -1
        return out

    def _teeth_fit(self, row: int) -> tuple[float, float, float, float]:
        if row not in self._fits:
            points = self.data.points[row]
            crop = self.data.images[row][MARGIN:-MARGIN, MARGIN:-MARGIN]
            inner = mouth_masks(points)["inner"]
            self._fits[row] = register_teeth(self.teeth, crop, points, inner)
        return self._fits[row]

    def _reference(self, rng: np.random.Generator, row: int, still: bool) -> np.ndarray | None:
        data = self.data
        if still:
            if rng.random() >= self.sampling.still_reference:
                return None
            canvas, points = warp(data.images[row], data.points[row], rng, strength=4.0)
        else:
            others = self.clips[str(data.people[row])]
            others = others[others != row]
            if rng.random() >= self.sampling.own_reference or not len(others):
                return None
            pick = int(rng.choice(others))
            canvas, points = warp(data.images[pick], data.points[pick], rng, strength=0.5)
        mask = cv2.erode(mouth_masks(points)["inner"], np.ones((3, 3), np.uint8))
        crop = canvas[MARGIN:-MARGIN, MARGIN:-MARGIN]
        return np.dstack([crop, np.rint(mask * 255).astype(np.uint8)])

    def _under(
        self,
        rng: np.random.Generator,
        real: np.ndarray,
        points: np.ndarray,
        masks: dict[str, np.ndarray],
    ) -> np.ndarray:
        """The picture a mesh warp would have left around the mouth: soft lips, a smeared rim."""
        under = real.copy()
        if rng.random() < self.sampling.stretch:
            factor = rng.uniform(1.2, 2.2)
            small = cv2.resize(under, (SIZE, int(SIZE / factor)), interpolation=cv2.INTER_AREA)
            under = cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        dark = np.array([34, 14, 14]) * rng.uniform(0.3, 1.4)
        if rng.random() < self.sampling.seam:
            reach = int(rng.integers(1, 4))
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
            rim = cv2.GaussianBlur(cv2.dilate(masks["inner"], kernel), (0, 0), 0.8)[..., None]
            lips = (masks["lips"] * (1 - masks["removed"]))[..., None]
            tone = (real * lips).sum((0, 1)) / (lips.sum() + 1)
            smear = dark + (tone - dark) * rng.uniform(0.0, 0.9)
            under = under * (1 - rim) + smear * rim
        return np.clip(np.rint(under), 0, 255).astype(np.float32)


def warp(
    canvas: np.ndarray, points: np.ndarray, rng: np.random.Generator, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A small random affine map and a smooth bend of picture and points together."""
    turn = np.deg2rad(rng.normal(0, 1.5)) * strength
    zoom = 1 + rng.normal(0, 0.025, 2) * strength
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * zoom
    shift = rng.normal(0, 0.8, 2) * strength
    bend = cv2.resize(
        rng.normal(0, 1.1, (5, 5, 2)).astype(np.float32) * min(strength, 2.0),
        (CANVAS, CANVAS),
        interpolation=cv2.INTER_CUBIC,
    )
    middle = (CANVAS - 1) / 2
    y, x = np.mgrid[:CANVAS, :CANVAS].astype(np.float32)
    back = np.linalg.inv(linear)
    at = np.stack([x - middle - shift[0], y - middle - shift[1]], -1) @ back.T + middle + bend
    at = at.astype(np.float32)
    moved = cv2.remap(canvas, at[..., 0], at[..., 1], cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    here = landed = (points + MARGIN).astype(np.float32)
    for _ in range(3):  # the bend is known where the pixel lands, so the point is iterated for
        offset = cv2.remap(bend, landed[:, 0].copy(), landed[:, 1].copy(), cv2.INTER_LINEAR)[:, 0]
        landed = ((here - offset - middle) @ linear.T + middle + shift).astype(np.float32)
    return moved, landed - MARGIN


def raise_lower_lip(
    canvas: np.ndarray, points: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shut a smile part of the way: the lower lip slides up over teeth that stay where they are."""
    return slide_lower_lip(
        canvas, points, rng.uniform(0, 0.75) * max(float(points[14, 1] - points[13, 1]), 0.0)
    )


def lower_jaw(
    canvas: np.ndarray, points: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Open the mouth as a mesh warp would, to anything up to 0.42 eye distances."""
    room = 0.42 * SIZE / SPAN - max(float(points[14, 1] - points[13, 1]), 0.0)
    return slide_lower_lip(canvas, points, -max(room, 0.0) * rng.uniform(0.05, 1) ** 1.8)


def slide_lower_lip(
    canvas: np.ndarray, points: np.ndarray, rise: float
) -> tuple[np.ndarray, np.ndarray]:
    """The lower lip and all below it moved up by ``rise`` px in the middle, not at the corners."""
    left, right = points[78], points[308]

    def lift(x: np.ndarray) -> np.ndarray:
        u = (x - left[0]) / max(float(right[0] - left[0]), 1.0) * 2 - 1
        return rise * np.clip(1 - u * u, 0, 1)

    lower = points[list(INNER_LOWER)]
    y, x = np.mgrid[:CANVAS, :CANVAS].astype(np.float32) - MARGIN
    edge = np.interp(x[0], np.maximum.accumulate(lower[:, 0]), lower[:, 1]).astype(np.float32)
    up = lift(x[0]).astype(np.float32)
    below = np.clip(y - (edge - up)[None] + 0.5, 0, 1)
    source_y = (y + up[None] + MARGIN).astype(np.float32)
    lip = cv2.remap(canvas, x + MARGIN, source_y, cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT)
    mixed = canvas + (lip.astype(np.float32) - canvas) * below[..., None]
    moved = points.copy()
    mask = np.zeros(len(points), bool)
    mask[list(INNER_LOWER[1:-1])] = True
    jaw = points[:, 1] > np.interp(points[:, 0], lower[:, 0], lower[:, 1]) + 1.0
    mask |= jaw & (points[:, 1] > min(left[1], right[1]))
    moved[mask, 1] -= lift(points[mask, 0])
    return np.rint(mixed).astype(np.uint8), moved


def smooth_noise(rng: np.random.Generator, points: np.ndarray, sigma: float) -> np.ndarray:
    """Landmark noise that neighbours share, ``(N, 2)`` float32 px."""
    coarse = rng.normal(0, sigma, (6, 6, 2)).astype(np.float32)
    field = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    at = np.clip(points, 0, SIZE - 1).astype(np.float32)
    return cv2.remap(field, at[:, 0].copy(), at[:, 1].copy(), cv2.INTER_LINEAR)[:, 0]


def draw_colour(rng: np.random.Generator) -> dict[str, np.ndarray | float]:
    """Parameters of `shade`."""
    return {
        "gain": np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.05, 3)).astype(np.float32),
        "gamma": float(np.exp(rng.normal(0, 0.12))),
        "grey": float(np.clip(rng.normal(0, 0.15), -0.3, 0.6)) if rng.random() > 0.03 else 1.0,
    }


def shade(image: np.ndarray, colour: dict[str, np.ndarray | float]) -> np.ndarray:
    """Other light: gain per channel, gamma, saturation. uint8 to uint8."""
    x = image.astype(np.float32) / 255
    x = np.power(x, colour["gamma"]) * colour["gain"]
    x = x + (x.mean(2, keepdims=True) - x) * colour["grey"]
    return np.clip(np.rint(x * 255), 0, 255).astype(np.uint8)


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur, too few pixels, or JPEG, as poor photos have."""
    kind = rng.random()
    if kind < 0.35:
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.3))
    if kind < 0.65:
        height, width = image.shape[:2]
        share = rng.uniform(0.4, 0.8)
        few = cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        return cv2.resize(few, (width, height), interpolation=cv2.INTER_LINEAR)
    quality = int(rng.integers(40, 90))
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)
