"""Masks between a region's own grid and the image: crop, paste (differentiable) and threshold at any resolution.

A region's grid has S x S cells that tile its box, as RoIAlign's bins do; pixel (x, y) has its centre at (x + .5,
y + .5).
Pasting is bilinear between cell centres and fades to zero over the half cell outside the box. It is separable, so it is
written as two small matrix products: equal to grid_sample with zero padding, many times faster on a CPU, and with a
gradient to the boxes, which RoIAlign does not give.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import roi_align

PASTED_AT_ONCE = 2**25
"""Pixels, four bytes each, that are pasted together on a GPU."""


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Paste regions into images: masks (..., S, S) in [0, 1], boxes (..., 4) -> (..., H, W) in [0, 1], 0 outside.

    Differentiable in masks and boxes. `size` = (H, W) in the pixels of the boxes. Boxes may reach over the border; one
    without area gives zeros or a faint speck, never NaN.
    """
    height, width = size
    rows = _interpolation(boxes[..., 1], boxes[..., 3], 0, height, masks.shape[-2])  # (..., H, S)
    columns = _interpolation(boxes[..., 0], boxes[..., 2], 0, width, masks.shape[-1])  # (..., W, S)
    with torch.autocast(masks.device.type, enabled=False):  # half precision would round positions to whole pixels
        return rows @ masks @ columns.transpose(-1, -2)


def paste_binary(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """As `paste_masks` and then > threshold: masks (N, S, S), boxes (N, 4) -> (N, H, W) bool.

    Only the (N, H, W) bits of the result are held at full size: each region is interpolated within its own box alone;
    on a GPU as many regions together as fit into PASTED_AT_ONCE, since one by one the host is what takes the time.
    """
    if masks.device.type == "cuda":
        return paste_together(masks, boxes, size, threshold)
    height, width = size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        cell_x, cell_y = (x2 - x1) / masks.shape[2], (y2 - y1) / masks.shape[1]
        left, right = _pixels(x1 - cell_x / 2, x2 + cell_x / 2, width)
        top, bottom = _pixels(y1 - cell_y / 2, y2 + cell_y / 2, height)
        if left >= right or top >= bottom:
            continue
        box = boxes[index]
        rows = _interpolation(box[1], box[3], top, bottom, masks.shape[1])
        columns = _interpolation(box[0], box[2], left, right, masks.shape[2])
        with torch.autocast(masks.device.type, enabled=False):
            pasted[index, top:bottom, left:right] = rows @ masks[index] @ columns.T > threshold
    return pasted


def paste_together(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """`paste_binary` of many regions at a time, without waiting for the device."""
    pasted = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    known = boxes.isfinite().all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1)
    step = max(1, PASTED_AT_ONCE // (size[0] * size[1]))
    for start in range(0, len(masks), step):
        part = slice(start, start + step)
        pasted[part] = (paste_masks(masks[part], boxes[part], size) > threshold) & known[part, None, None]
    return pasted


def crop_masks(masks: Tensor, index: Tensor, boxes: Tensor, side: int) -> Tensor:
    """What `paste_masks` should be given: of masks (N, H, W), those of index (R,), cut to boxes (R, 4).

    Returns (R, side, side) float in [0, 1]: each cell's covered share, sampled at 2 x 2 points. A box that is no number
    covers what it likes: torchvision's RoIAlign would read memory that is not its own.
    """
    if len(boxes) == 0:
        return boxes.new_zeros(0, side, side)
    regions = torch.cat((index[:, None].to(boxes.dtype), boxes.nan_to_num(0.0, 0.0, 0.0)), dim=1)
    return roi_align(masks[:, None].to(boxes.dtype), regions, side, sampling_ratio=2, aligned=True)[:, 0]


def _interpolation(low: Tensor, high: Tensor, start: int, stop: int, cells: int) -> Tensor:
    """Weight of each cell in each pixel start..stop-1 along one axis: low, high (...) -> (..., stop - start, cells)."""
    pixels = torch.arange(start, stop, device=low.device, dtype=low.dtype) + 0.5
    # A box narrower than this carries no picture; without the floor its zero width divides by zero.
    length = (high - low).clamp(min=1e-3)
    position = (pixels - low[..., None]) / length[..., None] * cells - 0.5  # in cells, (..., pixels)
    distance = position[..., None] - torch.arange(cells, device=low.device, dtype=low.dtype)
    return (1 - distance.abs()).clamp(min=0)


def _pixels(low: float, high: float, limit: int) -> tuple[int, int]:
    """First and last + 1 pixel whose centre may lie within low..high; an empty range where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0, 0
    return max(math.floor(low), 0), min(math.ceil(high) + 1, limit)
