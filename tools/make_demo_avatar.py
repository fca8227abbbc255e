"""Make ``visavis/assets/demo.avatar`` from a photo that matplotlib ships.

    python tools/make_demo_avatar.py

The photo is the official portrait of Rear Admiral Grace M. Hopper (1906-1992), taken by James S.
Davis for the United States Navy: a work of the US government, in the public domain. matplotlib
carries it as ``sample_data/grace_hopper.jpg``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from visavis.avatar import create_avatar

ASSETS = Path(__file__).parents[1] / "visavis" / "assets"


def main() -> None:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise SystemExit("matplotlib is not installed: pip install matplotlib")
    photo = Path(spec.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    avatar = create_avatar(
        photo,
        name="Grace Hopper (demo)",
        source_licence="public domain (work of the US Navy, James S. Davis, 1984)",
        consent="historical public-domain portrait of a person who died in 1992",
        provenance="matplotlib sample_data/grace_hopper.jpg",
    )
    print(avatar.save(ASSETS / "demo.avatar"))


if __name__ == "__main__":
    main()
