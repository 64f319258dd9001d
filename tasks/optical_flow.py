"""Optical flow between two frames, for linking masks over time and for pictures; no method learns from it."""

from __future__ import annotations

import cv2
import numpy as np

_MIN_SIDE = 16
"""OpenCV's dense inverse search reads outside its arrays, and ends the process, for frames much lower than this."""


def estimate_flow(frame_a: np.ndarray, frame_b: np.ndarray) -> np.ndarray:
    """flow_uv (H, W, 2) float32 pixels: what is at x in frame a is at x + flow_uv(x) in frame b.

    Frames: (H, W, 3) uint8 RGB of one size, any size. Dense inverse search, Kroeger et al., ECCV 2016.
    """
    height, width = frame_a.shape[:2]
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (frame_a, frame_b)]
    searched = (max(width, _MIN_SIDE), max(height, _MIN_SIDE))
    greys = [cv2.resize(grey, searched, interpolation=cv2.INTER_LINEAR) for grey in greys]
    # A new search for each pair: its buffers remember an earlier size.
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    field = np.asarray(search.calc(greys[0], greys[1], None))  # type: ignore[call-overload]
    if searched == (width, height):
        return field
    scale = np.array([width / searched[0], height / searched[1]], np.float32)
    return cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) * scale


def limit_side(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(height, width) scaled down, if need be, until the longer side is at most `max_side`; at least 1 x 1."""
    factor = min(1.0, max_side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
