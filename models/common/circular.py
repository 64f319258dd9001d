"""Convolution and upsampling of maps that close in a circle, without the copies of padding and cutting.

Both are equal to what F.pad(mode="circular") in front of torch's own operations gives. In memory everything is
channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CircularConv(nn.Conv2d):
    """3x3 convolution with circular borders, of one map or of several side by side, which are joined while padded.

    (B, inputs, H, W), or a sequence of maps whose channels add up to `inputs` -> (B, outputs, H / stride, W / stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1, padding_mode="circular")

    def forward(self, parts: Tensor | Sequence[Tensor]) -> Tensor:
        around = _Surround.apply(*((parts,) if isinstance(parts, Tensor) else parts))
        return F.conv2d(around, self.weight, self.bias, self.stride)


def double(features: Tensor) -> Tensor:
    """Bilinear upsampling by two with circular borders: (B, C, h, w) -> (B, C, 2h, 2w), at least float32.

    Each output is three quarters of the input that it lies in and a quarter of the next one on its side.
    """
    doubled: Tensor = _Double.apply(features.to(torch.promote_types(features.dtype, torch.float32)))
    return doubled


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return _double_axis(_double_axis(features.permute(0, 2, 3, 1), 1), 2).permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _halve_axis(_halve_axis(gradient.permute(0, 2, 3, 1), 2), 1).permute(0, 3, 1, 2)


def _double_axis(lines: Tensor, axis: int) -> Tensor:
    """(B, H, W, C), twice as long along `axis`."""
    doubled = lines.new_empty(*lines.shape[:axis], lines.shape[axis], 2, *lines.shape[axis + 1 :])
    before, after = doubled.select(axis + 1, 0), doubled.select(axis + 1, 1)
    torch.mul(lines, 0.75, out=before)
    after.copy_(before)
    _add_neighbour(before, lines, axis, -1)
    _add_neighbour(after, lines, axis, 1)
    return doubled.flatten(axis, axis + 1)


def _halve_axis(gradient: Tensor, axis: int) -> Tensor:
    """The adjoint of `_double_axis`."""
    before, after = gradient.unflatten(axis, (-1, 2)).unbind(axis + 1)
    halved = torch.add(before, after).mul_(0.75)
    _add_neighbour(halved, before, axis, 1)
    _add_neighbour(halved, after, axis, -1)
    return halved


def _add_neighbour(total: Tensor, lines: Tensor, axis: int, step: int) -> None:
    """Add to each entry a quarter of the one that lies `step` (1 or -1) further along `axis`, in a circle."""
    last = lines.shape[axis] - 1
    inner, other, end, start = (0, 1, last, 0) if step == 1 else (1, 0, 0, last)
    total.narrow(axis, inner, last).add_(lines.narrow(axis, other, last), alpha=0.25)
    total.narrow(axis, end, 1).add_(lines.narrow(axis, start, 1), alpha=0.25)


class _Surround(torch.autograd.Function):
    """Maps (B, C_i, H, W) joined along channels, with one more pixel on each side from the opposite one.

    Of the type of autocast where that is on.
    """

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        batch, _, height, width = parts[0].shape
        ctx.channels, ctx.dtypes = [part.shape[1] for part in parts], [part.dtype for part in parts]
        kind = parts[0].device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else parts[0].dtype
        around = parts[0].new_empty(batch, height + 2, width + 2, sum(ctx.channels), dtype=dtype)
        start = 0
        for part in parts:
            inner = around[:, 1:-1, 1:-1, start : start + part.shape[1]]
            inner.copy_(part.permute(0, 2, 3, 1))
            start += part.shape[1]
        around[:, 1:-1, 0], around[:, 1:-1, -1] = around[:, 1:-1, -2], around[:, 1:-1, 1]
        around[:, 0], around[:, -1] = around[:, -2], around[:, 1]
        return around.permute(0, 3, 1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        around = gradient.permute(0, 2, 3, 1)  # (B, H + 2, W + 2, C)
        inner = around[:, 1:-1, 1:-1].contiguous()
        inner[:, -1] += around[:, 0, 1:-1]
        inner[:, 0] += around[:, -1, 1:-1]
        inner[:, :, -1] += _fold(around[:, :, 0])
        inner[:, :, 0] += _fold(around[:, :, -1])
        parts = inner.permute(0, 3, 1, 2).split(ctx.channels, dim=1)
        return tuple(part.to(dtype) for part, dtype in zip(parts, ctx.dtypes, strict=True))


def _fold(column: Tensor) -> Tensor:
    """A column (B, H + 2, C) with its first and last entry added where they were copied from: (B, H, C)."""
    inner = column[:, 1:-1].clone()
    inner[:, -1] += column[:, 0]
    inner[:, 0] += column[:, -1]
    return inner
