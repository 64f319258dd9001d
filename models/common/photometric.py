"""Per-pixel differences of two images: SSIM (Wang et al., 2004) with a 3x3 average window, L1 and Charbonnier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

C1 = 0.01**2
C2 = 0.03**2
"""Stabilisers of Wang et al. for images in [0, 1]."""


def ssim(image_a: Tensor, image_b: Tensor) -> Tensor:
    """Structural similarity around every pixel.

    image_a, image_b: (B, C, H, W) in [0, 1]. The window at the frame's edge averages the pixels that exist.
    Returns (B, C, H, W) in [-1, 1], 1 where the windows are equal; at least float32, because the variances are small
    differences of large numbers.
    """
    a, b = _as_float(image_a), _as_float(image_b)
    mean_a, mean_b = _average(a), _average(b)
    squares, product = mean_a * mean_a + mean_b * mean_b, mean_a * mean_b
    variances = _average(a * a + b * b) - squares  # of a and of b, summed
    covariance = _average(a * b) - product
    return (2 * product + C1) / (squares + C1) * ((2 * covariance + C2) / (variances + C2))


def dissimilarity(image_a: Tensor, image_b: Tensor) -> Tensor:
    """(1 - SSIM) / 2, averaged over channels: (B, C, H, W) images in [0, 1] -> (B, H, W) in [0, 1], 0 where equal."""
    return (1 - ssim(image_a, image_b).mean(1)) / 2


def absolute_error(image_a: Tensor, image_b: Tensor) -> Tensor:
    """L1 averaged over channels: (B, C, H, W) -> (B, H, W)."""
    return (_as_float(image_a) - _as_float(image_b)).abs().mean(1)


def _as_float(image: Tensor) -> Tensor:
    return image.to(torch.promote_types(image.dtype, torch.float32))


def _average(image: Tensor) -> Tensor:
    """3x3 mean of the pixels that exist: sums along one axis and then the other, where a pooling reads nine pixels."""
    for axis in (2, 3):
        around = F.pad(image, (1, 1, 0, 0) if axis == 3 else (0, 0, 1, 1))
        size = image.shape[axis]
        image = around.narrow(axis, 0, size) + around.narrow(axis, 1, size) + around.narrow(axis, 2, size)
    return image / (_neighbours(image.shape[2], image)[:, None] * _neighbours(image.shape[3], image))


def _neighbours(size: int, like: Tensor) -> Tensor:
    """(size,) how many of each pixel's line of three exist."""
    place = torch.arange(size, device=like.device)
    return 1 + (place > 0).to(like.dtype) + (place < size - 1).to(like.dtype)
