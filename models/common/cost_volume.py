"""Cost volume of two feature maps with circular borders, forward and backward as banded matrix products."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 16
"""Columns matched by one matrix product: wider tiles compute more products that no displacement needs."""


def correlate(features_a: Tensor, features_b: Tensor, search_range: int) -> Tensor:
    """Cost volume with circular borders.

    features_a, features_b: (B, C, H, W). Returns (B, (2r+1)^2, H, W), in memory channels last: channel
    (dy + r)(2r + 1) + (dx + r) is the inner product over C of a at (x, y) with b at (x + dx, y + dy). Under autocast it
    is computed in autocast's type. Differentiable once. Raises ValueError where r exceeds the maps' sides.
    """
    height, width = features_a.shape[-2:]
    if search_range > min(height, width):
        raise ValueError(f"search range {search_range} exceeds features of {height}x{width}: use larger frames")
    device = features_a.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features_a, features_b = features_a.to(dtype), features_b.to(dtype)
    # The backward pass that autograd would derive from `as_strided` costs four times the forward one.
    return _CostVolume.apply(features_a, features_b, search_range)


class _CostVolume(torch.autograd.Function):
    """A row of a, cut into tiles of T pixels, times the T + 2r pixels of b around each: the diagonals of the product
    are the displacements. Less than half the time of a loop over rolled maps, and without the copies of an unfold.
    """

    @staticmethod
    def forward(ctx: Any, features_a: Tensor, features_b: Tensor, r: int) -> Tensor:
        batch, channels, height, width = features_a.shape
        shifts, tile = 2 * r + 1, math.gcd(width, _TILE)
        left = features_a.permute(0, 2, 3, 1).reshape(-1, tile, channels)  # (B H W/T, T, C)
        windows = F.pad(features_b, (r, r, r, r), mode="circular").unfold(3, tile + 2 * r, tile)
        windows = windows.permute(0, 2, 3, 4, 1).contiguous()  # (B, H + 2r, W/T, T + 2r, C)
        costs = left.new_empty(len(left), tile, shifts, shifts)
        for dy in range(shifts):
            right = windows[:, dy : dy + height].reshape(len(left), -1, channels)
            costs[:, :, dy] = _diagonals(left @ right.transpose(1, 2), shifts)
        ctx.save_for_backward(left, windows)
        ctx.r = r
        return costs.view(batch, height, width, shifts * shifts).permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        left, windows = ctx.saved_tensors
        batch, _, height, width = gradient.shape
        r, (tiles, tile, channels) = ctx.r, left.shape
        shifts = 2 * r + 1
        given = gradient.permute(0, 2, 3, 1).reshape(tiles, tile, shifts, shifts)
        to_left, to_windows = torch.zeros_like(left), torch.zeros_like(windows)
        products = left.new_zeros(tiles, tile, tile + 2 * r)  # zero but on the diagonals, which are set anew
        for dy in range(shifts):
            _diagonals(products, shifts).copy_(given[:, :, dy])
            rows = slice(dy, dy + height)
            to_left.baddbmm_(products, windows[:, rows].reshape(tiles, -1, channels))
            to_windows[:, rows] += (products.transpose(1, 2) @ left).view(batch, height, -1, tile + 2 * r, channels)
        to_a = to_left.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return to_a, _join_windows(to_windows, r).permute(0, 3, 1, 2), None


def _diagonals(products: Tensor, shifts: int) -> Tensor:
    """View (N, T, shifts) of contiguous `products` (N, T, T + 2r): entry [i, d] is products[i, i + d]."""
    step, row, column = products.stride()
    return products.as_strided((*products.shape[:2], shifts), (step, row + column, column))


def _join_windows(windows: Tensor, r: int) -> Tensor:
    """Sum overlapping windows (B, H + 2r, W/T, T + 2r, C) back into the map (B, H, W, C) that they were cut from."""
    batch, padded_height, count, reach, channels = windows.shape
    tile = reach - 2 * r
    around = windows.new_zeros(batch, padded_height, count * tile + 2 * r, channels)
    for number in range(count):
        around[:, :, number * tile : number * tile + reach] += windows[:, :, number]
    return _unpad(_unpad(around, r, dim=1), r, dim=2)


def _unpad(around: Tensor, r: int, *, dim: int) -> Tensor:
    """The adjoint of circular padding by `r` on both sides of `dim`."""
    size = around.shape[dim] - 2 * r
    inner = around.narrow(dim, r, size).clone()
    inner.narrow(dim, size - r, r).add_(around.narrow(dim, 0, r))
    inner.narrow(dim, 0, r).add_(around.narrow(dim, size + r, r))
    return inner
