"""Timed frames -> clip archives: the rate rule, resampling by real timestamps, cutting into clips."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from tasks.clips import ClipEntry, ClipWriter, make_clip_id
from tasks.errors import SourceError
from tasks.picture_codec import Encoded

_FASTER = 1.01
"""Video is resampled only when it is faster than wanted by more than timestamps jitter."""


class Timed(Protocol):
    @property
    def time_us(self) -> int: ...


F = TypeVar("F", bound=Timed)


@dataclass(frozen=True)
class ClipKind:
    """What all clips of one source share; fields as in ClipInfo.

    source_sha256: where it is known only once the last frame has been taken, what gives it then.
    shape: the parameters that shape them, part of their clip_id. max_gap_us: a longer interval between two frames ends
    a clip, too; None: no interval does.
    """

    source: str
    source_sha256: str | Callable[[], str]
    shape: Mapping[str, Any]
    clip_seconds: float
    jpeg_quality: int
    camera: str | None = None
    start_us: int = 0
    split: str | None = None
    exhaustive: bool = True
    max_gap_us: int | None = None


def check_rate(rate_hz: float, *, min_rate_hz: float, tolerance: float) -> None:
    """Raise SourceError where a rate is below the bound that small motion between frames needs (thesis 3.2)."""
    if rate_hz < min_rate_hz * (1 - tolerance):
        raise SourceError(
            f"{rate_hz:.1f} Hz is below {min_rate_hz:g} Hz: too slow to follow motion from frame to frame "
            f"(lower ingest.min_rate_hz to accept it)"
        )


def resample(frames: Iterable[F], *, from_hz: float, to_hz: float | None) -> Iterator[F]:
    """The frames nearest to multiples of 1 / to_hz, none twice; all of them where the video is no faster than that.

    Frames keep their real times. Where the video has a gap, so has the result.
    """
    if to_hz is None or from_hz <= to_hz * _FASTER:
        yield from frames
        return
    interval_us = 1e6 / to_hz
    for slot, group in itertools.groupby(frames, key=lambda frame: round(frame.time_us / interval_us)):
        yield min(group, key=lambda frame: abs(frame.time_us - slot * interval_us))


def number_segments(frames: Iterable[F], clip_us: int, max_gap_us: int | None = None) -> Iterator[tuple[int, F]]:
    """(segment, frame): a new segment once one spans `clip_us`, and after a gap; never one of a single frame.

    One frame is held back: the very last joins the segment before it. A frame with a gap on both sides is left out.
    """
    segment, length, start_us = 0, 0, 0
    held: F | None = None
    for frame in frames:
        if held is None:
            start_us = frame.time_us
        elif max_gap_us is not None and frame.time_us - held.time_us > max_gap_us:
            if length:
                yield segment, held
                segment += 1
            length, start_us = 0, frame.time_us
        else:
            if held.time_us - start_us >= clip_us and length >= 2:
                segment, length, start_us = segment + 1, 0, held.time_us
            yield segment, held
            length += 1
        held = frame
    if held is not None and (length or max_gap_us is None):
        yield segment, held


def write_clips(
    folder: Path,
    frames: Iterable[F],
    to_picture: Callable[[F], np.ndarray | bytes | Encoded],
    kind: ClipKind,
    *,
    to_masks: Callable[[F], Mapping[int, np.ndarray] | None] | None = None,
) -> list[ClipEntry]:
    """Write the stream as clips of `clip_seconds` each. Memory holds a few frames, whatever the length.

    to_masks: the ground truth of a frame, as ClipWriter.add takes it; asked after to_picture.
    Raises SourceError where there are fewer than two frames.
    """
    stream = iter(frames)
    first = list(itertools.islice(stream, 2))
    if len(first) < 2:
        raise SourceError("has one frame: motion needs at least two" if first else "has no frame that can be decoded")
    numbered = number_segments(itertools.chain(first, stream), round(kind.clip_seconds * 1e6), kind.max_gap_us)
    del first
    known = kind.source_sha256 if isinstance(kind.source_sha256, str) else None
    entries, unnamed = [], []
    with contextlib.ExitStack() as stack:
        for segment, group in itertools.groupby(numbered, key=lambda pair: pair[0]):
            with _open_clip(folder, kind, segment, known) as writer:
                for _, frame in group:
                    picture = to_picture(frame)
                    writer.add(picture, frame.time_us, masks=None if to_masks is None else to_masks(frame))
            if known is None:
                stack.callback(writer.discard)
                unnamed.append((segment, writer))
            else:
                entries.append(writer.entry)
        if not isinstance(kind.source_sha256, str):
            sha256 = kind.source_sha256() if unnamed else ""
            entries = [writer.name(make_clip_id(sha256, kind.shape, segment), sha256) for segment, writer in unnamed]
    if not entries:
        raise SourceError("no two frames follow one another without a gap")
    return entries


def _open_clip(folder: Path, kind: ClipKind, segment: int, source_sha256: str | None) -> ClipWriter:
    return ClipWriter(
        folder,
        clip_id=None if source_sha256 is None else make_clip_id(source_sha256, kind.shape, segment),
        source=kind.source,
        source_sha256=source_sha256,
        camera=kind.camera,
        start_us=kind.start_us,
        split=kind.split,
        exhaustive=kind.exhaustive,
        ingest=kind.shape,
        jpeg_quality=kind.jpeg_quality,
    )
