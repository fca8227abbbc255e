"""The avatars a server offers: files it was given, and photos its users upload (kept in memory)."""

from __future__ import annotations

import re
import secrets
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2

from visavis.avatar import Avatar, create_avatar, load_avatar, resize_avatar
from visavis.errors import AvatarError, ConfigError, ImageError

PHOTO_KINDS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}
THUMB = 384  # pixels; also the page's still before a conversation


@dataclass(frozen=True)
class Entry:
    """One avatar on offer; ``shared`` ones are listed, uploads are known to who has their id."""

    id: str
    name: str
    avatar: Avatar
    thumbnail: bytes
    shared: bool

    def public(self) -> dict[str, object]:
        """What a client sees."""
        meta = self.avatar.meta
        return {
            "id": self.id,
            "name": self.name,
            "size": self.avatar.size,
            "licence": meta.source_licence,
            "consent": meta.consent,
            "shared": self.shared,
        }


class Library:
    """All avatars by id.

    Args:
        size: that sessions are drawn at; every avatar is brought to it.
        uploads_kept: the oldest upload goes when there are more.
        make: photo file to avatar.
    """

    def __init__(self, size: int, uploads_kept: int, make: Callable[..., Avatar] = create_avatar):
        self._size, self._kept, self._make = size, uploads_kept, make
        self._shared: dict[str, Entry] = {}
        self._uploads: OrderedDict[str, Entry] = OrderedDict()

    def open(self, paths: Iterable[Path]) -> None:
        """Load files and folders of ``.avatar`` files.

        Raises:
            ConfigError: none there, or a path that does not exist.
            AvatarError: a file cannot be used.
        """
        for path in paths:
            files = sorted(path.glob("*.avatar")) if path.is_dir() else [path]
            for file in files:
                self.share(load_avatar(file))
        if not self._shared:
            raise ConfigError("no avatars; give --avatar FILE.avatar")

    def share(self, avatar: Avatar) -> Entry:
        """Offer an avatar to everyone."""
        stem = re.sub(r"[^a-z0-9]+", "-", avatar.meta.name.lower()).strip("-") or "avatar"
        name, count = stem, 2
        while name in self._shared:
            name, count = f"{stem}-{count}", count + 1
        entry = self._entry(name, avatar, shared=True)
        self._shared[name] = entry
        return entry

    def shared(self) -> list[Entry]:
        """Those for everyone, in order."""
        return list(self._shared.values())

    def get(self, name: str) -> Entry:
        """By id.

        Raises:
            AvatarError: unknown.
        """
        entry = self._shared.get(name) or self._uploads.get(name)
        if entry is None:
            raise AvatarError("no such avatar; GET /avatars lists them")
        return entry

    def upload(self, data: bytes, name: str, consent: str) -> Entry:
        """A photo or an ``.avatar`` file from a client; slow, not for the event loop.

        Raises:
            InputError: it cannot be used, and why.
        """
        kind = next((k for magic, k in PHOTO_KINDS.items() if data.startswith(magic)), None)
        if data.startswith(b"PK\x03\x04"):
            kind = "avatar"
        if kind is None:
            raise ImageError("expected a JPEG, PNG or WebP photo, or an .avatar file")
        label = re.sub(r"[^\w .'-]", "", name)[:60].strip() or "My photo"
        with tempfile.TemporaryDirectory(prefix="visavis-") as folder:
            path = Path(folder) / f"upload.{kind}"
            path.write_bytes(data)
            try:
                if kind == "avatar":
                    avatar = load_avatar(path)
                else:
                    avatar = self._make(path, size=self._size, name=label, consent=consent[:200])
            except (ImageError, AvatarError) as error:  # without the server's file names
                text = str(error).replace(str(path), "the upload")
                raise type(error)(text) from error
        entry = self._entry(secrets.token_urlsafe(12), avatar, shared=False)
        self._uploads[entry.id] = entry
        while len(self._uploads) > self._kept:
            self._uploads.popitem(last=False)
        return entry

    def _entry(self, name: str, avatar: Avatar, *, shared: bool) -> Entry:
        avatar = resize_avatar(avatar, self._size)
        small = cv2.resize(avatar.image, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        return Entry(name, avatar.meta.name, avatar, jpeg, shared)
