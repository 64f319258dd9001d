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
    variance_a = _average(a * a) - mean_a * mean_a
    variance_b = _average(b * b) - mean_b * mean_b
    covariance = _average(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a * mean_a + mean_b * mean_b + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return luminance * structure


def dissimilarity(image_a: Tensor, image_b: Tensor) -> Tensor:
    """(1 - SSIM) / 2, averaged over channels: (B, C, H, W) images in [0, 1] -> (B, H, W) in [0, 1], 0 where equal."""
    return (1 - ssim(image_a, image_b).mean(1)) / 2


def absolute_error(image_a: Tensor, image_b: Tensor) -> Tensor:
    """L1 averaged over channels: (B, C, H, W) -> (B, H, W)."""
    return (_as_float(image_a) - _as_float(image_b)).abs().mean(1)


def charbonnier(image_a: Tensor, image_b: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """L1 made smooth at zero, sqrt(d^2 + epsilon^2), averaged over channels: (B, C, H, W) -> (B, H, W)."""
    difference = _as_float(image_a) - _as_float(image_b)
    return (difference * difference + epsilon * epsilon).sqrt().mean(1)


def _as_float(image: Tensor) -> Tensor:
    return image.to(torch.promote_types(image.dtype, torch.float32))


def _average(image: Tensor) -> Tensor:
    return F.avg_pool2d(image, kernel_size=3, stride=1, padding=1, count_include_pad=False)
