"""Training data of the head net: what a film really shows beside what the renderer made of it.

A film gives pairs: its first frame is the photo, every other frame is an answer to its own tracked
motion. A still gives one too: the mesh moves it to another expression, that picture becomes the
photo, and the still is the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from visavis.avatar import Avatar, create_avatar
from visavis.errors import ConfigError, InputError
from visavis.facemesh import FaceMesh
from visavis.facemodel import PIVOT, angles_of, pose_with
from visavis.film import canvas_of, driving_motion
from visavis.head import SIZE, HeadView, cut, head_inputs, head_masks, identity_inputs, to_crop
from visavis.render import Renderer
from visavis.track import track_points
from visavis.train.renderer_data import held_out
from visavis.types import CHANNEL, RANGE_HIGH, RANGE_LOW, State
from visavis.video import read_video

HEAD = [CHANNEL[c] for c in ("head_pitch", "head_yaw", "head_roll")]
SEAT = [CHANNEL[c] for c in ("shift_x", "shift_y", "scale")]
MIRROR_SIGN = [CHANNEL[c] for c in ("head_yaw", "head_roll", "gaze_x", "shift_x")]
MIRROR_SWAP = [(CHANNEL[f"{c}_left"], CHANNEL[f"{c}_right"]) for c in ("eye_blink", "corner_pull")]
PICTURES = ("photos", "rests", "unders", "reals", "places")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Scene:
    """An avatar, what moves it, and what was really there.

    Attributes:
        avatar: of the first picture.
        motion: ``(T, D)`` in the avatar's terms.
        frames: T of ``(S, S, 3)`` uint8 in the avatar's square; None where no face was seen.
    """

    avatar: Avatar
    motion: np.ndarray
    frames: list[np.ndarray | None]


def film_scene(path: Path, mesh: FaceMesh, size: int = 512, most: int = 10**9) -> Scene:
    """A film driven by itself: first face as photo, tracked motion.

    Args:
        path: of the film.
        mesh: tracker.
        size: of the avatar.
        most: frames used.

    Raises:
        InputError: no face that can be animated.
    """
    source = []
    for _, time, image in read_video(path):
        source.append((float(time), image))
        if len(source) >= most:
            break
    track = track_points(source, mesh)
    if not track.seen.any():
        raise InputError(f"{path} shows no face; give another film")
    still = source[int(np.flatnonzero(track.seen)[0])][1]
    avatar = create_avatar(still, size=size, mesh=mesh, name=path.stem)
    canvas = canvas_of(avatar, mesh.find(still)[0].points)
    local = replace(track, points=canvas.points(track.points), size=(size, size))
    frames = [
        canvas.frame(image) if seen else None
        for (_, image), seen in zip(source, track.seen, strict=True)
    ]
    return Scene(avatar, driving_motion(local, avatar), frames)


def still_scene(avatar: Avatar, rng: np.random.Generator) -> Scene:
    """A still that answers for itself: moved elsewhere by the mesh, then asked back.

    Args:
        avatar: of the still.
        rng: draws where it is moved to.
    """
    away = avatar.motion + rng.normal(0, 0.12, len(CHANNEL)) * (RANGE_HIGH - RANGE_LOW)
    away[HEAD] *= 0.5
    away[SEAT] = 0
    away[[CHANNEL["gaze_x"], CHANNEL["gaze_y"]]] = 0
    away[CHANNEL["jaw_open"]] = rng.choice([0.0, abs(rng.normal(0, 0.08))])
    away[[CHANNEL["eye_blink_left"], CHANNEL["eye_blink_right"]]] = rng.choice([0, 0.4, 1])
    away = np.clip(away, RANGE_LOW, RANGE_HIGH).astype(np.float32)
    renderer = Renderer(avatar, "patch")
    _, frames = renderer.step(renderer.init_state(), away[None, None])
    face, pose = renderer.mesh.face(away)
    moved = replace(
        avatar,
        image=frames[0, 0],
        matte=renderer.matte(away),
        points=face.astype(np.float32),
        motion=np.where(np.isin(np.arange(len(away)), HEAD + SEAT), 0, away).astype(np.float32),
        rest=pose,
    )
    back = avatar.motion.copy()
    back[HEAD] = angles_of(avatar.rest.rotation @ pose.rotation.T)
    home = (avatar.rest.apply(PIVOT) - pose.apply(PIVOT)) / pose.scale
    back[SEAT] = home[0], home[1], np.log(avatar.rest.scale / pose.scale)
    assert np.allclose(pose_with(pose, back).shift, avatar.rest.shift, atol=0.5)
    return Scene(moved, back[None].astype(np.float32), [avatar.image])


@dataclass(frozen=True)
class HeadData:
    """Frames of many scenes, each at the net's size.

    Attributes:
        photos, rests: ``(P, SIZE, SIZE, 3)`` uint8 by scene, see `HeadView`.
        unders, reals, places: ``(N, SIZE, SIZE, 3)`` uint8: as drawn beneath the net, as it really
            was, and `HeadView.coordinates`.
        points: ``(N, 478, 2)`` float32 px of the crop, where the mesh has put the face.
        motion: ``(N, D)`` float32.
        scene: ``(N,)`` int32, index into ``photos``.
        follows: ``(N,)`` bool, whether the row before is the frame before.
        people: ``(P,)`` str, who each scene shows.
    """

    photos: np.ndarray
    rests: np.ndarray
    unders: np.ndarray
    reals: np.ndarray
    places: np.ndarray
    points: np.ndarray
    motion: np.ndarray
    scene: np.ndarray
    follows: np.ndarray
    people: np.ndarray

    def __len__(self) -> int:
        return len(self.unders)

    def save(self, path: Path) -> None:
        """Write one ``.npz``, whole or not at all."""
        part = path.with_suffix(".part.npz")
        np.savez(part, **{f: getattr(self, f) for f in self.__dataclass_fields__})
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> HeadData:
        """Read what `save` wrote."""
        with np.load(path) as z:
            return cls(**{f: z[f] for f in cls.__dataclass_fields__})


class Watcher:
    """Draws scenes with tier ``patch`` and keeps what the head net would see of them."""

    def __init__(self) -> None:
        self._parts: dict[str, list] = {f: [] for f in HeadData.__dataclass_fields__}

    def __len__(self) -> int:
        return len(self._parts["unders"])

    def watch(self, scene: Scene, person: str, wanted: np.ndarray) -> None:
        """Keep the frames ``wanted`` (indices, rising) of a scene."""
        renderer = Renderer(scene.avatar, "patch")
        view = HeadView(scene.avatar, renderer.mesh)
        parts, index = self._parts, len(self._parts["photos"])
        state: State = renderer.init_state()
        before = -2
        for k in wanted:
            if scene.frames[k] is None:
                continue
            row = scene.motion[k]
            if before != k - 1:
                state = renderer.init_state()
            state, drawn = renderer.step(state, row[None, None])
            target, face, _ = renderer.mesh.vertices(row)
            parts["unders"].append(cut(drawn[0, 0], view.box))
            parts["reals"].append(cut(scene.frames[k], view.box))
            parts["places"].append(view.coordinates(target, face))
            parts["points"].append(to_crop(face, view.box))
            parts["motion"].append(row)
            parts["scene"].append(index)
            parts["follows"].append(before == k - 1)
            before = k
        parts["photos"].append(view.photo)
        parts["rests"].append(view.rest)
        parts["people"].append(person)

    def data(self) -> HeadData:
        """All of it."""
        kinds = {"points": np.float32, "motion": np.float32, "scene": np.int32, "follows": bool}
        return HeadData(
            **{k: np.array(v, dtype=kinds.get(k)) for k, v in self._parts.items()},
        )


def runs_of(count: int, runs: int, length: int) -> np.ndarray:
    """Indices of ``runs`` evenly spread runs of ``length`` consecutive frames out of ``count``."""
    starts = (1 + (count - length - 1) * (np.arange(runs) + 0.5) / runs).round().astype(int)
    rows = {max(s, 0) + i for s in starts for i in range(length) if max(s, 0) + i < count}
    return np.array(sorted(rows), int)


def person_of(corpus: str, stem: str, people: dict[str, str]) -> str:
    """Who a clip shows: named by the recipe, else the corpus and the name up to ``_``."""
    named = people.get(f"{corpus}/{stem}")
    return named or (f"{corpus}/{stem.split('_')[0]}" if corpus == "grid_more" else corpus)


def films_of(
    data: Path, corpora: dict[str, int], people: dict[str, str], withheld: tuple[str, ...]
) -> Iterator[tuple[Path, str]]:
    """Films to learn from and whom they show, without the people withheld.

    Args:
        data: folder of the corpora.
        corpora: name to how many films, evenly spread.
        people: see `person_of`.
        withheld: people kept for scoring.
    """
    for corpus, most in corpora.items():
        films = sorted((data / corpus).glob("*.mp4"))
        films = [f for f in films if person_of(corpus, f.stem, people) not in withheld]
        picks = np.linspace(0, len(films) - 1, min(most, len(films))).round().astype(int)
        yield from ((films[i], person_of(corpus, films[i].stem, people)) for i in picks)


def build_head_data(
    data: Path,
    models: Path,
    films: list[tuple[Path, str]],
    stills: dict[str, int],
    *,
    runs: int = 3,
    length: int = 3,
    progress: Progress = lambda text: None,
) -> HeadData:
    """Watch films and stills.

    Args:
        data: folder of the corpora.
        models: folder of the face graphs.
        films: of `films_of`.
        stills: folder name to how many pictures, evenly spread; those of withheld identities (see
            `renderer_data.held_out`) are left out.
        runs: of consecutive frames from each film.
        length: of a run.
        progress: called with one line now and then.

    Raises:
        ConfigError: nothing usable.
    """
    mesh, watcher = FaceMesh.open(models), Watcher()
    for path, person in films:
        try:
            scene = film_scene(path, mesh, most=160)
        except InputError as error:
            progress(f"{path.stem}: {error}")
            continue
        watcher.watch(scene, person, runs_of(len(scene.frames), runs, length))
        progress(f"{path.stem}: {len(watcher)} frames")
    for folder, most in stills.items():
        pictures = sorted((data / folder).glob("*.jpg"))
        pictures = [p for p in pictures if not held_out(f"{folder}/{p.name}")]
        for i in np.linspace(0, len(pictures) - 1, min(most, len(pictures))).round().astype(int):
            rng = np.random.default_rng(int(i))
            try:
                avatar = create_avatar(pictures[i], mesh=mesh)
            except InputError:
                continue
            watcher.watch(still_scene(avatar, rng), f"{folder}/{pictures[i].name}", np.arange(1))
        progress(f"{folder}: {len(watcher)} frames")
    if not len(watcher):
        raise ConfigError(f"no training data at {data}; see the data README")
    return watcher.data()


class HeadSampler:
    """Draws short runs of frames; every draw is a function of its random generator.

    Args:
        data: of all scenes.
        shares: corpus (the first part of a person's name) to its share of a batch.
        length: frames of a run; a still is shown as often.
    """

    def __init__(self, data: HeadData, shares: dict[str, float], length: int = 2):
        self.data, self.length = data, length
        n = len(data)
        last = np.zeros(n, bool)
        for k in range(n):  # a run may end here: the rows before are the frames before
            first = k - length + 1
            last[k] = first >= 0 and all(data.follows[first + 1 : k + 1])
        people = data.people[data.scene]
        lone = np.bincount(data.scene, minlength=len(data.people))[data.scene] == 1
        self._rows: dict[str, list[np.ndarray]] = {}
        for person in np.unique(people):
            rows = np.flatnonzero((people == person) & (last | lone))
            corpus = str(person).partition("/")[0]
            if len(rows) and shares.get(corpus, 0) > 0:
                self._rows.setdefault(corpus, []).append(rows)
        if not self._rows:
            have = sorted({str(p).partition("/")[0] for p in data.people})
            raise ConfigError(f"the mix {json.dumps(shares)} names none of {', '.join(have)}")
        odds = np.array([shares[c] for c in self._rows])
        self._odds = odds / odds.sum()
        self._lone = lone

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        """``size`` runs, stacked; see `run`."""
        corpora = list(self._rows)
        drawn = []
        for pick in rng.choice(len(corpora), size, p=self._odds):
            people = self._rows[corpora[pick]]
            rows = people[int(rng.integers(len(people)))]
            drawn.append(self.run(int(rng.choice(rows)), rng))
        return {key: np.stack([d[key] for d in drawn]) for key in drawn[0]}

    def run(self, row: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """Frames up to ``row``, disturbed when a generator is given, all float32.

        ``photo (6, H, H)``, ``inputs (T, C, H, H)``, ``motion (T, D)``, ``real (T, 3, H, H)`` -1..1,
        ``points (T, 478, 2)``, ``rgb (4, H, H)`` of the frame before or zeros, ``flow (T, H, H, 2)``
        px from each frame back to the one before and ``steady (T, 1, H, H)`` where it can be
        trusted; both zero for the first.
        """
        data, single = self.data, bool(self._lone[row])
        rows = [row] * self.length if single else range(row - self.length + 1, row + 1)
        colour = (np.ones(3), np.zeros(3))
        if rng is not None:
            colour = rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3), rng.normal(0, 8, 3)
        photo = _toned(data.photos[data.scene[row]], colour)
        frames = [self._frame(k, photo, colour) for k in rows]
        out = {key: np.stack([f[key] for f in frames]) for key in frames[0]}
        out["photo"] = identity_inputs(photo, data.rests[data.scene[row]])
        out["flow"], out["steady"] = backward_flows(out["real"], still=single)
        out["rgb"] = np.zeros((4, SIZE, SIZE), np.float32)
        if rng is not None:
            if rng.random() < 0.3:  # as if what lies beneath had been shown before
                out["rgb"] = np.concatenate([frames[0]["inputs"][:3], np.ones((1, SIZE, SIZE))])
                out["rgb"] = out["rgb"].astype(np.float32)
            out["motion"] = out["motion"] + rng.normal(0, 0.01, out["motion"].shape[-1]) * (
                RANGE_HIGH - RANGE_LOW
            )
            if rng.random() < 0.5:
                out = mirrored(out)
        return {k: np.ascontiguousarray(v, np.float32) for k, v in out.items()}

    def _frame(self, k: int, photo: np.ndarray, colour: tuple) -> dict[str, np.ndarray]:
        data = self.data
        points = data.points[k]
        masks = head_masks(points, data.places[k][..., 2] * np.float32(1 / 255))
        under, real = (_toned(x[k], colour) for x in (data.unders, data.reals))
        return {
            "inputs": head_inputs(under, photo, data.places[k], masks),
            "real": real.transpose(2, 0, 1) * np.float32(1 / 127.5) - np.float32(1),
            "points": points,
            "motion": data.motion[k],
        }


def _toned(image: np.ndarray, colour: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """A picture through gain and offset by colour, uint8."""
    gain, offset = colour
    tables = np.arange(256)[:, None] * gain + offset
    tables = np.clip(tables, 0, 255).round().astype(np.uint8)
    return cv2.LUT(image, tables[:, None, :])


def mirrored(out: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A run seen in a mirror: pictures, place on the head, points, motion."""
    flipped = {k: np.array(v) for k, v in out.items()}
    for key in ("photo", "inputs", "real", "rgb", "steady"):
        flipped[key] = out[key][..., ::-1].copy()
    flipped["flow"] = out["flow"][:, :, ::-1].copy()
    flipped["flow"][..., 0] *= -1
    flipped["inputs"][:, 6] *= -1
    flipped["photo"][3] *= -1
    flipped["points"][..., 0] = SIZE - 1 - flipped["points"][..., 0]
    flipped["points"] = flipped["points"][:, _mirror_map()]
    flipped["motion"][:, MIRROR_SIGN] *= -1
    for a, b in MIRROR_SWAP:
        flipped["motion"][:, [a, b]] = out["motion"][:, [b, a]]
    return flipped


def _mirror_map() -> np.ndarray:
    from visavis.facemodel import load_face_model

    return load_face_model().mirror


def backward_flows(real: np.ndarray, still: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Where each frame's pixels were in the one before, by DIS optical flow of the real frames.

    Args:
        real: ``(T, 3, H, H)`` -1..1.
        still: all frames are one picture.

    Returns:
        ``(T, H, H, 2)`` px and ``(T, 1, H, H)`` in 0..1: how far the flow explains the frame.
    """
    count, _, height, width = real.shape
    flow = np.zeros((count, height, width, 2), np.float32)
    steady = np.zeros((count, 1, height, width), np.float32)
    if still:
        steady[1:] = 1
        return flow, steady
    grey = [cv2.cvtColor(_bytes(r), cv2.COLOR_RGB2GRAY) for r in real]
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    for t in range(1, count):
        flow[t] = finder.calc(grey[t], grey[t - 1], None)
        was = cv2.remap(grey[t - 1], x + flow[t, ..., 0], y + flow[t, ..., 1], cv2.INTER_LINEAR)
        apart = np.abs(was.astype(np.float32) - grey[t])
        steady[t, 0] = np.exp(-((apart / 12) ** 2))
    return flow, steady


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(((picture + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0))
