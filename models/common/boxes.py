"""Box geometry that torchvision.ops lacks. Boxes are (..., 4) x1 y1 x2 y2 in pixels, x2 and y2 exclusive."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

from .device import upload

_NO_AREA = 1e-7
"""Square pixels added to what is divided by."""


def pairwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """IoU of every pair: (..., N, 4), (..., M, 4) -> (..., N, M) in [0, 1]; 0 where both boxes have no area."""
    return box_iou(boxes_a, boxes_b).nan_to_num(0.0)


def paired_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """IoU of each box with its partner: (..., 4), (..., 4) -> (...) in [0, 1]."""
    shared, union, _ = _areas(boxes_a, boxes_b)
    return shared / (union + _NO_AREA)


def paired_giou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Generalised IoU of each box with its partner (Rezatofighi et al., 2019): (..., 4), (..., 4) -> (...) in [-1, 1].

    torchvision's loss indexes with a mask, for which a GPU has to be waited for.
    """
    shared, union, hull = _areas(boxes_a, boxes_b)
    return shared / (union + _NO_AREA) - (hull - union) / (hull + _NO_AREA)


def _areas(boxes_a: Tensor, boxes_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of intersection, union and hull, each (...)."""
    low, high = torch.maximum(boxes_a[..., :2], boxes_b[..., :2]), torch.minimum(boxes_a[..., 2:], boxes_b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = (boxes_a[..., 2:] - boxes_a[..., :2]).prod(-1) + (boxes_b[..., 2:] - boxes_b[..., :2]).prod(-1) - shared
    hull = (torch.maximum(boxes_a[..., 2:], boxes_b[..., 2:]) - torch.minimum(boxes_a[..., :2], boxes_b[..., :2])).prod(
        -1
    )
    return shared, union, hull


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes (..., 4) at the borders of an image of `size` = (height, width)."""
    height, width = size
    limit = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(limit)


def scale_boxes(boxes: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) of an image of `from_size` = (height, width) where it is stretched to `to_size`."""
    y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def widen_boxes(boxes: Tensor, margin: float) -> Tensor:
    """Move each edge of boxes (..., 4) outwards by `margin` of the box's side."""
    sides = (boxes[..., 2:] - boxes[..., :2]) * margin
    return torch.cat((boxes[..., :2] - sides, boxes[..., 2:] + sides), dim=-1)


def jitter_boxes(boxes: Tensor, amount: float, draw: Tensor) -> Tensor:
    """Move each edge of boxes (N, 4) by up to `amount` of the box's side; amount < 0.5 keeps x1 < x2.

    draw: (N, 4) in [0, 1), 0 for furthest back, made on the CPU, so that a seed gives the same boxes on every device.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)  # w h w h
    return boxes + amount * (upload(draw, boxes.device) * 2 - 1).to(boxes) * sides
