"""The nets a motion recipe can name; both take features, look-ahead and state and give them back."""

from __future__ import annotations

from dataclasses import replace

from visavis.errors import ConfigError
from visavis.models import motion, transformer

ARCHITECTURES = {
    "tcn_gru": (motion.MotionNet, motion.SIZES),
    "transformer": (transformer.MotionTransformer, transformer.SIZES),
}

AnyMotionNet = motion.MotionNet | transformer.MotionTransformer


def build_motion_net(
    architecture: str, size: str, n_inputs: int = 166, dropout: float = 0.1
) -> AnyMotionNet:
    """Fresh weights.

    Args:
        architecture: a name of ``ARCHITECTURES``.
        size: a name of its sizes.
        n_inputs: values per motion step; 166 of the log-mel front end.
        dropout: share of values left out in training.

    Raises:
        ConfigError: no such architecture or size.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ConfigError(f"architecture {architecture!r} is unknown; choose one of {known}")
    net, sizes = ARCHITECTURES[architecture]
    if size not in sizes:
        raise ConfigError(f"size {size!r} is unknown; choose one of {', '.join(sizes)}")
    return net(replace(sizes[size], n_inputs=n_inputs, dropout=dropout))
