"""Regions that may be instances, and the choice of few that together explain what the background does not."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from .grid import box_sums, halve, mean3
from .volume import argmin_motion

WINDOWS = (3, 5, 7, 11)
"""Sides of the anchor boxes in cells of four pixels (12, 20, 28 and 44 pixels)."""
ANCHORS = 16
"""Of each image, the best after NMS."""
TIGHTNESS = 0.002
"""Error that a cell must be saved to speak for a region: noise saves some, too."""
MIN_SAVED = 0.2
"""Error that a chosen region must save, summed over cells."""
MIN_SHARE = 0.1
"""... and as a share of its error under the background's motion."""
_PREFILTER = 128
_NMS = 0.3
_WIDENED = 1.5


class Candidates(NamedTuple):
    """M regions of each of B images.

    masks: (B, M, h, w) bool. motions: (B, M, 2) cells. costs: (B, M, h, w) under that motion, in whole cells.
    trust: (B, M), what each counts for against the others.
    """

    masks: Tensor
    motions: Tensor
    costs: Tensor
    trust: Tensor


def join(parts: list[Candidates]) -> Candidates:
    return Candidates(*(torch.cat(fields, dim=1) for fields in zip(*parts, strict=True)))


def anchor_candidates(volume: Tensor, radius: int) -> Candidates:
    """Boxes of several sizes all over the image, each with the motion that saves most error: volume (B, D, h, w).

    The saving of box b and motion d is sum over b of C(x, 0) - C(x, d) - TIGHTNESS; the best boxes after NMS are kept
    and widened, and cut to the cells that save anything. They need no network: this is how learning starts.
    """
    height, width = volume.shape[2:]
    still = volume.shape[1] // 2
    small = halve(volume)  # (B, D, h / 2, w / 2)
    saving = small[:, still : still + 1] - TIGHTNESS - small
    best = [box_sums(saving, side).max(1) for side in WINDOWS]
    values = torch.cat([peaks(b.values).flatten(1) for b in best], dim=1)  # (B, windows)
    boxes = window_boxes(height // 2, width // 2, volume.device)
    kept = torch.stack([_choose_boxes(boxes, value) for value in values])  # (B, M)
    shift = torch.cat([b.indices.flatten(1) for b in best], dim=1).gather(1, kept)
    costs = costs_of(volume, shift)
    saved = mean3(volume[:, still : still + 1] - costs) > TIGHTNESS
    masks = fill_boxes(2 * boxes[kept], (height, width)) & saved
    return Candidates(masks, pooled_motion(volume, masks, radius), costs, torch.ones_like(values[:, :ANCHORS]))


def mask_candidates(volume: Tensor, masks: Tensor, trust: Tensor, radius: int) -> Candidates:
    """Regions that the network proposes, masks (B, M, h, w) bool, each moved by the argmin of the costs under it.

    trust: (B, M), 1 plus its objectness, say.
    """
    motions = pooled_motion(volume, masks, radius)
    side = 2 * radius + 1
    column, row = (motions.round().long() + radius).clamp(0, side - 1).unbind(2)
    return Candidates(masks, motions, costs_of(volume, row * side + column), trust)


def pooled_motion(volume: Tensor, masks: Tensor, radius: int) -> Tensor:
    """Motion of every mask (B, M, h, w) in closed form, argmin over d of sum_x m(x) C(x, d): (B, M, 2) cells."""
    weights = masks.flatten(2).to(volume.dtype)
    costs = weights @ volume.flatten(2).transpose(1, 2) / weights.sum(2, keepdim=True).clamp(min=1)  # (B, M, D)
    return argmin_motion(costs.flatten(0, 1), radius).view(*masks.shape[:2], 2)


def costs_of(volume: Tensor, shift: Tensor) -> Tensor:
    """The volume's (B, D, h, w) channels shift (B, M): (B, M, h, w)."""
    return volume[torch.arange(len(volume), device=volume.device)[:, None], shift]


def choose(candidates: Candidates, still: Tensor, most: int) -> Tensor:
    """Greedy choice of the regions that explain most: (B, most) indices into M, -1 where nothing is worth it.

    still: (B, h, w) error under the background's motion, the explanation to begin with, of which a region must save a
    share. Each choice lowers the error within its mask to what its motion leaves: nothing is explained twice, which is
    against splitting, and what a motion leaves is there for another to explain, which is against merging.
    """
    masks, costs = candidates.masks.flatten(2), candidates.costs.flatten(2)
    weights = masks.to(costs.dtype)
    left = still.flatten(1)
    worth = (MIN_SHARE * (weights @ left[:, :, None])[..., 0]).clamp(min=MIN_SAVED)
    image = torch.arange(len(left), device=left.device)
    chosen = []
    for _ in range(most):
        saved = ((left[:, None] - costs - TIGHTNESS) * weights).sum(2)
        value, best = torch.where(saved > worth, saved * candidates.trust, -1.0).max(1)
        chosen.append(torch.where(value > 0, best, -1))
        inside = masks[image, best] & (value > 0)[:, None]
        left = torch.where(inside, torch.minimum(left, costs[image, best]), left)
    return torch.stack(chosen, dim=1)


def window_boxes(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(S h w, 4) x1 y1 x2 y2 of every window around every cell, sizes outermost."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    middle = torch.stack((x, y), dim=-1).reshape(-1, 2) + 0.5
    return torch.cat([torch.cat((middle - side / 2, middle + side / 2), dim=1) for side in WINDOWS])


def peaks(values: Tensor) -> Tensor:
    """values (B, h, w) where they are the highest of the 5 x 5 around, else a little below zero.

    Else the windows around one striking object crowd out every other object.
    """
    around = F.max_pool2d(values, 5, stride=1, padding=2)
    return torch.where(values >= around, values, -1.0)


def _choose_boxes(boxes: Tensor, values: Tensor) -> Tensor:
    """ANCHORS indices, best first, that do not overlap much; the last is repeated where there are fewer."""
    top = values.topk(min(_PREFILTER, len(values))).indices
    kept = top[nms(boxes[top], values[top], _NMS)[:ANCHORS]]
    return torch.cat((kept, kept[-1:].expand(ANCHORS - len(kept))))


def fill_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """bool masks (..., h, w) of boxes (..., 4) in cells, widened about their middle."""
    middle, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) * (_WIDENED / 2)
    x, y = (torch.arange(side, device=boxes.device) + 0.5 for side in size[::-1])
    columns = (x - middle[..., :1]).abs() < half[..., :1]
    rows = (y - middle[..., 1:]).abs() < half[..., 1:]
    return rows[..., :, None] & columns[..., None, :]
