"""Train the motion autoencoder on tracked clips, score it on held-out ones, draw what a code moves.

A run is a folder: ``run.pt`` (weights and everything that changes), ``report.json``, ``latents.png``.
The code is kept small and smooth by a little noise on it (Kingma and Welling, "Auto-encoding
variational Bayes", 2014) and by a price on its second difference in time.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from visavis import facemodel as fm
from visavis.errors import ConfigError, InputError
from visavis.models.autoencoder import AutoencoderConfig, MotionAutoencoder
from visavis.track import clip_geometry
from visavis.train.clips import is_held_out
from visavis.train.recipes import FOLDER

Report = Callable[[str], None]
LIP_WEIGHT = 4.0  # of the lips' vertices in the loss, against 1 for cheeks and chin
REACH = 2.5  # standard deviations of a code shown in the picture
MM = 89.0  # millimetres of an eye distance, for reports


class AutoencoderRecipe(BaseModel):
    """Everything a training of the autoencoder needs to be done again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent: int = Field(16, ge=8, le=32)
    hidden: int = 128
    seed: int = 0
    iterations: int = 3000
    batch: int = 16  # windows
    steps: int = 24  # frames of a window
    learning_rate: float = 1e-3
    noise: float = 2e-4  # price of knowing the code exactly
    smooth: float = 2e-3  # price of the code's second difference
    limit: int = 150  # clips of a corpus
    corpora: dict[str, float]  # share of every batch


def read_autoencoder_recipe(name: str | Path) -> AutoencoderRecipe:
    """A recipe by the name of a shipped one or by path.

    Raises:
        ConfigError: no such file, not TOML, unknown or impossible keys.
    """
    path = Path(name) if Path(name).suffix else FOLDER / f"{name}.toml"
    try:
        return AutoencoderRecipe(**tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as err:
        raise ConfigError(f"{path} is not a recipe of the autoencoder: {err}") from err


@dataclass(frozen=True)
class Film:
    """One tracked clip, pose removed.

    Attributes:
        name: of the clip.
        corpus: it came from.
        channels: ``(T, 11)`` float32, ``facemodel.BASIS_CHANNELS``.
        offsets: ``(T, V, 3)`` float32 eye distances, of ``mouth_vertices``.
    """

    name: str
    corpus: str
    channels: np.ndarray
    offsets: np.ndarray


def mouth_vertices(template: np.ndarray) -> np.ndarray:
    """Vertices below the eyes, which speech moves: ``(V,)`` int."""
    return np.flatnonzero(template[:468, 1] > 0.25)


def load_films(clips: str | Path, recipe: AutoencoderRecipe, report: Report) -> list[Film]:
    """Tracks of ``visavis prepare`` as offsets from each clip's own neutral.

    Args:
        clips: folder of ``prepare``; tracks lie in ``clips/tracks/CORPUS``.
        recipe: which corpora, and how many clips of each.
        report: called with lines of progress.

    Raises:
        InputError: no usable track.
    """
    model, films = fm.load_face_model(), []
    used = mouth_vertices(model.template)
    for corpus in recipe.corpora:
        paths = sorted((Path(clips) / "tracks" / corpus).glob("*.npz"))
        for path in paths[:: max(1, len(paths) // recipe.limit)][: recipe.limit]:
            with np.load(path) as file:
                points = file["points"]
            points = points[np.isfinite(points).all((1, 2))]
            if len(points) < recipe.steps:
                continue
            _, vertices, neutral = clip_geometry(points, model.template)
            channels = fm.measure(vertices, neutral)[:, fm.BASIS_INDEX]
            offsets = (vertices - neutral)[:, used].astype(np.float32)
            films.append(Film(path.stem, corpus, channels.astype(np.float32), offsets))
        report(f"{corpus}: {sum(f.corpus == corpus for f in films)} clips")
    if not films:
        raise InputError(f"no tracks in {Path(clips) / 'tracks'}; run visavis prepare first")
    return films


def split(films: list[Film]) -> tuple[list[Film], list[Film]]:
    """Clips to learn from, and the fifth of every corpus that is kept for scoring."""
    kept = [f for f in films if is_held_out(f.name, share=5)]
    return [f for f in films if not is_held_out(f.name, share=5)], kept


def fresh_net(recipe: AutoencoderRecipe, films: list[Film]) -> MotionAutoencoder:
    """A net at the principal components of the clips, one corpus as heavy as its share."""
    torch.manual_seed(recipe.seed)
    offsets, weight = np.concatenate([f.offsets for f in films]), []
    for film in films:
        frames = sum(len(f.offsets) for f in films if f.corpus == film.corpus)
        weight.append(np.full(len(film.offsets), recipe.corpora[film.corpus] / frames))
    weight = np.concatenate(weight)
    weight /= weight.sum()
    flat = offsets.reshape(len(offsets), -1)
    scale = float(np.sqrt((weight[:, None] * flat**2).sum(0).mean()))
    mean = weight @ flat / scale
    centred = flat / scale - mean
    values, vectors = np.linalg.eigh(centred.T @ (centred * weight[:, None]))
    order = np.argsort(values)[::-1][: recipe.latent]
    config = AutoencoderConfig(
        len(fm.BASIS_CHANNELS), offsets.shape[1], recipe.latent, recipe.hidden
    )
    net = MotionAutoencoder(config)
    channels = np.concatenate([f.channels for f in films])
    net.channel_scale[:] = torch.from_numpy(channels.std(0) + 1e-5)
    net.mesh_scale.fill_(scale)
    as_tensor = (mean, vectors[:, order].T, np.sqrt(values[order]))
    net.start(*(torch.tensor(a, dtype=torch.float32) for a in as_tensor))
    return net


def draw_batch(films: list[Film], recipe: AutoencoderRecipe, step: int) -> tuple[Tensor, Tensor]:
    """Windows of channels and offsets; number ``step`` depends on seed and step alone."""
    rng = np.random.default_rng([recipe.seed, step])
    groups = {c: [f for f in films if f.corpus == c] for c in recipe.corpora}
    names = [c for c, group in groups.items() if group]
    shares = np.array([recipe.corpora[c] for c in names])
    rows = []
    for name in rng.choice(names, recipe.batch, p=shares / shares.sum()):
        film = groups[name][rng.integers(len(groups[name]))]
        start = int(rng.integers(0, len(film.offsets) - recipe.steps + 1))
        rows.append((film.channels[start:][: recipe.steps], film.offsets[start:][: recipe.steps]))
    return tuple(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))


def loss_terms(
    net: MotionAutoencoder,
    channels: Tensor,
    offsets: Tensor,
    weight: Tensor,
    recipe: AutoencoderRecipe,
) -> dict[str, Tensor]:
    """Reconstruction, its velocity, the price of an exact code and of an unsteady one.

    Args:
        net: in training.
        channels: ``(B, T, 11)``.
        offsets: ``(B, T, V, 3)``.
        weight: ``(V,)`` of the vertices, mean 1.
        recipe: prices.
    """
    code, log_variance = net.encode(channels, offsets)
    noisy = code + torch.randn_like(code) * torch.exp(0.5 * log_variance)
    error = (net.decode(noisy) - offsets) / net.mesh_scale * weight[:, None].sqrt()
    velocity = error[:, 1:] - error[:, :-1]
    second = code[:, 2:] - 2 * code[:, 1:-1] + code[:, :-2]
    divergence = 0.5 * (code**2 + log_variance.exp() - 1 - log_variance).sum(-1)
    return {
        "mesh": error.square().mean(),
        "velocity": velocity.square().mean(),
        "noise": recipe.noise * divergence.mean(),
        "smooth": recipe.smooth * second.square().sum(-1).mean(),
    }


def train_autoencoder(
    recipe: AutoencoderRecipe, clips: str | Path, folder: str | Path, report: Report
) -> Path:
    """Train to the recipe's end, going on from ``folder`` where a run is there; then score and draw.

    Returns:
        The report, a JSON file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _same_sizes(folder, recipe)
    (folder / "recipe.json").write_text(recipe.model_dump_json(indent=1), encoding="utf-8")
    learned, kept = split(load_films(clips, recipe, report))
    if not learned or not kept:
        raise InputError("too few tracked clips: some must be kept for scoring; prepare more")
    net = fresh_net(recipe, learned)
    before = {f"components_{k}": v for k, v in score(net, kept).items()}
    net = fit(net, learned, recipe, folder, report)
    used = mouth_vertices(fm.load_face_model().template)
    figures = score(net, kept) | before | by_basis(kept, used)
    figures |= {"latent": recipe.latent, "clips": len(learned), "clips_scored": len(kept)}
    moves = what_moves(net, kept)
    text = json.dumps(figures | {"moves": moves}, indent=1)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    cv2.imwrite(str(folder / "latents.png"), draw_codes(net, kept, moves)[..., ::-1])
    report(json.dumps(figures))
    return folder / "report.json"


def _same_sizes(folder: Path, recipe: AutoencoderRecipe) -> None:
    """Refuse to go on with weights of another shape."""
    if not (folder / "run.pt").exists():
        return
    begun = AutoencoderRecipe.model_validate_json((folder / "recipe.json").read_text())
    for key in ("latent", "hidden"):
        if getattr(begun, key) != getattr(recipe, key):
            raise ConfigError(
                f"the run in {folder} was begun with {key} = {getattr(begun, key)}, not "
                f"{getattr(recipe, key)}; give another folder"
            )


def load_net(folder: str | Path) -> MotionAutoencoder:
    """The weights of a run, in evaluation mode."""
    parts = torch.load(Path(folder) / "run.pt", weights_only=True)["net"]
    latent, n_vertices = parts["to_code.bias"].shape[0], parts["to_mesh.bias"].shape[0] // 3
    sizes = AutoencoderConfig(
        len(parts["channel_scale"]), n_vertices, latent, parts["bend_mesh.0.bias"].shape[0]
    )
    net = MotionAutoencoder(sizes)
    net.load_state_dict(parts)
    return net.eval()


def fit(
    net: MotionAutoencoder,
    films: list[Film],
    recipe: AutoencoderRecipe,
    folder: Path,
    report: Report,
    every: int = 250,
) -> MotionAutoencoder:
    """The training loop with its checkpoints."""
    model = fm.load_face_model()
    used = mouth_vertices(model.template)
    lips = np.isin(used, [*fm.LIP_INNER, *fm.LIP_OUTER])
    weight = torch.tensor(np.where(lips, LIP_WEIGHT, 1.0), dtype=torch.float32)
    weight /= weight.mean()
    optimiser = torch.optim.AdamW(net.parameters(), recipe.learning_rate, weight_decay=1e-4)
    path, step = folder / "run.pt", 0
    if path.exists():
        parts = torch.load(path, weights_only=True)
        net.load_state_dict(parts["net"])
        optimiser.load_state_dict(parts["optimiser"])
        torch.set_rng_state(parts["torch"])
        step = parts["step"]
    net.train()
    for k in range(step, recipe.iterations):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * (1 - 0.98 * k / recipe.iterations)
        terms = loss_terms(net, *draw_batch(films, recipe, k), weight, recipe)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if (k + 1) % every == 0 or k + 1 == recipe.iterations:
            report(
                json.dumps(
                    {"step": k + 1} | {n: round(float(v.detach()), 5) for n, v in terms.items()}
                )
            )
            parts = {
                "net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": k + 1,
                "torch": torch.get_rng_state(),
            }  # fmt: skip
            torch.save(parts, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
    return net.eval()


@torch.no_grad()
def score(net: MotionAutoencoder, films: list[Film]) -> dict[str, float]:
    """Reconstruction and smoothness on clips, each corpus as heavy as the next.

    ``error_mm`` is the root mean square distance of a vertex; ``explained`` the share of variance;
    ``jitter`` the second difference in time over that of the tracks (1: as unsteady as the tracker);
    ``code_jitter`` the same of the code against a code in random order.
    """
    rows: dict[str, list] = {}
    for film in films:
        channels, offsets = torch.from_numpy(film.channels), torch.from_numpy(film.offsets)
        code = net.encode(channels, offsets)[0].numpy()
        back = net.decode(torch.from_numpy(code)).numpy()
        rows.setdefault(film.corpus, []).append(
            [
                np.square(back - film.offsets).sum(-1).mean(), np.square(film.offsets).sum(-1).mean(),
                np.abs(np.diff(back, 2, axis=0)).mean(),
                np.abs(np.diff(film.offsets, 2, axis=0)).mean(),
                np.square(np.diff(code, 2, axis=0)).mean(), 6 * code.var(0).mean(),
            ]
        )  # fmt: skip
    error, power, ours, real, second, chance = np.mean([np.mean(r, 0) for r in rows.values()], 0)
    return {
        "error_mm": round(float(np.sqrt(error) * MM), 3),
        "explained": round(float(1 - error / power), 4),
        "jitter": round(float(ours / real), 3),
        "code_jitter": round(float(np.sqrt(second / chance)), 3),
    }


def by_basis(films: list[Film], used: np.ndarray) -> dict[str, float]:
    """The same two figures for the face model's own eleven directions, measured channels in."""
    basis = fm.load_face_model().basis[:, used]
    rows: dict[str, list] = {}
    for film in films:
        left = np.tensordot(film.channels, basis, 1) - film.offsets
        pair = [np.square(left).sum(-1).mean(), np.square(film.offsets).sum(-1).mean()]
        rows.setdefault(film.corpus, []).append(pair)
    error, power = np.mean([np.mean(r, 0) for r in rows.values()], 0)
    return {
        "basis_error_mm": round(float(np.sqrt(error) * MM), 3),
        "basis_explained": round(float(1 - error / power), 4),
    }


@torch.no_grad()
def codes_of(net: MotionAutoencoder, films: list[Film]) -> np.ndarray:
    """Codes of every frame, ``(N, latent)``."""
    return np.concatenate(
        [
            net.encode(torch.from_numpy(f.channels), torch.from_numpy(f.offsets))[0].numpy()
            for f in films
        ]
    )


def what_moves(net: MotionAutoencoder, films: list[Film]) -> list[dict]:
    """Each number of the code: how far it moves the mesh, and the channel it goes with best."""
    codes = codes_of(net, films)
    channels = np.concatenate([f.channels for f in films])
    rows = []
    for i, (low, _, high) in enumerate(traverse(net, codes)):
        r = np.array([np.corrcoef(codes[:, i], c)[0, 1] for c in channels.T])
        best = int(np.nanargmax(np.abs(r)))
        reach = float(np.linalg.norm(high - low, axis=-1).max()) * MM
        row = {"code": i, "moves_mm": round(reach, 2), "spread": round(float(codes[:, i].std()), 3)}
        rows.append(
            row | {"channel": fm.BASIS_CHANNELS[best], "correlation": round(float(r[best]), 2)}
        )
    return rows


@torch.no_grad()
def traverse(net: MotionAutoencoder, codes: np.ndarray) -> np.ndarray:
    """Meshes with one number at a time ``REACH`` below, at, and above its mean: ``(L, 3, V, 3)``."""
    middle, spread = codes.mean(0), codes.std(0)
    grid = np.broadcast_to(middle, (len(middle), 3, len(middle))).copy()
    for i in range(len(middle)):
        grid[i, :, i] += np.array([-REACH, 0, REACH]) * spread[i]
    return net.decode(torch.from_numpy(grid.astype(np.float32))).numpy()


def draw_codes(
    net: MotionAutoencoder, films: list[Film], moves: list[dict], size: int = 150
) -> np.ndarray:
    """The mean face's lower half under every number of the code, the strongest first.

    Returns:
        RGB uint8: two columns of numbers, each low, high and where the skin moves.
    """
    model = fm.load_face_model()
    used, codes = mouth_vertices(model.template), codes_of(net, films)
    triangles = model.triangles[np.isin(model.triangles, used).all(1)]
    meshes = traverse(net, codes)
    tiles = []
    for row in sorted(moves, key=lambda m: -m["moves_mm"]):
        low, _, high = (_placed(model.template, used, mesh) for mesh in meshes[row["code"]])
        far = np.linalg.norm(high - low, axis=-1) * MM
        label = (
            f"{row['code']}: {row['moves_mm']:.1f} mm, {row['channel']} {row['correlation']:+.2f}"
        )
        views = [
            _draw(v, triangles, far, size, heat) for v, heat in ((low, 0), (high, 0), (high, 1))
        ]
        tile = np.concatenate(views, axis=1)
        cv2.putText(
            tile, label, (4, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (20, 20, 20), 1, cv2.LINE_AA
        )
        tiles.append(tile)
    if len(tiles) % 2:
        tiles.append(np.full_like(tiles[0], 255))
    pairs = [np.concatenate(tiles[i : i + 2], axis=1) for i in range(0, len(tiles), 2)]
    return np.concatenate(pairs)


def _placed(template: np.ndarray, used: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The mean face with the used vertices moved, ``(478, 3)``."""
    out = template.copy()
    out[used] += offsets
    return out


def _draw(
    vertices: np.ndarray, triangles: np.ndarray, far: np.ndarray, size: int, heat: bool
) -> np.ndarray:
    """One wire face, lips in red; with ``heat`` filled by how far each triangle moves of the most."""
    image = np.full((size * 3 // 4, size, 3), 255, np.uint8)
    place = (vertices[:, :2] * 0.54 + [0.5, -0.02]) * size
    place = np.round(place * 8).astype(np.int32)
    if heat:
        for triangle in triangles:
            share = far[triangle].mean() / max(float(far.max()), 1e-6)
            shade = (255, int(255 - 200 * share), int(255 - 235 * share))
            cv2.fillConvexPoly(image, place[triangle], shade, cv2.LINE_AA, 3)
    else:
        lines = place[triangles].reshape(-1, 3, 2)
        cv2.polylines(image, list(lines), True, (190, 196, 205), 1, cv2.LINE_AA, 3)
    for loop in (fm.LIP_OUTER, fm.LIP_INNER):
        cv2.polylines(image, [place[loop]], True, (200, 40, 60), 1, cv2.LINE_AA, 3)
    return image
