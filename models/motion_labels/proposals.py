"""Seeds of instances: connected regions that move alike and not with the background."""

from __future__ import annotations

import cv2
import numpy as np

from .background import Motion


MERGE = 1.5
REACH = 6


def find_seeds(motions, magnitude, threshold, min_area, limit):
    moving = magnitude > threshold
    smooth = moving & ~motion_edges(motions, magnitude, threshold)
    seeds = components(smooth, max(4, min_area // 3))
    order = np.argsort(-seeds.sum((1, 2)), kind="stable")
    seeds = seeds[order[: 2 * limit]]
    seeds = merge_alike(seeds, motions, MERGE * threshold, REACH)
    seeds = grow_seeds(seeds, moving)
    seeds = seeds[seeds.sum((1, 2)) >= min_area]
    order = np.argsort(-seeds.sum((1, 2)), kind="stable")
    return seeds[order[:limit]]


def merge_alike(seeds, motions, limit, reach):
    seeds = list(seeds)
    flow = np.concatenate([m.residual_uv for m in motions], -1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    near = [cv2.dilate(s.astype(np.uint8), kernel) > 0 for s in seeds]

    def step(i, j):
        a, b = seeds[i] & near[j], seeds[j] & near[i]
        if a.sum() < 6 or b.sum() < 6:
            return np.inf
        d = np.median(flow[a], 0) - np.median(flow[b], 0)
        return np.sqrt((d**2).sum() / len(motions))

    steps = {(i, j): step(i, j) for i in range(len(seeds)) for j in range(i)}
    while steps:
        (i, j), value = min(steps.items(), key=lambda kv: kv[1])
        if value > limit:
            break
        seeds[j], near[j] = seeds[i] | seeds[j], near[i] | near[j]
        steps = {k: v for k, v in steps.items() if i not in k}
        seeds[i] = None
        for k in range(len(seeds)):
            if k != j and seeds[k] is not None:
                steps[(max(j, k), min(j, k))] = step(max(j, k), min(j, k))
    seeds = [s for s in seeds if s is not None]
    return np.stack(seeds) if seeds else np.zeros((0, *flow.shape[:2]), bool)


def motion_edges(motions: list[Motion], magnitude: np.ndarray, threshold: float) -> np.ndarray:
    """(H, W) bool: where motion changes from a pixel to the next by much against its own size."""
    edges = np.zeros(magnitude.shape, bool)
    limit = np.maximum(0.06 * magnitude, 0.25 * threshold)
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
