"""What an object looks like against what is around it: colours along its track settle what motion leaves open."""

from __future__ import annotations

import cv2
import numpy as np

_LEVELS = 8
"""Per colour channel."""
BINS = _LEVELS**3
_RING = 8
_PRIOR = 0.002
"""Added to each bin's share, so that a colour seen on neither side says nothing."""


def colour_bins(frame: np.ndarray) -> np.ndarray:
    """(H, W) int32 in [0, BINS): the colour cell of each pixel of a lightly smoothed frame (H, W, 3) uint8."""
    levels = cv2.GaussianBlur(frame, (3, 3), 0).astype(np.int32) * _LEVELS // 256
    return (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]


def count_colours(bins: np.ndarray, rows: np.ndarray, count: int, scale: float) -> np.ndarray:
    """(count, 2, BINS) float32 pixels per colour within each object of `rows` (H, W) and in the ring around it."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(_RING * scale) + 1,) * 2)
    counted = np.zeros((count, 2, BINS), np.float32)
    for row in range(1, count + 1):
        mask = rows == row
        ring = (cv2.dilate(mask.astype(np.uint8), kernel) > 0) & ~mask
        counted[row - 1, 0] = np.bincount(bins[mask], minlength=BINS)
        counted[row - 1, 1] = np.bincount(bins[ring], minlength=BINS)
    return counted


def looks_like(bins: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1]: how much likelier a pixel's colour is within the object than around it; 0.5 is unknown.

    counted: (2, BINS) as `count_colours` gives them, summed over as many frames as there are.
    """
    smooth = np.stack([spread_cube(part).reshape(-1) for part in counted])
    share = smooth / np.maximum(smooth.sum(1, keepdims=True), 1) + _PRIOR
    return (share[0] / share.sum(0)).astype(np.float32)[bins]


def spread_cube(histogram: np.ndarray) -> np.ndarray:
    """(L, L, L) histogram with a part of each bin given to its neighbours, for colours at the edge of a cell."""
    cube = histogram.reshape(_LEVELS, _LEVELS, _LEVELS)
    for axis in range(3):
        padded = np.pad(cube, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, after = (
            padded.take(range(_LEVELS), axis),
            padded.take(range(2, _LEVELS + 2), axis),
        )
        cube = 0.7 * cube + 0.15 * (before + after)
    return cube
