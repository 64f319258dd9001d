"""What there is to label: videos, folders of pictures that are videos, pictures of their own; and their contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import SourceError, StorageError
from tasks.files import sha256_file
from tasks.params import IngestParams
from tasks.sources.loading import read_bytes
from tasks.sources.pictures import PicturesJob
from tasks.sources.places import Place, hide_credentials, open_local
from tasks.sources.video import VideoJob, list_media

_ANY_RATE_HZ = 1e-3
"""Slow video is no use for learning motion, but it can be labelled."""


@dataclass(frozen=True)
class Picture:
    """name: its file_name in coco.json, relative and unique."""

    place: Place
    name: str


@dataclass(frozen=True)
class Inputs:
    videos: Sequence[VideoJob | PicturesJob]
    pictures: Sequence[Picture]

    def contents(self, spool: Path) -> list[list[str | None]]:
        """[source, hex SHA-256 or None where it cannot be read] of each, in the order in which they are labelled."""
        videos = [[job.source, digest_job(job, spool)] for job in self.videos]
        return videos + [[picture.place.shown, _digest_picture(picture, spool)] for picture in self.pictures]


def list_inputs(sources: Sequence[str], image_rate_hz: float | None) -> Inputs:
    """Everything at `sources`, each file once. Raises SourceError where a source does not exist or holds nothing."""
    params = IngestParams(min_rate_hz=_ANY_RATE_HZ, image_rate_hz=image_rate_hz)
    videos: dict[str, VideoJob | PicturesJob] = {}
    pictures: dict[str, Picture] = {}
    names: set[str] = set()
    for number, source in enumerate(sources, start=1):
        for job in list_media(source, params):
            if isinstance(job, VideoJob) or (image_rate_hz is not None and len(job.places) > 1):
                videos.setdefault(job.source, job)
                continue
            for place in job.places:
                if place.shown not in pictures:
                    # Backslashes, as of escaped characters, are no part of a file_name: readers on Windows split there.
                    name = _name(place, hide_credentials(source), among=len(sources)).replace("\\", "_")
                    while name in names:
                        name = f"{number}/{name}"
                    names.add(name)
                    pictures[place.shown] = Picture(place, name)
    return Inputs(tuple(videos.values()), tuple(pictures.values()))


def read_picture(picture: Picture, spool: Path) -> bytes:
    """Raises SourceError where it cannot be read or is larger than a picture may be."""
    with open_local(picture.place, spool) as path:
        return read_bytes(path, picture.place.shown)


def digest_job(job: VideoJob | PicturesJob, spool: Path) -> str | None:
    """The source_sha256 that its clips have; None where it cannot be read."""
    try:
        if isinstance(job, VideoJob):
            with open_local(job.place, spool) as path:
                return sha256_file(path)
        digest = hashlib.sha256()
        for data in _read_all(job, spool):
            digest.update(hashlib.sha256(data).digest())
        return digest.hexdigest()
    except StorageError:
        raise
    except (SourceError, OSError):
        return None


def _digest_picture(picture: Picture, spool: Path) -> str | None:
    try:
        return hashlib.sha256(read_picture(picture, spool)).hexdigest()
    except SourceError:
        return None


def _read_all(job: PicturesJob, spool: Path) -> Iterator[bytes]:
    """Those that can be read: the clips leave out the others, too."""
    for place in job.places:
        try:
            yield read_picture(Picture(place, ""), spool)
        except SourceError:
            continue


def _name(place: Place, root: str, *, among: int) -> str:
    """Below the folder that was named; with that folder's name where several sources were."""
    root = root.rstrip("/")
    if not place.shown.startswith(f"{root}/"):
        return place.shown.rpartition("/")[2]
    below = place.shown[len(root) + 1 :]
    folder = Path(root).resolve().name if "://" not in root else root.rpartition("/")[2]
    return f"{folder}/{below}" if among > 1 and folder else below
