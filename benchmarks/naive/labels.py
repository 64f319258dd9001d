"""models.mosis.label_loss, one image, label and region at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from models.common.instances import Instances
from models.mosis.appearance import MASK_STRIDE, AppearanceNetwork, Proposals
from models.mosis.label_loss import IGNORED_IOU, JITTER, MASKS_PER_IMAGE, POSITIVES_PER_LABEL, WEIGHTS

MaskBox = tuple[Tensor, int]
"""A box (4,) to learn a mask in, and which of its image's labels it shows."""


@dataclass
class _Sums:
    """Terms summed over a batch, and how many had a weight."""

    box: Tensor
    boxes: int
    objectness: Tensor
    positives: int
    mask: Tensor
    dice: Tensor
    regions: int


def label_loss(
    proposals: Proposals,
    labels: list[Instances],
    network: AppearanceNetwork,
    mask_boxes: list[list[MaskBox]] | None = None,
) -> dict[str, Tensor]:
    """The same terms as the fast loss. mask_boxes: per image, the boxes that masks are learnt in; None draws them."""
    zero = proposals.boxes.sum() * 0 + proposals.logits.sum() * 0 + proposals.mask_features.sum() * 0
    sums = _Sums(zero, 0, zero, 0, zero, zero, 0)
    for image, own in enumerate(labels):
        chosen = _learn_boxes(sums, proposals, image, own, network.centre_reach)
        drawn = _draw(proposals.boxes[image].detach(), chosen, own) if mask_boxes is None else mask_boxes[image]
        _learn_masks(sums, proposals.mask_features[image : image + 1], drawn, own, network)
    terms = {
        "box": sums.box / max(sums.boxes, 1),
        "objectness": sums.objectness / max(sums.positives, len(labels)),
        "mask": sums.mask / max(sums.regions, 1),
        "dice": sums.dice / max(sums.regions, 1),
    }
    return {"total": sum((WEIGHTS[name] * term for name, term in terms.items()), zero), **terms}


def _learn_boxes(
    sums: _Sums, proposals: Proposals, image: int, labels: Instances, reach: float
) -> dict[int, tuple[float, int]]:
    """Box and objectness loss of one image. Returns for every chosen proposal its IoU and its label."""
    boxes, logits = proposals.boxes[image], proposals.logits[image]
    overlaps = [_iou(boxes.detach(), label) for label in labels.boxes]
    chosen: dict[int, tuple[float, int]] = {}
    for number, overlap in enumerate(overlaps):
        centre = (labels.boxes[number, :2] + labels.boxes[number, 2:]) / 2
        away = (centre - proposals.grid.centres).abs().amax(1) / proposals.grid.strides
        fit = torch.where(away <= 0.5 + reach, overlap, -1.0)
        for proposal in fit.topk(min(POSITIVES_PER_LABEL, len(fit))).indices.tolist():
            if fit[proposal] >= 0 and (proposal not in chosen or float(fit[proposal]) > chosen[proposal][0]):
                chosen[proposal] = (float(fit[proposal]), number)
    goal, weight = torch.zeros_like(logits), torch.ones_like(logits)
    for overlap in overlaps:
        weight[overlap > IGNORED_IOU] = 0
    for proposal, (iou, number) in chosen.items():
        goal[proposal], weight[proposal] = iou, labels.scores[number]
        sums.box = sums.box + labels.scores[number] * (1 - _giou(boxes[proposal], labels.boxes[number]))
        sums.boxes += int(labels.scores[number] > 0)
    sums.positives += sum(int(labels.scores[number] > 0) for _, number in chosen.values())
    bce = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    sums.objectness = sums.objectness + (bce * weight).sum()
    return chosen


def _learn_masks(
    sums: _Sums, features: Tensor, drawn: list[MaskBox], labels: Instances, network: AppearanceNetwork
) -> None:
    """Mask and dice loss of one image; the head takes all of its regions at once, the rest is region by region."""
    if not drawn:
        return
    boxes = torch.stack([box for box, _ in drawn])
    margin = (boxes[:, 2:] - boxes[:, :2]) * network.region_margin
    regions = torch.cat((boxes[:, :2] - margin, boxes[:, 2:] + margin), dim=1)
    cells = roi_align(features, [regions], network.region_side, 1 / MASK_STRIDE, network.region_samples, aligned=True)
    for region, logits, (_, number) in zip(regions, network.mask_head(cells), drawn, strict=True):
        mask = labels.masks[number][None, None].float()
        target = roi_align(mask, [region[None]], network.region_side, 1.0, 2, aligned=True)[0, 0]
        predicted = logits.sigmoid()
        shared, size = (predicted * target).sum(), (predicted**2).sum() + (target**2).sum()
        weight = labels.scores[number]
        sums.mask = sums.mask + weight * F.binary_cross_entropy_with_logits(logits, target)
        sums.dice = sums.dice + weight * (1 - (2 * shared + 1) / (size + 1))
        sums.regions += int(weight > 0)


def _draw(boxes: Tensor, chosen: dict[int, tuple[float, int]], labels: Instances) -> list[MaskBox]:
    """Half predicted boxes, half the labels' own moved a little."""
    half = MASKS_PER_IMAGE // 2
    found = list(chosen.items())
    drawn = [(boxes[found[i][0]], found[i][1][1]) for i in torch.randperm(len(found))[:half].tolist()]
    copies = [number for number in range(len(labels)) for _ in range(half)]
    for i in torch.randperm(len(copies))[:half].tolist():
        box = labels.boxes[copies[i]]
        sides = (box[2:] - box[:2]).repeat(2)
        drawn.append((box + JITTER * (torch.rand(4).to(box) * 2 - 1) * sides, copies[i]))
    return drawn


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _shared(a: Tensor, b: Tensor) -> Tensor:
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clamp(min=0).prod(-1)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    shared = _shared(a, b)
    return shared / (_area(a) + _area(b) - shared)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = _area(a) + _area(b) - _shared(a, b)
    return _iou(a, b) - (hull - union) / hull
