"""RoIAlign (He et al., 2017) as matrix products: features of a region's grid of cells.

Bilinear sampling on a grid that is parallel to the axes is separable, so a region is two small interpolation matrices.
Equal to torchvision's roi_align with aligned=True to rounding; on a CPU several times faster forward and backward, at a
cost that does not grow with the points averaged, and with gradients that are summed in one order on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def pool_regions(features: Tensor, regions: Sequence[Tensor], *, stride: int, side: int, samples: int) -> Tensor:
    """Features of regions, cut into side x side cells; no gradient to the regions.

    features: (B, C, h, w), float32. regions: for each image (R_i, 4) x1 y1 x2 y2 pixels of an image of which one
    feature covers stride x stride. samples: points along each side of a cell that are averaged.
    Returns (sum R_i, C, side, side) in channels_last memory order, images in turn; 0 where a point is a feature or
    more outside the map.
    """
    batch, channels, height, width = features.shape
    counts = [len(boxes) for boxes in regions]
    most = max(counts, default=0)
    if most == 0:
        return features.new_zeros(0, channels, side, side) + 0 * features.sum()
    boxes = pad_sequence([own.detach() for own in regions], batch_first=True).to(features) / stride - 0.5  # (B, M, 4)
    rows = _interpolation(boxes[..., 1], boxes[..., 3], height, side, samples)  # (B, M, S, h)
    columns = _interpolation(boxes[..., 0], boxes[..., 2], width, side, samples)  # (B, M, S, w)
    lines = features.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    with torch.autocast(features.device.type, enabled=False):  # half precision would move the points
        pooled = (rows.flatten(1, 2) @ lines).view(batch * most, side, width, channels)  # (B, M S, h) @ (B, h, w C)
        columns = columns.flatten(0, 1)
        if min(counts) < most:
            real = torch.cat([torch.arange(count) + image * most for image, count in enumerate(counts)])
            pooled, columns = pooled[real.to(features.device)], columns[real.to(features.device)]
        return (columns[:, None] @ pooled).permute(0, 3, 1, 2)  # (R, 1, S, w) @ (R, S, w, C)


def _interpolation(low: Tensor, high: Tensor, size: int, side: int, samples: int) -> Tensor:
    """Weight of each of `size` features in each cell along one axis: low, high (...) -> (..., side, size)."""
    points = (torch.arange(side * samples, device=low.device, dtype=low.dtype) + 0.5) / (side * samples)
    position = low[..., None] + (high - low)[..., None] * points  # (..., side * samples), in features
    inside = (position >= -1) & (position <= size)
    distance = position.clamp(0, size - 1)[..., None] - torch.arange(size, device=low.device, dtype=low.dtype)
    weights = (1 - distance.abs()).clamp(min=0) * inside[..., None]
    return weights.unflatten(-2, (side, samples)).mean(-2)
