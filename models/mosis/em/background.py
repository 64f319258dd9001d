"""The background's own motion: one motion a frame pair, fitted to the whole frame, robustly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .grid import blur
from .motion import Match, Origin, basis, every, fit, flow, gradient, robust_error, sample
from .volume import argmin_motion, cost_volume

_STEP = 4
_RADIUS = 4
"""Of the first search, in cells of _STEP pixels."""
_TERMS = (1, 3, 6)
"""Translation, affine, planar: each is tried on top of the one before."""
_ITERATIONS = 3
_WORTHWHILE = 0.9
"""Share of the error that a richer motion may leave to be preferred: stripes and flat ground fit any motion."""


def fit_background(here: Tensor, others: Tensor) -> Tensor:
    """Motion of whole frames: grey here (B, 1, H, W), others (mB, 1, H, W) -> theta (mB, 2, 6) of `whole_frame`.

    A translation by the argmin of the pooled cost volume, then Gauss-Newton on translation, affine and planar motion,
    as far as each is worth its coefficients. Errors are capped in the volume and weighted robustly afterwards, so that
    objects do not pull.
    """
    count, size = len(others), (int(here.shape[-2]), int(here.shape[-1]))
    fold = count // max(len(here), 1)
    small = F.avg_pool2d(here, _STEP).repeat(fold, 1, 1, 1)
    volume = cost_volume(small, F.avg_pool2d(others, _STEP), _RADIUS)
    shift = _STEP * argmin_motion(volume.mean((2, 3)), _RADIUS)
    theta = torch.cat((shift[:, :, None], shift.new_zeros(count, 2, 5)), dim=2)
    points = every(_STEP, size, here.device)
    # Blurred once more: the farther Gauss-Newton sees, the fewer steps it needs.
    smooth, at_points = blur(here), points.expand(len(here), -1, -1, -1)
    grey, slopes = sample(smooth, at_points)[:, 0], sample(gradient(smooth), at_points)
    match = Match(grey.repeat(fold, 1, 1), slopes.repeat(fold, 1, 1, 1), blur(others), points.expand(count, -1, -1, -1))
    rows = basis(points, whole_frame(count, size, here.device), order=2)
    least = shift.new_full((count,), torch.inf)
    for terms in _TERMS:
        even, own = torch.ones_like(match.here), rows[:, :terms]
        richer = fit(match, even, theta[:, :, :terms], own, _ITERATIONS, stiffness=0.0)
        error = robust_error(match, richer, own)
        better = error < _WORTHWHILE * least
        least = torch.where(better, error, least)
        theta = torch.where(better[:, None, None], F.pad(richer, (0, 6 - terms)), theta)
    return theta


def whole_frame(count: int, size: tuple[int, int], device: torch.device | str = "cpu") -> Origin:
    """Origin in the middle of a frame of `size` = (H, W), unit half its longer side."""
    centre = torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2], device=device).expand(count, 2)
    return Origin(centre, torch.full((count,), max(size) / 2, device=device))


def background_places(theta: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the background takes points: theta (N, 2, 6) of `fit_background`, points (2, h, w) -> (N, 2, h, w)."""
    rows = basis(points, whole_frame(1, size, points.device), order=2)
    return points + flow(theta, rows.expand(len(theta), -1, -1, -1))
