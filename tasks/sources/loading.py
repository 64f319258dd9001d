"""The pictures of a sequence, read ahead by a thread that also takes their checksums: a second core does that."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import SourceError
from tasks.prefetch import prefetch
from tasks.sources.places import Place, open_local

MAX_PICTURE_BYTES = 512 * 2**20
_MAX_AHEAD_BYTES = 16 * 2**20
"""Of one picture; a larger one is read again when its turn comes, so that what waits stays small."""
_MAX_KEPT_BYTES = 64 * 2**20
_AHEAD = 4
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Loaded:
    """path: a local one. sha256: of the content. data: the content and crc its CRC-32, or both None if too large."""

    path: Path
    sha256: bytes
    data: bytes | None
    crc: int | None


def load_ahead(places: Sequence[Place], spool: Path) -> Generator[Loaded | SourceError, None, None]:
    """Each picture in order, or why it cannot be had. What lies elsewhere is fetched once, into `spool`, and stays.

    Raises StorageError where a store fails.
    """
    return prefetch(lambda index: _load(places[index], index, spool), 0, len(places), depth=_AHEAD)


def read_bytes(path: Path, shown: str, max_bytes: int = MAX_PICTURE_BYTES) -> bytes:
    """All of a file. Raises SourceError where it cannot be read or has more than `max_bytes`, which is found out first.

    `shown` is what messages call it.
    """
    try:
        with open(path, "rb") as file:
            # As much as is asked for is set aside first: no more than the file has, which may be growing.
            data = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
            if rest := file.read(max_bytes + 1 - len(data)) if len(data) <= max_bytes else b"":
                data += rest
    except OSError as error:
        raise SourceError(f"{shown}: cannot be read ({error.strerror})") from None
    if len(data) > max_bytes:
        raise SourceError(_describe_size(shown, max_bytes))
    return data


class KeptPictures:
    """What was loaded and waits for its turn, so that it is not read twice; bounded, and in the order of time."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Loaded]] = deque()
        self._bytes = 0

    def put(self, time_us: int, loaded: Loaded) -> None:
        size = len(loaded.data or b"")
        if loaded.data is not None and self._bytes + size <= _MAX_KEPT_BYTES:
            self._waiting.append((time_us, loaded))
            self._bytes += size

    def take(self, time_us: int, path: str) -> tuple[bytes, int] | None:
        """(content, CRC-32) of the picture at that time, None where it was not kept; drops all before it."""
        while self._waiting and self._waiting[0][0] <= time_us:
            _, loaded = self._waiting.popleft()
            assert loaded.data is not None
            self._bytes -= len(loaded.data)
            if str(loaded.path) == path and loaded.crc is not None:
                return loaded.data, loaded.crc
        return None


def _load(place: Place, index: int, spool: Path) -> Loaded | SourceError:
    try:
        with open_local(place, spool) as path:
            loaded = _digest(path, place.shown)
            if path.is_relative_to(spool):  # a copy, which would go again
                copy = path.rename(spool / f"{index:06d}{place.suffix}")
                return Loaded(copy, loaded.sha256, loaded.data, loaded.crc)
            return loaded
    except SourceError as error:
        return error


def _digest(path: Path, shown: str) -> Loaded:
    try:
        large = path.stat().st_size > _MAX_AHEAD_BYTES
    except OSError as error:
        raise SourceError(f"{shown}: cannot be read ({error.strerror})") from None
    if large:
        return Loaded(path, _digest_blocks(path, shown), None, None)
    data = read_bytes(path, shown)
    return Loaded(path, hashlib.sha256(data).digest(), data, zlib.crc32(data))


def _digest_blocks(path: Path, shown: str) -> bytes:
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                if size > MAX_PICTURE_BYTES:
                    raise SourceError(_describe_size(shown, MAX_PICTURE_BYTES))
    except OSError as error:
        raise SourceError(f"{shown}: cannot be read ({error.strerror})") from None
    return digest.digest()


def _describe_size(shown: str, max_bytes: int) -> str:
    return f"{shown}: larger than {max_bytes // 2**20} MiB: not a picture of a video, nor of its masks"
