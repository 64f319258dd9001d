"""The motion of a segment: eq. 7 from the motion network's features, eq. 5, or in closed form from a cost volume."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..common.cost_volume import correlate
from ..common.pwc_lite import MotionNetwork
from .em.grid import halve
from .em.scene import CELL
from .em.volume import argmin_motion, cost_volume

__all__ = ["ArgminMotion", "CostFeatures", "MotionNetwork", "SegmentMotion", "correlate"]

RADIUS = 8
"""Of the closed form's cost volume in cells: the 16 px that pairs are kept to."""
_TIE = 1e-6
"""Colour error in favour of standing still: where every displacement looks alike, argmin takes the first, a corner."""


class SegmentMotion(nn.Sequential):
    """Two-layer MLP of eq. 7: pooled features (B, K+1, d) -> motions (B, K+1, 2), (u, v) in pixels."""

    def __init__(self, channels: int, hidden: int = 64) -> None:
        super().__init__(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 2))


class CostFeatures(nn.Module):
    """Stands for eq. 5 where motion is read in closed form: what every displacement would cost. No parameters.

    radius: of the search, cells of CELL pixels.
    """

    def __init__(self, radius: int = RADIUS) -> None:
        super().__init__()
        self.radius = radius

    @torch.no_grad()
    def both_ways(self, frame_a: Tensor, frame_b: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, 3, H, W) RGB in [0, 1], sides even -> `em.volume.cost_volume` from a to b on a's grid and from b
        to a on b's: (B, (2r + 1)^2, H / 2, W / 2) each.
        """
        both = halve(torch.cat((frame_a, frame_b)).float())
        there, back = cost_volume(both, torch.cat(both.chunk(2)[::-1]), self.radius).chunk(2)
        return there, back


class ArgminMotion(nn.Module):
    """Stands for eq. 7: the displacement of least cost. No parameters, and no gradient to the costs: masks learn
    through eq. 8, where a pixel may change its segment, and not by changing what the segment's motion is.

    radius: that of `CostFeatures`.
    """

    def __init__(self, radius: int = RADIUS) -> None:
        super().__init__()
        self.radius = radius

    @torch.no_grad()
    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled costs (B, K+1, (2r + 1)^2) -> motions (B, K+1, 2), (u, v) in pixels, to a fraction."""
        costs = pooled.flatten(0, 1).clone()
        costs[:, costs.shape[1] // 2] -= _TIE
        return CELL * argmin_motion(costs, self.radius).view(*pooled.shape[:2], 2)
