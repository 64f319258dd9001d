"""Seeds of instances: connected regions that move alike and not with the background."""

from __future__ import annotations

import cv2
import numpy as np

from .background import Motion


def find_seeds(motions: list[Motion], magnitude: np.ndarray, threshold: float, min_area: int, limit: int) -> np.ndarray:
    """(K, H, W) bool, at most `limit` regions of at least `min_area` pixels, largest first.

    magnitude: (H, W) residual motion in pixels; what exceeds `threshold` moves. Regions are parted where the motion
    jumps, so that objects which touch but move differently are two.
    """
    moving = magnitude > threshold
    smooth = moving & ~motion_edges(motions, magnitude, threshold)
    seeds = components(smooth, max(4, min_area // 3))
    seeds = grow_seeds(seeds, moving)
    seeds = seeds[seeds.sum((1, 2)) >= min_area]
    order = np.argsort(-seeds.sum((1, 2)), kind="stable")
    return seeds[order[:limit]]


def motion_edges(motions: list[Motion], magnitude: np.ndarray, threshold: float) -> np.ndarray:
    """(H, W) bool: where motion changes from a pixel to the next by much against its own size."""
    edges = np.zeros(magnitude.shape, bool)
    limit = np.maximum(0.25 * magnitude, 0.5 * threshold)
    for motion in motions:
        dx = cv2.Sobel(motion.residual_uv, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
        dy = cv2.Sobel(motion.residual_uv, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
        edges |= np.sqrt((dx**2 + dy**2).sum(-1)) > limit
    return edges


def components(mask: np.ndarray, min_area: int) -> np.ndarray:
    """Connected parts (K, H, W) bool of `mask` (H, W) with at least `min_area` pixels."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    kept = [label for label in range(1, count) if stats[label, cv2.CC_STAT_AREA] >= min_area]
    return np.stack([labels == label for label in kept]) if kept else np.zeros((0, *mask.shape), bool)


def grow_seeds(seeds: np.ndarray, moving: np.ndarray, steps: int = 4) -> np.ndarray:
    """Give the moving pixels around the seeds (K, H, W) to the nearest of them."""
    if not len(seeds):
        return seeds
    distance = np.stack([cv2.distanceTransform((~seed).astype(np.uint8), cv2.DIST_L2, 3) for seed in seeds])
    nearest = distance.argmin(0)
    near = moving & (distance.min(0) <= steps)
    return np.stack([near & (nearest == index) for index in range(len(seeds))])
