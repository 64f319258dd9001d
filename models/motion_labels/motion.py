"""Dense optical flow between frames of one clip, cached, and the shots within which it means anything."""

from __future__ import annotations

from collections import OrderedDict

import cv2
import numpy as np

_CACHED_FLOWS = 64
_CACHED_GREYS = 24


class FlowReader:
    """Optical flow between any two frames of a clip, by dense inverse search on enlarged frames.

    frames: (T, H, W, 3) uint8 RGB. Memory is bounded: old fields are forgotten, whatever T is.
    """

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames
        self.size: tuple[int, int] = (frames.shape[1], frames.shape[2])
        self.work_size = flow_size(self.size)
        self._search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._flows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._greys: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.frames)

    def between(self, start: int, end: int) -> np.ndarray:
        """flow_uv (H, W, 2) float32 pixels: what is at x in frame `start` is at x + flow_uv(x) in frame `end`."""
        key = (start, end)
        if key not in self._flows:
            field = self._search.calc(self._grey(start), self._grey(end), None)
            _remember(self._flows, key, self._to_frame_size(field), _CACHED_FLOWS)
        return self._flows[key]

    def chain(self, start: int, end: int) -> np.ndarray:
        """Like `between`, composed of the flows from each frame to the next: better over occlusion-free, slow motion."""
        step = 1 if end > start else -1
        total = self.between(start, start + step).copy()
        for frame in range(start + step, end, step):
            total += warp(self.between(frame, frame + step), total)
        return total

    def _grey(self, index: int) -> np.ndarray:
        if index not in self._greys:
            grey = cv2.cvtColor(self.frames[index], cv2.COLOR_RGB2GRAY)
            height, width = self.work_size
            grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_LINEAR)
            _remember(self._greys, index, grey, _CACHED_GREYS)
        return self._greys[index]

    def _to_frame_size(self, field: np.ndarray) -> np.ndarray:
        height, width = self.size
        scale = np.array([width / field.shape[1], height / field.shape[0]], np.float32)
        return cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA) * scale


def flow_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) at which flow is searched: twice the frame, but no more than 512 on the longer side."""
    factor = min(2.0, 512 / max(size)) if max(size) > 256 else 2.0
    return max(16, round(size[0] * factor)), max(16, round(size[1] * factor))


def warp(image: np.ndarray, flow_uv: np.ndarray, *, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """Sample `image` (H, W) or (H, W, C) at x + flow_uv(x), bilinear: brings frame `end` of the flow onto its start."""
    x, y = pixel_grid((flow_uv.shape[0], flow_uv.shape[1]))
    return cv2.remap(image, x + flow_uv[..., 0], y + flow_uv[..., 1], cv2.INTER_LINEAR, borderMode=border)


def pixel_grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x (H, W) and y (H, W) float32 pixel coordinates."""
    height, width = size
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return x, y


def find_shots(reader: FlowReader, max_unexplained: float = 0.5) -> list[tuple[int, int]]:
    """Runs [first, end) of frames of which each is explained by motion from the one before."""
    starts = [0]
    for frame in range(1, len(reader)):
        if unexplained_share(reader, frame - 1, frame) > max_unexplained:
            starts.append(frame)
    return list(zip(starts, starts[1:] + [len(reader)], strict=True))


def unexplained_share(reader: FlowReader, start: int, end: int) -> float:
    """Colour error that is left after warping by optical flow, as a share of the frame's own contrast."""
    here = reader.frames[start].astype(np.float32)
    there = warp(reader.frames[end].astype(np.float32), reader.between(start, end))
    contrast = float(np.abs(here - here.mean((0, 1))).mean())
    return float(np.abs(here - there).mean()) / max(contrast, 4.0)


def _remember(cache: OrderedDict, key: object, value: np.ndarray, limit: int) -> None:
    cache[key] = value
    while len(cache) > limit:
        cache.popitem(last=False)
