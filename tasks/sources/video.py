"""Real video: files, folders of files, folders of pictures, at any fsspec URL."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from tasks.clips import ClipEntry, median_rate_hz
from tasks.errors import SourceError
from tasks.files import sha256_file
from tasks.params import IngestParams
from tasks.progress import track
from tasks.sources import decoding
from tasks.sources.pictures import STATE_RATE, PicturesJob
from tasks.sources.places import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Place, hide_credentials, list_files, open_local
from tasks.sources.segments import ClipKind, check_rate, resample, write_clips

_NOTED_SHARE = 0.98
"""Video of which fewer frames than this share decode is kept with a note; below half it is refused."""


def open_video(url: str, params: IngestParams) -> list[VideoJob | PicturesJob]:
    """The jobs of `list_media`. Raises SourceError where there are only pictures and no stated rate, too."""
    jobs = list_media(url, params)
    if params.image_rate_hz is None and all(isinstance(job, PicturesJob) for job in jobs):
        raise SourceError(f"{hide_credentials(url)}: {STATE_RATE}")
    return jobs


def list_media(url: str, params: IngestParams) -> list[VideoJob | PicturesJob]:
    """One job per video file, and one per folder that holds pictures and no video (beside video they are thumbnails).

    Raises SourceError where there is neither.
    """
    places = list_files(url)
    shown = hide_credentials(url)
    if len(places) == 1 and places[0].shown == shown and places[0].suffix not in IMAGE_SUFFIXES:
        return [VideoJob(shown, places[0], params)]
    jobs: list[VideoJob | PicturesJob] = []
    folders: dict[str, list[Place]] = {}
    for place in places:
        folders.setdefault(place.shown.rpartition("/")[0], []).append(place)
    for parent, members in folders.items():
        videos = [place for place in members if place.suffix in VIDEO_SUFFIXES]
        pictures = [place for place in members if place.suffix in IMAGE_SUFFIXES]
        if videos:
            jobs += [VideoJob(place.shown, place, params) for place in videos]
        elif pictures:
            jobs.append(PicturesJob(parent or ".", tuple(pictures), params))
    if not jobs:
        raise SourceError(f"{shown}: holds no video and no pictures: check the folder (ingest.sources)")
    return jobs


@dataclass(frozen=True)
class VideoJob:
    """One video file."""

    source: str
    place: Place
    params: IngestParams

    def run(self, folder: Path) -> list[ClipEntry]:
        """Raises SourceError where it is no video, too slow, or where fewer than half of its frames decode."""
        with open_local(self.place, folder) as path:
            try:
                return self._run(folder, path)
            except PermissionError:
                raise SourceError("cannot be read: no permission") from None

    def _run(self, folder: Path, path: Path) -> list[ClipEntry]:
        params = self.params
        found = decoding.probe(path, max_seconds=params.max_seconds)
        rate_hz = _rate_hz(found)
        check_rate(rate_hz, min_rate_hz=params.min_rate_hz, tolerance=params.rate_tolerance)
        count = decoding.DecodeCount()
        times_us = array("q")
        frames = decoding.decode(path, count, interval_us=1e6 / rate_hz, max_seconds=params.max_seconds)
        frames = _record_times(track(frames, self.source, total=found.frames), times_us)
        kind = ClipKind(
            source=self.source,
            source_sha256=sha256_file(path),
            shape=_shape(params),
            clip_seconds=params.clip_seconds,
            jpeg_quality=params.jpeg_quality,
        )
        frames = resample(frames, from_hz=rate_hz, to_hz=params.rate_hz)
        entries = write_clips(folder, frames, _to_picture(params.max_side), kind)
        note = _judge(count, found.frames)
        if note is None:  # the packets' times may have promised more than the frames keep
            check_rate(median_rate_hz(times_us), min_rate_hz=params.min_rate_hz, tolerance=params.rate_tolerance)
        return [replace(entry, note=note) for entry in entries]


def _shape(params: IngestParams) -> dict[str, object]:
    return {
        "kind": "video",
        "rate_hz": params.rate_hz,
        "max_side": params.max_side,
        "clip_seconds": params.clip_seconds,
        "max_seconds": params.max_seconds,
        "jpeg_quality": params.jpeg_quality,
    }


def _rate_hz(found: decoding.Probe) -> float:
    """From the packets' real times, else what the container claims."""
    if found.frames < 2:
        raise SourceError("has one frame: motion needs at least two" if found.frames else "has no frame")
    times = sorted(set(found.times_us))
    if len(times) >= 2:
        return median_rate_hz(times)
    if not found.average_rate:
        raise SourceError("carries neither timestamps nor a frame rate: convert it, e.g. to H.264 mp4 with ffmpeg")
    return float(found.average_rate)


def _record_times(frames: Iterable[decoding.TimedFrame], times_us: array[int]) -> Iterator[decoding.TimedFrame]:
    for frame in frames:
        times_us.append(frame.time_us)
        yield frame


def _to_picture(max_side: int | None) -> Callable[[decoding.TimedFrame], np.ndarray]:
    """Frames as RGB of one size: streams may change theirs midway, and follow the first frame then."""
    first_size: list[tuple[int, int]] = []

    def convert(frame: decoding.TimedFrame) -> np.ndarray:
        rgb = decoding.to_rgb(frame.picture, max_side=max_side)
        height, width = rgb.shape[:2]
        if not first_size:
            first_size.append((width, height))
        return rgb if (width, height) == first_size[0] else cv2.resize(rgb, first_size[0], interpolation=cv2.INTER_AREA)

    return convert


def _judge(count: decoding.DecodeCount, expected: int) -> str | None:
    """A note for video that decoded in part. Raises SourceError where that was less than half of what it claims."""
    if count.frames < expected / 2:
        raise SourceError(
            f"only {count.frames} of {expected} frames can be decoded: cut short or broken, copy it again"
        )
    if count.damaged or count.frames < expected * _NOTED_SHARE:
        return f"{count.frames} of {expected} frames decoded: cut short or damaged"
    return None
