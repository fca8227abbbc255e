"""The options of benchmarks that let portraits of `sfhq` speak."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def portrait_options(text: str, *, portraits: int, seconds: float) -> argparse.ArgumentParser:
    """A parser of data, models, tier, size, portraits and seconds, with these defaults."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    models = os.environ.get("VISAVIS_MODELS") or "../shared/models"
    parser.add_argument("--models", type=Path, default=Path(models))
    parser.add_argument("--tier", default="patch")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--portraits", type=int, default=portraits)
    parser.add_argument("--seconds", type=float, default=seconds)
    return parser
