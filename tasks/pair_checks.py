"""Which pairs of frames cannot teach anything, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

REASONS = ("order", "rate", "cut", "frozen", "fast")
"""Why a pair is dropped, in the order of the checks; the first that applies counts."""

_BINS = 8
_FAST_PERCENTILE = 90
_CLEARLY_BETTER = 0.6
_GLANCE_SIDE = 32  # pixels
_GLANCE_SHARE = 0.25


@dataclass(frozen=True)
class PairLimits:
    """longest_dt_s: seconds between the frames. cut: histogram distance, 0 to 1. frozen: mean absolute difference, grey
    levels of 255. motion_px: 90th percentile of the motion, pixels of the frames given."""

    longest_dt_s: float
    cut: float
    frozen: float
    motion_px: float


@dataclass(frozen=True)
class SeenFrame:
    """A frame, and what comparing it takes.

    image: (H, W, 3) uint8 RGB. grey: (H, W) uint8. glance: (h, w) float32, grey with a shorter side of 32 px at most,
    tapered to its edges. colours: histogram.
    """

    image: np.ndarray
    grey: np.ndarray
    glance: np.ndarray
    colours: np.ndarray

    @classmethod
    def look_at(cls, image: np.ndarray) -> SeenFrame:
        colours = cv2.calcHist([image], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3).ravel()
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        scale = min(1.0, _GLANCE_SIDE / min(grey.shape))
        width, height = (max(1, round(side * scale)) for side in grey.shape[::-1])
        small = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
        return cls(image, grey, small * _taper(small.shape), colours / colours.sum())


class PairJudge:
    """Says of two frames of one clip why they make no pair."""

    def __init__(self, limits: PairLimits) -> None:
        self.limits = limits
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def find_fault(self, a: SeenFrame, b: SeenFrame, dt_s: float) -> str | None:
        """One of REASONS, or None for a good pair. dt_s: seconds from a to b. Cheap checks come first."""
        if dt_s <= 0:
            return "order"
        if dt_s > self.limits.longest_dt_s:
            return "rate"
        if histogram_distance(a.colours, b.colours) > self.limits.cut:
            return "cut"
        if cv2.norm(a.image, b.image, cv2.NORM_L1) / a.image.size < self.limits.frozen:
            return "frozen"
        if self.is_fast(a, b):
            return "fast"
        return None

    def is_fast(self, a: SeenFrame, b: SeenFrame) -> bool:
        """Whether the 90th percentile of the length of the motion from a to b is above the limit.

        DIS optical flow, coarse to fine, is cheap. Its errors at edges and in occluded areas are wild but few: the
        percentile passes over them, and over small objects that move fast on their own. It loses the camera's sweeps of
        an eighth of the picture and more, which phase correlation finds; a sweep counts if it explains the second frame
        clearly better than the flow does, so that repeating patterns raise no false alarm.
        """
        flow_uv = self._dis.calc(a.grey, b.grey, None)  # type: ignore[call-overload]
        squares = flow_uv * flow_uv
        pixels = a.grey.size
        slow = np.count_nonzero(squares[..., 0] + squares[..., 1] <= self.limits.motion_px**2)
        if slow <= pixels * _FAST_PERCENTILE // 100:
            return True
        if not self._may_sweep(a, b):
            return False
        taper = _taper(a.grey.shape)
        sweep, _ = cv2.phaseCorrelate(a.grey * taper, b.grey * taper)
        if math.hypot(*sweep) <= self.limits.motion_px:
            return False
        swept = np.empty_like(flow_uv)
        swept[...] = sweep
        return _unlikeness(a.grey, b.grey, swept) < _CLEARLY_BETTER * _unlikeness(a.grey, b.grey, flow_uv)

    def _may_sweep(self, a: SeenFrame, b: SeenFrame) -> bool:
        """Whether small pictures shift by a quarter of the limit or more: the transforms of large ones cost as much as
        the optical flow, and in steady video few pairs need them.
        """
        (x, y), _ = cv2.phaseCorrelate(a.glance, b.glance)
        (height, width), (low, narrow) = a.grey.shape, a.glance.shape
        return math.hypot(x * width / narrow, y * height / low) > _GLANCE_SHARE * self.limits.motion_px


@lru_cache(maxsize=8)
def _taper(shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32, Hann window: edges that do not match are no motion."""
    return cv2.createHanningWindow(shape[::-1], cv2.CV_32F)


def _unlikeness(a: np.ndarray, b: np.ndarray, flow_uv: np.ndarray) -> float:
    """Mean absolute difference of a and b fetched along flow_uv (H, W, 2), where that lies inside b; 255 if nowhere."""
    height, width = a.shape
    grid_y, grid_x = np.mgrid[:height, :width].astype(np.float32)
    x, y = grid_x + flow_uv[..., 0], grid_y + flow_uv[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    difference = cv2.absdiff(a, cv2.remap(b, x, y, cv2.INTER_LINEAR))
    return float(difference[inside].mean()) if inside.any() else 255.0


def histogram_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Hellinger distance of two histograms of sum 1: 0 alike, 1 nothing in common."""
    return float(np.sqrt(max(0.0, 1.0 - float(np.sqrt(a * b).sum()))))
