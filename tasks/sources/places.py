"""Where sources lie: any fsspec URL, listed and brought to a local file; no credential in what is shown or kept."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fsspec.implementations.local import LocalFileSystem

from tasks.errors import SourceError, escape_unprintable
from tasks.files import TEMPORARY_PREFIX, storage_errors
from tasks.sources import stores

VIDEO_SUFFIXES = frozenset(
    (".3gp", ".asf", ".avi", ".flv", ".gif", ".h264", ".h265", ".ivf", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv")
    + (".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".webm", ".wmv", ".y4m")
)
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET = re.compile(r":[^:]")
_SECRET_NAME = re.compile(r"credential|key|pass|secret|sig|token", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """One file. `shown` is its path or URL without credentials; `url` may hold them and is never shown.

    listed: the URL came from its store, so that ${NAME} in it is a name that somebody gave a file, and not a variable.
    """

    shown: str
    url: str = field(repr=False)
    listed: bool = False

    @property
    def suffix(self) -> str:
        return Path(urlsplit(self.shown).path if "://" in self.shown else self.shown).suffix.lower()


def hide_credentials(url: str) -> str:
    """The URL without user, password, query and fragment, in every part of a chained one; local paths stay.

    Characters that would break a line, a terminal or a UTF-8 file (a name may hold any bytes) become escapes.
    """
    return escape_unprintable("::".join(_hide_in_part(part) for part in url.split("::")))


def list_files(url: str) -> list[Place]:
    """Files at `url`, itself or below it, hidden ones left out, in natural order (2 before 10).

    Raises SourceError where nothing is there, it may not be read or the URL holds a password, and StorageError where
    its store fails.
    """
    shown = hide_credentials(url)
    refuse_credentials(url)
    full = fill_in(url)
    filesystem, path, found = stores.list_below(full, shown)
    if found is None:
        return [Place(shown, full, listed=True)]
    names = [name for name in found if not _is_hidden(name, path)]
    return [_place_below(full, filesystem, path, name) for name in sorted(names, key=natural_key)]


@contextlib.contextmanager
def open_local(place: Place, folder: Path) -> Iterator[Path]:
    """A local path with the content of `place`: its own, or that of a copy in `folder` which is removed afterwards.

    A copy is whole. Raises SourceError and StorageError as `list_files`, also for a pipe or device: to open it may
    take for ever.
    """
    url = place.url if place.listed else fill_in(place.url)
    if is_local(url):
        path = LocalFileSystem._strip_protocol(url)
        if os.path.exists(path) and not os.path.isfile(path):
            raise SourceError(f"{place.shown}: is no file")
        yield Path(path)
        return
    with storage_errors(folder), tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as temporary:
        copy = Path(temporary, "source" + place.suffix)
        stores.fetch(url, place.shown, copy)
        yield copy


def is_local(url: str) -> bool:
    """Whether this is a path of this machine, which a file name with a colon in it remains."""
    return url.startswith(("/", "file://", "local://")) or ("://" not in url and "::" not in url)


def fill_in(url: str) -> str:
    """The URL with the environment's values in place of ${NAME}; local paths stay. Raises SourceError if one is unset.

    Credentials that a store wants in its URL come in so: params.yaml and dvc.lock keep the name alone.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise SourceError(f"{hide_credentials(url)}: ${{{found[1]}}} is not set: set {found[1]} in the environment")
        return os.environ[found[1]]

    return url if is_local(url) else _VARIABLE.sub(value, url)


def split_chain(url: str) -> tuple[str, str, str]:
    """(what stands before, the part that names the file, what follows) of a URL, which may be chained.

    A local path is all one part; of simplecache::zip://a::s3://b/c.zip the file is zip://a.
    """
    if "::" not in url or url.startswith("/"):
        return "", url, ""
    parts = url.split("::")
    at = next((index for index, part in enumerate(parts) if "://" in part), len(parts) - 1)
    return "".join(f"{part}::" for part in parts[:at]), parts[at], "".join(f"::{part}" for part in parts[at + 1 :])


def join_url(url: str, relative: str) -> str:
    """The URL of a file below another, which may be chained."""
    before, head, after = split_chain(url)
    return f"{before}{head}{'' if head.endswith('/') else '/'}{relative}{after}"


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which frame_2 comes before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]


def _hide_in_part(part: str) -> str:
    if "://" not in part or part.startswith("file://"):
        return part
    scheme, _, rest = part.partition("://")
    _, netloc, path = _split(rest)
    return f"{scheme}://{netloc}{re.split('[?#]', path, maxsplit=1)[0]}"


def _split(rest: str) -> tuple[str, str, str]:
    """(user and password, host and port, all that follows) of a URL without its scheme.

    Secret keys hold slashes: where a colon is followed by no port, what looks like a path may be the rest of one.
    """
    host = re.match(r"[^/?#]*", rest)
    netloc = host[0] if host else ""
    user, at, server = netloc.rpartition("@")
    if at or not re.search(r":(?!\d*$)", netloc.rpartition("]")[2]):
        return user, server, rest[len(netloc) :]
    user, at, after = rest.rpartition("@")
    if not at:
        return rest, netloc.partition(":")[0], ""
    server = re.split("[/?#]", after, maxsplit=1)[0]
    return user, server, after[len(server) :]


def refuse_credentials(url: str) -> None:
    """Raise SourceError where a URL holds a secret: dvc.lock, which git keeps, copies the URL from params.yaml."""
    for part in url.split("::"):
        if is_local(part):
            continue
        user, _, path = _split(part.partition("://")[2])
        names = [name for name, text in parse_qsl(urlsplit(path).query) if text and not _VARIABLE.search(text)]
        if _SECRET.search(_VARIABLE.sub("", user)) or any(_SECRET_NAME.search(name) for name in names):
            raise SourceError(
                f"{hide_credentials(url)}: its URL holds a password or key, which params.yaml and dvc.lock would keep: "
                "set it in the environment and write ${NAME} in its place (docs/stores.md)"
            )


def _is_hidden(name: str, root: str) -> bool:
    relative = name.removeprefix(root)
    return any(part.startswith((".", "__MACOSX")) for part in relative.split("/"))


def _place_below(url: str, filesystem: Any, root: str, name: str) -> Place:
    """Local files are shown below what the user wrote, so that a clip's source reads as they know it."""
    if isinstance(filesystem, LocalFileSystem):
        relative = name.removeprefix(root).lstrip("/")
        return Place(escape_unprintable(f"{url.rstrip('/')}/{relative}"), name, listed=True)
    full = filesystem.unstrip_protocol(name)
    chained = url.partition("::")[2]
    full = f"{full}::{chained}" if chained else full
    return Place(hide_credentials(full), full, listed=True)
