"""The motion of a segment, eq. 7, from the dense features of the motion network, eq. 5."""

from __future__ import annotations

from torch import nn

from ..common.cost_volume import correlate
from ..common.pwc_lite import MotionNetwork

__all__ = ["MotionNetwork", "SegmentMotion", "correlate"]


class SegmentMotion(nn.Sequential):
    """Two-layer MLP of eq. 7: pooled features (B, K+1, d) -> motions (B, K+1, 2), (u, v) in pixels."""

    def __init__(self, channels: int, hidden: int = 64) -> None:
        super().__init__(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 2))
