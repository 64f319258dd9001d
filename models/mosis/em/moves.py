"""What keeps the number of instances right: how much each explains, and which two are one."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import dilate

SAME_MOTION = 0.8
"""Two that touch are one where the one's motion explains this share of what the other's own explains."""
EPSILON = 1e-3
"""Error per pixel that every background leaves."""


def mean_under(masks: Tensor, costs: Tensor) -> Tensor:
    """Mean of costs (N, h, w) over masks (N, h, w) bool: (N,), 0 where a mask is empty."""
    weights = masks.flatten(1).to(costs.dtype)
    return (weights * costs.flatten(1)).sum(1) / weights.sum(1).clamp(min=1)


def gain(own: Tensor, background: Tensor) -> Tensor:
    """Share of the background's error that an instance's own motion explains (the `gain` of eq. 14): (N,) in [0, 1]."""
    return ((background - own) / (background + EPSILON)).clamp(0, 1)


def find_hosts(masks: Tensor, costs: Tensor, still: Tensor, image: Tensor) -> Tensor:
    """Which instance each belongs to, itself if it stands alone: (N,) int64, against splitting.

    masks (N, h, w) bool, costs (N, h, w) of their motions, still (N, h, w) of their image's background. i joins j of
    the same image if they touch, j saves more error, and j's motion explains i as well as i's own, nearly:
    gain_j(i) >= SAME_MOTION gain_i(i).
    """
    inside = masks.flatten(1).to(costs.dtype)
    area = inside.sum(1).clamp(min=1)
    crossed = inside @ costs.flatten(1).T / area[:, None]  # [i, j]: error of i's pixels under j's motion
    background = mean_under(masks, still)
    shared = gain(crossed, background[:, None])
    touching = (dilate(masks, 1).flatten(1).to(costs.dtype) @ inside.T > 0) & (image[:, None] == image)
    saved = (background - crossed.diagonal()) * area
    joins = touching & (saved[None] > saved[:, None]) & (shared >= SAME_MOTION * shared.diagonal()[:, None])
    host = torch.arange(len(masks), device=masks.device)
    if len(masks):
        best = torch.where(joins, saved, -1.0).max(1)
        host = torch.where(best.values > 0, best.indices, host)
    for _ in range(3):  # what joined a host that joins another goes on with it
        host = host[host]
    return host


def merge(masks: Tensor, host: Tensor) -> Tensor:
    """Masks (N, h, w) bool with those of all guests added to their hosts' and the guests' own left empty."""
    merged = torch.zeros_like(masks, dtype=torch.int32).index_add_(0, host, masks.int())
    return merged > 0
