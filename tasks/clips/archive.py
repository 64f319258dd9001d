"""Zip archives of stored entries, written once from front to end; the bytes are those that zipfile gives them.

Layout: PKWARE's APPNOTE 6.3.10, sections 4.3.7 to 4.3.16 and 4.5.3. zipfile writes the same, but takes each checksum
itself and holds its file open: here a checksum may come with the data, and a file can be left and gone on with.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from tasks.files import start_writeback

_LIMIT = 2**31 - 1
"""Where zipfile begins to write sizes and places as 64 bits, though 32 would do up to twice that."""
_MOST_ENTRIES = 2**16 - 1
_VERSION, _VERSION_64 = 20, 45
_UNIX, _MODE = 3, 0o644 << 16
_FIRST_DAY = 1 << 5 | 1
"""1 January 1980, the earliest there is: equal content gives an equal archive."""
_WRITEBACK_BYTES = 8 * 2**20

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s2B5H3L5H2L")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")


class StoredArchive:
    """Entries go to `path`, which exists or is made, one after the other; `finish` makes an archive of it.

    `leave` closes the file until the next `add` or `finish`, so that any number may be under way.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._end = 0
        self._on_the_way = 0
        self._entries: list[tuple[bytes, int, int, int]] = []

    def add(self, name: str, data: bytes, crc: int | None = None) -> None:
        """Append an entry of less than 2 GiB. name: ASCII. crc: its CRC-32 where that is known."""
        crc = zlib.crc32(data) if crc is None else crc
        encoded, size = name.encode("ascii"), len(data)
        if size > _LIMIT:
            raise ValueError(f"{name}: {size} bytes, an entry has at most {_LIMIT}")
        header = _LOCAL.pack(b"PK\3\4", _VERSION, 0, 0, 0, _FIRST_DAY, crc, size, size, len(encoded), 0)
        self._entries.append((encoded, crc, size, self._end))
        self._write(header + encoded)
        self._write(data)
        if self._end - self._on_the_way >= _WRITEBACK_BYTES:
            self._send()

    def leave(self) -> None:
        if self._file is not None:
            self._send()
            self._file.close()
            self._file = None

    def finish(self) -> None:
        """Write the directory and close the file."""
        start = self._end
        for entry in self._entries:
            self._write(_describe(*entry))
        self._write(_describe_end(len(self._entries), start, self._end - start))
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = open(self.path, "r+b" if self.path.exists() else "wb")  # noqa: SIM115 - closed by leave, finish
            self._file.seek(self._end)
        self._file.write(data)
        self._end += len(data)

    def _send(self) -> None:
        """The disk begins early, so that little is left to wait for at the end."""
        assert self._file is not None
        self._file.flush()
        start_writeback(self._file.fileno(), self._on_the_way, self._end - self._on_the_way)
        self._on_the_way = self._end


def _describe(name: bytes, crc: int, size: int, offset: int) -> bytes:
    """An entry of the directory."""
    far = offset > _LIMIT
    extra = struct.pack("<2HQ", 1, 8, offset) if far else b""
    version = _VERSION_64 if far else _VERSION
    place = 0xFFFFFFFF if far else offset
    fixed = _CENTRAL.pack(
        *(b"PK\1\2", version, _UNIX, version, 0, 0, 0, _FIRST_DAY, crc, size, size),
        *(len(name), len(extra), 0, 0, 0, _MODE, place),
    )
    return fixed + name + extra


def _describe_end(count: int, offset: int, size: int) -> bytes:
    """What stands behind the directory of `count` entries, `size` bytes from `offset` on."""
    tail = b""
    if count > _MOST_ENTRIES or offset > _LIMIT or size > _LIMIT:
        tail = _END_64.pack(b"PK\6\6", 44, _VERSION_64, _VERSION_64, 0, 0, count, count, size, offset)
        tail += _LOCATOR.pack(b"PK\6\7", 0, offset + size, 1)
        count, size, offset = min(count, 0xFFFF), min(size, 0xFFFFFFFF), min(offset, 0xFFFFFFFF)
    return tail + _END.pack(b"PK\5\6", 0, 0, count, count, size, offset, 0)
