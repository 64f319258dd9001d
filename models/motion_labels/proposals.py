"""Seeds of instances: connected regions that move together and not with the background."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .background import Motion, fit_motion, residual_magnitude
from .motion import FlowReader

_NOISE_FACTOR = 4.0
"""Motion counts from this times the 70th percentile of residual motion, which is the background's own noise."""
_QUIETEST = 0.35
"""Residual motion in pixels that no background is quiet enough to let count."""
_CLEAR_SHARE = 0.2
"""A gap is long enough once this share of the seeds' area moves clearly."""
_EDGE_SHARE = 0.25
_MERGE_STEP = 1.5
_MERGE_RELATIVE = 0.15
_MERGE_SPREAD = 1.5
_MERGE_REACH = 6


@dataclass(frozen=True)
class Proposals:
    """What moves in a frame. motions: to the frames before and after, at the chosen gap. seeds: (K, H, W) bool."""

    motions: list[Motion]
    seeds: np.ndarray


def propose(
    reader: FlowReader,
    frame: int,
    shot: tuple[int, int],
    *,
    gaps: tuple[int, ...],
    min_speed: float,
    clear_motion: float,
    min_area: float,
    most: int,
) -> Proposals | None:
    """Seeds of `frame` at the smallest of `gaps` where they move clearly, or at the largest that has any; None if none.

    shot: [first, end) frames that may be looked at. min_speed: pixels per frame, clear_motion: pixels, at a shorter
    side of 128; min_area: pixels. At most `most` seeds, the largest.
    """
    scale = max(1.0, min(reader.size) / 128)
    chosen = None
    for gap in gaps:
        others = [other for other in (frame - gap, frame + gap) if shot[0] <= other < shot[1]]
        motions = [m for m in (fit_motion(reader, frame, other, scale) for other in others) if m is not None]
        if not motions:
            continue
        magnitude = residual_magnitude(motions)
        speed_limit = min_speed * gap * scale
        moves = np.clip(_NOISE_FACTOR * np.percentile(magnitude, 70), min(_QUIETEST * scale, speed_limit), speed_limit)
        seeds = find_seeds(motions, magnitude > moves, speed_limit, min_area, most)
        if len(seeds):
            chosen = Proposals(motions, seeds)
            areas = seeds.sum((1, 2))
            clear = np.array([np.median(magnitude[seed]) > clear_motion * scale for seed in seeds])
            if areas[clear].sum() >= _CLEAR_SHARE * areas.sum():
                break
    return chosen


def find_seeds(motions: list[Motion], moving: np.ndarray, step: float, min_area: float, most: int) -> np.ndarray:
    """(K, H, W) bool: at most `most` regions of `moving` (H, W) of at least `min_area` pixels, largest first.

    step: pixels of motion that tell two things apart. Regions are first cut wherever motion jumps, then joined again
    where the two sides do not move apart.
    """
    smooth = moving & ~motion_edges(motions, _EDGE_SHARE * step)
    seeds = largest(components(smooth), max(4, min_area / 3), 2 * most)
    return largest(grow_seeds(merge_seeds(seeds, motions, _MERGE_STEP * step), moving), min_area, most)


def motion_edges(motions: list[Motion], limit: float) -> np.ndarray:
    """(H, W) bool: where motion changes by more than `limit` pixels, or by 6 % of its own size, from pixel to pixel."""
    edges = np.zeros(motions[0].telling.shape, bool)
    for motion in motions:
        dx = cv2.Sobel(motion.residual_uv, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
        dy = cv2.Sobel(motion.residual_uv, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
        magnitude = np.linalg.norm(motion.residual_uv, axis=-1)
        edges |= np.sqrt((dx**2 + dy**2).sum(-1)) > np.maximum(limit, 0.06 * magnitude)
    return edges


def components(mask: np.ndarray) -> np.ndarray:
    """Connected parts (K, H, W) bool of `mask` (H, W)."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    areas = np.bincount(labels.ravel(), minlength=count)
    # Single pixels are legion in noise and never grow into anything.
    kept = [label for label in range(1, count) if areas[label] > 1]
    return np.stack([labels == label for label in kept]) if kept else np.zeros((0, *mask.shape), bool)


def largest(seeds: np.ndarray, min_area: float, most: int) -> np.ndarray:
    """At most `most` of the seeds (K, H, W) of `min_area` pixels or more, largest first."""
    areas = seeds.sum((1, 2))
    order = np.argsort(-areas, kind="stable")
    return seeds[[index for index in order if areas[index] >= min_area][:most]]


def merge_seeds(seeds: np.ndarray, motions: list[Motion], step: float) -> np.ndarray:
    """Join neighbouring seeds (K, H, W) that do not move apart where they meet, the most alike first.

    They move apart if motion differs there by more than `step` pixels, by 15 % of the motion itself, and by 1.5 times
    what it varies within either of them: limbs vary within, two rigid things do not.
    """
    residual = np.concatenate([motion.residual_uv for motion in motions], -1) / np.sqrt(len(motions))
    seeds = seeds.copy()
    alive = list(range(len(seeds)))
    steps = {(a, b): _step_between(seeds[a], seeds[b], residual, step) for a in alive for b in alive if a < b}
    while steps:
        (a, b), least = min(steps.items(), key=lambda item: item[1])
        if least > 1:
            break
        seeds[a] |= seeds[b]
        alive.remove(b)
        steps = {pair: value for pair, value in steps.items() if b not in pair}
        for other in alive:
            if other != a:
                pair = (min(a, other), max(a, other))
                steps[pair] = _step_between(seeds[a], seeds[other], residual, step)
    return seeds[alive]


def _step_between(one: np.ndarray, other: np.ndarray, residual: np.ndarray, step: float) -> float:
    """How far two seeds move apart where they meet, against what may be; infinite where they do not meet."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _MERGE_REACH + 1,) * 2)
    here = one & (cv2.dilate(other.astype(np.uint8), kernel) > 0)
    there = other & (cv2.dilate(one.astype(np.uint8), kernel) > 0)
    if min(here.sum(), there.sum()) < 6:
        return np.inf
    first, second = np.median(residual[here], 0), np.median(residual[there], 0)
    size = max(float(np.linalg.norm(first)), float(np.linalg.norm(second)))
    spread = max(_spread(residual[one]), _spread(residual[other]))
    return float(np.linalg.norm(first - second) / max(step, _MERGE_RELATIVE * size, _MERGE_SPREAD * spread))


def _spread(motion: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(motion - np.median(motion, 0), axis=-1)))


def grow_seeds(seeds: np.ndarray, moving: np.ndarray, steps: int = 4) -> np.ndarray:
    """Give the moving pixels around the seeds (K, H, W) to the nearest of them."""
    if not len(seeds):
        return seeds
    distance = np.stack([cv2.distanceTransform((~seed).astype(np.uint8), cv2.DIST_L2, 3) for seed in seeds])
    nearest = distance.argmin(0)
    near = moving & (distance.min(0) <= steps)
    return np.stack([near & (nearest == index) for index in range(len(seeds))])
