"""Which clips a protocol scores, and what each shuffled row hears instead of its own sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from visavis.eval.protocol import Protocol, Split, select, select_sounds


@dataclass(frozen=True)
class Job:
    """One clip of one split, as paths: ``film``, or ``photo`` with ``sounds``.

    ``other`` is the shuffled row's sound, entered at ``phase`` (0..1 of its length).
    """

    split: Split
    name: str
    film: Path | None = None
    photo: Path | None = None
    sounds: tuple[Path, ...] = ()
    other: Path | None = None
    phase: float = 0.5

    @property
    def files(self) -> list[Path]:
        """Everything it reads."""
        return [p for p in (self.film, self.photo, *self.sounds, self.other) if p]


def jobs_of(protocol: Protocol, data: Path) -> list[Job]:
    """Every clip to score, in order; ``ConfigError`` for a split that finds no file.

    ``person`` splits keep the last eleventh of the clips. The shuffled row hears the clip half the
    set away (neighbours by name share words in GRID), entered at phases spread evenly over the
    split's clips (``rows.wrong_sound`` says why).
    """
    jobs = []
    for split in protocol.splits:
        jobs += MAKERS[split.kind](split, data)
    return jobs


def _film_jobs(split: Split, data: Path) -> list[Job]:
    films = select(split, data, split.films)
    first = films[0] if split.kind == "person" else None
    scored = films[-max(1, len(films) // 11) :] if split.kind == "person" else films
    far = len(films) // 2
    jobs = []
    for k, film in enumerate(scored):
        other = films[(films.index(film) + far) % len(films)]
        phase = (k + 0.5) / len(scored)
        jobs.append(Job(split, film.stem, film=film, photo=first, other=other, phase=phase))
    return jobs


def _voice_jobs(split: Split, data: Path) -> list[Job]:
    photos, sounds = select(split, data, split.photos), select_sounds(split, data)
    sounds = sounds[:: max(1, len(sounds) // (len(photos) + 1))]  # one to spare, to shuffle
    jobs = []
    for k, photo in enumerate(photos):
        sound, other = sounds[k % len(sounds)], sounds[(k + 1) % len(sounds)]
        phase = (k + 0.5) / len(photos)
        job = Job(split, photo.stem, photo=photo, sounds=(sound,), other=other, phase=phase)
        jobs.append(job)
    return jobs


def _long_jobs(split: Split, data: Path) -> list[Job]:
    sounds = tuple(select_sounds(split, data))
    photos = select(split, data, split.photos)
    return [Job(split, photo.stem, photo=photo, sounds=sounds) for photo in photos]


MAKERS = {
    "reconstruct": _film_jobs,
    "person": _film_jobs,
    "drive": _voice_jobs,
    "long": _long_jobs,
}
