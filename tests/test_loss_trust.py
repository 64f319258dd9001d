"""What must hold of the losses whatever the weights: exact gradients, no order, no handedness, half precision near."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.common.instances import Instances
from models.interface import Batch
from models.mosis import label_loss as learning
from models.mosis.appearance import AnchorGrid, anchor_grid
from models.mosis.config import MosisConfig, Objective, Photometric, WarpDirection
from models.mosis.fusion import partition, pool_motion, segment_flow
from models.mosis.label_loss import MaskBoxes, Positives, Targets, assign, box_loss, label_loss, label_overlap
from models.mosis.losses import error_map, mean_error, mosis_loss, objectness_loss, photometric_loss, reconstruct
from models.mosis.model import Mosis
from models.mosis.motion import SegmentMotion

SIZE = (64, 64)
LOSS_TOLERANCE = 2e-3
"""Of each term in bfloat16 against float32, relative: half of what eight bits of mantissa leave one number."""
GRADIENT_TOLERANCE = 0.9
"""Least cosine of the whole gradient in bfloat16 with that in float32, of random weights and two images, whose batch
statistics at stride 32 are taken over eight numbers."""

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- gradients


@pytest.mark.parametrize("photometric", ["ssim", "ssim_l1"])
@pytest.mark.parametrize("direction", ["literal", "consistent"])
def test_photometric_gradients_from_masks_and_features_to_the_loss(
    direction: WarpDirection, photometric: Photometric
) -> None:
    torch.manual_seed(0)
    readout = SegmentMotion(3, hidden=4).double()
    frame, other = noise(1, 2, 5, 6), noise(1, 2, 5, 6, seed=1)

    def loss(masks: Tensor, features: Tensor) -> Tensor:
        segments = partition(masks)  # eq. 3, 4
        motions = readout(pool_motion(segments, features))  # eq. 6, 7
        rebuilt, goal = reconstruct(frame, other, segment_flow(segments, motions), direction=direction)  # eq. 8, 9
        return photometric_loss(error_map(rebuilt, goal, photometric=photometric))  # eq. 13, 11

    points = (noise(1, 2, 5, 6, seed=2).requires_grad_(), noise(1, 3, 5, 6, seed=3).requires_grad_())
    assert torch.autograd.gradcheck(loss, points)


def test_gradients_of_the_mean_error_and_of_objectness() -> None:
    segments, error = noise(2, 3, 3, 4).requires_grad_(), noise(2, 3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(mean_error, (segments, error))
    logits = (noise(2, 3) * 4 - 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objectness_loss(x, noise(2, 3, seed=1)), (logits,))


def two_labels() -> tuple[Tensor, Positives, Targets]:
    """Boxes (1, 4, 4), three of which learn one of two labels of different confidence."""
    boxes = torch.tensor([[[1.0, 2, 9, 9], [3, 3, 12, 10], [20, 18, 30, 31], [50, 50, 60, 60]]], dtype=torch.float64)
    targets = Targets(
        torch.zeros(2, dtype=torch.long),
        torch.tensor([[2.0, 1, 10, 11], [19, 20, 33, 30]], dtype=torch.float64),
        torch.zeros(2, *SIZE, dtype=torch.bool),
        torch.tensor([1.0, 0.4], dtype=torch.float64),
    )
    positives = Positives(
        torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), torch.ones(3).bool()
    )
    return boxes, positives, targets


def test_gradients_of_the_label_losses() -> None:
    boxes, positives, targets = two_labels()
    assert torch.autograd.gradcheck(lambda b: box_loss(b, positives, targets), (boxes.clone().requires_grad_(),))
    overlap, logits = label_overlap(boxes, targets), (noise(1, 4) * 4 - 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: learning.objectness_loss(x, overlap, positives, targets), (logits,))
    regions, covered, weights = (noise(3, 4, 4) * 4 - 2).requires_grad_(), noise(3, 4, 4, seed=1), noise(3, seed=2)
    assert torch.autograd.gradcheck(lambda x: learning.mask_loss(x, covered, weights), (regions,))
    assert torch.autograd.gradcheck(lambda x: learning.dice_loss(x, covered, weights), (regions,))


# ---- order


def rectangles(*boxes: tuple[int, int, int, int], scores: list[float]) -> Instances:
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return Instances.from_masks(masks, torch.tensor(scores))


LABELS = (
    rectangles((8, 10, 30, 38), (12, 8, 34, 40), (40, 4, 60, 20), scores=[1.0, 0.5, 0.8]),
    rectangles((20, 20, 50, 61), scores=[0.7]),
)


def choose_all(boxes: Tensor, positives: Positives, targets: Targets, images: int, _whole: object) -> MaskBoxes:
    """Every positive and every label's own box: no draw, which would depend on the order."""
    image = torch.cat((positives.image[positives.chosen], targets.image))
    found = torch.cat((boxes[positives.image, positives.proposal][positives.chosen], targets.boxes))
    label = torch.cat((positives.label[positives.chosen], torch.arange(len(targets.image))))
    most = int(torch.bincount(image, minlength=images).max())
    filled = MaskBoxes(
        torch.zeros(images, most, 4), torch.zeros(images, most, dtype=torch.long), torch.zeros(images, most).bool()
    )
    for number in range(images):
        own = image == number
        filled.boxes[number, : own.sum()], filled.label[number, : own.sum()] = found[own], label[own]
        filled.chosen[number, : own.sum()] = True
    return MaskBoxes(*(values.flatten(0, 1) for values in filled))


def assert_same(terms: dict[str, Tensor], others: dict[str, Tensor], *, relative: float = 1e-5) -> None:
    assert terms.keys() == others.keys()
    for name, value in terms.items():
        assert others[name].item() == pytest.approx(value.item(), rel=relative, abs=1e-6), name


def test_the_order_of_labels_and_of_images_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "choose_boxes", choose_all)
    torch.manual_seed(0)
    network, images = Mosis(MosisConfig(), SIZE).appearance.train(), torch.rand(2, 3, *SIZE)
    terms = label_loss(network(images), LABELS, network)
    assert terms["dice"] > 0
    assert_same(terms, label_loss(network(images), [LABELS[0][[2, 0, 1]], LABELS[1]], network))
    assert_same(terms, label_loss(network(images.flip(0)), LABELS[::-1], network), relative=1e-4)


class Known(nn.Module):
    """Stands in for both motion networks: features that hold the motion of each pixel, and a readout of them."""

    def __init__(self, there: Tensor, back: Tensor) -> None:
        super().__init__()
        self.there, self.back = there, back

    def both_ways(self, frame_a: Tensor, frame_b: Tensor) -> tuple[Tensor, Tensor]:
        return self.there, self.back

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled


def photometric(flip: int | None = None, order: list[int] | None = None) -> dict[str, Tensor]:
    """Terms of one pair, seen in a mirror along axis 2 or 3, or with its proposals in another order."""
    frames = [noise(2, 3, 16, 12, seed=seed).float() for seed in (0, 1)]
    masks = [noise(2, 3, 16, 12, seed=seed).float() for seed in (2, 3)]
    logits = [noise(2, 3, seed=seed).float() for seed in (4, 5)]
    motions = [(noise(2, 2, 16, 12, seed=seed).float() - 0.5) * 6 for seed in (6, 7)]
    if flip is not None:
        frames, masks, motions = ([tensor.flip(flip) for tensor in group] for group in (frames, masks, motions))
        for motion in motions:
            motion[:, 3 - flip] *= -1  # u along axis 3, v along axis 2
    if order is not None:
        masks, logits = ([tensor[:, order] for tensor in group] for group in (masks, logits))
    known = Known(*motions)
    return mosis_loss(*frames, *masks, *logits, known, known)  # type: ignore[arg-type]


def test_the_order_of_proposals_does_not_matter() -> None:
    assert_same(photometric(), photometric(order=[2, 0, 1]))


# ---- handedness


@pytest.mark.parametrize("flip", [2, 3])
def test_a_mirrored_pair_with_mirrored_motion_costs_the_same(flip: int) -> None:
    assert_same(photometric(), photometric(flip), relative=1e-4)


def mirror(boxes: Tensor) -> Tensor:
    return torch.stack((SIZE[1] - boxes[..., 2], boxes[..., 1], SIZE[1] - boxes[..., 0], boxes[..., 3]), dim=-1)


def test_mirrored_proposals_and_labels_cost_the_same() -> None:
    grid = anchor_grid(SIZE)
    boxes = torch.cat((grid.centres - grid.sizes / 2, grid.centres + grid.sizes / 2), dim=1)[None]
    boxes = boxes + noise(*boxes.shape).float() * 3
    logits = noise(1, boxes.shape[1], seed=1).float()
    targets = learning.gather_targets(LABELS[:1], boxes)
    centres = torch.stack((SIZE[1] - grid.centres[:, 0], grid.centres[:, 1]), dim=1)
    cases = [(boxes, grid, targets)]
    cases += [
        (mirror(boxes), AnchorGrid(centres, grid.strides, grid.sizes), targets._replace(boxes=mirror(targets.boxes)))
    ]
    terms = []
    for own, cells, goals in cases:
        overlap = label_overlap(own, goals)
        positives = assign(overlap, cells, goals, centre_reach=0.5)
        objectness = learning.objectness_loss(logits, overlap, positives, goals)
        terms.append({"box": box_loss(own, positives, goals), "objectness": objectness})
    assert_same(*terms)


# ---- place


@pytest.mark.parametrize("photometric", ["ssim", "ssim_l1"])
@pytest.mark.parametrize("direction", ["literal", "consistent"])
def test_a_pair_and_its_motion_moved_across_the_frame_cost_the_same(
    direction: WarpDirection, photometric: Photometric
) -> None:
    """Before an empty ground: eq. 3-4 and 8-14 know no place."""

    def inner(*shape: int, seed: int) -> Tensor:
        whole = torch.zeros(*shape, 24, 24)
        whole[..., 8:14, 8:14] = noise(*shape, 6, 6, seed=seed).float()
        return whole

    def terms(down: int, right: int) -> dict[str, Tensor]:
        def moved(*tensors: Tensor) -> list[Tensor]:
            return [tensor.roll((down, right), (2, 3)) for tensor in tensors]

        frames = moved(inner(2, 3, seed=0), inner(2, 3, seed=1))
        masks = moved(inner(2, 3, seed=2), inner(2, 3, seed=3))
        logits = [noise(2, 3, seed=seed).float() for seed in (4, 5)]
        known = Known(*moved(4 * inner(2, 2, seed=6), 4 * inner(2, 2, seed=7)))
        reading = {"warp_direction": direction, "photometric": photometric}
        return mosis_loss(*frames, *masks, *logits, known, known, **reading)  # type: ignore[arg-type]

    still = terms(0, 0)
    assert still["photo_forward"] > 0
    assert_same(still, terms(3, -5))


def test_proposals_and_labels_moved_by_a_cell_of_the_coarsest_grid_cost_the_same() -> None:
    boxes, positives, targets = two_labels()
    moved = targets._replace(boxes=targets.boxes + 32)
    assert torch.equal(label_overlap(boxes, targets), label_overlap(boxes + 32, moved))
    terms, others = ({"box": box_loss(own, positives, goals)} for own, goals in ((boxes, targets), (boxes + 32, moved)))
    assert_same(terms, others)
    grid = anchor_grid(SIZE)
    shift = torch.tensor([32.0, 0.0])
    inside = grid.centres[:, 0] < 32  # whose cell to the right is in the frame, too
    own = AnchorGrid(grid.centres[inside], grid.strides[inside], grid.sizes[inside])
    far = AnchorGrid(own.centres + shift, own.strides, own.sizes)
    around = torch.cat((own.centres - own.sizes / 2, own.centres + own.sizes / 2), dim=1)[None]
    goals = learning.gather_targets([rectangles((4, 10, 22, 34), scores=[1.0])], around)
    there = goals._replace(boxes=goals.boxes + shift.repeat(2))
    chosen = assign(label_overlap(around, goals), own, goals, centre_reach=0.5)
    chosen_there = assign(label_overlap(around + shift.repeat(2), there), far, there, centre_reach=0.5)
    assert chosen.chosen.sum() > 1
    assert torch.equal(chosen.chosen, chosen_there.chosen)
    assert torch.equal(chosen.proposal[chosen.chosen], chosen_there.proposal[chosen.chosen])


# ---- half precision


@pytest.mark.parametrize("objective", ["motion_labels", "literal"])
def test_bfloat16_stays_within_tolerance_of_float32(objective: Objective) -> None:
    torch.manual_seed(0)
    model = Mosis(MosisConfig(objective=objective), SIZE).train()
    coarse = nn.functional.interpolate(torch.rand(2, 3, 12, 12), size=72, mode="bicubic").clamp(0, 1)
    batch = Batch(coarse[..., 4:68, 4:68], coarse[..., 2:66, 5:69], torch.ones(2), list(LABELS))
    results = []
    for enabled in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            terms = model.loss(batch)
        terms["total"].backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append(({name: value.detach() for name, value in terms.items()}, gradient))
    (exact, own), (near, other) = results
    assert_same(exact, near, relative=LOSS_TOLERANCE)
    assert nn.functional.cosine_similarity(own, other, dim=0) > GRADIENT_TOLERANCE
