"""Whether the pictures of a sequence are whole, without decoding each of them."""

from __future__ import annotations

import re

from tasks import picture_codec

_SCAN = 0xDA
_APPLICATION = (*range(0xE0, 0xEE), 0xEF, 0xFE)
"""Segments of a JPEG that do not count when it is decoded. 0xEE does: it names the colour space."""
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)
"""A marker that is neither a byte of the scan nor one of those that it restarts at."""
_MAX_KEPT_HEADER, _MAX_KEPT_HEADERS = 2**14, 64


class SequenceChecker:
    """`read_header` and `check_whole` for the pictures of one sequence, which mostly differ in nothing but pixels.

    Whether a JPEG of one scan decodes hangs on its tables and on reaching its end; a wrong bit elsewhere only makes
    wrong pixels, which no decoder reports. So each set of tables is decoded once, and then the ends are looked for.
    """

    def __init__(self) -> None:
        self._headers: dict[bytes, picture_codec.PictureHeader] = {}
        self._sound: set[bytes] = set()

    def read_header(self, data: bytes, *, where: str) -> picture_codec.PictureHeader:
        """As `read_header`: of a JPEG with the same bytes up to its scan as one before, the same."""
        end, _ = _find_scan(data)
        header = self._headers.get(data[:end]) or picture_codec.read_header(data, where=where)
        if 0 < end <= _MAX_KEPT_HEADER and len(self._headers) < _MAX_KEPT_HEADERS:
            self._headers[data[:end]] = header
        return header

    def check_whole(self, data: bytes, *, where: str) -> None:
        """As `check_whole`."""
        end, tables = _find_scan(data)
        marker = _AFTER_SCAN.search(data, end) if end else None
        ends = marker is not None and marker[0] == b"\xff\xd9"
        if ends and tables in self._sound:
            return
        picture_codec.check_whole(data, where=where)
        if ends and len(tables) <= _MAX_KEPT_HEADER and len(self._sound) < _MAX_KEPT_HEADERS:
            self._sound.add(tables)


def _find_scan(data: bytes) -> tuple[int, bytes]:
    """(where a JPEG's first scan begins, all before it that says how to decode it); (0, b"") where there is none."""
    if data[:2] != b"\xff\xd8":
        return 0, b""
    start, tables = 2, []
    while data[start : start + 1] == b"\xff" and len(data) >= start + 4:
        marker, end = data[start + 1], start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker not in _APPLICATION:
            tables.append(data[start:end])
        if marker == _SCAN:
            return end, b"".join(tables)
        start = end
    return 0, b""
