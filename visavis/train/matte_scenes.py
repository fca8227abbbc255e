"""Rooms to set people in when the matting net is trained: shelves, drapes, plants, panels, light.

Each is drawn from a random generator as an ``(S, S, 3)`` uint8 RGB picture. They need not look real:
they must hold edges, colours and textures that touch a head and are not one.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Room = Callable[[np.random.Generator, int], np.ndarray]


def colour(rng: np.random.Generator, dark: float = 0.0) -> np.ndarray:
    """A colour such as things have, ``(3,)`` float in 0..255; ``dark`` up to 1 takes light away."""
    hue, saturation = rng.uniform(0, 180), 255 * rng.beta(1.5, 2.5)
    value = 255 * rng.beta(1.6, 1.6) * (1 - dark)
    pixel = np.uint8([[[hue, saturation, value]]])
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].astype(float)


def gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    """A studio wall: two colours, a glow somewhere, a vignette."""
    rows, columns = np.mgrid[:size, :size] / size
    turn = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + np.cos(turn) * (columns - 0.5) + np.sin(turn) * (rows - 0.5), 0, 1)
    first = colour(rng)
    second = first + rng.normal(0, 35, 3)
    wall = first + (second - first) * ramp[..., None]
    x, y = rng.uniform(0, 1, 2)
    glow = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / rng.uniform(0.05, 0.5))
    wall = wall + rng.normal(0, 40) * glow[..., None]
    if rng.random() < 0.5:
        wall = wall + rng.uniform(2, 18) * clouds(rng, size)[..., None]
    return np.clip(wall, 0, 255).astype(np.uint8)


def clouds(rng: np.random.Generator, size: int, slope: float = 1.6) -> np.ndarray:
    """Noise ``(S, S)`` of unit deviation whose amplitude falls as frequency to ``slope``."""
    spectrum = np.fft.rfft2(rng.standard_normal((size, size)))
    y, x = np.fft.fftfreq(size)[:, None] * size, np.fft.rfftfreq(size)[None] * size
    picture = np.fft.irfft2(spectrum / np.maximum(np.hypot(x, y), 1) ** slope, (size, size))
    return picture / (picture.std() + 1e-9)


def marble(rng: np.random.Generator, size: int) -> np.ndarray:
    """Cloudy colours without a shape."""
    base = colour(rng)
    layers = [clouds(rng, size, rng.uniform(0.8, 2.0)) for _ in range(3)]
    mixed = np.stack(layers, -1) * rng.uniform(2, 30) + layers[0][..., None] * rng.uniform(0, 30)
    return np.clip(base + mixed, 0, 255).astype(np.uint8)


def shelf(rng: np.random.Generator, size: int) -> np.ndarray:
    """Books of many heights on boards, or a rack of boxes."""
    picture = np.empty((size, size, 3), np.uint8)
    picture[:] = colour(rng, 0.6)
    board = colour(rng)
    tall = int(rng.uniform(0.15, 0.4) * size)
    muted = rng.uniform(0.2, 1)
    top = -int(rng.uniform(0, tall))
    while top < size:
        left = -int(rng.uniform(0, 20))
        while left < size:
            wide = int(size * rng.uniform(0.015, 0.06)) + 1
            high = int(tall * rng.uniform(0.55, 0.92))
            book = board + (colour(rng, 0.1) - board) * muted
            cv2.rectangle(
                picture, (left, top + tall - high), (left + wide, top + tall), book.tolist(), -1
            )
            shade = (book * 0.6).tolist()
            cv2.line(picture, (left + wide, top + tall - high), (left + wide, top + tall), shade, 1)
            if rng.random() < 0.5:
                y = top + tall - int(high * rng.uniform(0.2, 0.9))
                cv2.rectangle(picture, (left, y), (left + wide, y + 3), colour(rng).tolist(), -1)
            left += wide + int(rng.random() < 0.1) * wide
        thick = max(2, int(size * 0.025))
        cv2.rectangle(picture, (0, top + tall), (size, top + tall + thick), board.tolist(), -1)
        top += tall + thick
    for x in rng.uniform(0, size, rng.integers(0, 3)).astype(int):
        cv2.rectangle(picture, (x, 0), (x + int(size * 0.03), size), (board * 0.85).tolist(), -1)
    return picture


def drape(rng: np.random.Generator, size: int) -> np.ndarray:
    """Cloth in folds: stripes, a field with stars or dots, cords; over a wall or over all of it."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32) / size
    lean = rng.normal(0, 0.35)
    fold = columns + lean * rows + 0.02 * clouds(rng, size, 2.0)
    along = rows - lean * columns + 0.03 * np.sin(fold * rng.uniform(15, 50))
    picture = np.empty((size, size, 3))
    first, second = colour(rng), colour(rng)
    stripes = np.sin((along if rng.random() < 0.5 else fold) * rng.uniform(15, 90)) > 0
    picture[:] = np.where(stripes[..., None], first, second)
    field = (fold % 1.0 < rng.uniform(0.2, 0.6)) & (along < rng.uniform(0.2, 1.2))
    picture[field] = colour(rng)
    dots = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(0, 60)):
        x, y = rng.uniform(0, size, 2)
        r = size * rng.uniform(0.006, 0.02)
        turn = rng.uniform(0, np.pi) + np.arange(10) * np.pi / 5
        star = np.stack([x + r * np.cos(turn) * np.tile([1, 0.4], 5),
                         y + r * np.sin(turn) * np.tile([1, 0.4], 5)], 1)  # fmt: skip
        cv2.fillPoly(dots, [np.int32(star)], 1)
    picture[(dots > 0) & field] = colour(rng) * 0.4 + 150
    light = 1 + rng.uniform(0.1, 0.5) * np.sin(
        fold * rng.uniform(12, 60) + 4 * clouds(rng, size, 2.5)
    )
    picture = picture * light[..., None]
    if rng.random() < 0.75:
        edge = rng.uniform(0.1, 0.6)
        beside = fold > edge if rng.random() < 0.5 else fold < 1 - edge
        picture[beside] = gradient(rng, size)[beside]
    return np.clip(picture, 0, 255).astype(np.uint8)


def plants(rng: np.random.Generator, size: int) -> np.ndarray:
    """Leaves, or whatever long and pointed, over a wall."""
    picture = np.ascontiguousarray(gradient(rng, size))
    base = colour(rng) if rng.random() < 0.4 else np.array([40, 80, 35]) * rng.uniform(0.2, 2)
    middle, spread = rng.uniform(0, size, 2), rng.uniform(0.1, 0.5) * size
    for _ in range(rng.integers(20, 160)):
        x, y = middle + rng.normal(0, spread, 2)
        long, thin = size * rng.uniform(0.03, 0.2), rng.uniform(0.08, 0.4)
        t = np.linspace(-1, 1, 9)
        bow = thin * (1 - t * t)
        shape = np.concatenate([np.stack([t, bow], 1), np.stack([t, -bow], 1)[::-1]])
        turn = rng.uniform(0, np.pi)
        spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        leaf = np.clip(base * rng.uniform(0.4, 1.4) + rng.normal(0, 12, 3), 0, 255)
        outline = np.int32(shape * long @ spin + [x, y])
        cv2.fillPoly(picture, [outline], leaf.tolist(), cv2.LINE_AA)
    return picture


def panels(rng: np.random.Generator, size: int) -> np.ndarray:
    """Panelled walls, windows, blinds, frames: upright rectangles within rectangles."""
    picture = np.ascontiguousarray(gradient(rng, size))
    for _ in range(rng.integers(2, 12)):
        x, y = rng.uniform(-0.2, 1, 2) * size
        w, h = rng.uniform(0.03, 0.7, 2) * size
        tint = np.clip(picture.mean((0, 1)) + rng.normal(0, 45, 3), 0, 255).tolist()
        thick = -1 if rng.random() < 0.5 else int(rng.integers(1, 10))
        cv2.rectangle(picture, (int(x), int(y)), (int(x + w), int(y + h)), tint, thick)
    if rng.random() < 0.3:
        step = int(rng.integers(4, 24))
        axis = rng.integers(2)
        for k in range(0, size, step):
            at = (slice(k, k + step // 2), slice(None))[:: 1 if axis else -1]
            picture[at] = np.clip(picture[at] * rng.uniform(0.7, 1.1), 0, 255)
    return picture


def lamps(rng: np.random.Generator, size: int) -> np.ndarray:
    """Discs of light and colour out of focus."""
    picture = np.ascontiguousarray(gradient(rng, size)).astype(float)
    for _ in range(rng.integers(5, 50)):
        disc = np.zeros((size, size), np.uint8)
        x, y = rng.uniform(0, size, 2).astype(int)
        cv2.circle(disc, (int(x), int(y)), int(size * rng.uniform(0.01, 0.2)), 255, -1, cv2.LINE_AA)
        share = disc[..., None] / 255 * rng.uniform(0.2, 1)
        picture += (colour(rng) - picture) * share
    return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 6)).clip(0, 255).astype(np.uint8)


ROOMS: dict[str, Room] = {
    "gradient": gradient,
    "marble": marble,
    "shelf": shelf,
    "drape": drape,
    "plants": plants,
    "panels": panels,
    "lamps": lamps,
}


def room(rng: np.random.Generator, size: int) -> np.ndarray:
    """One of `ROOMS`, at times two side by side."""
    names = list(ROOMS)
    first = ROOMS[names[rng.integers(len(names))]](rng, size)
    if rng.random() < 0.35:
        second = ROOMS[names[rng.integers(len(names))]](rng, size)
        at, lean = rng.uniform(0.1, 0.9), rng.normal(0, 0.1)
        rows, columns = np.mgrid[:size, :size] / size
        first = np.where((columns + lean * rows < at)[..., None], first, second)
    return first
