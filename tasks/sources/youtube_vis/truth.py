"""The annotations of one video as its ground truth, by frame number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.errors import DataError, SourceError
from tasks.formats.ytvis import Track, Video, read_track
from tasks.picture_codec import decode_rle
from tasks.sources.youtube_vis.release import unpack

MAX_COUNTS = 128 * 2**20
"""Bytes of one video's compressed masks."""
MAX_DECODED = 2**29
"""Bytes of one frame's masks, decoded: 580 of 1280 x 720."""


@dataclass(frozen=True)
class TrackTruth:
    """size: (height, width) of all masks. tracks: frame number -> (track id, counts of its RLE), of those seen in it.

    Frame numbers that it does not have were not annotated. Category ids are left behind: nothing here asks for classes.
    """

    size: tuple[int, int]
    tracks: Mapping[int, Sequence[tuple[int, str]]]
    exhaustive: bool

    def digest(self) -> str:
        """Hex SHA-256 of size, numbers, ids and masks."""
        content = [self.size, sorted((number, sorted(found)) for number, found in self.tracks.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def masks(self, number: int, size: tuple[int, int], folder: Path) -> Mapping[int, np.ndarray] | None:
        """As `tasks.sources.sequences.Truth`. Raises DataError for a picture of another size or with too many masks."""
        found = self.tracks.get(number)
        if found is None:
            return None
        height, width = self.size
        if size != self.size:
            raise DataError(f"frame {number} is {size[1]} x {size[0]}, its annotations are of {width} x {height}")
        if len(found) * height * width > MAX_DECODED:
            raise DataError(f"frame {number} has {len(found)} masks of {width} x {height}: too many to hold")
        where = f"frame {number}"
        rles = ((track_id, {"size": [height, width], "counts": counts}) for track_id, counts in found)
        return {track_id: decode_rle(rle, size, where=where) for track_id, rle in rles}


def read_truth(
    video: Video, numbers: Sequence[int], packed: tuple[bytes, ...], *, where: str, exhaustive: bool
) -> tuple[TrackTruth | None, str | None]:
    """(truth, a note on the tracks left out) of a video with these frame numbers; no truth where no track can be used.

    Truth without all of its tracks is not exhaustive. Raises SourceError where the masks are too many to hold.
    """
    seen: dict[int, list[tuple[int, str]]] = {number: [] for number in numbers}
    ids: set[int] = set()
    faults: list[str] = []
    counts = 0
    for entry in unpack(packed):
        try:
            track = read_track(entry, {video.id: video}, where)
            _check(track, ids, where)
        except DataError as error:
            faults.append(str(error))
            continue
        ids.add(track.id)
        for number, rle in zip(numbers, track.segmentations, strict=True):
            if rle is not None:
                seen[number].append((track.id, rle["counts"]))
                counts += len(rle["counts"])
        if counts > MAX_COUNTS:
            raise SourceError(f"{where}: more than {MAX_COUNTS // 2**20} MiB of masks: refused")
    note = f"{len(faults)} of {len(ids) + len(faults)} tracks left out: {faults[0]}" if faults else None
    if not ids:
        return None, note
    return TrackTruth((video.height, video.width), seen, exhaustive and not faults), note


def _check(track: Track, ids: set[int], where: str) -> None:
    if track.id in ids:
        raise DataError(f"{where}: annotation {track.id}: its id stands twice")
    if track.iscrowd:
        raise DataError(f"{where}: annotation {track.id}: is a crowd, not an object")
