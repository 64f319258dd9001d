"""What is known of a clip without its frames: clip.json and the manifest's rows."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tasks import picture_codec
from tasks.errors import DataError

FORMAT = 1
MAX_FRAMES = 1_000_000
VOID = -(2**63) - 1
"""In the place of a track's id, which it can never be: pixels that the truth says nothing of."""
_CLIP_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class ClipInfo:
    """clip.json. Times are integer microseconds.

    timestamps_us: strictly increasing, from the start of the source (not of the clip).
    start_us: what to add for absolute time since 1970, 0 where the source does not tell.
    ingest: the parameters that shaped the clip.
    truth: whether there is ground truth; annotated: the frames that have it, ascending, None where all have.
    exhaustive: whether the truth has every object, so that a detection of something else is wrong.
    """

    clip_id: str
    source: str
    source_sha256: str
    width: int
    height: int
    timestamps_us: tuple[int, ...]
    rate_hz: float
    camera: str | None = None
    start_us: int = 0
    split: str | None = None
    ingest: Mapping[str, Any] = field(default_factory=dict)
    truth: bool = False
    annotated: tuple[int, ...] | None = None
    exhaustive: bool = True


@dataclass(frozen=True)
class ClipEntry:
    """One row of the manifest: a clip without opening it.

    seconds: includes the last frame's own duration. note: what a person should know about its source, or None.
    annotated_frames: how many have ground truth. exhaustive: as in ClipInfo.
    """

    clip_id: str
    path: Path
    source: str
    frames: int
    width: int
    height: int
    rate_hz: float
    split: str | None
    truth: bool
    seconds: float
    note: str | None = None
    annotated_frames: int = 0
    exhaustive: bool = True


def make_clip_id(source_sha256: str, parameters: Mapping[str, Any], segment: int) -> str:
    """16 hex digits from the source's content, the parameters that shape the clip and the segment's number."""
    text = json.dumps([source_sha256, parameters, segment], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def median_rate_hz(timestamps_us: Iterable[int]) -> float:
    """Frames per second from the median interval; 0 for fewer than two frames."""
    intervals = np.diff(np.array(list(timestamps_us), dtype=np.float64))
    return 1e6 / float(np.median(intervals)) if len(intervals) else 0.0


def is_clip_id(text: Any) -> bool:
    return isinstance(text, str) and _CLIP_ID.fullmatch(text) is not None


def _are_frames(indices: Sequence[Any], frames: int) -> bool:
    """Whether these are indices of some of so many frames, ascending."""
    if not all(type(index) is int and 0 <= index < frames for index in indices):
        return False
    return all(low < high for low, high in itertools.pairwise(indices))


def to_entry(info: ClipInfo, path: Path) -> ClipEntry:
    span_us = info.timestamps_us[-1] - info.timestamps_us[0]
    return ClipEntry(
        clip_id=info.clip_id,
        path=path,
        source=info.source,
        frames=len(info.timestamps_us),
        width=info.width,
        height=info.height,
        rate_hz=info.rate_hz,
        split=info.split,
        truth=info.truth,
        seconds=span_us / 1e6 + (1 / info.rate_hz if info.rate_hz else 0.0),
        annotated_frames=len(annotated_frames(info)),
        exhaustive=info.exhaustive,
    )


def annotated_frames(info: ClipInfo) -> Sequence[int]:
    """Indices of the frames that have ground truth, ascending."""
    if info.annotated is not None:
        return info.annotated
    return range(len(info.timestamps_us) if info.truth else 0)


def dump_json(value: Any) -> bytes:
    """Compact JSON with sorted keys: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def parse_info(document: Any, where: str) -> ClipInfo:
    """clip.json, checked: the archive may come from anywhere. Raises DataError where it is not a clip's."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{where}: clip.json is not of format {FORMAT}: ingest the source again with this version")
    try:
        info = ClipInfo(**{key: value for key, value in document.items() if key != "format"})
        times = np.array(info.timestamps_us, dtype=np.int64)
        info = dataclasses.replace(
            info,
            timestamps_us=tuple(times.tolist()),
            rate_hz=float(info.rate_hz),
            annotated=None if info.annotated is None else tuple(info.annotated),
        )
        fits = (
            is_clip_id(info.clip_id)
            and isinstance(info.source, str)
            and isinstance(info.truth, bool)
            and isinstance(info.exhaustive, bool)
            and _are_frames(info.annotated or (), len(times))
            and info.split in (None, "train", "val", "test")
            and type(info.width) is int
            and type(info.height) is int
            and min(info.width, info.height) > 0
            and info.width * info.height <= picture_codec.MAX_PIXELS
            and times.ndim == 1
            and 0 < len(times) <= MAX_FRAMES
            and bool((np.diff(times) > 0).all())
        )
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise DataError(f"{where}: clip.json does not have the layout of a clip: ingest the source again")
    return info
