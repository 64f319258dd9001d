from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.common.instances import Instances
from models.mosis import label_loss as learning
from models.mosis.appearance import AppearanceNetwork, Proposals, anchor_grid
from models.mosis.config import NETWORKS
from models.mosis.label_loss import (
    Positives,
    assign,
    box_loss,
    choose_boxes,
    dice_loss,
    gather_targets,
    label_loss,
    label_overlap,
    mask_loss,
    objectness_loss,
)

SIZE = (64, 64)


@pytest.fixture
def network() -> AppearanceNetwork:
    torch.manual_seed(0)
    return AppearanceNetwork(NETWORKS["small"], objectness_prior=0.01)


def rectangles(*boxes: tuple[int, int, int, int], scores: list[float] | None = None) -> Instances:
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return Instances.from_masks(masks, None if scores is None else torch.tensor(scores))


def anchors_as_boxes() -> Tensor:
    grid = anchor_grid(SIZE)
    return torch.cat((grid.centres - grid.sizes / 2, grid.centres + grid.sizes / 2), dim=1)[None]


def assigned(boxes: Tensor, targets: learning.Targets, *, centre_reach: float) -> Positives:
    """Those chosen, without what fills up."""
    found = assign(label_overlap(boxes, targets), anchor_grid(SIZE), targets, centre_reach=centre_reach)
    return Positives(*(values[found.chosen] for values in found))


def test_labels_of_a_batch_keep_their_image() -> None:
    targets = gather_targets(
        [rectangles((0, 0, 8, 8)), Instances.empty(*SIZE), rectangles((1, 2, 9, 9))], torch.zeros(1)
    )
    assert targets.image.tolist() == [0, 2]
    assert targets.boxes.tolist() == [[0, 0, 8, 8], [1, 2, 9, 9]]


def test_a_label_is_learnt_by_the_anchors_of_its_size_at_its_place() -> None:
    boxes = anchors_as_boxes()
    targets = gather_targets([rectangles((26, 22, 54, 58))], boxes)  # 28 x 36, centre (40, 40): an anchor to the pixel
    grid = anchor_grid(SIZE)
    overlap = label_overlap(boxes, targets)
    chosen = assigned(boxes, targets, centre_reach=0.0)
    assert chosen.proposal[overlap[0, chosen.proposal].argmax()] == 12 + 3 * (4 * 2 + 2) + 1
    assert ((grid.centres[chosen.proposal] - 40).abs() <= grid.strides[chosen.proposal, None] / 2).all()
    wider = assigned(boxes, targets, centre_reach=0.5)
    assert ((grid.centres[wider.proposal] - 40).abs() <= grid.strides[wider.proposal, None]).all()
    assert overlap[0, wider.proposal].sum() >= overlap[0, chosen.proposal].sum()


def test_fewer_learn_a_label_where_fewer_can_reach_it() -> None:
    boxes = anchors_as_boxes()
    targets = gather_targets([rectangles((22, 18, 50, 54))], boxes)  # its centre (36, 36) is in one cell of each scale
    chosen = assigned(boxes, targets, centre_reach=0.0)
    assert len(chosen.proposal) == 9
    assert sorted(set(anchor_grid(SIZE).strides[chosen.proposal].tolist())) == [8.0, 16.0, 32.0]


def test_a_proposal_wanted_twice_learns_the_label_that_it_fits_better() -> None:
    boxes = anchors_as_boxes()
    targets = gather_targets([rectangles((26, 22, 54, 58), (27, 23, 53, 57))], boxes)
    chosen = assigned(boxes, targets, centre_reach=0.5)
    assert len(chosen.proposal.unique()) == len(chosen.proposal)
    assert set(chosen.label.tolist()) == {0, 1}
    for proposal, label in zip(chosen.proposal.tolist(), chosen.label.tolist(), strict=True):
        if proposal == 12 + 3 * (4 * 2 + 2) + 1:
            assert label == 0


def test_the_smallest_label_is_learnt_by_something() -> None:
    boxes = anchors_as_boxes()
    targets = gather_targets([rectangles((63, 63, 64, 64))], boxes)
    assert len(assigned(boxes, targets, centre_reach=0.0).label) > 0


def perfect() -> tuple[Tensor, Tensor, Positives, learning.Targets]:
    """Boxes with the label itself at proposal 7, logits that say so, and the overlap of both."""
    boxes = torch.zeros(1, 20, 4)
    boxes[0, :, 2:] = 1
    targets = gather_targets([rectangles((10, 12, 30, 40))], boxes)
    boxes[0, 7] = targets.boxes[0]
    logits = torch.full((1, 20), -20.0)
    logits[0, 7] = 20
    where = Positives(torch.tensor([0]), torch.tensor([7]), torch.tensor([0]), torch.tensor([True]))
    return boxes, logits, where, targets


def test_perfect_predictions_cost_nothing() -> None:
    boxes, logits, positives, targets = perfect()
    overlap = label_overlap(boxes, targets)
    assert box_loss(boxes, positives, targets) < 1e-6
    assert objectness_loss(logits, overlap, positives, targets) < 1e-6
    covered = torch.zeros(2, 14, 14)
    covered[0, 3:9, 4:11] = 1
    sure = covered * 40 - 20
    assert mask_loss(sure, covered, torch.ones(2)) < 1e-6
    assert dice_loss(sure, covered, torch.ones(2)) < 1e-6


def test_losses_by_hand() -> None:
    boxes, logits, positives, targets = perfect()
    boxes[0, 7] = torch.tensor([30.0, 12.0, 50.0, 40.0])  # beside the label: IoU 0, hull = union
    assert box_loss(boxes, positives, targets).item() == pytest.approx(1.0)
    overlap = label_overlap(boxes, targets)
    assert objectness_loss(torch.zeros_like(logits), overlap, positives, targets).item() == pytest.approx(20 * 0.693147)
    half = torch.zeros(1, 2, 2)
    half[0, 0] = 1
    certain_everywhere = torch.full((1, 2, 2), 20.0)
    assert mask_loss(certain_everywhere, half, torch.ones(1)).item() == pytest.approx(10.0, rel=1e-4)
    assert dice_loss(certain_everywhere, half, torch.ones(1)).item() == pytest.approx(1 - 5 / 7, rel=1e-4)


def test_a_proposal_that_fits_well_without_being_chosen_is_no_background() -> None:
    boxes, logits, positives, targets = perfect()
    boxes[0, 3] = targets.boxes[0] + 1
    logits[0, 3] = 20.0
    assert objectness_loss(logits, label_overlap(boxes, targets), positives, targets) < 1e-6
    boxes[0, 3] = targets.boxes[0] + 15
    assert objectness_loss(logits, label_overlap(boxes, targets), positives, targets).item() == pytest.approx(
        20, rel=0.01
    )


def test_mask_boxes_are_shared_evenly_between_predictions_and_labels() -> None:
    boxes = anchors_as_boxes().repeat(3, 1, 1)
    labels = [rectangles((26, 22, 54, 58), (2, 2, 22, 30)), Instances.empty(*SIZE), rectangles((5, 5, 25, 33))]
    targets = gather_targets(labels, boxes)
    positives = assign(label_overlap(boxes, targets), anchor_grid(SIZE), targets, centre_reach=0.5)
    chosen = choose_boxes(boxes, positives, targets, 3)
    half = learning.MASKS_PER_IMAGE // 2
    assert len(chosen.boxes) == 3 * 2 * half
    image = torch.arange(3).repeat_interleave(2 * half)
    assert torch.equal(targets.image[chosen.label][chosen.chosen], image[chosen.chosen])
    predicted, jittered = chosen.chosen.view(3, 2, half).sum(2).T.tolist()
    assert jittered == [half, 0, half]
    assert predicted[1] == 0
    assert 0 < predicted[0] <= half
    assert 0 < predicted[2] <= half
    own = targets.boxes[chosen.label]
    moved = (chosen.boxes - own).abs() / (own[:, 2:] - own[:, :2]).repeat(1, 2)
    assert moved.view(3, 2, half, 4)[[0, 2], 1].max() <= learning.JITTER
    found = set(map(tuple, boxes[0].tolist()))
    assert all(tuple(box) in found for box in chosen.boxes.view(3, 2, half, 4)[0, 0][: predicted[0]].tolist())


def test_a_draw_takes_the_able_alone_each_once_and_evenly() -> None:
    image, able = torch.tensor([0, 0, 0, 2, 0, 2]), torch.tensor([True, False, True, False, True, True])
    counts = torch.zeros(6)
    for _ in range(300):
        drawn, some = learning._draw(image, able, 2, 3, torch.rand(6))
        assert some.tolist() == [True, True, False, False, True, False]
        assert drawn[4] == 5
        assert len(set(drawn[:2].tolist())) == 2
        counts[drawn[:2]] += 1
    assert counts[[1, 3, 5]].sum() == 0
    assert counts[[0, 2, 4]].sum() == 600
    assert counts[[0, 2, 4]].min() > 150
    nothing, none = learning._draw(image[:0], able[:0], 2, 3, torch.rand(0))
    assert (len(nothing), int(none.sum())) == (6, 0)


def compute(network: AppearanceNetwork, labels: list[Instances], seed: int = 0) -> tuple[Proposals, dict[str, Tensor]]:
    torch.manual_seed(5)
    images = torch.rand(len(labels), 3, *SIZE)
    proposals = network(images)
    proposals.boxes.retain_grad()
    proposals.logits.retain_grad()
    torch.manual_seed(seed)
    return proposals, label_loss(proposals, labels, network)


def test_every_parameter_learns(network: AppearanceNetwork) -> None:
    _, terms = compute(network, [rectangles((10, 10, 30, 38)), rectangles((20, 20, 50, 60))])
    terms["total"].backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_terms_add_up_with_their_weights(network: AppearanceNetwork) -> None:
    _, terms = compute(network, [rectangles((10, 10, 30, 38))] * 2)
    total = sum(learning.WEIGHTS[name] * float(terms[name].detach()) for name in learning.WEIGHTS)
    assert float(terms["total"].detach()) == pytest.approx(total, rel=1e-5)
    assert set(terms) == {"total", *learning.WEIGHTS}


def test_without_labels_only_objectness_is_left(network: AppearanceNetwork) -> None:
    proposals, terms = compute(network, [Instances.empty(*SIZE)] * 2)
    assert terms["box"] == terms["mask"] == terms["dice"] == 0
    assert terms["objectness"] > 0
    terms["total"].backward()
    assert proposals.logits.grad is not None
    assert (proposals.logits.grad > 0).all()


def test_a_label_without_confidence_teaches_nothing(network: AppearanceNetwork) -> None:
    labels = [rectangles((10, 10, 30, 38), scores=[0.0])] * 2
    proposals, terms = compute(network, labels)
    assert terms["box"] == terms["mask"] == terms["dice"] == 0
    terms["total"].backward()
    targets = gather_targets(labels, proposals.boxes)
    chosen = assigned(proposals.boxes, targets, centre_reach=0.5)
    assert proposals.boxes.grad is not None
    assert proposals.logits.grad is not None
    assert not proposals.boxes.grad.any()
    assert not proposals.logits.grad[chosen.image, chosen.proposal].any()


def test_a_label_without_confidence_makes_nothing_else_weaker(network: AppearanceNetwork) -> None:
    sure = rectangles((10, 10, 30, 38))
    both = rectangles((10, 10, 30, 38), (34, 34, 60, 60), scores=[1.0, 0.0])
    boxes = anchors_as_boxes()
    logits = torch.full(boxes.shape[:2], -3.0)
    losses = []
    for labels in (sure, both):
        targets = gather_targets([labels], boxes)
        overlap = label_overlap(boxes, targets)
        positives = assign(overlap, anchor_grid(SIZE), targets, centre_reach=0.5)
        losses.append(objectness_loss(logits, overlap, positives, targets).item())
    # But for the few proposals that are left out for its sake.
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_half_the_confidence_is_half_the_pull(network: AppearanceNetwork) -> None:
    sure = compute(network, [rectangles((10, 10, 30, 38))] * 2)[1]
    unsure = compute(network, [rectangles((10, 10, 30, 38), scores=[0.5])] * 2)[1]
    for name in ("box", "mask", "dice"):
        assert float(unsure[name].detach()) == pytest.approx(float(sure[name].detach()) / 2, rel=0.01)


def test_a_seed_repeats_the_draw(network: AppearanceNetwork) -> None:
    labels = [rectangles((10, 10, 30, 38))] * 2
    first, again, other = (float(compute(network, labels, seed)[1]["mask"].detach()) for seed in (0, 0, 1))
    assert first == again
    assert first != other
