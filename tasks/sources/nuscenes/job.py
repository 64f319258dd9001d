"""One camera in one scene -> clips: its pictures in the order of their links, at the times of the table."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from tasks.clips import ClipEntry
from tasks.errors import AbsentError, SourceError
from tasks.params import IngestParams
from tasks.sources.nuscenes.masks import KeyFrameMasks
from tasks.sources.nuscenes.pictures import Picture, show
from tasks.sources.nuscenes.tables import Recording
from tasks.sources.places import Place, hide_credentials, is_local, join_url, list_files, split_chain
from tasks.sources.sequences import SequenceJob, TimedPicture

LONGEST, SHORTEST = 1.5, 0.5
"""Nominal intervals between two pictures that count as jitter. At 12 Hz, where a camera waits for the next of the
lidar's 20 turns a second, real ones are 50 and 100 ms; from 125 ms on a picture is missing."""


@dataclass(frozen=True)
class BrokenJob:
    """What cannot be used at all."""

    source: str
    reason: str

    def run(self, folder: Path) -> list[ClipEntry]:
        """Raises SourceError."""
        raise SourceError(self.reason)


@dataclass(frozen=True)
class RecordingJob:
    """url: the root of the release. nominal_hz: of its cameras. masks: of the key frames by token; None: no truth."""

    source: str
    recording: Recording
    url: str = field(repr=False)
    params: IngestParams
    nominal_hz: float
    masks: dict[str, list[object]] | None = None

    @property
    def max_gap_us(self) -> int:
        """A longer interval ends a clip. Video resampled to a lower rate has longer ones."""
        own = self.params.nuscenes.max_gap_ms
        gap_us = LONGEST * 1e6 / self.nominal_hz if own is None else own * 1e3
        wanted_hz = self.params.rate_hz
        return round(gap_us * (1 if wanted_hz is None else max(1.0, self.nominal_hz / wanted_hz)))

    def run(self, folder: Path) -> list[ClipEntry]:
        """Raises SourceError where the tables are wrong about this recording or as SequenceJob does, and AbsentError
        where none of its pictures is there."""
        if self.recording.fault is not None:
            raise SourceError(self.recording.fault)
        pictures = follow_links(self.recording.pictures)
        urls = [join_url(self.url, picture.file_name) for picture in pictures]
        places = [Place(hide_credentials(url), url) for url in urls]
        _check_inside(self.url, places)
        _check_present(places)
        start_us = pictures[0].time_us
        times_us = [picture.time_us - start_us for picture in pictures]
        job = SequenceJob(
            source=self.source,
            pictures=tuple(TimedPicture(*row) for row in zip(times_us, places, itertools.count(), strict=False)),
            params=self.params,
            rate_hz=measure_rate(times_us, self.max_gap_us, self.nominal_hz),
            shape=self._shape(times_us),
            min_rate_hz=self.params.nuscenes.min_rate_hz,
            truth=self._truth(pictures),
            camera=self.recording.camera,
            start_us=start_us,
            max_gap_us=self.max_gap_us,
        )
        notes = self._describe_jitter(times_us)
        return [replace(one, note="; ".join(filter(None, (one.note, notes))) or None) for one in job.run(folder)]

    def _shape(self, times_us: Sequence[int]) -> dict[str, object]:
        """min_rate_hz: the rate of the longest accepted interval, for the pairs stage to accept it, too."""
        times = hashlib.sha256(json.dumps(times_us).encode()).hexdigest()
        return {"kind": "nuscenes", "min_rate_hz": 1e6 / self.max_gap_us, "times_sha256": times}

    def _truth(self, pictures: Sequence[Picture]) -> KeyFrameMasks | None:
        if self.masks is None:
            return None
        found = {number: self.masks.get(picture.token) for number, picture in enumerate(pictures)}
        return KeyFrameMasks({number: tuple(masks) for number, masks in found.items() if masks is not None})

    def _describe_jitter(self, times_us: Sequence[int]) -> str | None:
        if self.params.max_seconds is not None:
            times_us = [time for time in times_us if time < self.params.max_seconds * 1e6]
        shortest_us = SHORTEST * 1e6 / self.nominal_hz
        short = sum(after - before < shortest_us for before, after in itertools.pairwise(times_us))
        if not short:
            return None
        return f"{short} of {len(times_us) - 1} intervals shorter than {shortest_us / 1e3:.0f} ms, half the nominal one"


def follow_links(pictures: Sequence[Picture]) -> list[Picture]:
    """In the order of prev and next. Raises SourceError unless these link all of them in one line, forwards in time."""
    if not pictures:
        raise SourceError("has no picture")
    known = {picture.token: picture for picture in pictures}
    if len(known) < len(pictures):
        raise SourceError(f"the token {show(_find_twice(pictures))} stands twice in sample_data")
    for picture in pictures:
        for name, token in (("prev", picture.prev), ("next", picture.next)):
            if token and token not in known:
                where = f"sample_data {show(picture.token)}"
                raise SourceError(f"{where}: {name} {show(token)} is no picture of this camera and scene")
    for picture in pictures:
        where = f"sample_data {show(picture.token)}"
        if picture.next and known[picture.next].prev != picture.token:
            raise SourceError(f"{where}: its next, {show(picture.next)}, has another prev")
        if picture.prev and known[picture.prev].next != picture.token:
            raise SourceError(f"{where}: its prev, {show(picture.prev)}, has another next")
    starts = [picture for picture in pictures if not picture.prev]
    if len(starts) > 1:
        raise SourceError(f"its pictures are linked in {len(starts)} lines: prev and next must make one")
    line = starts[:1]
    while line and line[-1].next:
        line.append(known[line[-1].next])
        if line[-1].time_us <= line[-2].time_us:
            raise SourceError(f"sample_data {show(line[-1].token)}: taken no later than the one before: out of order")
    if len(line) < len(pictures):
        raise SourceError(f"prev and next of {len(pictures) - len(line)} of its pictures go in a circle")
    return line


def measure_rate(times_us: Sequence[int], max_gap_us: int, nominal_hz: float) -> float:
    """Pictures per second where there is no gap.

    By the mean interval: of intervals of 50 and 100 ms, twelve in a second, the median is 100 ms.
    """
    intervals = [after - before for before, after in itertools.pairwise(times_us)]
    without_gaps = [interval for interval in intervals if interval <= max_gap_us]
    if not without_gaps:
        return nominal_hz  # too few pictures, or only gaps: there is no clip whose rate could be wrong
    return 1e6 * len(without_gaps) / sum(without_gaps)


def _find_twice(pictures: Sequence[Picture]) -> str:
    seen: set[str] = set()
    for picture in pictures:
        if picture.token in seen:
            return picture.token
        seen.add(picture.token)
    raise AssertionError("no token stands twice")


def _check_inside(url: str, places: Sequence[Place]) -> None:
    """Raise SourceError where a link leads out of a local root, which may itself be one, or a name is more than one."""
    if not is_local(url):
        # "::" starts another URL, ${NAME} is filled in from the environment.
        for place in places:
            name = split_chain(place.url)[1].removeprefix(split_chain(url)[1])
            if "${" in name or place.url.count("::") != url.count("::"):
                raise SourceError(f"{place.shown}: no name of a picture: refused")
        return
    root = os.path.realpath(LocalFileSystem._strip_protocol(url))
    for place in places:
        if os.path.commonpath((root, os.path.realpath(LocalFileSystem._strip_protocol(place.url)))) != root:
            raise SourceError(f"{place.shown}: a link that leads out of the data's folder: refused")


def _check_present(places: Sequence[Place]) -> None:
    """Raise AbsentError where none of the pictures is there; of those in a store, the first, middle and last count."""
    reason = ""
    few = {places[0], places[len(places) // 2], places[-1]}
    for place in places if is_local(places[0].url) else sorted(few, key=places.index):
        try:
            list_files(place.url)
        except SourceError as error:
            reason = reason or str(error)
        else:
            return
    raise AbsentError(f"none of its {len(places)} pictures is there, not downloaded? {reason}")
