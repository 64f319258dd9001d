"""`library:FOLDER`: the clips of a workspace's library, as they are; `library:FOLDER@REVISION` those as of a commit.

Only videos that are done count, which is what git says. A revision makes the source mean the same for ever: new videos
change nothing until it is set to a later one.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from tasks import history
from tasks.clips import ClipEntry, open_clips
from tasks.errors import AbsentError, DataError, SourceError
from tasks.files import storage_errors
from tasks.params import IngestParams
from tasks.sources.places import escape_unprintable, is_local

_REVISION = re.compile(r"(?P<folder>.+)@(?P<revision>[0-9a-f]{7,64})")
_VERSION = re.compile(r"(?P<video>[0-9a-f]{16})\.dvc")


def open_library(url: str, params: IngestParams) -> list[LibraryJob]:
    """One job per video, sorted by its id. Raises SourceError where there is no library or nothing in it is done."""
    found = _REVISION.fullmatch(url)
    place, revision = (found["folder"], found["revision"]) if found else (url, "HEAD")
    shown = escape_unprintable(place)
    folder = Path(place.removeprefix("file://")).expanduser()
    if not is_local(place) or not folder.is_dir():
        raise SourceError(f"library:{shown}: no such folder: name the folder library of a workspace (ingest.sources)")
    try:
        names = history.committed_files(folder, ".", revision)
    except DataError as error:
        raise SourceError(f"library:{shown}: {error}") from None
    videos = sorted(match["video"] for match in map(_VERSION.fullmatch, names) if match)
    if not videos:
        raise SourceError(f"library:{shown}: no video in it is done yet (ingest.sources)")
    return [LibraryJob(f"library:{shown}/{video}", folder / video) for video in videos]


@dataclass(frozen=True)
class LibraryJob:
    """One video of a library."""

    source: str
    place: Path

    def run(self, folder: Path) -> list[ClipEntry]:
        """Links to the clips, or copies where the disk cannot link. Raises AbsentError where they are not here."""
        clips = self.place / "clips"
        if not clips.is_dir():
            raise AbsentError(f"{self.source}: not here: `dvc pull {self.place.name}.dvc` in the library brings it")
        entries = []
        with storage_errors(folder):
            for entry in open_clips(clips):
                path = folder / entry.path.name
                try:
                    os.link(entry.path, path)
                except OSError:
                    shutil.copyfile(entry.path, path)
                entries.append(replace(entry, path=path))
        return entries
