"""Differentiable bilinear warping. The one place where pixel coordinates become grid_sample's.

Pixel (x, y) is the centre of column x, row y; the grid uses align_corners=True, where -1 and +1 are the *centres* of
the first and last pixel, so that pixel x lies at 2 x / (W - 1) - 1.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Outside = Literal["border", "zeros", "circular"]


def pixel_grid(height: int, width: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2, H, W): x in channel 0 and y in channel 1 of every pixel's centre."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=dtype, device=device), torch.arange(width, dtype=dtype, device=device), indexing="ij"
    )
    return torch.stack((x, y))


def warp(image: Tensor, flow_uv: Tensor, *, outside: Outside = "border") -> Tensor:
    """Sample `image` at x + flow_uv(x), bilinearly and differentiably in both arguments.

    With flow_uv of frame t to t+1, warp(frame t+1, flow_uv) lies on frame t's grid and resembles frame t.

    image: (B, C, H, W). flow_uv: (B, 2, H, W) pixels, u to the right in channel 0, v down in channel 1.
    outside: what is beyond the frame: the nearest border pixel, zeros, or the image again (circular). Where the motion
    is no finite number, neither is the result.
    Returns (B, C, H, W), at least float32 whatever the inputs: half precision cannot hold sub-pixel coordinates.
    """
    height, width = image.shape[-2:]
    dtype = torch.promote_types(torch.promote_types(image.dtype, flow_uv.dtype), torch.float32)
    position = pixel_grid(height, width, dtype=dtype, device=image.device) + flow_uv.to(dtype)  # (B, 2, H, W)
    x, y = position.unbind(1)
    image = image.to(dtype)
    if outside == "circular":
        x, y = x.remainder(width), y.remainder(height)  # [0, W), so one more column and row close the circle
        image = F.pad(image, (0, 1, 0, 1), mode="circular")
    rows, columns = image.shape[-2:]
    grid = torch.stack((_to_unit(x, columns), _to_unit(y, rows)), dim=-1)  # (B, H, W, 2)
    padding_mode = "zeros" if outside == "zeros" else "border"
    # grid_sample's backward pass would write to memory that is not its own.
    lost = ~grid.isfinite().all(-1)
    grid = grid.masked_fill(lost[..., None], 0.0)
    sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode=padding_mode, align_corners=True)
    return sampled.masked_fill(lost[:, None], torch.nan)


def inside_frame(flow_uv: Tensor) -> Tensor:
    """(B, H, W) bool: whether x + flow_uv(x) lies within the frame, so that `warp` reads real pixels there."""
    height, width = flow_uv.shape[-2:]
    position = pixel_grid(height, width, dtype=torch.float32, device=flow_uv.device) + flow_uv
    x, y = position.unbind(1)
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _to_unit(position: Tensor, size: int) -> Tensor:
    """Pixels to grid_sample's [-1, 1]; an axis of one pixel has one position only."""
    return position * (2 / max(size - 1, 1)) - 1
