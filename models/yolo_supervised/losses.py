"""The supervised detector of section 9.3: squared errors on a fixed assignment, with a mask term for section 4.1.

Every loss is a mean over what it looks at, and all have weight 1: the text names no weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.boxes import paired_iou, pairwise_iou
from ..common.instances import Instances
from ..common.whole import WHOLE, WholeBatch
from ..mosis.appearance import AnchorGrid, AppearanceNetwork, Proposals
from ..mosis.config import ANCHORS, STRIDES
from ..mosis.label_loss import Positives, Targets, at_places, gather_targets, mask_losses, weighted_mean


def thesis_loss(
    proposals: Proposals, labels: Sequence[Instances], network: AppearanceNetwork, whole: WholeBatch = WHOLE
) -> dict[str, Tensor]:
    """Losses 1 to 3 of section 9.3 and masks: proposals of a batch against its true instances.

    Returns scalars "total", "no_objectness", "objectness", "box", "mask", "dice" and "detection", which is the sum of
    the first three: the figure that section 9.3 reports. The fourth loss, of the class, is 0 there and left out here.
    """
    targets = gather_targets(labels, proposals.boxes)
    positives = assign(proposals.grid, targets, proposals.image_size, len(labels))
    terms = {
        "no_objectness": no_objectness_loss(proposals.logits, positives, whole),
        "objectness": objectness_loss(proposals.logits, proposals.boxes, positives, targets, whole),
        "box": box_loss(proposals.boxes, proposals.grid, positives, targets, whole),
    }
    detection = torch.stack(list(terms.values())).sum()
    # Section 9.3 has no masks and section 4.1 does not say how they are learnt: as MoSIS learns them from labels.
    terms |= mask_losses(proposals, positives, targets, network, len(labels), whole)
    return {"total": detection + terms["mask"] + terms["dice"], "detection": detection, **terms}


@torch.no_grad()
def assign(grid: AnchorGrid, targets: Targets, size: tuple[int, int], images: int) -> Positives:
    """Section 9.3's targets: on every scale the cell that holds a box's centre, there the anchor of the best IoU.

    size: (height, width) of the images, pixels. The IoU is that of sides alone, anchor and box on one centre. Where two
    boxes want one place, the earlier has it. All other places are negatives.
    """
    sides = targets.boxes[:, 2:] - targets.boxes[:, :2]
    centres = (targets.boxes[:, 2:] + targets.boxes[:, :2]) / 2
    wanted, offset = [], 0
    for stride, anchors in zip(STRIDES, ANCHORS, strict=True):
        rows, columns = size[0] // stride, size[1] // stride
        best = shape_iou(sides, grid.sizes[offset : offset + len(anchors)]).argmax(1)  # (N,)
        column, row = (centres / stride).long().unbind(1)
        cell = row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)
        wanted.append(offset + cell * len(anchors) + best)
        offset += rows * columns * len(anchors)
    # By image, as random numbers are given out by order.
    label = torch.arange(len(sides), device=sides.device).repeat_interleave(len(wanted))
    image, proposal = targets.image[label], torch.stack(wanted, dim=1).flatten()
    slot = image * offset + proposal
    owner = torch.full((images * offset,), len(sides), device=sides.device).scatter_reduce(0, slot, label, "amin")
    return Positives(image, proposal, label, owner[slot] == label)


def shape_iou(sizes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of boxes that share a centre: sizes (N, 2), anchors (M, 2), width and height -> (N, M)."""
    boxes, others = (torch.cat((-sides / 2, sides / 2), dim=1) for sides in (sizes, anchors))
    return pairwise_iou(boxes, others)


def no_objectness_loss(logits: Tensor, positives: Positives, whole: WholeBatch = WHOLE) -> Tensor:
    """Loss 1: BCE of every negative's objectness logit against 0, logits (B, A). The text names no kind; this is
    YOLOv3's.
    """
    negative = at_places(positives, torch.zeros_like(positives.label), logits, 1.0)
    return (F.softplus(logits) * negative).sum() / whole.divisor(negative.sum())


def objectness_loss(
    logits: Tensor, boxes: Tensor, positives: Positives, targets: Targets, whole: WholeBatch = WHOLE
) -> Tensor:
    """Loss 2: squared error of the positives' objectness against the IoU of their own box with the true one."""
    at = (positives.image, positives.proposal)
    goal = paired_iou(boxes[at].detach(), targets.boxes[positives.label])
    return weighted_mean((logits[at].sigmoid() - goal).square(), positives.chosen.to(logits), whole)


def box_loss(
    boxes: Tensor, grid: AnchorGrid, positives: Positives, targets: Targets, whole: WholeBatch = WHOLE
) -> Tensor:
    """Loss 3: squared errors of t_x, t_y, t_w, t_h of the positives, summed over the four, mean over positives."""
    found = box_parameters(boxes[positives.image, positives.proposal], grid, positives.proposal)
    goal = box_parameters(targets.boxes[positives.label], grid, positives.proposal)
    return weighted_mean((found - goal).square().sum(1), positives.chosen.to(boxes), whole)


def box_parameters(boxes: Tensor, grid: AnchorGrid, proposal: Tensor) -> Tensor:
    """t_x, t_y, t_w, t_h of section 9.3: boxes (P, 4) as seen from the anchors `proposal` (P,) -> (P, 4).

    Offsets within the cell, 0 to 1 from its left and upper edge (a network with a reach may go beyond), and logarithms
    of the sides relative to the anchor's. Sides below a hundredth of a pixel count as that.
    """
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-2)
    offsets = (centres - grid.centres[proposal]) / grid.strides[proposal][:, None] + 0.5
    return torch.cat((offsets, (sides / grid.sizes[proposal]).log()), dim=1)
