"""What two frames of a clip say of the instances found in them, without any truth: whether they last, and whether each
moves as one thing, apart from its background.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from models.common.instances import Instances
from models.motion_labels.background import fit_homography
from models.motion_labels.motion import pixel_grid, warp
from tasks.linking import WORK_SIDE, shrink_masks, soft_iou
from tasks.optical_flow import estimate_flow, limit_side

MIN_PIXELS = 12
"""Of a segment at working size: the motion of a smaller one is not told from that of its surroundings."""
_MIN_BACKGROUND = 0.1
"""Share of the frame outside all segments; with less there is no background to move against."""
_TOUCHED = 0.1
"""Share of a pixel in a segment from which on the pixel is not the background's."""
_NOISE = 2.0
"""Grey levels of 255: errors below this are noise of camera and codec, and count as this much."""
_TOLERANCES = (0.25, 0.5, 1.0)
"""Pixels for a shorter side of 128, tried in turn: a loose fit averages layers that a tight one tells apart."""
_FITTED_PIXELS = 400
_ROUNDS = 4
_STIFFNESS = 2.0
"""Pixels' worth of belief that a segment shifts without turning or growing: it decides for tiny and thin ones alone."""


@dataclass(frozen=True)
class Seen:
    """A frame at working size. frame: (h, w, 3) uint8 RGB. masks: (N, h, w) float32 share of each pixel covered."""

    frame: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Instances of a frame (N) against those of the frame before (M).

    photometric_gain: (N,) float32 in [-1, 1], NaN where it cannot be told. overlap: (M, N) float32 IoU of the earlier
    masks, brought here by optical flow, with the masks here.
    """

    photometric_gain: np.ndarray
    overlap: np.ndarray


@dataclass(frozen=True)
class Quality:
    """Per instance of one frame (N,) float32; NaN where it cannot be told, as in the first frame of a clip.

    temporal_iou: best IoU with a mask of the frame before, brought here by optical flow.
    """

    score: np.ndarray
    photometric_gain: np.ndarray
    temporal_iou: np.ndarray


class ClipQuality:
    """Takes the frames of one clip in order."""

    def __init__(self) -> None:
        self._before: Seen | None = None

    def add(self, frame: np.ndarray, found: Instances) -> Quality:
        """frame: (H, W, 3) uint8 RGB. Quality of each instance found in it."""
        seen, before = shrink(frame, found), self._before
        self._before = seen
        if before is None:
            gain = iou = np.full(len(found), np.nan, np.float32)
        else:
            fit = compare(seen, before)
            gain, iou = fit.photometric_gain, fit.overlap.max(0, initial=0)
        return Quality(found.scores.cpu().numpy().astype(np.float32), gain, iou)


def shrink(frame: np.ndarray, found: Instances) -> Seen:
    """At most WORK_SIDE pixels wide and high."""
    size = limit_side((frame.shape[0], frame.shape[1]), WORK_SIDE)
    small = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return Seen(small, shrink_masks(found.masks, size))


def compare(seen: Seen, before: Seen) -> Comparison:
    """Both frames of one size. Optical flow is estimated once, and not where nothing was found here."""
    if len(seen.masks) == 0:
        return Comparison(np.zeros(0, np.float32), np.zeros((len(before.masks), 0), np.float32))
    flow_uv = estimate_flow(seen.frame, before.frame)
    carried = [warp(mask, flow_uv, border=cv2.BORDER_CONSTANT) for mask in before.masks]
    overlap = soft_iou(np.array(carried, np.float32).reshape(-1, *seen.masks.shape[1:]), seen.masks)
    return Comparison(measure_gain(seen.frame, before.frame, seen.masks, flow_uv), overlap)


def measure_gain(frame: np.ndarray, other: np.ndarray, masks: np.ndarray, flow_uv: np.ndarray) -> np.ndarray:
    """Photometric gain of each segment: (E_background - E_own) / max(E_background, E_own, 2), (N,) in [-1, 1].

    frame, other: (h, w, 3) uint8. masks: (N, h, w) shares. flow_uv: (h, w, 2) pixels, frame -> other. E: mean absolute
    difference, in grey levels, between the segment's pixels and where a motion says they are in `other`. Background
    motion is the homography of the flow outside all segments, own motion the affine fit of the flow inside.
    Where less than a tenth of the frame is outside, nothing moves against anything: 0. NaN where no homography holds,
    or the segment has fewer than MIN_PIXELS pixels, or less than half of it is in view in `other`.
    """
    size = (frame.shape[0], frame.shape[1])
    outside = masks.max(0, initial=0) < _TOUCHED
    if len(masks) and outside.mean() < _MIN_BACKGROUND:
        return np.zeros(len(masks), np.float32)
    background_uv = _fit_background(flow_uv, outside) if len(masks) else None
    if background_uv is None:
        return np.full(len(masks), np.nan, np.float32)
    here, there = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in (frame, other))
    grid = np.stack(pixel_grid(size), -1)
    error, in_view = _explain(here, there, grid + background_uv)
    gains = np.full(len(masks), np.nan, np.float32)
    for index, mask in enumerate(masks > 0.5):
        if mask.sum() < MIN_PIXELS:
            continue
        box = _box(mask)
        inside = mask[box]
        own_error, own_in_view = _explain(here[box], there, grid[box] + _fit_affine(flow_uv[box], grid[box], inside))
        counted = inside & in_view[box] & own_in_view
        if counted.sum() >= 0.5 * inside.sum():
            background, own = float(error[box][counted].mean()), float(own_error[counted].mean())
            gains[index] = (background - own) / max(background, own, _NOISE)
    return gains


def _fit_background(flow_uv: np.ndarray, outside: np.ndarray) -> np.ndarray | None:
    scale = max(1.0, min(outside.shape) / 128)
    fits = (fit_homography(flow_uv, tolerance * scale, outside) for tolerance in _TOLERANCES)
    return next((fit for fit in fits if fit is not None), None)


def _fit_affine(flow_uv: np.ndarray, grid: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(h, w, 2) float32: the affine motion that most of the flow `inside` follows, on the whole grid (h, w, 2) of x, y.

    Least squares, reweighted (Cauchy) by the median residual; the first weights are by distance from the median.
    """
    points, moved = grid[inside].astype(np.float64), flow_uv[inside].astype(np.float64)
    step = -(-len(points) // _FITTED_PIXELS)
    points, moved = points[::step], moved[::step]
    centre, spread = points.mean(0), max(1.0, float(np.sqrt(inside.sum())))
    basis = np.column_stack([np.ones(len(points)), (points - centre) / spread])  # (P, 3)
    stiffness = np.diag([0.0, _STIFFNESS / step, _STIFFNESS / step])
    residual = ((moved - np.median(moved, axis=0)) ** 2).sum(1)
    for _ in range(_ROUNDS):
        weights = 1 / (1 + residual / max(float(np.median(residual)), 1e-2))
        weighted = basis * weights[:, None]
        motion = np.linalg.solve(basis.T @ weighted + stiffness, weighted.T @ moved)  # (3, 2)
        residual = ((moved - basis @ motion) ** 2).sum(1)
    return (motion[0] + (grid - centre) / spread @ motion[1:]).astype(np.float32)


def _explain(here: np.ndarray, there: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(|here - there at places|, whether the place lies in the frame); places: (h, w, 2) float32 x, y."""
    x, y = np.ascontiguousarray(places[..., 0]), np.ascontiguousarray(places[..., 1])
    moved = cv2.remap(there, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    height, width = there.shape
    return np.abs(here - moved), (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
