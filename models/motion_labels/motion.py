"""Dense optical flow between frames of one clip, cached, and the shots within which it means anything."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import cv2
import numpy as np

_CACHED_FLOWS = 64
_CACHED_GREYS = 24


class FlowReader:
    """Optical flow between any two frames of a clip, by dense inverse search on enlarged frames.

    frames: (T, H, W, 3) uint8 RGB. Memory is bounded: fields long unused are forgotten, whatever T is.
    """

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames
        self.size: tuple[int, int] = (frames.shape[1], frames.shape[2])
        self.work_size = flow_size(self.size)
        self._search = _open_search("DISOPTICAL_FLOW_PRESET_MEDIUM")
        self._flows: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._greys: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.frames)

    def between(self, start: int, end: int) -> np.ndarray:
        """flow_uv (H, W, 2) float32 pixels: what is at x in frame `start` is at x + flow_uv(x) in frame `end`."""
        key = (start, end)
        if key not in self._flows:
            field = self._search.calc(self._grey(start), self._grey(end), None)
            self._flows[key] = self._to_frame_size(field)
        return _touch(self._flows, key, _CACHED_FLOWS)

    def chain(self, start: int, end: int) -> np.ndarray:
        """Like `between`, composed of the flows from each frame to the next, which are there already."""
        step = 1 if end > start else -1
        total = self.between(start, start + step).copy()
        for frame in range(start + step, end, step):
            total += warp(self.between(frame, frame + step), total)
        return total

    def _grey(self, index: int) -> np.ndarray:
        if index not in self._greys:
            grey = cv2.cvtColor(self.frames[index], cv2.COLOR_RGB2GRAY)
            height, width = self.work_size
            self._greys[index] = cv2.resize(grey, (width, height), interpolation=cv2.INTER_LINEAR)
        return _touch(self._greys, index, _CACHED_GREYS)

    def _to_frame_size(self, field: np.ndarray) -> np.ndarray:
        height, width = self.size
        scale = np.array([width / field.shape[1], height / field.shape[0]], np.float32)
        return cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA) * scale


def flow_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) at which flow is searched: twice the frame, but no more than 512 on the longer side.

    Very long frames are stretched to 4:1, because OpenCV sizes its pyramid by the width alone.
    """
    factor = min(2.0, 512 / max(size))
    least = max(32, round(max(size) * factor / 4))
    return max(least, round(size[0] * factor)), max(least, round(size[1] * factor))


def warp(image: np.ndarray, flow_uv: np.ndarray, *, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """Sample `image` (H, W) or (H, W, C) at x + flow_uv(x), bilinear: brings frame `end` of the flow onto its start."""
    x, y = pixel_grid((flow_uv.shape[0], flow_uv.shape[1]))
    return cv2.remap(image, x + flow_uv[..., 0], y + flow_uv[..., 1], cv2.INTER_LINEAR, borderMode=border)


def pixel_grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x (H, W) and y (H, W) float32 pixel coordinates."""
    height, width = size
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return x, y


def find_shots(frames: np.ndarray, max_unexplained: float = 0.5) -> list[tuple[int, int]]:
    """Runs [first, end) of `frames` (T, H, W, 3) uint8 of which each is explained by motion from the one before.

    Pure noise falls apart into runs of one frame: nothing in it is explained by motion.
    """
    search = _open_search("DISOPTICAL_FLOW_PRESET_FAST")
    starts = [0]
    for frame in range(1, len(frames)):
        if unexplained_share(search, frames[frame - 1], frames[frame]) > max_unexplained:
            starts.append(frame)
    return list(zip(starts, starts[1:] + [len(frames)], strict=True))


def unexplained_share(search: Any, start: np.ndarray, end: np.ndarray) -> float:
    """Grey error left after warping `end` onto `start`, as a share of what is left without it being the same picture.

    start, end: (H, W, 3) uint8. 0 where motion explains everything, about 1 between unrelated pictures. A flat picture
    differs from another by its brightness alone, so contrast below 4 grey levels counts as 4.
    """
    here, there = (cv2.cvtColor(_shrink(image), cv2.COLOR_RGB2GRAY) for image in (start, end))
    error = np.abs(here - warp(there.astype(np.float32), search.calc(here, there, None)))
    contrast = float(np.abs(here - here.mean()).mean())
    return float(error.mean()) / max(contrast, 4.0)


def _shrink(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA)


def _open_search(preset: str) -> Any:
    # Looked up by name: OpenCV's type stubs do not know the class.
    return cv2.__dict__["DISOpticalFlow_create"](cv2.__dict__[preset])


def _touch(cache: OrderedDict[Hashable, np.ndarray], key: Hashable, limit: int) -> np.ndarray:
    cache.move_to_end(key)
    while len(cache) > limit:
        cache.popitem(last=False)
    return cache[key]
