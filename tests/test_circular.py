"""Circular convolution, joining and upsampling against torch's own operations on padded maps; RoIAlign as products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from models.common.circular import CircularConv, double
from models.common.regions import pool_regions


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pad(features: Tensor) -> Tensor:
    return F.pad(features, (1, 1, 1, 1), mode="circular")


@pytest.mark.parametrize("stride", [1, 2])
def test_maps_are_joined_and_convolved_in_a_circle(stride: int) -> None:
    conv = CircularConv(5, 4, stride).double()
    parts = [noise(2, channels, 4, 6, seed=channels).requires_grad_() for channels in (2, 3)]
    expected = F.conv2d(pad(torch.cat(parts, dim=1)), conv.weight, conv.bias, stride)
    torch.testing.assert_close(conv(parts), expected)
    torch.testing.assert_close(conv(torch.cat(parts, dim=1)), expected)
    assert torch.autograd.gradcheck(lambda *maps: conv(maps), parts)


def test_a_joined_map_has_autocast_type_and_its_gradient_the_parts_own() -> None:
    conv = CircularConv(3, 4)
    parts = [noise(1, channels, 4, 4).float().requires_grad_() for channels in (1, 2)]
    with torch.autocast("cpu", torch.bfloat16):
        output = conv(parts)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), conv(parts), atol=0.05, rtol=0.05)
    output.sum().backward()
    assert [part.grad.dtype for part in parts if part.grad is not None] == [torch.float32] * 2


@pytest.mark.parametrize("size", [(4, 6), (1, 3)])
def test_doubling_is_bilinear(size: tuple[int, int]) -> None:
    features = noise(2, 3, *size).requires_grad_()
    expected = F.interpolate(pad(features), scale_factor=2.0, mode="bilinear", align_corners=False)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(double(features), expected)
    assert torch.autograd.gradcheck(double, (features,))
    assert double(torch.tensor([[[[0.0, 1.0, 2.0]]]]))[0, 0, 0].tolist() == [0.5, 0.25, 0.75, 1.25, 1.75, 1.5]


@pytest.mark.parametrize("samples", [1, 2])
def test_regions_are_those_of_roi_align(samples: int) -> None:
    features = noise(3, 2, 8, 6).float().requires_grad_()
    regions = [
        torch.tensor([[4.0, 4.0, 20.0, 28.0], [-30.0, -9.0, 5.0, 40.0]]),  # the second far beyond the border
        torch.zeros(0, 4),
        torch.tensor([[3.3, 2.2, 3.4, 2.3], [-9.0, -9.0, -6.0, -6.0], [0.0, 0.0, 24.0, 32.0]]),
    ]
    expected = roi_align(features, regions, 5, spatial_scale=0.25, sampling_ratio=samples, aligned=True)
    pooled = pool_regions(features, regions, stride=4, side=5, samples=samples)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)
    weights = noise(*expected.shape, seed=1).float()
    ours, theirs = (torch.autograd.grad((maps * weights).sum(), features)[0] for maps in (pooled, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_no_region_still_hangs_on_the_features() -> None:
    features = noise(2, 3, 4, 4).requires_grad_()
    pooled = pool_regions(features, [torch.zeros(0, 4)] * 2, stride=4, side=5, samples=1)
    assert pooled.shape == (0, 3, 5, 5)
    pooled.sum().backward()
    assert features.grad is not None
    assert not features.grad.any()
