"""A folder of pictures as a video: natural order, the rate that the user states, original bytes wherever they serve."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tasks import picture_codec
from tasks.clips import ClipEntry
from tasks.errors import DataError, SourceError
from tasks.params import IngestParams
from tasks.progress import track
from tasks.sources.places import Place, open_local
from tasks.sources.segments import ClipKind, check_rate, resample, write_clips

MAX_PICTURE_BYTES = 512 * 2**20
STATE_RATE = (
    "a folder of images carries no timestamps: state its rate with `--image-rate 24` "
    "(ingest.image_rate_hz in params.yaml)"
)


@dataclass(frozen=True)
class TimedPicture:
    """A picture file not yet opened. time_us: from the first of its folder."""

    time_us: int
    place: Place


@dataclass(frozen=True)
class PicturesJob:
    """All pictures of one folder as one video."""

    source: str
    places: tuple[Place, ...]
    params: IngestParams

    def run(self, folder: Path) -> list[ClipEntry]:
        """Raises SourceError where no rate is stated or it is too low, or where fewer than half can be decoded."""
        params = self.params
        rate_hz = params.image_rate_hz
        if rate_hz is None:
            raise SourceError(STATE_RATE)
        check_rate(rate_hz, min_rate_hz=params.min_rate_hz, tolerance=params.rate_tolerance)
        pictures = [TimedPicture(round(i * 1e6 / rate_hz), place) for i, place in enumerate(self.places)]
        if params.max_seconds is not None:
            pictures = [picture for picture in pictures if picture.time_us < params.max_seconds * 1e6]
        refused: list[str] = []
        kind = ClipKind(
            source=self.source,
            source_sha256=_hash_all([picture.place for picture in pictures], folder),
            shape=_shape(params),
            clip_seconds=params.clip_seconds,
            jpeg_quality=params.jpeg_quality,
        )
        chosen = resample(track(pictures, self.source), from_hz=rate_hz, to_hz=params.rate_hz)
        decoded = _read_all(chosen, folder, refused)
        try:
            entries = write_clips(folder, decoded, lambda picture: picture.content, kind)
        except SourceError as error:
            raise SourceError(refused[0] if refused else str(error)) from None
        if len(refused) > len(pictures) / 2:
            raise SourceError(f"{len(refused)} of {len(pictures)} pictures cannot be used: {refused[0]}")
        note = f"{len(refused)} of {len(pictures)} pictures left out: {refused[0]}" if refused else None
        return [replace(entry, note=note) for entry in entries]


@dataclass(frozen=True)
class _ReadPicture:
    time_us: int
    content: np.ndarray | bytes


def _shape(params: IngestParams) -> dict[str, object]:
    return {
        "kind": "pictures",
        "image_rate_hz": params.image_rate_hz,
        "rate_hz": params.rate_hz,
        "clip_seconds": params.clip_seconds,
        "max_seconds": params.max_seconds,
        "jpeg_quality": params.jpeg_quality,
    }


def _hash_all(places: list[Place], folder: Path) -> str:
    """Hex SHA-256 over the contents in order; names do not count, so a renamed folder stays the same video."""
    digest = hashlib.sha256()
    for place in places:
        digest.update(hashlib.sha256(_read_bytes(place, folder)).digest())
    return digest.hexdigest()


def _read_all(pictures: Iterator[TimedPicture], folder: Path, refused: list[str]) -> Iterator[_ReadPicture]:
    """What can be read, all of the first one's size; the reasons for the others go to `refused`."""
    size: tuple[int, ...] | None = None
    for picture in pictures:
        name = Path(picture.place.shown).name
        try:
            content, found = _read_picture(_read_bytes(picture.place, folder), name)
        except DataError as error:
            refused.append(str(error))
            continue
        size = size or found
        if found != size:
            raise SourceError(
                f"{name} is {found[1]} x {found[0]}, the first is {size[1]} x {size[0]}: "
                "the pictures of a video have one size"
            )
        yield _ReadPicture(picture.time_us, content)


def _read_picture(data: bytes, name: str) -> tuple[np.ndarray | bytes, tuple[int, ...]]:
    """(content, (height, width)): the file's own bytes where it is a plain JPEG or PNG, else upright 8-bit RGB."""
    header = picture_codec.read_header(data, where=name)
    if header.is_plain:
        picture_codec.check_whole(data, where=name)
        return data, header.size
    rgb = picture_codec.decode_rgb(data, where=name, upright=True)
    return rgb, rgb.shape[:2]


def _read_bytes(place: Place, folder: Path) -> bytes:
    with open_local(place, folder) as path:
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_PICTURE_BYTES + 1)
        except OSError as error:
            raise SourceError(f"{place.shown}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_PICTURE_BYTES:
        raise SourceError(f"{place.shown}: larger than {MAX_PICTURE_BYTES // 2**20} MiB: not a picture of a video")
    return data
