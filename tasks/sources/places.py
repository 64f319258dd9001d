"""Where sources lie: any fsspec URL, listed and brought to a local file; no credential in what is shown or kept."""

from __future__ import annotations

import contextlib
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tasks.errors import SourceError
from tasks.files import TEMPORARY_PREFIX, storage_errors

VIDEO_SUFFIXES = frozenset(
    (".3gp", ".asf", ".avi", ".flv", ".gif", ".h264", ".h265", ".ivf", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv")
    + (".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".webm", ".wmv", ".y4m")
)
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


@dataclass(frozen=True)
class Place:
    """One file. `shown` is its path or URL without credentials; `url` may hold them and is never shown."""

    shown: str
    url: str = field(repr=False)

    @property
    def suffix(self) -> str:
        return Path(urlsplit(self.shown).path if "://" in self.shown else self.shown).suffix.lower()


def hide_credentials(url: str) -> str:
    """The URL without user, password, query and fragment, in every part of a chained one; local paths stay.

    Characters that would break a line, a terminal or a UTF-8 file (a name may hold any bytes) become escapes.
    """
    return escape_unprintable("::".join(_hide_in_part(part) for part in url.split("::")))


def escape_unprintable(text: str) -> str:
    """Control characters, line separators and bytes that are no UTF-8 as in a Python literal; all else stays."""
    broken = ("Cc", "Cs", "Zl", "Zp")
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in broken else c for c in text)


def list_files(url: str) -> list[Place]:
    """Files at `url`, itself or below it, hidden ones left out, in natural order (2 before 10).

    Raises SourceError where nothing is there, or where it cannot be reached.
    """
    shown = hide_credentials(url)
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if not filesystem.exists(path):
            raise SourceError(f"{shown}: not found: check the path or URL (ingest.sources)")
        if filesystem.isfile(path):
            return [Place(shown, url)]
        found = [str(name) for name in filesystem.find(path)]
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001 - fsspec's back ends raise whatever their libraries raise
        raise SourceError(
            f"{shown}: cannot be listed ({_describe(error)}): check the URL and the credentials"
        ) from None
    names = [name for name in found if not _is_hidden(name, path)]
    return [_place_below(url, filesystem, path, name) for name in sorted(names, key=natural_key)]


@contextlib.contextmanager
def open_local(place: Place, folder: Path) -> Iterator[Path]:
    """A local path with the content of `place`: its own, or that of a copy in `folder` which is removed afterwards."""
    filesystem, path = fsspec.core.url_to_fs(place.url)
    if isinstance(filesystem, LocalFileSystem):
        yield Path(path)
        return
    with storage_errors(folder), tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as temporary:
        copy = Path(temporary, "source" + place.suffix)
        with open(copy, "wb") as target:
            _fetch(filesystem, path, target, place.shown)
        yield copy


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which frame_2 comes before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]


def _fetch(filesystem: Any, path: str, target: Any, shown: str) -> None:
    try:
        source = filesystem.open(path, "rb")
        with source:
            while block := source.read(2**20):
                _write(target, block)
    except _WriteError as error:
        raise error.cause from None
    except Exception as error:  # noqa: BLE001 - as above
        raise SourceError(f"{shown}: cannot be fetched ({_describe(error)})") from None


class _WriteError(Exception):
    def __init__(self, cause: OSError) -> None:
        self.cause = cause


def _write(target: Any, block: bytes) -> None:
    """Keep the local disk's errors apart from the remote's."""
    try:
        target.write(block)
    except OSError as error:
        raise _WriteError(error) from None


def _hide_in_part(part: str) -> str:
    if "://" not in part or part.startswith("file://"):
        return part
    pieces = urlsplit(part)
    return f"{pieces.scheme}://{pieces.netloc.rpartition('@')[2]}{pieces.path}"


def _describe(error: Exception) -> str:
    """The kind of an error and never its text, which may quote the URL with its credentials."""
    return type(error).__name__


def _is_hidden(name: str, root: str) -> bool:
    relative = name.removeprefix(root)
    return any(part.startswith((".", "__MACOSX")) for part in relative.split("/"))


def _place_below(url: str, filesystem: Any, root: str, name: str) -> Place:
    """Local files are shown below what the user wrote, so that a clip's source reads as they know it."""
    if isinstance(filesystem, LocalFileSystem):
        relative = name.removeprefix(root).lstrip("/")
        return Place(escape_unprintable(f"{url.rstrip('/')}/{relative}"), name)
    full = filesystem.unstrip_protocol(name)
    chained = url.partition("::")[2]
    full = f"{full}::{chained}" if chained else full
    return Place(hide_credentials(full), full)
