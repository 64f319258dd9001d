"""The inbox: which videos have arrived, which of them are whole, and which contents have been seen before.

Names count for nothing but what people read: a video is its content. Nothing in the inbox is changed or removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec

from tasks.errors import ParamsError, SourceError
from tasks.files import atomic_path, storage_errors
from tasks.sources import stores
from tasks.sources.places import (
    VIDEO_SUFFIXES,
    Place,
    escape_unprintable,
    fill_in,
    hide_credentials,
    is_local,
    refuse_credentials,
)

_MAX_LINE = 20_000


class MovingError(SourceError):
    """A file that is not, or not any more, the one that was listed: the next run looks again."""


@dataclass(frozen=True)
class Arrival:
    """A video file of the inbox. stamp: changes with its content. arrived_at: seconds since 1970."""

    place: Place
    bytes: int
    stamp: str
    arrived_at: float


@dataclass(frozen=True)
class Found:
    """Both in order of arrival. moving: changed while they were watched, or are open for writing."""

    whole: tuple[Arrival, ...]
    moving: tuple[Arrival, ...]


def inbox_url(inbox: str, workspace: Path) -> str:
    """The parameter `service.inbox` as a URL or an absolute path. Raises SourceError where it holds a password."""
    if not is_local(inbox):
        refuse_credentials(inbox)
        return inbox
    return str(workspace.resolve() / Path(inbox.removeprefix("file://")).expanduser())


def find_whole(
    url: str,
    settle_seconds: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> Found:
    """The videos at `url`. A file is whole if it has not changed for `settle_seconds` and nobody writes to it.

    Where some have changed more recently, or by a clock that is ahead of ours, all is looked at a second time after
    `settle_seconds`: what is the same then is whole, whatever the clocks say.
    Raises ParamsError where there is no such folder, SourceError and StorageError as `stores.persist` does.
    """
    arrivals = list_arrivals(url)
    moment = now()
    whole = [one for one in arrivals if moment - one.arrived_at >= settle_seconds and not _is_written_to(one)]
    if len(whole) < len(arrivals):
        sleep(settle_seconds)
        before = {one.place.url: one.stamp for one in arrivals}
        arrivals = list_arrivals(url)
        whole = [one for one in arrivals if before.get(one.place.url) == one.stamp and not _is_written_to(one)]
    known = {one.place.url for one in whole}
    return Found(tuple(whole), tuple(one for one in arrivals if one.place.url not in known))


def list_arrivals(url: str) -> list[Arrival]:
    """Every video file at `url` and below it, whole or not, in order of arrival.

    Told by their suffixes, so that `x.mp4.part` and its like are none yet. Hidden files, links and what is no ordinary
    file are left out: whoever may write to an inbox must not make us read other files.
    """
    found = _list_local(url) if is_local(url) else _list_remote(url)
    return sorted(found, key=lambda one: (one.arrived_at, one.place.shown))


def _list_local(url: str) -> Iterator[Arrival]:
    root = Path(url)
    if not root.is_dir():
        raise ParamsError(f"{hide_credentials(url)}: no such folder: make it, or set service.inbox in params.yaml")
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                entries = list(listing)
        except OSError:
            continue  # gone or not ours; what it holds will be found when it can be read
        for entry in entries:
            if entry.name.startswith("."):
                continue
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False) and _is_video(entry.name):
                    yield _describe(entry)


def _describe(entry: os.DirEntry[str]) -> Arrival:
    status = entry.stat(follow_symlinks=False)
    # The time of change: moving a file here sets it, and unlike the time of modification nobody can choose it.
    place = Place(escape_unprintable(entry.path), entry.path)
    return Arrival(place, status.st_size, _stamp(status), status.st_ctime_ns / 1e9)


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"


def is_as_listed(arrival: Arrival) -> bool:
    """Whether a local file is what was listed, no link in its place, and nobody writes to it: hours may lie between.
    True of a remote one, of which a copy is read.
    """
    if not is_local(arrival.place.url):
        return True
    try:
        status = os.lstat(arrival.place.url)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and _stamp(status) == arrival.stamp and not _is_written_to(arrival)


def _list_remote(url: str) -> Iterator[Arrival]:
    full = fill_in(url)

    def work(beat: stores.Beat) -> tuple[Any, str, dict[str, Any]]:
        filesystem, root = fsspec.core.url_to_fs(full)
        filesystem.invalidate_cache()
        beat(10)  # a listing shows no progress before its end
        return filesystem, root, dict(filesystem.find(root, detail=True))

    filesystem, root, found = stores.persist(full, hide_credentials(url), work)
    for name, details in found.items():
        below = str(name).removeprefix(root)
        if details.get("type") != "file" or not _is_video(below) or any(p.startswith(".") for p in below.split("/")):
            continue
        address = filesystem.unstrip_protocol(name)
        changed = _seconds(details.get("LastModified") or details.get("mtime") or details.get("created"))
        size = int(details.get("size") or 0)
        stamp = f"{size}:{changed}:{details.get('ETag', '')}"
        yield Arrival(Place(hide_credentials(address), address, listed=True), size, stamp, changed)


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _seconds(moment: Any) -> float:
    """Since 1970; 0 where the store does not tell."""
    if isinstance(moment, datetime):
        return moment.timestamp()
    return float(moment) if isinstance(moment, int | float) else 0.0


def _is_written_to(arrival: Arrival) -> bool:
    """Whether any process of this machine has the file open for writing, as far as Linux tells: a copy that pauses.

    The kernel grants a lease for reading only where there is no writer. Elsewhere, and on other people's files, False.
    """
    if not is_local(arrival.place.url) or not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        descriptor = os.open(arrival.place.url, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Whoever opens it in this very moment makes the kernel signal us: by one that is ignored, not by SIGIO.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False  # not our file, or a disk that knows no leases
    finally:
        os.close(descriptor)
    return False


class Seen:
    """Which content each file had when it was last read, so that no file is read twice: a cache, which may be lost.

    One line of JSON per file in `path`, the last one counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests: dict[tuple[str, str], str] = {}
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            while line := file.readline(_MAX_LINE):
                with contextlib.suppress(ValueError, TypeError):
                    name, stamp, digest = json.loads(line)
                    self._digests[(str(name), str(stamp))] = str(digest)

    def sha256(self, arrival: Arrival) -> str | None:
        return self._digests.get((arrival.place.shown, arrival.stamp))

    def add(self, arrival: Arrival, sha256: str) -> None:
        """Kept at once; a kill may cost the last line, and a second reading then."""
        self._digests[(arrival.place.shown, arrival.stamp)] = sha256
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._line(arrival, sha256))

    def keep(self, arrivals: Iterable[Arrival]) -> None:
        """Forget all but these."""
        kept = {(one.place.shown, one.stamp): one for one in arrivals if self.sha256(one)}
        if len(kept) < len(self._digests):
            with atomic_path(self.path) as temporary:
                lines = [self._line(one, self._digests[key]) for key, one in kept.items()]
                temporary.write_text("".join(lines), encoding="utf-8")
            self._digests = {key: self._digests[key] for key in kept}

    @staticmethod
    def _line(arrival: Arrival, sha256: str) -> str:
        # The line before may have been cut short by a kill: ours begins a new one.
        return "\n" + json.dumps([arrival.place.shown, arrival.stamp, sha256])
