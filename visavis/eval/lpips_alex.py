"""LPIPS with AlexNet where the ``lpips`` package and its weights are at hand: an extra column.

No dependency of ours: the package needs torchvision, and AlexNet's weights come from the network.
Nothing is ever downloaded here; without either, the report says what is missing.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = "alexnet-owt-7be5be79.pth"  # torchvision's name for AlexNet trained on ImageNet


def missing() -> str | None:
    """What keeps LPIPS from being measured, as one line; None when all is there."""
    for package in ("lpips", "torchvision"):
        if find_spec(package) is None:
            return f"not measured: the package {package} is not installed"
    import torch

    weights = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    return None if weights.is_file() else f"not measured: AlexNet's weights are not at {weights}"


@cache
def alex_note() -> str:
    """The report's line on LPIPS: the package's version, or why the column is absent."""
    reason = missing()
    if reason:
        return reason
    try:
        return f"AlexNet, lpips {version('lpips')}"
    except PackageNotFoundError:
        return "AlexNet, lpips of unknown version"


class AlexDistance:
    """LPIPS v0.1 (Zhang et al., CVPR 2018), AlexNet: the figure that papers quote."""

    def __init__(self) -> None:
        """Load the net; call only where ``missing()`` is None."""
        import lpips

        self._net: Any = lpips.LPIPS(net="alex", version="0.1", verbose=False).eval()

    def __call__(self, image: np.ndarray, reference: np.ndarray) -> float:
        """Distance of two uint8 RGB images of one shape, 64 px a side or more; 0 = identical."""
        import torch

        with torch.inference_mode():
            return float(self._net(_tensor(image), _tensor(reference)))


def _tensor(image: np.ndarray) -> Any:
    """``(H, W, 3)`` uint8 to ``(1, 3, H, W)`` in [-1, 1], as the package wants it."""
    import torch

    planes = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
    return torch.from_numpy(planes) / 127.5 - 1


def open_alex() -> AlexDistance | None:
    """The net, or None where the package or its weights are missing."""
    return None if missing() else AlexDistance()
