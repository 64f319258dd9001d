"""Eq. 3, 4, 6 and 8 on masks that a hand can check."""

from __future__ import annotations

import torch

from models.mosis.fusion import _products_of_others, partition, pool_motion, segment_flow


def test_two_overlapping_masks_by_hand() -> None:
    # One row of four pixels: first mask only, both, second at half strength, neither.
    masks = torch.tensor([[[[1.0, 0.5, 0.0, 0.0]], [[0.0, 0.5, 0.5, 0.0]]]])
    segments = partition(masks)
    background = [0.0, 0.25 / 1.25, 0.5, 1.0]  # eq. 3 gives 0, .25, .5, 1 before eq. 4 divides by 1, 1.25, 1, 1
    expected = torch.tensor([[[background], [[1.0, 0.4, 0.0, 0.0]], [[0.0, 0.4, 0.5, 0.0]]]])
    torch.testing.assert_close(segments, expected, atol=2e-6, rtol=0)


def test_segments_share_every_pixel() -> None:
    masks = torch.rand(3, 32, 6, 5, generator=torch.Generator().manual_seed(0))
    segments = partition(masks)
    assert segments.shape == (3, 33, 6, 5)
    assert segments.min() >= 0
    torch.testing.assert_close(segments.sum(1), torch.ones(3, 6, 5), atol=2e-6, rtol=0)


def test_without_masks_everything_is_background() -> None:
    segments = partition(torch.zeros(2, 0, 4, 4))
    torch.testing.assert_close(segments, torch.ones(2, 1, 4, 4), atol=2e-6, rtol=0)
    pooled = pool_motion(segments, torch.full((2, 3, 4, 4), 7.0))
    torch.testing.assert_close(pooled, torch.full((2, 1, 3), 7.0), atol=1e-4, rtol=0)
    flow = segment_flow(segments, torch.tensor([[[1.0, -2.0]], [[0.0, 3.0]]]))
    torch.testing.assert_close(flow[:, :, 0, 0], torch.tensor([[1.0, -2.0], [0.0, 3.0]]), atol=1e-5, rtol=0)


def test_pooling_averages_within_each_block() -> None:
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, :2, :2] = 1
    masks[0, 1, 2:, 2:] = 1
    features = torch.arange(16, dtype=torch.float32).view(1, 1, 4, 4)
    pooled = pool_motion(partition(masks), torch.cat((features, -features), dim=1))
    means = torch.tensor([(2 + 3 + 6 + 7 + 8 + 9 + 12 + 13) / 8, (0 + 1 + 4 + 5) / 4, (10 + 11 + 14 + 15) / 4])
    torch.testing.assert_close(pooled, torch.stack((means, -means), dim=1)[None], atol=1e-4, rtol=0)


def test_features_of_cells_are_pooled_as_if_every_pixel_had_its_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    segments = partition(torch.rand(2, 3, 4, 6, generator=generator))
    cells = torch.rand(2, 5, 2, 3, generator=generator)
    pixels = cells.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(pool_motion(segments, cells), pool_motion(segments, pixels), atol=1e-5, rtol=0)


def test_an_empty_mask_pools_to_zero() -> None:
    pooled = pool_motion(partition(torch.zeros(1, 1, 4, 4)), torch.ones(1, 3, 4, 4))
    torch.testing.assert_close(pooled[0, 1], torch.zeros(3))


def test_every_segment_moves_as_one_piece() -> None:
    masks = torch.zeros(1, 1, 2, 4)
    masks[..., 2:] = 1
    masks[..., 1] = 0.5  # half background, half instance: the mean of both motions
    flow = segment_flow(partition(masks), torch.tensor([[[1.0, 0.0], [3.0, -2.0]]]))
    expected = torch.tensor([[1.0, 2.0, 3.0, 3.0], [0.0, -1.0, -2.0, -2.0]])
    torch.testing.assert_close(flow[0, :, 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(flow[0, :, 1], expected, atol=1e-5, rtol=0)


def test_fusion_gradients_even_where_masks_are_exactly_zero_or_one() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(1, 3, 2, 3, generator=generator, dtype=torch.float64)
    masks[0, 0, 0, 0] = masks[0, 1, 0, 0] = 1
    masks[0, 2, 1, 1] = 0
    masks.requires_grad_()
    features = torch.rand(1, 2, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def flow(masks: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        segments = partition(masks)
        return segment_flow(segments, pool_motion(segments, features))

    assert torch.autograd.gradcheck(flow, (masks, features))


def test_products_of_others_with_none_one_and_two_zeros() -> None:
    factors = torch.tensor([[0.5, 0.25, 0.2], [0.0, 0.25, 0.2], [0.0, 0.0, 0.2]]).T.view(1, 3, 1, 3)
    expected = torch.tensor([[0.05, 0.1, 0.125], [0.05, 0.0, 0.0], [0.0, 0.0, 0.0]]).T.view(1, 3, 1, 3)
    torch.testing.assert_close(_products_of_others(factors), expected)
