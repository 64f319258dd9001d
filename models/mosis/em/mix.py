"""More to learn from what was found: instances of one image laid over another, on the batch's own device.

Finding instances takes longer than learning from them, so every image is learnt from twice, the second time with
strangers in it. A network that has seen every object before one background only learns backgrounds by heart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.instances import Instances

SHARE = 0.7
"""Of images that something is laid over."""
SCALES = (0.6, 1.6)
"""Sides of what is laid over an image against its own, drawn evenly in the logarithm."""
SHIFT = 0.5
"""How far it is moved at most, as a share of the frame."""
SMALLEST = 24
"""Pixels that an instance keeps in view: a smaller rest is no label any more."""


@torch.no_grad()
def mix(frames: Tensor, found: Sequence[Instances]) -> tuple[Tensor, list[Instances]]:
    """Mirror a batch, and lay the instances of each image, moved, turned and resized as one, over the next image.

    frames: (B, 3, H, W) RGB in [0, 1]. found: their instances. Returns new frames of the same shape and theirs: what is
    hidden is cut from the masks below. Randomness is torch's CPU generator's.
    """
    count, (height, width) = len(frames), frames.shape[-2:]
    flipped = frames.flip(3)
    image = torch.repeat_interleave(torch.tensor([len(one) for one in found])).to(frames.device)
    own = torch.cat([one.masks for one in found]).flip(2)
    scores = torch.cat([one.scores for one in found])
    grid = F.affine_grid(draw_similarities(count).to(frames), [count, 3, height, width], align_corners=False)
    picture = F.grid_sample(frames, grid, align_corners=False).roll(1, 0)
    over = (image + 1) % max(count, 1)
    moved = sample_masks(torch.cat([one.masks for one in found]), grid[image])
    laid = (torch.rand(count) < SHARE).to(frames.device)
    moved = moved * (laid[over] & (scores > 0))[:, None, None]
    cover = torch.zeros_like(frames[:, 0]).index_add_(0, over, moved).clamp_(max=1)
    mixed = torch.lerp(flipped, picture, cover[:, None])
    masks = torch.cat((own & (cover[image] <= 0.5), moved > 0.5))
    return mixed, unpack(masks, torch.cat((scores, scores)), torch.cat((image, over)), count)


def draw_similarities(count: int) -> Tensor:
    """(count, 2, 3) maps from the new place to the old, in halves of the frame: mirrored or not, turned by quarters."""
    scale = torch.exp(torch.empty(count).uniform_(math.log(SCALES[0]), math.log(SCALES[1])))
    quarter = torch.randint(4, (count,)) * (math.pi / 2)
    mirrored = torch.randint(2, (count,)) * 2.0 - 1
    cos, sin = quarter.cos() / scale, quarter.sin() / scale
    rotation = torch.stack((mirrored * cos, -mirrored * sin, sin, cos), dim=1).view(count, 2, 2)
    shift = torch.empty(count, 2, 1).uniform_(-2 * SHIFT, 2 * SHIFT)
    return torch.cat((rotation, rotation @ shift), dim=2)


def sample_masks(masks: Tensor, grid: Tensor) -> Tensor:
    """Cover in [0, 1] of bool masks (N, H, W) seen through grid (N, H, W, 2): (N, H, W)."""
    if not len(masks):
        return grid.new_zeros(masks.shape)
    return F.grid_sample(masks[:, None].to(grid.dtype), grid, align_corners=False)[:, 0]


def unpack(masks: Tensor, scores: Tensor, image: Tensor, count: int) -> list[Instances]:
    """Instances of each of `count` images from masks (N, H, W) bool, scores (N,), image (N,); small ones dropped."""
    kept = masks.flatten(1).sum(1) >= SMALLEST
    masks, scores, image = masks[kept], scores[kept], image[kept]
    order = torch.argsort(image, stable=True)
    together = Instances.from_masks(masks[order], scores[order])
    counts = torch.bincount(image, minlength=count).tolist()
    fields = [field.split(counts) for field in (together.boxes, together.scores, together.masks)]
    return [Instances(*parts) for parts in zip(*fields, strict=True)]
