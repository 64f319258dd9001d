"""YouTube-VIS JSON (2019 and 2021), per track: read whole with every field checked, written as a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tasks.errors import DataError
from tasks.files import read_json
from tasks.formats import fields
from tasks.formats.json_lists import JsonLists
from tasks.formats.rle import RLE, read_mask

MAX_BYTES = 4 * 2**30
MAX_LENGTH = 1_000_000
_VIDEO_KEYS = ("id", "width", "height", "length", "file_names")
_PER_FRAME = ("segmentations", "bboxes", "areas")
_TRACK_KEYS = ("id", "video_id", "category_id", "iscrowd", *_PER_FRAME)
_LISTS = ("videos", "annotations")


@dataclass(frozen=True)
class Video:
    """file_names: one per annotated frame, relative. extra: further fields of the entry, kept as they are."""

    id: int
    file_names: Sequence[str]
    height: int
    width: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Track:
    """One object through one video. The three lists are as long as the video and None in the same frames: not visible.

    segmentations: RLE of the video's size. bboxes: x, y, width, height in pixels. areas: of the masks, pixels.
    """

    id: int
    video_id: int
    segmentations: Sequence[RLE | None]
    bboxes: Sequence[list[float] | None]
    areas: Sequence[float | None]
    category_id: int = fields.CATEGORY_ID
    iscrowd: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class YtvisFile:
    """header: everything but the two lists, categories included."""

    videos: list[Video]
    tracks: list[Track]
    header: Mapping[str, Any] = field(default_factory=dict)


class YtvisWriter:
    """Context manager; `path` appears whole or not at all. Holds no track longer than its call."""

    def __init__(self, path: Path, header: Mapping[str, Any] | None = None) -> None:
        self._lists = JsonLists(path, {"categories": fields.CATEGORIES, **(header or {})}, _LISTS)

    def __enter__(self) -> YtvisWriter:
        self._lists.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self._lists.__exit__(kind, error, trace)

    def add_video(self, video: Video) -> None:
        known = {"id": video.id, "width": video.width, "height": video.height, "length": len(video.file_names)}
        self._lists.append("videos", {**video.extra, **known, "file_names": list(video.file_names)})

    def add_track(self, track: Track) -> None:
        known = {key: getattr(track, key) for key in _TRACK_KEYS}
        self._lists.append("annotations", {**track.extra, **known})


def read_ytvis(path: Path, *, max_bytes: int = MAX_BYTES) -> YtvisFile:
    """Read any YouTube-VIS file; polygons and plain run lengths become RLE. No annotations: as in the test splits.

    Raises DataError, in one line, for what does not fit: lengths, sizes, ids, masks, paths that leave the folder.
    """
    document = read_json(path, max_bytes=max_bytes)
    if not isinstance(document, dict):
        raise DataError(f"{path}: not a YouTube-VIS file: an object with videos and annotations is expected")
    where = str(path)
    videos = [read_video(entry, where) for entry in fields.take_list(document, "videos", where=where)]
    fields.check_unique((video.id for video in videos), where=f"{where}: videos")
    by_id = {video.id: video for video in videos}
    published = document.get("annotations") is not None
    entries = fields.take_list(document, "annotations", where=where) if published else []
    tracks = [read_track(entry, by_id, where) for entry in entries]
    fields.check_unique((track.id for track in tracks), where=f"{where}: annotations")
    return YtvisFile(videos, tracks, fields.rest_of(document, _LISTS))


def write_ytvis(path: Path, content: YtvisFile) -> None:
    """Write what lies in memory; `YtvisWriter` streams."""
    with YtvisWriter(path, content.header) as writer:
        for video in content.videos:
            writer.add_video(video)
        for track in content.tracks:
            writer.add_track(track)


def read_video(entry: dict[str, Any], where: str) -> Video:
    """One entry of `videos`. Raises DataError; `where` stands in its message for the file."""
    number = fields.take_id(entry, "id", where=f"{where}: videos")
    where = f"{where}: video {number}"
    height, width = fields.take_size(entry, where=where)
    names = entry.get("file_names")
    if not isinstance(names, list) or len(names) > MAX_LENGTH:
        raise DataError(f"{where}: file_names must be a list of at most {MAX_LENGTH} names")
    if entry.get("length", len(names)) != len(names):
        raise DataError(f"{where}: length is {entry['length']}, but it has {len(names)} file_names")
    names = [fields.check_file_name(name, where=where) for name in names]
    return Video(number, names, height, width, fields.rest_of(entry, _VIDEO_KEYS))


def read_track(entry: dict[str, Any], videos: Mapping[int, Video], where: str) -> Track:
    """One entry of `annotations`, of one of `videos` by their ids. Raises DataError as `read_video`."""
    number = fields.take_id(entry, "id", where=f"{where}: annotations")
    where = f"{where}: annotation {number}"
    video = videos.get(fields.take_id(entry, "video_id", where=where))
    if video is None:
        raise DataError(f"{where}: video {entry['video_id']} is not in the file")
    masks, boxes, areas = (_per_frame(entry, key, len(video.file_names), where) for key in _PER_FRAME)
    if any(
        (mask is None, mask is None) != (box is None, area is None)
        for mask, box, area in zip(masks, boxes, areas, strict=True)
    ):
        raise DataError(f"{where}: segmentations, bboxes and areas must be null in the same frames")
    size = (video.height, video.width)
    return Track(
        id=number,
        video_id=video.id,
        segmentations=[
            m if m is None else read_mask(m, size, where=f"{where}, frame {i}") for i, m in enumerate(masks)
        ],
        bboxes=[b if b is None else fields.check_box(b, where=where) for b in boxes],
        areas=[a if a is None else fields.check_area(a, where=where) for a in areas],
        category_id=fields.take_id(entry, "category_id", where=where),
        iscrowd=int(entry.get("iscrowd") in (1, True)),
        extra=fields.rest_of(entry, _TRACK_KEYS),
    )


def _per_frame(entry: dict[str, Any], key: str, length: int, where: str) -> list[Any]:
    values = entry.get(key)
    if not isinstance(values, list) or len(values) != length:
        raise DataError(f"{where}: {key} must be a list with an entry for each of {length} frames")
    return values
