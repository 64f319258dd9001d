"""J and F of DAVIS for every pair of masks of one frame, by bits: counting what two masks share is an AND of words."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

TOLERANCE = 0.008
"""Of the picture's diagonal, rounded up: how far apart boundary pixels match."""


def compare_masks(
    found: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W) and (M, H, W) bool -> J and F, both (N, M) float64 in [0, 1]. void: (H, W) bool, pixels left out.

    J is intersection over union, 1 where both are empty. F is the harmonic mean of the share of the found boundary near
    the true one (precision) and of the true near the found (recall); with no boundary on one side, the share of that
    side is 1 and of the other 0, and with none on either, F is 1.
    """
    if void is not None:
        found, truth = found & ~void, truth & ~void
    regions, true_regions = _pack(found), _pack(truth)
    shared = _count_shared(regions, true_regions)
    union = _count(regions)[:, None] + _count(true_regions)[None] - shared
    region = np.divide(shared, union, out=np.ones(shared.shape), where=union > 0)
    edges, true_edges = trace_boundaries(found), trace_boundaries(truth)
    radius = math.ceil(TOLERANCE * math.hypot(*found.shape[1:]))
    precision = _share(_pack(edges), _pack(_dilate(true_edges, radius)))
    recall = _share(_pack(true_edges), _pack(_dilate(edges, radius))).T
    total = precision + recall
    boundary = np.divide(2 * precision * recall, total, out=np.zeros(total.shape), where=total > 0)
    return region, boundary


def trace_boundaries(masks: np.ndarray) -> np.ndarray:
    """(N, H, W) bool -> the same: pixels that differ from their right, lower, or lower right neighbour.

    Half a pixel towards the origin from the true edge, on either side of it. The border of the picture is none.
    """
    edges = np.zeros_like(masks)
    here = masks[:, :-1, :-1]
    edges[:, :-1, :-1] = (here != masks[:, :-1, 1:]) | (here != masks[:, 1:, :-1]) | (here != masks[:, 1:, 1:])
    edges[:, -1, :-1] = masks[:, -1, :-1] != masks[:, -1, 1:]
    edges[:, :-1, -1] = masks[:, :-1, -1] != masks[:, 1:, -1]
    return edges


def _share(edges: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Packed (N, B) boundaries and (M, B) what lies near others -> (N, M) share of each that does; 1 of no boundary."""
    shared, length = _count_shared(edges, near), _count(edges)[:, None]
    return np.divide(shared, length, out=np.ones(shared.shape), where=length > 0)


def _dilate(masks: np.ndarray, radius: int) -> np.ndarray:
    """By a disc, (N, H, W) bool; only around what is there, most objects are much smaller than the picture."""
    disc = _disc(radius)
    grown = np.zeros_like(masks)
    for mask, one in zip(masks, grown, strict=True):
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        rows = slice(max(top - radius, 0), top + height + radius)
        columns = slice(max(left - radius, 0), left + width + radius)
        one[rows, columns] = cv2.dilate(mask[rows, columns].view(np.uint8), disc)
    return grown


@functools.cache
def _disc(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def _pack(masks: np.ndarray) -> np.ndarray:
    """(N, H, W) bool -> (N, B) uint64, the bits in a row, the rest of the last word zero."""
    count, pixels = len(masks), masks.shape[1] * masks.shape[2]
    packed = np.zeros((count, -(-pixels // 64) * 8), np.uint8)
    packed[:, : -(-pixels // 8)] = np.packbits(masks.reshape(count, pixels), axis=1)
    return packed.view(np.uint64)


def _count(packed: np.ndarray) -> np.ndarray:
    """(N, B) -> (N,) bits set."""
    return np.bitwise_count(packed).sum(1, dtype=np.int64)


def _count_shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N, B), (M, B) -> (N, M) bits set in both."""
    shared = np.zeros((len(one), len(other)), np.int64)
    for row, bits in zip(shared, one, strict=True):
        row[:] = _count(bits & other)
    return shared
