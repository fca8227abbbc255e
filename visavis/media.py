"""Files at the edge: open media safely, and put a result under its name only when whole."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av

from visavis.errors import InputError, OutputError

READ_ERRORS = (av.FFmpegError, OSError, ValueError)
"""What PyAV raises on files it cannot read."""


def reason(error: BaseException) -> str:
    """The first line of what went wrong, without PyAV's numbers."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0]


@contextmanager
def open_media(
    path: str | Path, kind: type[InputError], expected: str
) -> Iterator[av.container.InputContainer]:
    """Open for reading; FFmpeg gets this one file and no other (a playlist cannot reach out).

    Args:
        path: any media file.
        kind: the class of the errors raised.
        expected: what the caller can use, for the messages.

    Raises:
        InputError: of class ``kind``: missing, a folder, empty, unreadable, not media.
    """
    path = Path(path)
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise kind(f"{path} {what}; expected {expected}: check the path")
        if path.stat().st_size == 0:
            raise kind(f"{path} is empty (0 bytes); expected {expected}: record or copy it again")
        handle = path.open("rb")
    except (OSError, ValueError) as error:
        raise kind(f"{path!r} cannot be opened ({reason(error)}); expected {expected}") from None
    with handle:
        try:
            container = av.open(
                handle, options={"protocol_whitelist": "data"}, metadata_errors="replace"
            )
        except READ_ERRORS as error:
            raise kind(
                f"{path} is not a media file that can be read ({reason(error)}); "
                f"expected {expected}: convert it or copy it again"
            ) from None
        with container:
            yield container


def origin(container: av.container.InputContainer) -> Fraction:
    """Seconds on the container's own clock that count as time 0, for sound and picture alike."""
    return Fraction(max(0, container.start_time or 0), av.time_base)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path in the same folder, moved to ``path`` when the block ends well.

    On any exception, Ctrl-C included, the temporary file is removed and what stood at ``path``
    is left as it was.

    Raises:
        OutputError: the folder is missing or cannot be written, or the disk is full.
    """
    path = Path(path)
    if "\0" in str(path) or os.path.isdir(path):
        raise OutputError(f"{str(path)!r} is no file name; expected one to write to")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    advice = "choose a folder that can be written"
    try:
        if not os.path.isdir(path.parent):
            raise OutputError(f"folder {path.parent} does not exist: make it, or choose another")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        advice = "free some space or choose another folder"
        yield temporary
        os.replace(temporary, path)
    except (OSError, UnicodeEncodeError) as error:  # PyAV's disk errors are OSError too
        raise OutputError(f"cannot write {path} ({reason(error)}): {advice}") from None
    finally:
        with suppress(OSError):  # moved, or never made
            temporary.unlink()


def decoded_frames(
    container: av.container.InputContainer, stream: av.AudioStream | av.VideoStream
) -> Iterator[av.AudioFrame | av.VideoFrame | Exception]:
    """Decoded frames; an exception stands where a packet, or the rest, cannot be read."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except READ_ERRORS as error:
            yield error
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
        except READ_ERRORS as error:
            yield error
