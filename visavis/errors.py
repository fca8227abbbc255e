"""Every error a caller may catch.

VisavisError
├── InputError              what was given cannot be used (CLI exit status 2)
│   ├── AudioError          no sound, unreadable, empty, NaN
│   ├── ImageError          unreadable, too large, wrong kind
│   │   └── FaceError       no face, several faces, too small, turned away, hidden
│   ├── VideoError          unreadable, empty, no face in it
│   ├── AvatarError         not an .avatar file, damaged or hostile
│   └── ConfigError         unknown or impossible setting
├── OutputError             the result cannot be written (disk, permission, unknown suffix)
└── ModelError              a model file is missing, damaged or does not fit

Messages say what came, what was expected and what to do, in one line.
"""

from __future__ import annotations


class VisavisError(Exception):
    """Root of the tree above."""


class InputError(VisavisError):
    """The input cannot be used; nothing was written."""


class AudioError(InputError):
    """The sound cannot be used."""


class ImageError(InputError):
    """The picture cannot be used."""


class FaceError(ImageError):
    """The picture shows no face that can be animated."""


class VideoError(InputError):
    """The video cannot be used."""


class AvatarError(InputError):
    """The ``.avatar`` file cannot be used."""


class ConfigError(InputError):
    """A setting is unknown or impossible."""


class OutputError(VisavisError):
    """The result cannot be written."""


class ModelError(VisavisError):
    """A model file is missing, damaged or does not fit."""
