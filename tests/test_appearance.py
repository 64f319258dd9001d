from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.common import masks as masks_module
from models.common.masks import crop_masks, paste_binary, paste_masks, paste_together
from models.mosis.appearance import AppearanceNetwork, anchor_grid, decode_boxes
from models.mosis.config import NETWORKS


@pytest.fixture(scope="module")
def small() -> AppearanceNetwork:
    torch.manual_seed(0)
    return AppearanceNetwork(NETWORKS["small"]).eval()


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_presets_have_the_announced_size(small: AppearanceNetwork) -> None:
    assert 0.7e6 < count(small) < 2e6
    with torch.device("meta"):
        thesis = AppearanceNetwork(NETWORKS["yolov3"])
    assert 61e6 < count(thesis) < 64e6
    # Darknet-53 without its classifier, by hand from the layer table of YOLOv3.
    assert count(thesis.backbone) == 40_584_928


def test_yolov3_has_52_convolutions_in_its_backbone() -> None:
    with torch.device("meta"):
        thesis = AppearanceNetwork(NETWORKS["yolov3"])
    assert sum(isinstance(module, torch.nn.Conv2d) for module in thesis.backbone.modules()) == 52


def test_1008_proposals_at_128(small: AppearanceNetwork) -> None:
    with torch.no_grad():
        proposals = small(torch.rand(2, 3, 128, 128))
    assert proposals.boxes.shape == (2, 1008, 4)
    assert proposals.logits.shape == (2, 1008)
    assert proposals.mask_features.shape[2:] == (32, 32)


def test_a_size_first_seen_in_use_can_be_learnt_from() -> None:
    network, images = AppearanceNetwork(NETWORKS["small"]), torch.rand(1, 3, 160, 32)
    with torch.inference_mode():
        network(images)
    network(images).boxes.sum().backward()
    assert network.heads[0].output.weight.grad.abs().sum() > 0


def test_sides_that_differ_keep_x_and_y_apart(small: AppearanceNetwork) -> None:
    with torch.no_grad():
        proposals = small(torch.rand(1, 3, 64, 96))
    assert proposals.boxes.shape == (1, 3 * (2 * 3 + 4 * 6 + 8 * 12), 4)
    assert proposals.grid.centres.amax(0).tolist() == [92.0, 60.0]


def test_sides_that_are_no_multiple_of_32_are_refused(small: AppearanceNetwork) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        small(torch.rand(1, 3, 100, 128))


def test_each_scale_has_its_anchors_in_order() -> None:
    grid = anchor_grid((128, 128))
    assert [int((grid.strides == stride).sum()) for stride in (32, 16, 8)] == [48, 192, 768]
    assert grid.sizes[[0, 1, 2, 48, 49, 50, 240, 241, 242]].tolist() == [
        [48, 60], [64, 80], [80, 96], [20, 28], [28, 36], [36, 44], [8, 10], [12, 16], [16, 24],
    ]  # fmt: skip
    assert grid.centres[[0, 3, 12, 48]].tolist() == [[16, 16], [48, 16], [16, 48], [8, 8]]


def test_decoding_one_cell_by_hand() -> None:
    grid = anchor_grid((128, 128))
    index = 48 + 3 * (8 * 2 + 5) + 1  # stride 16, row 2, column 5, anchor (28, 36)
    raw = torch.zeros(1, 1008, 4)
    raw[0, index] = torch.tensor([math.log(3), -math.log(3), math.log(2), math.log(0.5)])  # sigmoids .75 and .25
    box = decode_boxes(raw, grid, centre_reach=0.0)[0, index]
    x, y, width, height = (5 + 0.75) * 16, (2 + 0.25) * 16, 56, 18
    torch.testing.assert_close(box, torch.tensor([x - width / 2, y - height / 2, x + width / 2, y + height / 2]))


def test_reach_lets_a_centre_leave_its_cell_by_that_much_and_no_more() -> None:
    grid = anchor_grid((32, 32))
    raw = torch.zeros(1, len(grid.centres), 4)
    raw[..., 0] = 100.0
    for reach, furthest in ((0.0, 32.0), (0.5, 48.0)):
        box = decode_boxes(raw, grid, reach)[0, 0]
        assert ((box[0] + box[2]) / 2).item() == pytest.approx(furthest)


def test_wild_outputs_give_finite_boxes() -> None:
    grid = anchor_grid((64, 64))
    raw = torch.full((1, len(grid.centres), 4), 1e6)
    for boxes in (decode_boxes(raw, grid, 0.5), decode_boxes(-raw, grid, 0.5)):
        assert boxes.isfinite().all()
        assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_untrained_boxes_are_their_anchors_and_scores_the_prior() -> None:
    network = AppearanceNetwork(NETWORKS["small"], objectness_prior=0.01).eval()
    for name, parameter in network.heads.named_parameters():
        if name.endswith("output.weight"):
            torch.nn.init.zeros_(parameter)
    proposals = network(torch.rand(1, 3, 64, 64))
    sides = proposals.boxes[0, :, 2:] - proposals.boxes[0, :, :2]
    torch.testing.assert_close(sides, proposals.grid.sizes)
    torch.testing.assert_close(proposals.logits.sigmoid(), torch.full_like(proposals.logits, 0.01))


def test_masks_follow_images_with_different_numbers_of_regions(small: AppearanceNetwork) -> None:
    with torch.no_grad():
        features = small(torch.rand(3, 3, 64, 64)).mask_features
        regions = [torch.tensor([[4.0, 4.0, 40.0, 30.0]]), torch.zeros(0, 4), torch.rand(2, 2).repeat(1, 2) * 30]
        regions[2][:, 2:] += 20
        together = small.mask_logits(features, regions)
        assert together.shape == (3, small.region_side, small.region_side)
        alone = small.mask_logits(features[2:], regions[2:])
        torch.testing.assert_close(together[1:], alone)
        assert small.mask_logits(features, [torch.zeros(0, 4)] * 3).shape[0] == 0


def test_a_batch_of_one_in_evaluation_is_what_it_is_in_company(small: AppearanceNetwork) -> None:
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(small(images[1:2]).boxes, small(images).boxes[1:2], rtol=1e-4, atol=1e-4)


def reference_paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    x, y = torch.arange(width).to(boxes) + 0.5, torch.arange(height).to(boxes) + 0.5
    x = (x - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]) * 2 - 1
    y = (y - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) * 2 - 1
    grid = torch.stack((x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), dim=-1)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def test_paste_puts_every_cell_where_its_box_says() -> None:
    cells = torch.arange(1.0, 5.0).view(1, 2, 2)
    pasted = paste_masks(cells, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), (6, 5))
    expected = torch.zeros(1, 6, 5)
    expected[0, 2:4, 1:3] = cells
    assert torch.equal(pasted, expected)


def test_paste_agrees_with_grid_sample() -> None:
    torch.manual_seed(1)
    masks, boxes = torch.rand(20, 7, 7), torch.rand(20, 4) * 20
    boxes[:, 2:] += boxes[:, :2] + 1
    boxes[0] = torch.tensor([-10.0, -5.0, 50.0, 60.0])
    torch.testing.assert_close(paste_masks(masks, boxes, (30, 40)), reference_paste(masks, boxes, (30, 40)))


def test_paste_has_exact_gradients_to_masks_and_boxes() -> None:
    torch.manual_seed(2)
    masks = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1.13, 0.71, 6.37, 5.9], [-1.21, 2.3, 3.17, 9.41]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, b: paste_masks(m, b, (7, 8)), (masks, boxes))


def test_a_box_learns_to_cover_a_target_through_the_paste() -> None:
    box = torch.tensor([[4.0, 4.0, 12.0, 12.0]], requires_grad=True)
    target = torch.zeros(1, 24, 24)
    target[0, 6:16, 7:17] = 1
    optimizer = torch.optim.Adam([box], lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        (paste_masks(torch.ones(1, 4, 4), box, (24, 24)) - target).square().sum().backward()
        optimizer.step()
    assert (box.detach() - torch.tensor([[7.0, 6.0, 17.0, 16.0]])).abs().max() < 1


def test_crop_undoes_paste() -> None:
    masks = torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[1, 4:8, 6:10] = True
    box = torch.tensor([[4.0, 2.0, 12.0, 10.0]])
    cropped = crop_masks(masks, torch.tensor([1]), box, 8)
    assert torch.equal(cropped[0] > 0.5, masks[1, 2:10, 4:12])
    assert cropped[0, 3:5, 3:5].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert torch.equal(paste_masks(cropped, box, (20, 20))[0] > 0.5, masks[1])
    assert crop_masks(masks, torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), 8).shape == (0, 8, 8)


def test_binary_paste_is_the_thresholded_paste() -> None:
    torch.manual_seed(3)
    masks, boxes = torch.rand(30, 14, 14), torch.rand(30, 4) * 40 - 10
    boxes[:, 2:] += boxes[:, :2] + torch.rand(30, 2) * 40 + 0.5
    expected = paste_masks(masks, boxes, (37, 53)) > 0.4
    assert torch.equal(paste_binary(masks, boxes, (37, 53), 0.4), expected)


@pytest.mark.parametrize("at_once", [1, 7 * 37 * 53, 10**9])
def test_regions_pasted_together_are_those_pasted_one_by_one(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, on the CPU."""
    monkeypatch.setattr(masks_module, "PASTED_AT_ONCE", at_once)
    torch.manual_seed(4)
    masks, boxes = torch.rand(30, 14, 14), torch.rand(30, 4) * 60 - 20
    boxes[:, 2:] += boxes[:, :2] + torch.rand(30, 2) * 40
    for row, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        boxes[row, row] = value
    boxes[3, 2:] = boxes[3, :2] - 5
    together = paste_together(masks, boxes, (37, 53), 0.4)
    assert together[4:].any((1, 2)).sum() > 15
    assert not together[:4].any()
    assert torch.equal(together, paste_binary(masks, boxes, (37, 53), 0.4))
    assert paste_together(masks[:0], boxes[:0], (37, 53), 0.4).shape == (0, 37, 53)


@pytest.mark.parametrize("box", [[5.0, 5.0, 5.0, 5.0], [9.0, 3.0, 2.0, 8.0], [500.0, 500.0, 600.0, 600.0]])
def test_boxes_without_area_or_outside_paste_nothing_and_no_nan(box: list[float]) -> None:
    boxes = torch.tensor([box], requires_grad=True)
    pasted = paste_masks(torch.ones(1, 4, 4), boxes, (12, 12))
    pasted.sum().backward()
    assert pasted.sum() == 0
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()
    assert not paste_binary(torch.ones(1, 4, 4), boxes.detach(), (12, 12), 0.5).any()


def test_a_mask_is_smooth_at_high_resolution() -> None:
    cells = torch.linspace(-1, 1, 14)
    disc = torch.sigmoid(4 * (0.7 - (cells[:, None].square() + cells.square()).sqrt()) / 0.15)
    large = paste_binary(disc[None], torch.tensor([[0.0, 0.0, 1400.0, 1400.0]]), (1400, 1400), 0.5)
    # Blocks of 100 pixels, one a cell, would cover another area and show at most 14 different widths of row.
    assert large.sum().item() == pytest.approx(math.pi * (0.7 / 2 * 1300) ** 2, rel=0.02)
    assert len(set(large[0].sum(1).tolist())) > 200
