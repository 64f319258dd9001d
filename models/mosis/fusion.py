"""Segment-flow fusion: masks and motion features become one motion a segment, then a flow field (eq. 3-4, 6, 8)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6
"""epsilon of eq. 4, 6 and 14."""


def partition(masks: Tensor) -> Tensor:
    """Share of every pixel between background and instances.

    masks: (B, K, H, W) in [0, 1], already multiplied by objectness; K may be 0.
    Returns S: (B, K+1, H, W), index 0 the background; sums to 1 over the segments, to within EPSILON.
    """
    segments: Tensor = _Partition.apply(masks)
    return segments


class _Partition(torch.autograd.Function):
    """Eq. 3 and 4 in few passes over memory: the maps are the largest tensors of a step."""

    @staticmethod
    def forward(ctx: Any, masks: Tensor) -> Tensor:
        batch, count, height, width = masks.shape
        segments = masks.new_empty(batch, count + 1, height, width)
        segments[:, 1:] = masks
        segments[:, 0] = (1 - masks).prod(dim=1)  # eq. 3
        total = segments.sum(dim=1, keepdim=True) + EPSILON
        segments /= total  # eq. 4
        ctx.save_for_backward(masks, segments, total)
        return segments

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        masks, segments, total = ctx.saved_tensors
        pull = (gradient * segments).sum(dim=1, keepdim=True)
        free = 1 - masks
        background = segments[:, :1] * total
        # Where a mask is exactly 1, dividing by what it leaves fails. Asking a GPU whether one is would wait for it.
        careful = masks.is_cuda or bool((background == 0).any())
        others = _products_of_others(free) if careful else background / free
        others *= pull - gradient[:, :1]
        others += gradient[:, 1:]
        others -= pull
        return others.div_(total)


def _products_of_others(factors: Tensor) -> Tensor:
    """Of (B, K, H, W) factors, some of them 0: for each the product over K of all but itself."""
    zero = factors == 0
    rest = factors.masked_fill(zero, 1)
    product, zeros = rest.prod(dim=1, keepdim=True), zero.sum(dim=1, keepdim=True)
    return torch.where(zeros - zero.long() == 0, product / rest, 0)


def pool_motion(segments: Tensor, features: Tensor) -> Tensor:
    """Mean motion feature of every segment, eq. 6.

    segments: (B, K+1, H, W) from `partition`. features: (B, d, H, W) from the motion network, or (B, d, H / c, W / c),
    one for all pixels of a cell of side c. Returns (B, K+1, d).
    """
    if features.shape[2:] != segments.shape[2:]:
        # The mean over pixels of what is the same within a cell, without making the features c x c times as large.
        segments = F.avg_pool2d(segments, segments.shape[2] // features.shape[2])
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
