"""What is installed under which licence, and what must never be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

NEVER = {
    "insightface": "models for non-commercial use",
    "pyiqa": "PolyForm Noncommercial",
    "nvdiffrast": "NVIDIA, non-commercial",
    "piper-tts": "GPL-3.0",
    "py-espeak-ng": "GPL-3.0",
    "espeakng": "GPL-3.0",
    "imageio-ffmpeg": "ships a GPL program",
}
PERMISSIVE = re.compile(
    r"\b(MIT|BSD|Apache|PSF|Python Software|ISC|Zlib|Unlicense|CC0|0BSD|HPND|MPL|Mozilla)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Licence:
    """One installed distribution. ``verdict`` is ``ok``, ``look`` (not recognised) or ``never``."""

    name: str
    version: str
    licence: str
    verdict: str


def installed(root: str = "visavis") -> list[Licence]:
    """``root``'s base dependencies, all the way down, as installed; sorted by name."""
    found: dict[str, Licence] = {}
    queue = [root]
    while queue:
        name = _key(queue.pop())
        if name in found:
            continue
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # needed on another system only
        found[name] = _licence(name, package)
        queue += [_key(r) for r in package.requires or [] if "extra ==" not in r]
    return sorted(found.values(), key=lambda licence: licence.name)


def forbidden() -> list[Licence]:
    """What is installed and must not be, whoever asked for it."""
    out = []
    for name, why in NEVER.items():
        try:
            out.append(Licence(name, metadata.version(name), why, "never"))
        except metadata.PackageNotFoundError:
            continue
    return out


def _key(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def _licence(name: str, package: metadata.Distribution) -> Licence:
    info = package.metadata
    classifiers = [
        c.split(" :: ")[-1] for c in info.get_all("Classifier") or [] if "License ::" in c
    ]
    stated = info.get("License-Expression") or "; ".join(classifiers) or info.get("License") or "?"
    stated = stated.strip().splitlines()[0][:80] if stated.strip() else "?"
    verdict = "never" if name in NEVER else "ok" if PERMISSIVE.search(stated) else "look"
    return Licence(name, package.version, stated, verdict)
