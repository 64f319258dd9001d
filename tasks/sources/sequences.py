"""Pictures that have times of their own, and maybe ground truth, as one video: what every dataset's reader comes to."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
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
from tasks.sources.places import Place, open_local
from tasks.sources.segments import ClipKind, check_rate, resample, write_clips

MAX_PICTURE_BYTES = 512 * 2**20
MAX_KEPT_BYTES = 64 * 2**20


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
        """Track id -> (H, W) bool of size `size` in the picture of that number; None where it has no truth.

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
            refused: list[str] = []
            kept: dict[str, bytes] = {}
            read, digest = _fetch_all(pictures, Path(spool), refused, kept)
            kind = ClipKind(
                source=self.source,
                source_sha256=self._hash(digest),
                shape=self._shape(),
                clip_seconds=params.clip_seconds,
                jpeg_quality=params.jpeg_quality,
                camera=self.camera,
                start_us=self.start_us,
                split=self.split,
                exhaustive=self.truth is None or self.truth.exhaustive,
                max_gap_us=self.max_gap_us,
            )
            chosen = resample(track(read, self.source), from_hz=self.rate_hz, to_hz=params.rate_hz)
            asking, gaps = _Asking(self.truth, Path(spool)), _Gaps(self.max_gap_us)
            try:
                entries = write_clips(
                    folder,
                    gaps.watch(_decode_all(chosen, refused, kept)),
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


def _fetch_all(
    pictures: list[TimedPicture], spool: Path, refused: list[str], kept: dict[str, bytes]
) -> tuple[list[TimedPicture], str]:
    """(the pictures that are there, at local paths; hex SHA-256 over their contents in order).

    Names do not count, so a renamed folder stays the same video. What lies elsewhere is fetched once, into `spool`.
    The first MAX_KEPT_BYTES stay in `kept` by local path, so that they are read once, too.
    """
    digest = hashlib.sha256()
    room = MAX_KEPT_BYTES
    found: list[TimedPicture] = []
    for index, picture in enumerate(pictures):
        try:
            with open_local(picture.place, spool) as path:
                data = read_bytes(path, picture.place.shown)
                digest.update(hashlib.sha256(data).digest())
                if path.is_relative_to(spool):  # a copy, which would go again
                    path = path.rename(spool / f"{index:06d}{picture.place.suffix}")
        except SourceError as error:
            refused.append(str(error))
            continue
        found.append(replace(picture, place=Place(picture.place.shown, str(path))))
        if len(data) <= room:
            room -= len(data)
            kept[str(path)] = data
    return found, digest.hexdigest()


def _decode_all(pictures: Iterator[TimedPicture], refused: list[str], kept: dict[str, bytes]) -> Iterator[_ReadPicture]:
    """What can be read, all of the first one's size; the reasons for the others go to `refused`."""
    checker = SequenceChecker()
    size: tuple[int, int] | None = None
    for picture in pictures:
        name = Path(picture.place.shown).name
        try:
            data = kept.pop(picture.place.url, None) or read_bytes(Path(picture.place.url), picture.place.shown)
            content, found = _decode(data, name, checker)
        except (DataError, SourceError) as error:
            refused.append(str(error))
            continue
        size = size or found
        if found != size:
            raise SourceError(
                f"{name} is {found[1]} x {found[0]}, the first is {size[1]} x {size[0]}: "
                "the pictures of a video have one size"
            )
        yield _ReadPicture(picture.time_us, picture.number, content, found)


def _decode(
    data: bytes, name: str, checker: SequenceChecker
) -> tuple[np.ndarray | picture_codec.Encoded, tuple[int, int]]:
    """(content, (height, width)): the file's own bytes where it is a plain JPEG or PNG, else upright 8-bit RGB."""
    header = checker.read_header(data, where=name)
    if header.is_plain:
        checker.check_whole(data, where=name)
        return picture_codec.Encoded(data, header), header.size
    rgb = picture_codec.decode_rgb(data, where=name, upright=True)
    return rgb, (rgb.shape[0], rgb.shape[1])


def read_bytes(path: Path, shown: str, max_bytes: int = MAX_PICTURE_BYTES) -> bytes:
    """All of a file. Raises SourceError where it cannot be read or has more than `max_bytes`, which is found out first.

    `shown` is what messages call it.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise SourceError(f"{shown}: cannot be read ({error.strerror})") from None
    if len(data) > max_bytes:
        raise SourceError(f"{shown}: larger than {max_bytes // 2**20} MiB: not a picture of a video, nor of its masks")
    return data
