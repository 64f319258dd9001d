"""An annotation file, read once: each video with its own annotations, packed, so that a job carries little."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.formats import fields, json_stream
from tasks.formats.json_stream import read_entries
from tasks.formats.ytvis import MAX_BYTES, Video, read_video

MAX_VIDEOS = 200_000
MAX_NAMES = 5_000_000
MAX_TRACKS = 10_000
"""Annotations of one video; one with more is refused."""
_PACK_BYTES = 2**16


@dataclass(frozen=True)
class VideoRecord:
    """One video of the file. tracks: its annotations, packed. video: None where it cannot be used, `fault` says why."""

    number: int
    video: Video | None
    tracks: tuple[bytes, ...]
    fault: str = ""


@dataclass(frozen=True)
class Release:
    """videos: in the order of the file. classes: of every video, categories annotated. fault: what belongs to no video.

    lowest, highest: of the ids.
    """

    videos: list[VideoRecord]
    classes: dict[int, frozenset[int]]
    lowest: int
    highest: int
    fault: str


def unpack(tracks: tuple[bytes, ...]) -> Iterator[Any]:
    """The annotations of a VideoRecord, as they stand in the file."""
    for pack in tracks:
        yield from json_stream.load(zlib.decompress(pack))


def read_release(path: Path, where: str, wanted: frozenset[int] | None) -> Release:
    """Read an annotation file; of the videos only those `wanted`, or all. Memory is that of the packed annotations.

    A record that does not fit is a fault of its video, or of the Release where it names none. Raises DataError, with
    `where` for the file, where the whole file cannot be read or lists no videos.
    """
    reading = _Reading(where, wanted)
    for entry in read_entries(path, where=where, max_bytes=MAX_BYTES):
        if entry.key == "videos":
            if not entry.in_list:
                raise DataError(f"{where}: videos must be a list of objects")
            reading.add_video(entry.value)
        elif entry.key == "annotations":
            if entry.in_list:
                reading.add_annotation(entry.value, entry.text)
            elif entry.value is not None:
                raise DataError(f"{where}: annotations must be a list of objects")
    return reading.finish()


@dataclass
class _Pack:
    """JSON texts, compressed as they come."""

    count: int = 0
    packed: list[bytes] = field(default_factory=list)
    waiting: bytearray = field(default_factory=bytearray)

    def add(self, text: str) -> None:
        self.count += 1
        if self.count > MAX_TRACKS:
            self.packed.clear()
            self.waiting.clear()
            return
        self.waiting += (b"," if self.waiting else b"[") + text.encode()
        if len(self.waiting) > _PACK_BYTES:
            self._flush()

    def finish(self) -> tuple[bytes, ...]:
        if self.waiting:
            self._flush()
        return tuple(self.packed)

    def _flush(self) -> None:
        self.packed.append(zlib.compress(bytes(self.waiting) + b"]", level=1))
        self.waiting.clear()


class _Reading:
    def __init__(self, where: str, wanted: frozenset[int] | None) -> None:
        self._where = where
        self._wanted = wanted
        self._videos: dict[int, Video | str] = {}
        self._packs: dict[int, _Pack] = {}
        self._classes: dict[int, set[int]] = {}
        self._names = 0
        self._faults: dict[str, list[Any]] = {}

    def add_video(self, entry: Any) -> None:
        try:
            if not isinstance(entry, dict):
                raise DataError("no object")
            number = fields.take_id(entry, "id", where="a video")
        except DataError as error:
            self._count_fault("entries of videos", str(error))
            return
        if number in self._videos:
            self._videos[number] = f"id {number} stands twice among the videos"
            return
        try:
            video = read_video(entry, f"{self._where}#{number}")
        except DataError as error:
            self._videos[number] = str(error)
        else:
            times = {key: video.extra[key] for key in ("timestamps_us",) if key in video.extra}
            self._videos[number] = Video(number, tuple(video.file_names), video.height, video.width, times)
            self._names += len(video.file_names)
        if len(self._videos) > MAX_VIDEOS or self._names > MAX_NAMES:
            raise DataError(f"{self._where}: more than {MAX_VIDEOS} videos or {MAX_NAMES} frames: cut it in parts")

    def add_annotation(self, entry: Any, text: str) -> None:
        try:
            if not isinstance(entry, dict):
                raise DataError("no object")
            number = fields.take_id(entry, "video_id", where="an annotation")
        except DataError as error:
            self._count_fault("annotations", str(error))
            return
        category = entry.get("category_id")
        if type(category) is int:
            self._classes.setdefault(number, set()).add(category)
        pack = self._packs.setdefault(number, _Pack())
        if self._wanted is None or number in self._wanted:
            pack.add(text)
        else:
            pack.count += 1

    def finish(self) -> Release:
        if not self._videos:
            raise DataError(f"{self._where}: lists no videos: not an annotation file of YouTube-VIS")
        for number in self._packs.keys() - self._videos.keys():
            self._count_fault("annotations", f"video {number} is not in the file", self._packs.pop(number).count)
        videos = [self._record(number, video) for number, video in self._videos.items() if self._is_wanted(number)]
        classes = {number: frozenset(self._classes.get(number, ())) for number in self._videos}
        faults = [f"{count} {what} cannot be used: {first}" for what, (count, first) in self._faults.items()]
        return Release(videos, classes, min(self._videos), max(self._videos), "; ".join(faults))

    def _is_wanted(self, number: int) -> bool:
        return self._wanted is None or number in self._wanted

    def _record(self, number: int, video: Video | str) -> VideoRecord:
        pack = self._packs.pop(number, _Pack())
        if pack.count > MAX_TRACKS:
            video = f"has {pack.count} annotations, more than {MAX_TRACKS}: refused"
        if isinstance(video, str):
            return VideoRecord(number, None, (), video)
        return VideoRecord(number, video, pack.finish())

    def _count_fault(self, what: str, why: str, count: int = 1) -> None:
        known = self._faults.setdefault(what, [0, why])
        known[0] += count
