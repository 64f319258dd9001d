"""Losses of optical flow, supervised and not. Pure functions; equation numbers are those of README.md beside this file.

flow_uv: (B, 2, H, W) float32 pixels, u to the right, v down; pixel x of frame a is at x + flow_uv(x) of frame b.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.photometric import absolute_error, dissimilarity
from ..common.warp import inside_frame, warp

SSIM_WEIGHT = 0.85
"""Share of SSIM beside L1, Godard et al., CVPR 2017."""


def end_point_error(flow_uv: Tensor, true_uv: Tensor) -> Tensor:
    """Eq. F1, |F - F*|: (B, 2, H, W) twice -> (B, H, W) pixels, NaN where the truth is unknown (NaN)."""
    return (flow_uv - true_uv).square().sum(1).sqrt()


def squared_error(flow_uv: Tensor, true_uv: Tensor) -> Tensor:
    """Eq. F2 (thesis section 9.2), mean of (F - F*)^2 over both components of the known pixels; 0 where none is."""
    known = _known(true_uv)
    return _masked_mean((flow_uv - true_uv.nan_to_num()).square(), known)


def robust_error(flow_uv: Tensor, true_uv: Tensor, *, epsilon: float = 0.01, power: float = 0.4) -> Tensor:
    """Eq. F3 (PWC-Net), mean of (|u - u*| + |v - v*| + epsilon)^power over the known pixels; 0 where none is."""
    known = _known(true_uv)
    return _masked_mean(((flow_uv - true_uv.nan_to_num()).abs().sum(1, keepdim=True) + epsilon) ** power, known)


def photometric_error(frame_a: Tensor, rebuilt: Tensor, visible: Tensor) -> Tensor:
    """Eq. F4, 0.85 (1 - SSIM) / 2 + 0.15 L1, mean over visible pixels.

    frame_a, rebuilt: (B, 3, H, W) in [0, 1]. visible: (B, H, W) bool. Returns a scalar, 0 where nothing is visible.
    """
    error = SSIM_WEIGHT * dissimilarity(frame_a, rebuilt) + (1 - SSIM_WEIGHT) * absolute_error(frame_a, rebuilt)
    return _masked_mean(error[:, None], visible[:, None])


def census_error(frame_a: Tensor, rebuilt: Tensor, visible: Tensor, *, radius: int = 3) -> Tensor:
    """Eq. F5: robust mean of the soft Hamming distance of both census transforms over visible pixels.

    Like `photometric_error`, but blind to changes of lighting. Pixels within `radius` of the border do not count: their
    window is not whole.
    """
    distance = census_distance(frame_a, rebuilt, radius=radius)
    whole = F.pad(torch.ones_like(visible[:, radius:-radius, radius:-radius]), (radius,) * 4)
    return _masked_mean(((distance.abs() + 0.01) ** 0.4)[:, None], (visible & whole)[:, None])


def census_distance(image_a: Tensor, image_b: Tensor, *, radius: int = 3) -> Tensor:
    """Eq. F5, the soft Hamming distance: (B, 3, H, W) in [0, 1] twice -> (B, H, W), in [0, (2 radius + 1)^2)."""
    difference = (_census(image_a, radius) - _census(image_b, radius)).square()
    return (difference / (0.1 + difference)).sum(1)


def edge_aware_smoothness(flow_uv: Tensor, frame: Tensor, *, sharpness: float) -> Tensor:
    """Eq. F6: mean of |dF| exp(-sharpness |dI|), first differences along x and y, |dI| the mean over the channels.

    frame: (B, 3, H, W) in [0, 1], the frame on whose grid the flow lies. Returns a scalar.
    """
    return sum(
        (flow_uv.diff(dim=axis).abs() * (-sharpness * frame.diff(dim=axis).abs().mean(1, keepdim=True)).exp()).mean()
        for axis in (2, 3)
    ) / torch.full((), 2.0, device=flow_uv.device)


def find_visible(forward_uv: Tensor, backward_uv: Tensor) -> Tensor:
    """Eq. F7 (Sundaram et al., ECCV 2010): pixels of frame a that frame b shows, too.

    forward_uv: a to b; backward_uv: b to a. (B, 2, H, W) -> (B, H, W) bool, without gradient: there and back must end
    within sqrt(0.01 (|F|^2 + |B|^2) + 0.5) pixels of the start, and x + F(x) must lie in the frame.
    """
    forward_uv, backward_uv = forward_uv.detach().float(), backward_uv.detach().float()
    back = warp(backward_uv, forward_uv)
    gap = (forward_uv + back).square().sum(1)
    lengths = forward_uv.square().sum(1) + back.square().sum(1)
    return (gap < 0.01 * lengths + 0.5) & inside_frame(forward_uv)


def trust_visible(visible: Tensor, *, least: float = 0.5) -> Tensor:
    """`visible` (B, H, W), or every pixel of an image of which less than `least` is visible.

    Motions that disagree everywhere or lead out of the frame are wrong, not hidden. Left out of the loss they would
    stay so: nothing visible is nothing to pay for, and the network learns to look away.
    """
    return visible | (visible.float().mean((1, 2), keepdim=True) < least)


def _census(image: Tensor, radius: int) -> Tensor:
    """Grey of the window around each pixel minus the pixel's own, soft-signed: (B, 3, H, W) -> (B, n^2, H, W)."""
    side = 2 * radius + 1
    grey = image.float().mean(1, keepdim=True) * 255
    windows = F.unfold(grey, side, padding=radius).view(len(grey), side * side, *grey.shape[2:])
    steps = windows - grey
    return steps / (0.81 + steps.square()).sqrt()


def _known(true_uv: Tensor) -> Tensor:
    return ~true_uv.isnan().any(1, keepdim=True)  # (B, 1, H, W)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (B, C, H, W) where mask (B, 1, H, W) holds, 0 where it holds nowhere."""
    mask = mask.to(values.dtype)
    return (values * mask).sum() / (mask.sum() * values.shape[1]).clamp(min=1)
