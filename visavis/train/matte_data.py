"""People with known mattes, to train the matting net on: films before a plain wall, stills that two
independent cuts agree on.

The GRID talkers sit before a blue wall and the presenters before a white one, so their colour tells
them from it nearly exactly. A still is taken where two GrabCuts of different colours and seeds, and
a cut that grows the smooth background from the rim, agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from visavis.errors import ConfigError
from visavis.eval.identity import MODEL_NAME, FaceEmbedder
from visavis.facemesh import FaceMesh
from visavis.matte import diffuse, soften
from visavis.train.full_data import person_of
from visavis.train.matte_cuts import blue_key, lopsided, overlap, still_cuts, white_key
from visavis.train.renderer_data import SAME_PERSON, held_out
from visavis.video import read_video

CANVAS = 320  # px, side of what is kept of a picture
SPAN = 3.1  # its side in face heights; an avatar's crop is 2.7
CUT_SIZE = 256
STILLS = ("sfhq", "official_portraits")
WITHHELD = ("grid_more/s4", "grid_more/s34", "presenter/second")
NEVER = ("obama_addresses",)  # judged by eye, never learned from
PEOPLE = {"presenter/status0_speaking": "presenter/second"}
LEAST_OVERLAP = 0.975  # of the two GrabCuts of a still
LEAST_GROWN = 0.7  # of GrabCut and the smooth background's complement
MOST_LOPSIDED = 0.25  # see `lopsided`
Progress = Callable[[str], None]
FILMS: tuple[tuple[str, int, int, Callable], ...] = (
    ("grid_s1", 30, 1, blue_key),
    ("grid_more", 80, 3, blue_key),
    ("presenter", 10, 2, white_key),
)  # corpus, films, frames of each, how its wall is told from the people


@dataclass(frozen=True)
class MatteData:
    """People, their mattes, and rooms without anyone.

    Attributes:
        images: ``(N, CANVAS, CANVAS, 3)`` uint8 RGB as photographed.
        fronts: the same with the person's own colours carried beyond the edge.
        alphas: ``(N, CANVAS, CANVAS)`` uint8, 255 the person.
        points: ``(N, 478, 2)`` float32 px.
        people: ``(N,)`` str, corpus and name; see `is_held_out`.
        rooms: ``(R, CANVAS, CANVAS, 3)`` uint8 RGB, from beside the people of stills.
        owners: ``(R,)`` str, the people they come from.
    """

    images: np.ndarray
    fronts: np.ndarray
    alphas: np.ndarray
    points: np.ndarray
    people: np.ndarray
    rooms: np.ndarray
    owners: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def part(self, held: bool) -> MatteData:
        """The people held out, or those to learn from."""
        rows = np.array([is_held_out(str(p)) == held for p in self.people], bool)
        rooms = np.array([is_held_out(str(p)) == held for p in self.owners], bool)
        picks = {f: rooms if f in ("rooms", "owners") else rows for f in self.__dataclass_fields__}
        return MatteData(**{f: getattr(self, f)[keep] for f, keep in picks.items()})

    def save(self, path: Path) -> None:
        """Write one ``.npz``, whole or not at all."""
        part = path.with_suffix(".part.npz")
        np.savez(part, **{f: getattr(self, f) for f in self.__dataclass_fields__})
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> MatteData:
        """Read what `save` wrote."""
        with np.load(path) as z:
            return cls(**{f: z[f] for f in cls.__dataclass_fields__})


def is_held_out(person: str) -> bool:
    """Whether a person is only scored on: talkers by name, stills by the hash of theirs."""
    return person in WITHHELD or (person.startswith(STILLS) and held_out(person))


def canvas_of(
    image: np.ndarray, points: np.ndarray, size: int = CANVAS
) -> tuple[np.ndarray, np.ndarray]:
    """The square around a head, ``SPAN`` face heights where the picture has them, and its points.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        points: ``(478, 3)`` px.
        size: of the square in px.
    """
    height, width = image.shape[:2]
    top, chin = points[10, :2], points[152, :2]
    face = float(np.linalg.norm(chin - top))
    side = min(SPAN * face, height, width)
    centre = (top + chin) / 2 + np.array([0, 0.12 * face])
    corner = np.clip(centre - side / 2, 0, [width - side, height - side])
    ratio = size / side
    matrix = np.array([[ratio, 0, -corner[0] * ratio], [0, ratio, -corner[1] * ratio]])
    if ratio < 0.7:
        image = cv2.GaussianBlur(image, (0, 0), 0.5 / ratio)
    square = cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return square, ((points[:, :2] - corner) * ratio).astype(np.float32)


class _Shelf:
    """Collects the rows of `MatteData`."""

    def __init__(self) -> None:
        self._kept: dict[str, list] = {f: [] for f in MatteData.__dataclass_fields__}

    def __len__(self) -> int:
        return len(self._kept["images"])

    def person(self, image: np.ndarray, alpha: np.ndarray, points: np.ndarray, name: str) -> None:
        """Keep a canvas and its matte ``(CANVAS, CANVAS)`` float."""
        known = cv2.erode((alpha > 0.97).astype(np.float32), np.ones((3, 3)))
        front = diffuse(image.astype(np.float32), known)
        row = (image, np.clip(front, 0, 255).astype(np.uint8), np.uint8(alpha * 255), points, name)
        for field, value in zip(
            ("images", "fronts", "alphas", "points", "people"), row, strict=True
        ):
            self._kept[field].append(value)

    def room(self, image: np.ndarray, taken: np.ndarray, points: np.ndarray, name: str) -> None:
        """Keep what stands beside the head, carried on by mirrors, where there is enough of it."""
        picture = room_beside(image, taken, points)
        if picture is not None:
            self._kept["rooms"].append(picture)
            self._kept["owners"].append(name)

    def data(self) -> MatteData:
        """All of it."""
        shapes = {"rooms": (0, CANVAS, CANVAS, 3), "owners": (0,)}
        return MatteData(**{
            k: np.array(v) if v else np.zeros(shapes.get(k, 0), np.uint8 if k == "rooms" else str)
            for k, v in self._kept.items()
        })  # fmt: skip


def room_beside(image: np.ndarray, taken: np.ndarray, points: np.ndarray) -> np.ndarray | None:
    """The room without the person: the strips left and right of the head, mirrored over the middle.

    Args:
        image: ``(S, S, 3)`` uint8.
        taken: ``(S, S)``, not 0 where the person may be.
        points: ``(478, 2)`` px.

    Returns:
        ``(S, S, 3)`` uint8, or None where neither strip is an eighth of the picture wide.
    """
    size = len(image)
    below = int(np.clip(points[152, 1], size // 4, size))
    columns = np.flatnonzero(taken[:below].any(0))
    left, right = (columns[0], size - 1 - columns[-1]) if len(columns) else (size, 0)
    strips = []
    for wide, part in ((left, image[:below, :left]), (right, image[:below, size - right :])):
        if wide >= size // 8:
            tall = np.pad(part, ((0, size - below), (0, 0), (0, 0)), mode="symmetric")
            strips.append((tall, wide))
    if not strips:
        return None
    if len(strips) == 1:
        strip, wide = strips[0]
        pad = ((0, 0), (0, size - wide), (0, 0))
        if left < size // 8:
            pad = ((0, 0), (size - wide, 0), (0, 0))
        return np.pad(strip, pad, mode="symmetric")
    half = size // 2
    a = np.pad(strips[0][0], ((0, 0), (0, max(0, half - left)), (0, 0)), mode="symmetric")[:, :half]
    b = np.pad(strips[1][0], ((0, 0), (max(0, half - right), 0), (0, 0)), mode="symmetric")[
        :, -half:
    ]
    return np.hstack([a, b])


def agreed(image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, bool, np.ndarray]:
    """Cut a still square of `CUT_SIZE` three ways.

    Returns:
        The matte float32, whether the cuts agree enough to learn from it, and where any of them
        saw the person.
    """
    plain, other, grown = still_cuts(image, points)
    return soften(image, plain), accepts(plain, other, grown, points), plain | other | grown


def accepts(plain: np.ndarray, other: np.ndarray, grown: np.ndarray, points: np.ndarray) -> bool:
    """Whether three cuts are one and look like a head on shoulders."""
    if overlap(plain, other) < LEAST_OVERLAP or overlap(plain, grown) < LEAST_GROWN:
        return False
    return lopsided(plain, points) < MOST_LOPSIDED


def build_matte_data(data: Path, models: Path, out: Path, *, progress: Progress) -> MatteData:
    """Cut out people of films and stills and keep them in ``out`` (``.npz``).

    Args:
        data: folder of the corpora.
        models: folder of the face graphs and the face embedding.
        out: the file.
        progress: called with one line now and then.

    Raises:
        ConfigError: nothing usable in ``data``.
    """
    mesh, shelf = FaceMesh.open(models), _Shelf()
    for corpus, most, each, key in FILMS:
        for path, person in _films(data, corpus, most):
            for image in _spread(path, each):
                faces = mesh.find(image)
                if len(faces) == 1:
                    square, points = canvas_of(image, faces[0].points)
                    shelf.person(square, key(square, points), points, person)
        progress(f"{corpus}: {len(shelf)} mattes")
    for image, points, person in _stills(data, models, mesh):
        small, at = canvas_of(image, points, CUT_SIZE)
        matte, fine, taken = agreed(small, at)
        square, local = canvas_of(image, points)
        if fine:
            alpha = cv2.resize(matte, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
            shelf.person(square, np.clip(alpha, 0, 1), local, person)
        wide = cv2.dilate(cv2.resize(taken, (CANVAS, CANVAS)), np.ones((11, 11), np.uint8))
        shelf.room(square, wide, local, person)
    progress(f"stills: {len(shelf)} mattes")
    if not len(shelf):
        raise ConfigError(f"no training data at {data}; see the data README")
    built = shelf.data()
    out.parent.mkdir(parents=True, exist_ok=True)
    built.save(out)
    return built


def _films(data: Path, corpus: str, most: int) -> Iterator[tuple[Path, str]]:
    """Up to ``most`` films of a corpus, evenly spread, and whom they show."""
    films = sorted((data / corpus).glob("*.mp4"))
    for i in np.unique(np.linspace(0, len(films) - 1, min(most, len(films))).round().astype(int)):
        yield films[i], person_of(corpus, films[i].stem, PEOPLE)


def _spread(path: Path, count: int) -> Iterator[np.ndarray]:
    """The first frame of a film and every twentieth after it, ``count`` in all."""
    for index, _, image in read_video(path):
        if index % 20 == 0:
            yield image
        if index >= 20 * (count - 1):
            return


def _stills(
    data: Path, models: Path, mesh: FaceMesh
) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Every still with one face, its points and its person: the first still that shows the same."""
    embed = FaceEmbedder(models / MODEL_NAME)
    known: list[tuple[np.ndarray, str]] = []
    for folder in STILLS:
        for path in sorted((data / folder).glob("*.jpg")):
            image = np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
            faces = mesh.find(image)
            if len(faces) != 1:
                continue
            vector = embed(image, faces[0].points)
            vector = vector / np.linalg.norm(vector)
            alike = [name for other, name in known if float(vector @ other) > SAME_PERSON]
            person = alike[0] if alike else f"{folder}/{path.name}"
            known.append((vector, person))
            yield image, faces[0].points, person
