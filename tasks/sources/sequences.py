"""Pictures that have times of their own, and maybe ground truth, as one video: what every dataset's reader comes to."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tasks import picture_codec
from tasks.clips import ClipEntry
from tasks.errors import DataError, SourceError
from tasks.files import TEMPORARY_PREFIX, storage_errors
from tasks.params import IngestParams
from tasks.progress import track
from tasks.sources.checking import SequenceChecker
from tasks.sources.loading import KeptPictures, load_ahead, read_bytes
from tasks.sources.places import Place
from tasks.sources.segments import ClipKind, check_rate, resample, write_clips


@dataclass(frozen=True)
class TimedPicture:
    """A picture file not yet opened. time_us: from the first of its video. number: what its truth is asked by."""

    time_us: int
    place: Place
    number: int = 0


class Truth(Protocol):
    """The ground truth of one sequence. Picklable: it is asked in the process that writes the clips."""

    @property
    def exhaustive(self) -> bool:
        """Whether every object is labelled."""

    def digest(self) -> str:
        """Stands for its content: other truth makes other clips."""

    def masks(self, number: int, size: tuple[int, int], folder: Path) -> Mapping[int, np.ndarray] | None:
        """Track id -> (H, W) bool of size `size` in the picture of that number; None where it has no truth. Under
        tasks.clips.VOID, pixels of which nothing is known.

        folder: for copies of remote files. Raises DataError or SourceError where the truth cannot be used.
        """


@dataclass(frozen=True)
class SequenceJob:
    """One sequence of pictures -> clips.

    rate_hz: its nominal rate, which must reach min_rate_hz (the source's own decision, else ingest.min_rate_hz).
    shape: what shapes the clips beside the parameters that all sequences share. Others as in ClipKind.
    Pictures that cannot be used are left out, and truth that cannot be, each counted in the clips' note with the first
    reason; so are the gaps that end a clip.
    """

    source: str
    pictures: tuple[TimedPicture, ...]
    params: IngestParams
    rate_hz: float
    shape: Mapping[str, Any] = field(default_factory=dict)
    min_rate_hz: float | None = None
    truth: Truth | None = None
    camera: str | None = None
    start_us: int = 0
    split: str | None = None
    max_gap_us: int | None = None

    def run(self, folder: Path) -> list[ClipEntry]:
        """Raises SourceError where the rate is too low, or where fewer than half of the pictures can be used."""
        params = self.params
        minimum = params.min_rate_hz if self.min_rate_hz is None else self.min_rate_hz
        check_rate(self.rate_hz, min_rate_hz=minimum, tolerance=params.rate_tolerance)
        pictures: list[TimedPicture] = list(self.pictures)
        if params.max_seconds is not None:
            pictures = [picture for picture in pictures if picture.time_us < params.max_seconds * 1e6]
        with storage_errors(folder), tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=folder) as spool:
            reading = _Reading(pictures, Path(spool))
            kind = ClipKind(
                source=self.source,
                source_sha256=lambda: self._hash(reading.digest()),
                shape=self._shape(),
                clip_seconds=params.clip_seconds,
                jpeg_quality=params.jpeg_quality,
                camera=self.camera,
                start_us=self.start_us,
                split=self.split,
                exhaustive=self.truth is None or self.truth.exhaustive,
                max_gap_us=self.max_gap_us,
            )
            asking, gaps = _Asking(self.truth, Path(spool)), _Gaps(self.max_gap_us)
            refused = reading.refused
            try:
                with contextlib.closing(reading.found()) as found:
                    shown = track(found, self.source, len(pictures))
                    chosen = resample(shown, from_hz=self.rate_hz, to_hz=params.rate_hz)
                    entries = write_clips(
                        folder,
                        gaps.watch(reading.decode(chosen)),
                        lambda picture: picture.content,
                        kind,
                        to_masks=asking.masks,
                    )
            except SourceError as error:
                raise SourceError(refused[0] if refused else str(error)) from None
        if len(refused) > len(pictures) / 2:
            raise SourceError(f"{len(refused)} of {len(pictures)} pictures cannot be used: {refused[0]}")
        note = _describe(refused, len(pictures), asking, gaps)
        return [replace(entry, note=note) for entry in entries]

    def _hash(self, digest: str) -> str:
        """Hex SHA-256 of the contents; that of the pictures alone where there is no truth."""
        if self.truth is None:
            return digest
        return hashlib.sha256(f"{digest} {self.truth.digest()}".encode()).hexdigest()

    def _shape(self) -> dict[str, Any]:
        names = ("rate_hz", "clip_seconds", "max_seconds", "jpeg_quality")
        return {**self.shape, **{name: getattr(self.params, name) for name in names}}


@dataclass(frozen=True)
class _ReadPicture:
    time_us: int
    number: int
    content: np.ndarray | picture_codec.Encoded
    size: tuple[int, int]


class _Asking:
    """Asks the truth, and counts what cannot be used of it."""

    def __init__(self, truth: Truth | None, folder: Path) -> None:
        self._truth = truth
        self._folder = folder
        self.asked = 0
        self.refused: list[str] = []

    def masks(self, picture: _ReadPicture) -> Mapping[int, np.ndarray] | None:
        if self._truth is None:
            return None
        self.asked += 1
        try:
            return self._truth.masks(picture.number, picture.size, self._folder)
        except (DataError, SourceError) as error:
            self.refused.append(str(error))
            return None


class _Gaps:
    """Counts the intervals that end a clip, and keeps the longest."""

    def __init__(self, max_gap_us: int | None) -> None:
        self.max_gap_us = max_gap_us
        self.count = 0
        self.longest_us = 0

    def watch(self, pictures: Iterator[_ReadPicture]) -> Iterator[_ReadPicture]:
        before_us: int | None = None
        for picture in pictures:
            if self.max_gap_us is not None and before_us is not None and picture.time_us - before_us > self.max_gap_us:
                self.count += 1
                self.longest_us = max(self.longest_us, picture.time_us - before_us)
            before_us = picture.time_us
            yield picture


def _describe(refused: list[str], pictures: int, asking: _Asking, gaps: _Gaps) -> str | None:
    notes = [f"{len(refused)} of {pictures} pictures left out: {refused[0]}"] if refused else []
    if asking.refused:
        notes.append(f"truth of {len(asking.refused)} of {asking.asked} pictures left out: {asking.refused[0]}")
    if gaps.count and gaps.max_gap_us is not None:
        notes.append(
            f"{gaps.count} gaps over {gaps.max_gap_us / 1e3:.0f} ms, the longest {gaps.longest_us / 1e3:.0f} ms"
        )
    return "; ".join(notes) or None


class _Reading:
    """Goes through the pictures once, and says afterwards what they held.

    refused: why some cannot be used, in one line each.
    """

    def __init__(self, pictures: Sequence[TimedPicture], spool: Path) -> None:
        self._pictures = pictures
        self._spool = spool
        self._sha256 = hashlib.sha256()
        self._kept = KeptPictures()
        self.refused: list[str] = []

    def found(self) -> Generator[TimedPicture, None, None]:
        """Those that are there, at local paths."""
        places = [picture.place for picture in self._pictures]
        with contextlib.closing(load_ahead(places, self._spool)) as loading:
            for picture, loaded in zip(self._pictures, loading, strict=True):
                if isinstance(loaded, SourceError):
                    self.refused.append(str(loaded))
                    continue
                self._sha256.update(loaded.sha256)
                self._kept.put(picture.time_us, loaded)
                yield replace(picture, place=Place(picture.place.shown, str(loaded.path)))

    def digest(self) -> str:
        """Hex SHA-256 over the contents in order, once all have been found.

        Names do not count, so a renamed folder stays the same video.
        """
        return self._sha256.hexdigest()

    def decode(self, pictures: Iterator[TimedPicture]) -> Iterator[_ReadPicture]:
        """What can be read of those that were found, all of the first one's size."""
        checker = SequenceChecker()
        size: tuple[int, int] | None = None
        for picture in pictures:
            name = Path(picture.place.shown).name
            try:
                data, crc = self._take(picture)
                content, found = _decode(data, crc, name, checker)
            except (DataError, SourceError) as error:
                self.refused.append(str(error))
                continue
            size = size or found
            if found != size:
                raise SourceError(
                    f"{name} is {found[1]} x {found[0]}, the first is {size[1]} x {size[0]}: "
                    "the pictures of a video have one size"
                )
            yield _ReadPicture(picture.time_us, picture.number, content, found)

    def _take(self, picture: TimedPicture) -> tuple[bytes, int | None]:
        kept = self._kept.take(picture.time_us, picture.place.url)
        return kept or (read_bytes(Path(picture.place.url), picture.place.shown), None)


def _decode(
    data: bytes, crc: int | None, name: str, checker: SequenceChecker
) -> tuple[np.ndarray | picture_codec.Encoded, tuple[int, int]]:
    """(content, (height, width)): the file's own bytes where it is a plain JPEG or PNG, else upright 8-bit RGB."""
    header = checker.read_header(data, where=name)
    if header.is_plain:
        checker.check_whole(data, where=name)
        return picture_codec.Encoded(data, header, crc), header.size
    rgb = picture_codec.decode_rgb(data, where=name, upright=True)
    return rgb, (rgb.shape[0], rgb.shape[1])
