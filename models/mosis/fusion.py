"""Segment-flow fusion: masks and motion features become one motion a segment, then a flow field (eq. 3-4, 6, 8)."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6
"""epsilon of eq. 4, 6 and 14."""


def partition(masks: Tensor) -> Tensor:
    """Share of every pixel between background and instances.

    masks: (B, K, H, W) in [0, 1], already multiplied by objectness; K may be 0.
    Returns S: (B, K+1, H, W), index 0 the background; sums to 1 over the segments, to within EPSILON.
    """
    background = (1 - masks).prod(dim=1, keepdim=True)  # eq. 3
    segments = torch.cat((background, masks), dim=1)  # (B, K+1, H, W)
    return segments / (segments.sum(dim=1, keepdim=True) + EPSILON)  # eq. 4


def pool_motion(segments: Tensor, features: Tensor) -> Tensor:
    """Mean motion feature of every segment, eq. 6.

    segments: (B, K+1, H, W) from `partition`. features: (B, d, H, W) from the motion network. Returns (B, K+1, d).
    """
    weights = segments.flatten(2)  # (B, K+1, HW)
    totals = weights @ features.flatten(2).transpose(1, 2)  # (B, K+1, HW) @ (B, HW, d)
    return totals / (weights.sum(dim=2, keepdim=True) + EPSILON)  # eq. 6


def segment_flow(segments: Tensor, motions: Tensor) -> Tensor:
    """Flow field that moves every segment as one piece, eq. 8.

    segments: (B, K+1, H, W) from `partition`. motions: (B, K+1, 2) pixels (u, v). Returns flow_uv (B, 2, H, W) pixels.
    """
    batch, _, height, width = segments.shape
    field = motions.transpose(1, 2) @ segments.flatten(2)  # eq. 8: (B, 2, K+1) @ (B, K+1, HW)
    return field.view(batch, 2, height, width)
