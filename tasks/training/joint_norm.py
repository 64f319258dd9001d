"""Batch normalisation over the images of all processes that train together.

From the definition (Ioffe and Szegedy, "Batch Normalization", 2015, section 3): mean and variance over the whole batch
forward, and their part of the gradient backward. torch has it for GPUs alone, and makes the host wait for the device at
each norm, 78 times in a forward of yolov3; nothing here does. It has been run on CPUs only: on GPUs it is untested.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def join_norms(model: nn.Module) -> None:
    """Replace every BatchNorm2d in `model`, in place, by one over all processes with its parameters and buffers."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, JointBatchNorm2d(child))


class JointBatchNorm2d(nn.BatchNorm2d):
    """In training every process must run it in the same order; in evaluation it is its parent."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters, self._buffers, self.training = norm._parameters, norm._buffers, norm.training

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, normalised over B, H, W of all processes."""
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        self._remember(mean, variance, count)
        return output

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), share)  # unbiased


class _Normalise(torch.autograd.Function):
    """x (B, C, H, W) -> (normalised x, mean (C,), biased variance (C,), count ()) over all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own, wide = x.numel() / x.shape[1], x.to(weight.dtype)  # half precision is too coarse for sums
        sums = torch.cat((wide.sum((0, 2, 3)), weight.new_full((1,), own)))  # made on the device
        dist.all_reduce(sums)
        count = sums[-1]
        mean = sums[:-1] / count
        # In a second pass, since the difference of two large sums has no precision.
        variance = (wide - mean[:, None, None]).square().sum((0, 2, 3))
        dist.all_reduce(variance)
        variance = variance / count
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        spread = (variance + ctx.eps).rsqrt()
        wide = grad.to(weight.dtype)
        by_bias = wide.sum((0, 2, 3))
        by_weight = (wide * (x - mean[:, None, None])).sum((0, 2, 3)) * spread
        sums = torch.stack((by_bias, by_weight))
        dist.all_reduce(sums)
        through_mean, through_spread = sums / count
        # weight spread (grad - mean(grad) - x^ mean(grad x^)), with x^ = (x - mean) spread, as one line in grad and x
        slope = -weight * spread * spread * through_spread
        offset = -weight * spread * through_mean - slope * mean
        # Not in half precision: of maps whose mean is large against their spread, little would be left.
        direct, slope, offset = (values[:, None, None] for values in (weight * spread, slope, offset))
        return torch.addcmul(offset + slope * x, wide, direct).to(x.dtype), by_weight, by_bias, None
