"""Warping and photometric differences, against hand-worked cases, scipy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from models.common.photometric import C1, C2, absolute_error, dissimilarity, ssim
from models.common.warp import inside_frame, warp


def constant_flow(u: float, v: float, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor([u, v], dtype=dtype).view(1, 2, 1, 1).expand(1, 2, height, width)


def ssim_by_scipy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wang et al.'s formula written out as one fraction, windows averaged by scipy over the pixels that exist."""
    count = ndimage.uniform_filter(np.ones_like(a), 3, mode="constant")

    def average(x: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(x, 3, mode="constant") / count

    ma, mb = average(a), average(b)
    va, vb, cov = average(a**2) - ma**2, average(b**2) - mb**2, average(a * b) - ma * mb
    return ((2 * ma * mb + C1) * (2 * cov + C2)) / ((ma**2 + mb**2 + C1) * (va + vb + C2))


def test_ssim_agrees_with_an_independent_implementation() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 9, 7))
    ours = ssim(torch.from_numpy(a)[None], torch.from_numpy(b)[None])[0].numpy()
    expected = np.stack([ssim_by_scipy(x, y) for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(ours, expected, atol=1e-10)


def test_ssim_of_equal_images_is_one_and_of_opposite_ones_negative() -> None:
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ssim(image, image), torch.ones_like(image))
    assert (ssim(image, 1 - image).mean() < -0.5).item()


def test_ssim_of_two_flat_images_compares_their_means() -> None:
    a, b = torch.full((1, 1, 5, 5), 0.2), torch.full((1, 1, 5, 5), 0.6)
    expected = (2 * 0.2 * 0.6 + C1) / (0.2**2 + 0.6**2 + C1)  # no variance: the structure term is C2 / C2
    torch.testing.assert_close(ssim(a, b), torch.full((1, 1, 5, 5), expected), atol=1e-3, rtol=0)
    torch.testing.assert_close(dissimilarity(a, b), torch.full((1, 5, 5), (1 - expected) / 2), atol=1e-3, rtol=0)


def test_ssim_is_computed_in_single_precision_at_least() -> None:
    image = torch.rand(1, 3, 8, 8).to(torch.bfloat16)
    assert ssim(image, image).dtype == torch.float32
    torch.testing.assert_close(dissimilarity(image, image), torch.zeros(1, 8, 8))


def test_plain_differences_by_hand() -> None:
    a = torch.tensor([0.0, 0.25, 1.0]).view(1, 3, 1, 1)  # three channels of one pixel
    b = torch.tensor([0.5, 0.25, 0.0]).view(1, 3, 1, 1)
    assert absolute_error(a, b).item() == pytest.approx(0.5)


def test_ssim_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(dissimilarity, (a, b))
    assert torch.autograd.gradcheck(absolute_error, (a, b))  # no two of these numbers are equal


def test_warp_by_nothing_changes_nothing() -> None:
    image = torch.rand(2, 3, 5, 7)
    torch.testing.assert_close(warp(image, torch.zeros(2, 2, 5, 7)), image)


@pytest.mark.parametrize(("u", "v"), [(1, 0), (-2, 0), (0, 1), (3, -2)])
def test_warp_by_whole_pixels_reads_the_pixel_that_far_away(u: int, v: int) -> None:
    image = torch.rand(1, 3, 6, 8)
    wrapped = warp(image, constant_flow(u, v, 6, 8), outside="circular")
    torch.testing.assert_close(wrapped, torch.roll(image, (-v, -u), (2, 3)))
    zeroed = warp(image, constant_flow(u, v, 6, 8), outside="zeros")
    inside = inside_frame(constant_flow(u, v, 6, 8))
    torch.testing.assert_close(zeroed, wrapped * inside[:, None])
    assert inside.sum() == (8 - abs(u)) * (6 - abs(v))


def test_warp_by_half_a_pixel_by_hand() -> None:
    image = torch.tensor([[[[0.0, 4.0, 8.0], [1.0, 1.0, 1.0]]]])
    right = warp(image, constant_flow(0.5, 0, 2, 3))
    torch.testing.assert_close(right, torch.tensor([[[[2.0, 6.0, 8.0], [1.0, 1.0, 1.0]]]]))  # last column: the border
    down = warp(image, constant_flow(0, 0.5, 2, 3))
    torch.testing.assert_close(down, torch.tensor([[[[0.5, 2.5, 4.5], [1.0, 1.0, 1.0]]]]))
    round_the_edge = warp(image, constant_flow(0.5, 0, 2, 3), outside="circular")
    torch.testing.assert_close(round_the_edge[0, 0, 0], torch.tensor([2.0, 6.0, 4.0]))


def test_warp_of_one_pixel_and_far_outside() -> None:
    image = torch.full((1, 1, 1, 1), 3.0)
    assert warp(image, constant_flow(100, -100, 1, 1)).item() == pytest.approx(3.0)
    assert not inside_frame(constant_flow(100, 0, 4, 4)).any()


def test_warp_keeps_sub_pixel_motion_in_half_precision() -> None:
    ramp = torch.arange(256, dtype=torch.float32).div(256).expand(1, 1, 2, 256)
    flow = constant_flow(0.5, 0, 2, 256).to(torch.bfloat16)
    moved = warp(ramp.to(torch.bfloat16), flow)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved[..., :250], ramp[..., :250] + 0.5 / 256, atol=4e-3, rtol=0)


@pytest.mark.parametrize("outside", ["border", "zeros", "circular"])
def test_warp_gradients(outside: str) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    # Away from whole pixels, where bilinear sampling has kinks.
    flow = torch.rand(1, 2, 4, 5, generator=generator, dtype=torch.float64) * 0.6 + 0.2
    flow.requires_grad_()
    assert torch.autograd.gradcheck(lambda i, f: warp(i, f, outside=outside), (image, flow))  # type: ignore[arg-type]
