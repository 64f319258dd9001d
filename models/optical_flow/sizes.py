"""Frames of any size, for networks that take only some."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def estimate_resized(
    estimate: Callable[[Tensor, Tensor], Tensor], frames_a: Tensor, frames_b: Tensor, *, multiple: int, least: int
) -> Tensor:
    """`estimate` on frames whose sides are brought up to a multiple of `multiple` and to at least `least`.

    frames_a, frames_b: (B, 3, H, W). Returns flow_uv (B, 2, H, W) in pixels of the frames as given.
    """
    if not len(frames_a):
        return frames_a.new_zeros(0, 2, *frames_a.shape[-2:])
    size = height, width = frames_a.shape[-2], frames_a.shape[-1]
    rows, columns = (max(least, -(-side // multiple) * multiple) for side in size)
    if (rows, columns) == size:
        return estimate(frames_a, frames_b)
    flow_uv = estimate(*(_resize(frames, (rows, columns)) for frames in (frames_a, frames_b)))
    scale = flow_uv.new_tensor([width / columns, height / rows]).view(1, 2, 1, 1)
    return _resize(flow_uv, (height, width)) * scale


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
