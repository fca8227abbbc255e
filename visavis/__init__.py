"""visavis: a live voice and one photo become a talking head.

import visavis

avatar = visavis.create_avatar("photo.jpg")
visavis.render(avatar, "speech.wav", "out.mp4")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visavis.avatar import Avatar, create_avatar, load_avatar
    from visavis.errors import VisavisError
    from visavis.pipeline import Pipeline, PipelineConfig, animate, render, stream
    from visavis.track import track_video
    from visavis.types import Frame, Motion

__version__ = "0.1.0"

_HOME = {
    "Avatar": "avatar",
    "create_avatar": "avatar",
    "load_avatar": "avatar",
    "render": "pipeline",
    "stream": "pipeline",
    "animate": "pipeline",
    "Pipeline": "pipeline",
    "PipelineConfig": "pipeline",
    "track_video": "track",
    "Motion": "types",
    "Frame": "types",
    "VisavisError": "errors",
}
__all__ = [
    "Avatar",
    "Frame",
    "Motion",
    "Pipeline",
    "PipelineConfig",
    "VisavisError",
    "animate",
    "create_avatar",
    "load_avatar",
    "render",
    "stream",
    "track_video",
]


def __getattr__(name: str) -> Any:
    """Public names load their module on first use: importing visavis costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'visavis' has no attribute {name!r}")
    return getattr(import_module(f"visavis.{_HOME[name]}"), name)
