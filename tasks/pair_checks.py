"""Which pairs of frames cannot teach anything, and why."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

REASONS = ("order", "rate", "cut", "frozen", "fast")
"""Why a pair is dropped, in the order of the checks; the first that applies counts."""

_BINS = 8
_FAST_PERCENTILE = 90


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
    """A frame, and what comparing it takes. image: (H, W, 3) uint8 RGB; grey: (H, W) uint8; colours: histogram."""

    image: np.ndarray
    grey: np.ndarray
    colours: np.ndarray

    @classmethod
    def look_at(cls, image: np.ndarray) -> SeenFrame:
        colours = cv2.calcHist([image], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3).ravel()
        return cls(image, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), colours / colours.sum())


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
        if cv2.absdiff(a.image, b.image).mean() < self.limits.frozen:
            return "frozen"
        if self.measure_motion(a.grey, b.grey) > self.limits.motion_px:
            return "fast"
        return None

    def measure_motion(self, a: np.ndarray, b: np.ndarray) -> float:
        """90th percentile of the length of DIS optical flow between (H, W) uint8, pixels.

        DIS searches coarse to fine over the whole picture for about a millisecond. Its errors at edges and in occluded
        areas are wild but few: the percentile passes over them, and over small objects that move fast on their own.
        """
        flow_uv = self._dis.calc(a, b, None)  # type: ignore[call-overload]
        lengths = np.hypot(flow_uv[..., 0], flow_uv[..., 1]).ravel()
        place = len(lengths) * _FAST_PERCENTILE // 100
        return float(np.partition(lengths, place)[place])


def histogram_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Hellinger distance of two histograms of sum 1: 0 alike, 1 nothing in common."""
    return float(np.sqrt(max(0.0, 1.0 - float(np.sqrt(a * b).sum()))))
