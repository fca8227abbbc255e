"""Clips and pictures of the face in tar files, with a parquet index that finds every one of them.

``shards/CORPUS-00000.tar`` holds, per clip, ``NAME.safetensors`` (as ``clips.save_clip`` writes it)
and ``NAME.FRAME.jpg``; ``shards/CORPUS.parquet`` one row per clip with its figures, the shard, and
where in it the clip's bytes lie, so that a clip can be read without unpacking. The same clips give
the same bytes, whoever prepared them.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visavis.errors import InputError
from visavis.train.clips import Clip, clip_from_bytes

SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class Entry:
    """One clip on its way into a shard.

    Attributes:
        name: of the clip.
        data: bytes of its safetensors file.
        pictures: JPEG by frame index.
        facts: figures for the index; plain numbers and strings.
    """

    name: str
    data: bytes
    pictures: dict[int, bytes]
    facts: dict[str, Any]


def write_shards(
    entries: Iterable[Entry], folder: str | Path, corpus: str, limit: int = SHARD_BYTES
) -> Path:
    """Write the tar files and the index of one corpus, replacing those of before.

    Args:
        entries: clips in the order wanted.
        folder: of the shards.
        corpus: name of the data set.
        limit: bytes after which the next shard is begun.

    Returns:
        Path of the index.
    """
    import pyarrow
    from pyarrow import parquet

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    number = 0
    source = iter(entries)
    pending = next(source, None)
    while pending is not None:
        name = f"{corpus}-{number:05d}.tar"
        part = folder / f"{name}.part"
        with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            while pending is not None and (tar.offset < limit):
                rows.append(_add(tar, pending) | {"shard": name, "corpus": corpus})
                pending = next(source, None)
        part.replace(folder / name)
        number += 1
    for stale in folder.glob(f"{corpus}-*.tar"):
        if stale.stem[len(corpus) + 1 :].isdigit() and int(stale.stem[len(corpus) + 1 :]) >= number:
            stale.unlink()
    columns = sorted({k for row in rows for k in row})
    table = pyarrow.table({k: [row.get(k) for row in rows] for k in columns})
    index = folder / f"{corpus}.parquet"
    parquet.write_table(table, index.with_suffix(".part"))
    index.with_suffix(".part").replace(index)
    return index


def read_index(folder: str | Path, corpus: str) -> list[dict[str, Any]]:
    """Rows of a corpus's index.

    Raises:
        InputError: no such index.
    """
    from pyarrow import parquet

    path = Path(folder) / f"{corpus}.parquet"
    if not path.exists():
        raise InputError(f"no index {path}; run visavis prepare first")
    return parquet.read_table(path).to_pylist()


def read_shards(folder: str | Path, corpus: str) -> Iterator[Clip]:
    """Every clip of a corpus, by the index.

    Raises:
        InputError: no index, or a clip whose bytes are not those that were written.
    """
    for row in read_index(folder, corpus):
        with (Path(folder) / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            data = file.read(row["bytes"])
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise InputError(f"{row['shard']}: {row['name']} is damaged; prepare {corpus} again")
        yield clip_from_bytes(data, row["name"], corpus)


def read_pictures(folder: str | Path, row: dict[str, Any]) -> dict[int, bytes]:
    """JPEG by frame index of one row of the index."""
    found = {}
    with tarfile.open(Path(folder) / row["shard"]) as tar:
        for frame in json.loads(row["pictures"]):
            member = tar.extractfile(f"{row['name']}.{frame:05d}.jpg")
            assert member is not None
            found[frame] = member.read()
    return found


def _add(tar: tarfile.TarFile, entry: Entry) -> dict[str, Any]:
    """Append one clip; its row of the index."""
    _member(tar, f"{entry.name}.safetensors", entry.data)
    start = tar.offset - -(-len(entry.data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    for frame, jpeg in sorted(entry.pictures.items()):
        _member(tar, f"{entry.name}.{frame:05d}.jpg", jpeg)
    return entry.facts | {
        "name": entry.name, "offset": start, "bytes": len(entry.data),
        "sha256": hashlib.sha256(entry.data).hexdigest(),
        "pictures": json.dumps(sorted(entry.pictures)),
    }  # fmt: skip


def _member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
