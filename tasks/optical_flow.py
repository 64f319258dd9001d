"""Optical flow between two frames, for linking masks over time and for pictures; no method learns from it."""

from __future__ import annotations

import numpy as np

from models.common.dis import search_flow


def estimate_flow(frame_a: np.ndarray, frame_b: np.ndarray) -> np.ndarray:
    """flow_uv (H, W, 2) float32 pixels: what is at x in frame a is at x + flow_uv(x) in frame b.

    Frames: (H, W, 3) uint8 RGB of one size, any size. Dense inverse search, Kroeger et al., ECCV 2016.
    """
    return search_flow(frame_a, frame_b)


def limit_side(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(height, width) scaled down, if need be, until the longer side is at most `max_side`; at least 1 x 1."""
    factor = min(1.0, max_side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
