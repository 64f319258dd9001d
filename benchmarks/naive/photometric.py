"""Eq. 1-16 of the thesis, one image and segment at a time; the default reading of what the text leaves open."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from models.common.pwc_lite import MotionNetwork
from models.mosis.appearance import MASK_STRIDE, Proposals
from models.mosis.fusion import EPSILON
from models.mosis.losses import GAIN_EPSILON
from models.mosis.model import Mosis

C1, C2 = 0.01**2, 0.03**2


def photometric_loss(model: Mosis, frame_a: Tensor, frame_b: Tensor) -> dict[str, Tensor]:
    """The literal objective's terms with objectness_target gain, warp_direction consistent, error_scale half."""
    assert isinstance(model.motion, MotionNetwork)
    batch = len(frame_a)
    proposals = model.appearance(torch.cat((frame_a, frame_b)))  # eq. 2
    ways = ((frame_a, frame_b, 0), (frame_b, frame_a, batch))
    photo, objectness = [], []
    for frame, other, first in ways:
        features = motion_features(model.motion, frame, other)  # eq. 5
        errors, losses = [], []
        for image in range(batch):
            masks, logits = propose(model, proposals, first + image)
            error, targets = explain(model, masks, features[image], frame[image], other[image])
            errors.append(error)
            losses.append(F.binary_cross_entropy_with_logits(logits, targets))  # eq. 15
        photo.append(torch.stack(errors).mean() / 2)  # eq. 11
        objectness.append(torch.stack(losses).mean())
    seen = (objectness[0] + objectness[1]) / 2
    total = photo[0] + photo[1] + model.config.lambda_obj * seen  # eq. 12, 16
    return {"total": total, "photo_forward": photo[0], "photo_backward": photo[1], "objectness": seen}


def propose(model: Mosis, proposals: Proposals, image: int) -> tuple[list[Tensor], Tensor]:
    """Section 3.3 for one image: masks (H, W) times objectness, and the logits (K,) of the same proposals."""
    network = model.appearance
    logits, index = proposals.logits[image].topk(min(model.config.top_k, proposals.logits.shape[1]))
    boxes = proposals.boxes[image, index]
    margin = (boxes[:, 2:] - boxes[:, :2]) * network.region_margin
    regions = torch.cat((boxes[:, :2] - margin, boxes[:, 2:] + margin), dim=1)
    features = proposals.mask_features[image : image + 1]
    cells = roi_align(
        features, [regions.detach()], network.region_side, 1 / MASK_STRIDE, network.region_samples, aligned=True
    )
    masks = [
        paste(mask.sigmoid(), region, proposals.image_size) * logit.sigmoid()
        for mask, region, logit in zip(network.mask_head(cells), regions, logits, strict=True)
    ]
    return masks, logits


def paste(mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """A region's mask (S, S) in its image: (H, W)."""
    height, width = size
    side = (box[2:] - box[:2]).clamp(min=1e-3)
    y, x = (torch.arange(length, device=box.device) + 0.5 for length in (height, width))
    x, y = (x - box[0]) / side[0] * 2 - 1, (y - box[1]) / side[1] * 2 - 1
    grid = torch.stack((x[None].expand(height, width), y[:, None].expand(height, width)), dim=-1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


def explain(model: Mosis, masks: list[Tensor], features: Tensor, frame: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Error map (H, W) of eq. 13 and targets (K,) of eq. 14 of one image and one direction."""
    assert model.segment_motion is not None
    background = torch.ones_like(masks[0])
    for mask in masks:
        background = background * (1 - mask)  # eq. 3
    total = background
    for mask in masks:
        total = total + mask
    segments = [segment / (total + EPSILON) for segment in (background, *masks)]  # eq. 4
    optical_flow = torch.zeros_like(frame[:2])
    motions = []
    for segment in segments:
        pooled = (segment * features).sum((1, 2)) / (segment.sum() + EPSILON)  # eq. 6
        motions.append(model.segment_motion(pooled))  # eq. 7
        optical_flow = optical_flow + segment * motions[-1][:, None, None]  # eq. 8
    error = 1 - ssim(warp(other, optical_flow), frame).mean(0)  # eq. 9 or 10, 13
    with torch.no_grad():
        alone = 1 - ssim(warp(other, motions[0][:, None, None].expand_as(optical_flow)), frame).mean(0)
        targets = []
        for segment in segments[1:]:
            own = (segment * error).sum() / (segment.sum() + EPSILON) / 2  # eq. 14
            still = (segment * alone).sum() / (segment.sum() + EPSILON) / 2
            targets.append(((still - own) / (still + GAIN_EPSILON)).clamp(0, 1))
    return error, torch.stack(targets)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(C, H, W) of two images (C, H, W), 3x3 windows."""

    def average(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)

    mean_a, mean_b = average(a), average(b)
    variance_a, variance_b = average(a * a) - mean_a**2, average(b * b) - mean_b**2
    covariance = average(a * b) - mean_a * mean_b
    return ((2 * mean_a * mean_b + C1) * (2 * covariance + C2)) / (
        (mean_a**2 + mean_b**2 + C1) * (variance_a + variance_b + C2)
    )


def warp(image: Tensor, flow_uv: Tensor, *, circular: bool = False) -> Tensor:
    """Image (..., C, H, W) sampled at x + flow_uv (..., 2, H, W); beyond the frame its border, or the image again."""
    image, flow_uv = image.reshape(-1, *image.shape[-3:]), flow_uv.reshape(-1, *flow_uv.shape[-3:])
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height).to(flow_uv), torch.arange(width).to(flow_uv), indexing="ij")
    x, y = x + flow_uv[:, 0], y + flow_uv[:, 1]
    if circular:
        x, y = x.remainder(width), y.remainder(height)
        image = F.pad(image, (0, 1, 0, 1), mode="circular")
    rows, columns = image.shape[-2:]
    grid = torch.stack((2 * x / (columns - 1) - 1, 2 * y / (rows - 1) - 1), dim=-1)
    warped = F.grid_sample(image, grid, padding_mode="border", align_corners=True)
    return warped if circular else warped[0]


def motion_features(network: MotionNetwork, frame_a: Tensor, frame_b: Tensor) -> Tensor:
    """Eq. 5: (B, d, H, W), every displacement of the cost volume in turn."""
    pyramids = []
    for frame in (frame_a, frame_b):
        pyramid, features = [], 2 * frame - 1
        for level in network.levels:
            features = _convolve_all(level, features)
            pyramid.append(features)
        pyramids.append(pyramid)
    coarser: list[Tensor] = []
    matchers: list[Any] = list(network.matchers)
    for own, others, matcher in zip(pyramids[0][::-1], pyramids[1][::-1], matchers[::-1], strict=True):
        there = warp(others, coarser[1], circular=True) if coarser else others
        costs = _cost_volume(_contrast(own), _contrast(there), matcher.search_range)
        motion = _convolve_all(matcher.decoder, torch.cat((costs, own, *coarser), dim=1))
        flow_uv = _convolve(matcher.flow, motion) + (coarser[1] if coarser else 0)
        coarser = [_double(motion), 2 * _double(flow_uv)]
    return torch.cat(coarser, dim=1)


def _cost_volume(a: Tensor, b: Tensor, reach: int) -> Tensor:
    shifts = range(-reach, reach + 1)
    return torch.stack([(a * b.roll((-dy, -dx), (2, 3))).sum(1) for dy in shifts for dx in shifts], dim=1)


def _contrast(features: Tensor) -> Tensor:
    centred = features - features.mean((2, 3), keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _convolve_all(layers: nn.Module, features: Tensor) -> Tensor:
    for layer in layers.children():
        features = _convolve(layer, features) if isinstance(layer, nn.Conv2d) else F.leaky_relu(features, 0.1)
    return features


def _convolve(layer: nn.Module, features: Tensor) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d(F.pad(features, (1, 1, 1, 1), mode="circular"), layer.weight, layer.bias, layer.stride)


def _double(features: Tensor) -> Tensor:
    around = F.pad(features, (1, 1, 1, 1), mode="circular")
    return F.interpolate(around, scale_factor=2.0, mode="bilinear", align_corners=False)[:, :, 2:-2, 2:-2]
