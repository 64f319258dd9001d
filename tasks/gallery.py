"""A folder of pictures with a list that says what each shows: pictures.json of evaluate, summary.json of export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.clips import ClipInfo, ClipReader
from tasks.metrics.matching import FrameFit
from tasks.pictures import write_jpeg

_PARTS = 4
"""Of each part of a clip only the worst frame is kept: its neighbours fail alike."""

_NAMELESS = ("frames", "images", "jpegimages")
"""Names of folders that every sequence of a dataset has."""


class Gallery:
    """Writes into `folder`; `entries` name the files relative to the folder's parent, as `name`/FILE."""

    def __init__(self, folder: Path, *, name: str = "pictures") -> None:
        self.folder = folder
        self.name = name
        self.entries: list[Mapping[str, Any]] = []
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, picture: np.ndarray, caption: str, info: ClipInfo, frame: int) -> None:
        """picture: (h, w, 3) uint8 RGB. kind: what sort of picture, also the start of its file's name."""
        shown = f"{short_source(info.source)}, {time_of(info, frame)}: {caption}"
        self.put(kind, picture, caption=shown, clip_id=info.clip_id, frame=frame)

    def put(self, kind: str, picture: np.ndarray, **entry: Any) -> None:
        """A picture of no clip; `entry` says in its own words what it shows."""
        self._counts[kind] += 1
        file = f"{kind}-{self._counts[kind]:02d}.jpg"
        write_jpeg(self.folder / file, picture)
        self.entries.append({"file": f"{self.name}/{file}", "kind": kind, **entry})


class WorstFrames:
    """The worst frames of all that were offered, one for each part of a clip, as finished pictures."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: dict[tuple[str, int], tuple[FrameFit, int, ClipInfo, np.ndarray]] = {}

    def offer(self, fit: FrameFit, reader: ClipReader, index: int, draw: Callable[[], np.ndarray]) -> None:
        """`draw` is called only where the frame is among the worst so far; one without a fault never is."""
        part = (reader.info.clip_id, index * _PARTS // len(reader))
        if fit.f1 == 1 or (part in self._kept and fit >= self._kept[part][0]):
            return
        if part not in self._kept and len(self._kept) >= self.most:
            best = max(self._kept, key=lambda kept: self._kept[kept][0])
            if fit >= self._kept[best][0]:
                return
            del self._kept[best]
        self._kept[part] = (fit, index, reader.info, draw())

    def frames(self) -> list[tuple[FrameFit, ClipInfo, int, np.ndarray]]:
        """(fit, the clip's info, index, picture), worst first."""
        ordered = sorted(self._kept.items(), key=lambda item: (item[1][0], item[0]))
        return [(fit, info, index, picture) for _, (fit, index, info, picture) in ordered]


def short_source(source: str) -> str:
    """The last part of a source's URL that says something, which is what people call the video."""
    parts = [part for part in source.split("/") if part]
    if len(parts) > 1 and parts[-1].lower() in _NAMELESS:
        parts.pop()
    return parts[-1] if parts else source


def time_of(info: ClipInfo, frame: int) -> str:
    return f"frame {frame} at {info.timestamps_us[frame] / 1e6:.2f} s"


def spread(count: int, most: int) -> list[int]:
    """At most `most` of 0 ... count - 1, evenly spaced, each in the middle of its part."""
    most = min(count, most)
    return [(2 * part + 1) * count // (2 * most) for part in range(most)]
