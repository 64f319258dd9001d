"""Learning from labels: ordinary detector losses on proposals and masks, each weighted by its label's confidence.

Not in the thesis, whose supervised detector (section 9.3) regresses with squared errors: GIoU, IoU as the objectness
target, and mask losses on regions that are partly predicted, partly labels' boxes moved a little.

No size depends on what a tensor holds, only on how many labels there are, so that a GPU is never waited for: what is
not chosen stays in its place with a weight of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.boxes import jitter_boxes, paired_giou, pairwise_iou
from ..common.device import upload
from ..common.instances import Instances
from ..common.masks import crop_masks
from ..common.whole import WHOLE, WholeBatch
from .appearance import AnchorGrid, AppearanceNetwork, Proposals

WEIGHTS = {"box": 2.0, "objectness": 1.0, "mask": 1.0, "dice": 1.0}
"""Of each term in "total"."""
POSITIVES_PER_LABEL = 10
"""Most proposals that learn one label: several see more of a short training than one, and NMS leaves the best."""
IGNORED_IOU = 0.6
"""Proposals that overlap a label this well without being chosen for it are no background either."""
MASKS_PER_IMAGE = 16
"""Most boxes of an image that masks are learnt in: twice as many cost a half more time a step."""
JITTER = 0.15
"""Of label boxes before masks are learnt in them, share of the side: about the error of a fair predicted box."""


class Targets(NamedTuple):
    """The labels of a batch, all images in one list of N."""

    image: Tensor
    """(N,) int64, which image of the batch."""
    boxes: Tensor
    """(N, 4) float32 pixels."""
    masks: Tensor
    """(N, H, W) bool."""
    weights: Tensor
    """(N,) float32 confidence in [0, 1]."""


class Positives(NamedTuple):
    """Proposals that may learn a label, P of them, and which were chosen to."""

    image: Tensor
    """(P,) int64."""
    proposal: Tensor
    """(P,) int64, index into A."""
    label: Tensor
    """(P,) int64, index into Targets."""
    chosen: Tensor
    """(P,) bool. No two of the chosen are one proposal."""

    def weights(self, targets: Targets) -> Tensor:
        """(P,) float32: the label's confidence, 0 for what was not chosen."""
        return targets.weights[self.label] * self.chosen


class MaskBoxes(NamedTuple):
    """Boxes to learn masks in, R of them: as many of each image, in the order of images; none without any label."""

    boxes: Tensor
    """(R, 4) float32 pixels."""
    label: Tensor
    """(R,) int64, index into Targets: the label whose mask is to be found in the box."""
    chosen: Tensor
    """(R,) bool; the rest only fills up."""


def label_loss(
    proposals: Proposals, labels: Sequence[Instances], network: AppearanceNetwork, whole: WholeBatch = WHOLE
) -> dict[str, Tensor]:
    """Loss of a batch against its labels; scores of `labels` are confidences, and 0 teaches nothing.

    network: the one that made `proposals`; it is asked for masks in regions that are chosen here. whole: the batch that
    these images are a part of.
    Returns scalars "total", "box", "objectness", "mask" and "dice", the terms unweighted. Randomness is torch's CPU
    generator's.
    """
    targets = gather_targets(labels, proposals.boxes)
    overlap = label_overlap(proposals.boxes, targets)  # (N, A)
    positives = assign(overlap, proposals.grid, targets, centre_reach=network.centre_reach)
    return combine(
        {
            "box": box_loss(proposals.boxes, positives, targets, whole),
            "objectness": objectness_loss(proposals.logits, overlap, positives, targets, whole),
            **mask_losses(proposals, positives, targets, network, len(labels), whole),
        }
    )


def mask_losses(
    proposals: Proposals,
    positives: Positives,
    targets: Targets,
    network: AppearanceNetwork,
    images: int,
    whole: WholeBatch = WHOLE,
) -> dict[str, Tensor]:
    """The terms "mask" and "dice", in regions that are chosen here."""
    boxes = choose_boxes(proposals.boxes.detach(), positives, targets, images, whole)
    regions = network.regions(boxes.boxes)
    logits = network.mask_logits(proposals.mask_features, regions.view(images, -1, 4).unbind(0))
    covered = crop_masks(targets.masks, boxes.label, regions, network.region_side)
    weights = targets.weights[boxes.label] * boxes.chosen
    return {"mask": mask_loss(logits, covered, weights, whole), "dice": dice_loss(logits, covered, weights, whole)}


def combine(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms with their weighted sum as "total"."""
    return {"total": torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum(), **terms}


def gather_targets(labels: Sequence[Instances], like: Tensor) -> Targets:
    """Labels of a batch in one list, on the device of `like`. Those of confidence 0 stay, too."""
    joined = Instances.cat([label.to(like.device) for label in labels])
    image = torch.tensor([number for number, label in enumerate(labels) for _ in range(len(label))], dtype=torch.int64)
    return Targets(upload(image, like.device), joined.boxes.to(like), joined.masks, joined.scores.to(like))


@torch.no_grad()
def label_overlap(boxes: Tensor, targets: Targets) -> Tensor:
    """IoU of every label with every proposal of its image: boxes (B, A, 4) -> (N, A)."""
    return pairwise_iou(targets.boxes[:, None], boxes.detach()[targets.image])[:, 0]


@torch.no_grad()
def assign(overlap: Tensor, grid: AnchorGrid, targets: Targets, *, centre_reach: float) -> Positives:
    """Choose for each label the proposals that fit it best among those whose centre can reach its own.

    overlap: (N, A) IoU. A proposal that several labels want goes to the one that it fits best.
    """
    centre = (targets.boxes[:, None, :2] + targets.boxes[:, None, 2:]) / 2  # (N, 1, 2)
    away = (centre - grid.centres).abs().amax(-1) / grid.strides  # (N, A) cells
    fit = torch.where(away <= 0.5 + centre_reach, overlap, -1.0)
    # In the order of proposals: rounding may turn that of their fits about, and random numbers are given out by order.
    best = fit.topk(min(POSITIVES_PER_LABEL, fit.shape[1]), dim=1).indices.sort(dim=1).values
    label = torch.arange(len(fit), device=fit.device)[:, None].expand_as(best).flatten()
    proposal, value = best.flatten(), fit.gather(1, best).flatten()
    image = targets.image[label]
    chosen = _settle_conflicts(image * fit.shape[1] + proposal, value)
    return Positives(image, proposal, label, chosen)


def _settle_conflicts(slot: Tensor, fit: Tensor) -> Tensor:
    """Which of those that want a slot have it, (P,) bool: the one of the highest fit (P,), the first of equals.

    slot: (P,) int64. A fit below 0 has none.
    """
    order = torch.argsort(fit, descending=True, stable=True)
    by_slot = order[torch.argsort(slot[order], stable=True)]
    sorted_slot = slot[by_slot]
    first = torch.ones_like(sorted_slot, dtype=torch.bool)
    first[1:] = sorted_slot[1:] != sorted_slot[:-1]
    return torch.zeros_like(first).scatter(0, by_slot, first) & (fit >= 0)


def at_places(positives: Positives, values: Tensor, like: Tensor, rest: Tensor | float) -> Tensor:
    """`values` (P,) of the chosen at their places in (B, A), `rest` at all others. like: (B, A), for size and dtype."""
    images, proposals = like.shape
    # One place more, for all that were not chosen.
    place = torch.where(positives.chosen, positives.image * proposals + positives.proposal, images * proposals)
    flat = torch.cat(((torch.zeros_like(like) + rest).flatten(), like.new_zeros(1)))
    return flat.scatter(0, place, values.to(like))[:-1].view_as(like)


def box_loss(boxes: Tensor, positives: Positives, targets: Targets, whole: WholeBatch = WHOLE) -> Tensor:
    """GIoU loss of the chosen proposals, mean weighted by confidence; 0 where there are none."""
    losses = 1 - paired_giou(boxes[positives.image, positives.proposal], targets.boxes[positives.label])
    return weighted_mean(losses, positives.weights(targets), whole)


def objectness_loss(
    logits: Tensor, overlap: Tensor, positives: Positives, targets: Targets, whole: WholeBatch = WHOLE
) -> Tensor:
    """BCE of objectness: the target is the IoU with the label for chosen proposals, 0 for the rest.

    Summed and divided by the number of positives of any confidence (at least one an image, so that empty images do not
    weigh in more). Proposals that fit a label well without being chosen for it are left out, and so are all that fit a
    label without confidence.
    """
    well = torch.zeros_like(logits).index_add(0, targets.image, (overlap > IGNORED_IOU).to(logits))  # (B, A) labels
    goal = at_places(positives, overlap[positives.label, positives.proposal], logits, 0.0)
    weights = positives.weights(targets)
    weight = at_places(positives, weights, logits, (well == 0).to(logits))
    total = F.binary_cross_entropy_with_logits(logits, goal, weight, reduction="sum")
    return total / whole.divisor((weights > 0).sum(), images=len(logits))


@torch.no_grad()
def choose_boxes(
    boxes: Tensor, positives: Positives, targets: Targets, images: int, whole: WholeBatch = WHOLE
) -> MaskBoxes:
    """MASKS_PER_IMAGE boxes an image: half predicted (drawn from the positives), half jittered label boxes."""
    half, count = MASKS_PER_IMAGE // 2, len(targets.image)
    # Drawn whether there are labels or not: the other parts of the batch draw, too.
    chances = whole.rand(len(positives.image)), whole.rand(count, copies=half), whole.rand(images * half, 4)
    if not count:
        return MaskBoxes(boxes.new_zeros(0, 4), targets.image, targets.image.bool())
    predicted, some = _draw(positives.image, positives.chosen, half, images, chances[0].flatten())
    copies = torch.arange(count, device=boxes.device).repeat(half)
    drawn, any_label = _draw(
        targets.image.repeat(half), torch.ones_like(copies).bool(), half, images, chances[1].flatten()
    )
    labels = copies[drawn]
    found = boxes[positives.image[predicted], positives.proposal[predicted]]
    jittered = jitter_boxes(targets.boxes[labels], JITTER, chances[2][0])
    return MaskBoxes(
        torch.cat((found.view(images, half, 4), jittered.view(images, half, 4)), dim=1).flatten(0, 1),
        torch.cat((positives.label[predicted].view(images, half), labels.view(images, half)), dim=1).flatten(),
        torch.cat((some.view(images, half), any_label.view(images, half)), dim=1).flatten(),
    )


def _draw(image: Tensor, able: Tensor, most: int, images: int, chance: Tensor) -> tuple[Tensor, Tensor]:
    """Up to `most` random members of each image: image (M,) int64 in 0..images-1, able (M,) bool -> (images * most,)
    indices, `most` of each image in turn, and bool, which of them were drawn; the rest are index 0 and fill up.

    chance: (M,) random numbers in [0, 1); the smallest of the able of an image win.
    """
    chance = torch.where(able, upload(chance, image.device).double(), 1.5)
    order = torch.argsort(2 * image + chance, stable=True)  # by image, the able first, at random
    counts = torch.zeros(images, dtype=torch.int64, device=image.device).index_add(0, image, torch.ones_like(image))
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(image), device=image.device) - starts[image[order]]
    wins = able[order] & (rank < most)
    # One place more, for those that were not drawn.
    place = torch.where(wins, image[order] * most + rank, images * most)
    filled = torch.zeros(images * most + 1, dtype=torch.int64, device=image.device)
    return filled.scatter(0, place, order)[:-1], filled.bool().scatter(0, place, wins)[:-1]


def mask_loss(logits: Tensor, covered: Tensor, weights: Tensor, whole: WholeBatch = WHOLE) -> Tensor:
    """BCE of mask logits (R, S, S) against covered shares, mean over cells, then over regions by confidence (R,)."""
    losses = F.binary_cross_entropy_with_logits(logits, covered, reduction="none").mean((1, 2))
    return weighted_mean(losses, weights, whole)


def dice_loss(logits: Tensor, covered: Tensor, weights: Tensor, whole: WholeBatch = WHOLE) -> Tensor:
    """1 - 2 |P and T| / (|P| + |T|) of soft masks (R, S, S), mean over regions by confidence (R,).

    One cell is added above and below, so that a region without a label's pixel, predicted empty, costs nothing.
    """
    predicted = logits.sigmoid()
    shared = (predicted * covered).sum((1, 2))
    # Squares, so that a soft mask that equals its soft target has no loss.
    size = (predicted * predicted).sum((1, 2)) + (covered * covered).sum((1, 2))
    return weighted_mean(1 - (2 * shared + 1) / (size + 1), weights, whole)


def weighted_mean(losses: Tensor, weights: Tensor, whole: WholeBatch = WHOLE) -> Tensor:
    """Weighted losses over the number of those with any weight; 0, still in the graph, where there is nothing."""
    return (losses * weights).sum() / whole.divisor((weights > 0).sum())
