"""Exact outlines: each pixel votes, by colour, for the motion that explains it best."""

from __future__ import annotations

import cv2
import numpy as np

from .background import Motion
from .motion import warp

_HIDDEN_FACTOR = 3.0
_HIDDEN_ERROR = 0.02
_FAR_VOTE = 1.3
"""Against an object beyond its seed's reach: more than one frame's votes, less than neighbours and colours."""


def motion_costs(frames: np.ndarray, frame: int, motions: list[Motion], seeds: np.ndarray) -> np.ndarray:
    """(K + 1, H, W) float32 colour error in [0, 1] of explaining each pixel by the background's motion (row 0) or by
    each seed's, the least over the given motions, so that what is hidden in one of the frames is judged by the other.
    """
    here = frames[frame].astype(np.float32)
    costs = np.full((len(seeds) + 1, *here.shape[:2]), np.inf, np.float32)
    for motion in motions:
        there = frames[motion.other].astype(np.float32)
        fields = [motion.background_uv] + [spread_motion(motion.flow_uv, seed) for seed in seeds]
        for row, field in enumerate(fields):
            error = np.abs(here - warp(there, field)).mean(-1) / 255
            costs[row] = np.minimum(costs[row], error)
    return costs


def spread_motion(flow_uv: np.ndarray, seed: np.ndarray, sigma: float = 5.0) -> np.ndarray:
    """(H, W, 2) motion of a region carried beyond its rim: the seed's flow averaged nearby, its median far away."""
    core = cv2.erode(seed.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    core = core if core.sum() >= 12 else seed
    middle = np.median(flow_uv[core], axis=0)
    weight = cv2.GaussianBlur(core.astype(np.float32), (0, 0), sigma)[..., None]
    total = cv2.GaussianBlur(np.where(core[..., None], flow_uv - middle, 0).astype(np.float32), (0, 0), sigma)
    return middle + total / (weight + 0.05)


def blame_hiding(costs: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """`costs` with the pixels that no motion explains given to the background (row 0).

    For frames with motion to one side only: what is not found again in the one other frame has been hidden there by an
    object in front, so it lies behind. Unexplained is what errs by more than three times the usual error
    within the seeds.
    """
    usual = np.median(costs[1:][seeds])
    hidden = costs.min(0) > max(_HIDDEN_FACTOR * usual, _HIDDEN_ERROR)
    costs = costs.copy()
    costs[0][hidden] = 0
    return costs


def votes_from_costs(costs: np.ndarray, seeds: np.ndarray, cap: float, reach: int) -> np.ndarray:
    """(K + 1, H, W) in [0, 1]: how much worse each motion explains a pixel than the best one, 1 at `cap` and beyond.

    A seed's motion counts only within `reach` pixels of the seed; beyond, the vote against it is _FAR_VOTE.
    """
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    allowed = np.stack([np.ones(seeds.shape[1:], bool)] + [cv2.dilate(s.astype(np.uint8), kernel) > 0 for s in seeds])
    costs = np.where(allowed, costs, np.inf)
    votes = np.minimum((costs - costs.min(0)) / cap, 1)
    votes = np.stack([cv2.GaussianBlur(vote.astype(np.float32), (0, 0), 1.0) for vote in votes])
    return np.where(allowed, votes, _FAR_VOTE).astype(np.float32)


def smooth_labels(votes: np.ndarray, smoothness: float, bias: float = 0.1, sweeps: int = 4) -> np.ndarray:
    """(H, W) int labels, 0 the background: the Potts energy of `votes` (L, H, W), lowered by a few parallel sweeps."""
    unary = votes.copy()
    unary[1:] += bias
    labels = unary.argmin(0)
    for _ in range(sweeps):
        agree = np.stack([cv2.blur((labels == row).astype(np.float32), (3, 3)) for row in range(len(votes))])
        labels = (unary - smoothness * agree).argmin(0)
    return labels


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of `mask` (H, W) bool, its holes filled."""
    contours, _ = cv2.findContours(largest_part(mask).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return filled.astype(bool)


def largest_part(mask: np.ndarray) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count < 2:
        return np.zeros(mask.shape, bool)
    return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
