"""Learning from labels: ordinary detector losses on proposals and masks, each weighted by its label's confidence.

Not in the thesis, whose supervised detector (section 9.3) regresses with squared errors: GIoU, IoU as the objectness
target, and mask losses on regions that are partly predicted, partly labels' boxes moved a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from ..common.boxes import jitter_boxes, pairwise_iou
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
    """Proposals chosen to learn a label, P of them."""

    image: Tensor
    """(P,) int64."""
    proposal: Tensor
    """(P,) int64, index into A."""
    label: Tensor
    """(P,) int64, index into Targets."""


class MaskBoxes(NamedTuple):
    """Boxes to learn masks in, R of them, sorted by image."""

    image: Tensor
    """(R,) int64."""
    boxes: Tensor
    """(R, 4) float32 pixels."""
    label: Tensor
    """(R,) int64, index into Targets: the label whose mask is to be found in the box."""


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
    boxes = choose_boxes(proposals.boxes.detach(), positives, targets, len(labels), whole)
    regions = network.regions(boxes.boxes)
    counts = torch.bincount(boxes.image, minlength=len(labels)).tolist()
    logits = network.mask_logits(proposals.mask_features, regions.split(counts))
    covered = crop_masks(targets.masks, boxes.label, regions, network.region_side)
    weights = targets.weights[boxes.label]
    return combine(
        {
            "box": box_loss(proposals.boxes, positives, targets, whole),
            "objectness": objectness_loss(proposals.logits, overlap, positives, targets, whole),
            "mask": mask_loss(logits, covered, weights, whole),
            "dice": dice_loss(logits, covered, weights, whole),
        }
    )


def combine(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms with their weighted sum as "total"."""
    return {"total": torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum(), **terms}


def gather_targets(labels: Sequence[Instances], like: Tensor) -> Targets:
    """Labels of a batch in one list, on the device of `like`. Those of confidence 0 stay, too."""
    joined = Instances.cat([label.to(like.device) for label in labels])
    image = torch.repeat_interleave(torch.arange(len(labels)), torch.tensor([len(label) for label in labels]))
    return Targets(image.to(like.device), joined.boxes.to(like), joined.masks, joined.scores.to(like))


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
    best = fit.topk(min(POSITIVES_PER_LABEL, fit.shape[1]), dim=1)
    label, rank = torch.nonzero(best.values >= 0, as_tuple=True)
    proposal, value = best.indices[label, rank], best.values[label, rank]
    return _settle_conflicts(Positives(targets.image[label], proposal, label), value, overlap.shape[1])


def _settle_conflicts(wanted: Positives, fit: Tensor, proposals: int) -> Positives:
    """Keep for each (image, proposal) the label of the highest fit, the first of equals."""
    order = torch.argsort(fit, descending=True, stable=True)
    slot = (wanted.image * proposals + wanted.proposal)[order]
    by_slot = torch.argsort(slot, stable=True)
    first = torch.ones_like(by_slot, dtype=torch.bool)
    first[1:] = slot[by_slot][1:] != slot[by_slot][:-1]
    kept = order[by_slot[first]]
    return Positives(wanted.image[kept], wanted.proposal[kept], wanted.label[kept])


def box_loss(boxes: Tensor, positives: Positives, targets: Targets, whole: WholeBatch = WHOLE) -> Tensor:
    """GIoU loss of the chosen proposals, mean weighted by confidence; 0 where there are none."""
    chosen = boxes[positives.image, positives.proposal]
    losses = generalized_box_iou_loss(chosen, targets.boxes[positives.label])
    return _weighted_mean(losses, targets.weights[positives.label], whole)


def objectness_loss(
    logits: Tensor, overlap: Tensor, positives: Positives, targets: Targets, whole: WholeBatch = WHOLE
) -> Tensor:
    """BCE of objectness: the target is the IoU with the label for chosen proposals, 0 for the rest.

    Summed and divided by the number of positives (at least one an image, so that empty images do not weigh in more).
    Proposals that fit a label well without being chosen for it are left out, and so are all that fit a label without
    confidence.
    """
    well = torch.zeros_like(logits).index_add(0, targets.image, (overlap > IGNORED_IOU).to(logits))  # (B, A) labels
    goal, weight = torch.zeros_like(logits), (well == 0).to(logits)
    at = (positives.image, positives.proposal)
    goal[at] = overlap[positives.label, positives.proposal]
    weight[at] = targets.weights[positives.label]
    total = F.binary_cross_entropy_with_logits(logits, goal, weight, reduction="sum")
    return total / whole.divisor(len(positives.image), images=len(logits))


@torch.no_grad()
def choose_boxes(
    boxes: Tensor, positives: Positives, targets: Targets, images: int, whole: WholeBatch = WHOLE
) -> MaskBoxes:
    """Up to MASKS_PER_IMAGE boxes an image: half predicted (drawn from the positives), half jittered label boxes."""
    half = MASKS_PER_IMAGE // 2
    predicted = _draw(positives.image, half, images, whole.rand(len(positives.image)))
    copies = torch.arange(len(targets.image), device=boxes.device).repeat(half)
    chance = whole.rand(len(targets.image), copies=half)
    labels = copies[_draw(targets.image.repeat(half), half, images, chance)]
    image = torch.cat((positives.image[predicted], targets.image[labels]))
    found = boxes[positives.image[predicted], positives.proposal[predicted]]
    chosen = torch.cat((found, jitter_boxes(targets.boxes[labels], JITTER, whole.rand(len(labels), 4)[0])))
    label = torch.cat((positives.label[predicted], labels))
    order = torch.argsort(image, stable=True)
    return MaskBoxes(image[order], chosen[order], label[order])


def _draw(image: Tensor, most: int, images: int, chance: Tensor) -> Tensor:
    """Indices of up to `most` random members of each image: image (M,) int64 in 0..images-1 -> (<= images * most,).

    chance: M random numbers in [0, 1); the smallest of an image win.
    """
    order = torch.argsort(image + chance.flatten().to(image.device).double())  # by image, at random within each
    counts = torch.bincount(image, minlength=images)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(image), device=image.device) - starts[image[order]]
    return order[rank < most]


def mask_loss(logits: Tensor, covered: Tensor, weights: Tensor, whole: WholeBatch = WHOLE) -> Tensor:
    """BCE of mask logits (R, S, S) against covered shares, mean over cells, then over regions by confidence (R,)."""
    losses = F.binary_cross_entropy_with_logits(logits, covered, reduction="none").mean((1, 2))
    return _weighted_mean(losses, weights, whole)


def dice_loss(logits: Tensor, covered: Tensor, weights: Tensor, whole: WholeBatch = WHOLE) -> Tensor:
    """1 - 2 |P and T| / (|P| + |T|) of soft masks (R, S, S), mean over regions by confidence (R,).

    One cell is added above and below, so that a region without a label's pixel, predicted empty, costs nothing.
    """
    predicted = logits.sigmoid()
    shared = (predicted * covered).sum((1, 2))
    # Squares, so that a soft mask that equals its soft target has no loss.
    size = (predicted * predicted).sum((1, 2)) + (covered * covered).sum((1, 2))
    return _weighted_mean(1 - (2 * shared + 1) / (size + 1), weights, whole)


def _weighted_mean(losses: Tensor, weights: Tensor, whole: WholeBatch) -> Tensor:
    """Weighted losses over the number of those with any weight; 0, still in the graph, where there is nothing."""
    return (losses * weights).sum() / whole.divisor((weights > 0).sum())
