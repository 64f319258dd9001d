"""Objects through a video, as the scores of video take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.errors import DataError
from tasks.formats.rle import RLE


@dataclass(frozen=True)
class MaskTrack:
    """One object, found or true. rles: one per frame of the video, None where it is not seen. score: 1 of truth.

    crowd: truth that stands for many objects.
    """

    rles: Sequence[RLE | None]
    score: float = 1.0
    crowd: bool = False


def check_tracks(tracks: Sequence[MaskTrack], frames: int, size: tuple[int, int], *, where: str) -> None:
    """Raises DataError unless all tracks are `frames` long, their masks of `size` (height, width), scores numbers."""
    for track in tracks:
        if len(track.rles) != frames:
            raise DataError(f"{where}: a track of {len(track.rles)} frames does not fit a video of {frames}")
        for index, rle in enumerate(track.rles):
            if rle is not None and tuple(rle["size"]) != size:
                width, height = rle["size"][1], rle["size"][0]
                raise DataError(f"{where}, frame {index}: a mask of {width} x {height} is not {size[1]} x {size[0]}")
        if not -float("inf") < track.score < float("inf"):
            raise DataError(f"{where}: the score of a track is not a finite number")


def sort_tracks(tracks: Sequence[MaskTrack]) -> list[MaskTrack]:
    """By falling score; equal ones by their masks, so that the order they came in is no matter."""
    return sorted(
        tracks,
        key=lambda track: (-track.score, [rle["counts"] if rle else "" for rle in track.rles], track.crowd),
    )
