"""One video of YouTube-VIS: which frames, when each was seen, and whether that is often enough."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from tasks.clips import ClipEntry, median_rate_hz
from tasks.errors import SourceError
from tasks.formats.ytvis import Video
from tasks.params import IngestParams
from tasks.sources.params import YoutubeVisParams
from tasks.sources.places import IMAGE_SUFFIXES, Place, escape_unprintable, is_local, join_url, list_files
from tasks.sources.sequences import SequenceJob, TimedPicture
from tasks.sources.youtube_vis.layout import AnnotationFile, place
from tasks.sources.youtube_vis.release import VideoRecord
from tasks.sources.youtube_vis.truth import read_truth

_NUMBER = re.compile(r"[0-9]{1,9}")
_LAST_US = 2**53


@dataclass(frozen=True)
class RefusedJob:
    """A record that cannot be used: it fails when its turn comes, so that it is set aside and the others go on."""

    source: str
    reason: str

    def run(self, folder: Path) -> list[ClipEntry]:
        """Raises SourceError."""
        raise SourceError(self.reason)


@dataclass(frozen=True)
class Timing:
    """numbers: of the frames, ascending, in the source video. times_us: from the first of them. rate_hz: median."""

    numbers: tuple[int, ...]
    times_us: tuple[int, ...]
    rate_hz: float


@dataclass(frozen=True)
class YoutubeVisJob:
    """One video -> clips. tracks: its annotations, packed. images: the folder that its file names start from.

    timing: of the frames that the annotation file lists.
    """

    source: str
    video: Video
    tracks: tuple[bytes, ...]
    images: Place
    timing: Timing
    split: str | None
    params: IngestParams

    @classmethod
    def plan(
        cls, source: str, record: VideoRecord, file: AnnotationFile, split: str | None, params: IngestParams
    ) -> YoutubeVisJob:
        """Raises SourceError where the names of the frames tell no times, or lead elsewhere."""
        assert record.video is not None
        settings = params.youtube_vis
        images = file.all_images if settings.frames == "all" else file.images
        timing = read_timing(record.video, settings)
        return cls(source, record.video, record.tracks, images, timing, split, params)

    @property
    def is_slow(self) -> bool:
        """Whether the listed frames are too far apart; of all frames that is known when they are listed."""
        return self.params.youtube_vis.frames != "all" and self._is_slow(self.timing.rate_hz)

    @property
    def slowness(self) -> str:
        """What is_slow means, in one line."""
        return self._describe_slowness(self.timing.rate_hz)

    def run(self, folder: Path) -> list[ClipEntry]:
        """Raises SourceError where the video is too slow, lies outside its folder, and as SequenceJob does."""
        settings = self.params.youtube_vis
        if self.is_slow:
            raise SourceError(self.slowness)
        timing, places = self._find_pictures(settings)
        if self._is_slow(timing.rate_hz):
            raise SourceError(self._describe_slowness(timing.rate_hz))
        _check_inside(self.images, places)
        truth, note = read_truth(
            self.video, self.timing.numbers, self.tracks, where=self.source, exhaustive=settings.exhaustive
        )
        columns = zip(timing.times_us, places, timing.numbers, strict=True)
        job = SequenceJob(
            source=self.source,
            pictures=tuple(TimedPicture(*column) for column in columns),
            params=self.params,
            rate_hz=timing.rate_hz,
            shape=self._shape(settings),
            min_rate_hz=settings.min_rate_hz,
            truth=truth,
            split=self.split,
        )
        entries = job.run(folder)
        return [replace(entry, note="; ".join(filter(None, (note, entry.note))) or None) for entry in entries]

    def _find_pictures(self, settings: YoutubeVisParams) -> tuple[Timing, list[Place]]:
        """The frames that the annotation file lists, or all that lie in their folder."""
        listed = [place(join_url(self.images.url, name)) for name in self.video.file_names]
        if settings.frames != "all":
            return self.timing, listed
        found = dict(zip(self.timing.numbers, listed, strict=True))
        for one in list_files(place(self._folder()).url):
            path = PurePosixPath(one.shown.partition("::")[0])
            if _NUMBER.fullmatch(path.stem) and path.suffix.lower() in IMAGE_SUFFIXES:
                found.setdefault(int(path.stem), one)
        numbers = sorted(found)
        return _time_numbers(numbers, settings.source_rate_hz), [found[number] for number in numbers]

    def _folder(self) -> str:
        parents = {name.rpartition("/")[0] for name in self.video.file_names}
        if len(parents) != 1:
            raise SourceError("its frames lie in several folders: ingest.youtube_vis.frames: all wants one a video")
        return join_url(self.images.url, parents.pop())

    def _is_slow(self, rate_hz: float) -> bool:
        return rate_hz < self._minimum() * (1 - self.params.rate_tolerance)

    def _minimum(self) -> float:
        own = self.params.youtube_vis.min_rate_hz
        return self.params.min_rate_hz if own is None else own

    def _describe_slowness(self, rate_hz: float) -> str:
        settings = self.params.youtube_vis
        text = f"{rate_hz:.3g} Hz"
        if "timestamps_us" not in self.video.extra:
            step = settings.source_rate_hz / rate_hz
            text += f" (every {step:.3g}th frame of {settings.source_rate_hz:g} Hz video)"
        text += f" is below {self._minimum():g} Hz, too slow to follow motion from frame to frame: "
        if settings.frames != "all":
            text += "take the all-frames release with ingest.youtube_vis.frames: all, or "
        return text + f"accept it with ingest.youtube_vis.min_rate_hz: {rate_hz:.3g}"

    def _shape(self, settings: YoutubeVisParams) -> Mapping[str, Any]:
        """What was accepted stands in the clip, so that the pairs stage keeps it, too."""
        shape: dict[str, Any] = {
            "kind": "youtube_vis",
            "source_rate_hz": settings.source_rate_hz,
            "exhaustive": settings.exhaustive,
        }
        if settings.min_rate_hz is not None:
            shape["min_rate_hz"] = settings.min_rate_hz
        return shape if self.split is None else {**shape, "split": self.split}


def read_timing(video: Video, settings: YoutubeVisParams) -> Timing:
    """From the entry's own `timestamps_us`, which our exports have, else from the frame numbers in the names.

    Raises SourceError where the names hold no ascending numbers or cannot be joined to a URL safely.
    """
    for name in video.file_names:
        # "::" starts another URL, ${NAME} is filled in from the environment.
        if "::" in name or "://" in name or "${" in name or escape_unprintable(name) != name:
            raise SourceError(f"{ascii(name)[:80]} is not a file name of a frame: refused")
    if len(video.file_names) < 2:
        raise SourceError("has one frame: motion needs at least two" if video.file_names else "has no frame")
    times = video.extra.get("timestamps_us")
    if times is not None and settings.frames != "all":
        if not isinstance(times, list) or len(times) != len(video.file_names) or not _ascend(times):
            raise SourceError("timestamps_us must be ascending microseconds, one for each of file_names")
        return Timing(tuple(range(len(times))), tuple(t - times[0] for t in times), median_rate_hz(times))
    stems = [PurePosixPath(name).stem for name in video.file_names]
    odd = next((stem for stem in stems if not _NUMBER.fullmatch(stem)), None)
    if odd is not None:
        raise SourceError(f"{ascii(odd)[:80]} is no frame number, such as 00005: frames have no times without")
    numbers = [int(stem) for stem in stems]
    if not _ascend(numbers):
        raise SourceError("its frame numbers do not ascend: the file names are out of order, or stand twice")
    return _time_numbers(numbers, settings.source_rate_hz)


def _time_numbers(numbers: Sequence[int], source_rate_hz: float) -> Timing:
    times_us = [round((number - numbers[0]) * 1e6 / source_rate_hz) for number in numbers]
    return Timing(tuple(numbers), tuple(times_us), source_rate_hz / float(np.median(np.diff(numbers))))


def _ascend(values: list[Any]) -> bool:
    if not all(type(value) is int and 0 <= value < _LAST_US for value in values):
        return False
    return all(before < after for before, after in itertools.pairwise(values))


def _check_inside(images: Place, places: Sequence[Place]) -> None:
    """Raise SourceError where a link leads out of the folder of frames, which may itself be one."""
    if not is_local(images.url):
        return
    root = os.path.realpath(LocalFileSystem._strip_protocol(images.url))
    for one in places:
        path = os.path.realpath(LocalFileSystem._strip_protocol(one.url))
        if os.path.commonpath((root, path)) != root:
            raise SourceError(f"{one.shown}: a link that leads out of {images.shown}: refused")
