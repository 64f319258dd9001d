"""MoSIS: the appearance network alone at inference; motion network and photometric loss, or labels, while training."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from ..common.boxes import clip_boxes, scale_boxes
from ..common.instances import Instances, mask_extents
from ..common.masks import paste_binary, paste_masks
from ..interface import Batch, Needs, Segmenter
from .appearance import AppearanceNetwork, Proposals
from .config import NETWORKS, MosisConfig, Objective
from .em.segments import Proposed
from .em.step import find_instances
from .label_loss import label_loss
from .losses import mosis_loss
from .motion import ArgminMotion, CostFeatures, MotionNetwork, SegmentMotion

OBJECTNESS_PRIOR = 0.01
"""Of untrained proposals where labels are learnt: about the share of proposals that ever fits one."""
CANDIDATES = 1000
"""Most proposals of an image that enter NMS, best first: it takes time and memory that grow with their square."""
EM_PROPOSALS = 8
"""Of each image that the network offers the E-step."""
EM_NMS = 0.5
_NEEDS: dict[Objective, Needs] = {"literal": "pairs", "em": "own_labels", "motion_labels": "labels"}


class Mosis(Segmenter):
    """The thesis' method, or the same network learning from labels (`config.objective`).

    size: (height, width) in pixels of training frames, multiples of 32; prediction takes any such size.
    """

    def __init__(self, config: MosisConfig, size: tuple[int, int]) -> None:
        super().__init__()
        if size[0] % 32 or size[1] % 32:
            raise ValueError(f"training size {size} must be multiples of 32")
        self.config = config
        self.needs = _NEEDS[config.objective]
        self.frame_gap = config.frame_gap
        self.frame_step = config.frame_step
        self.rounds = config.rounds if self.needs == "own_labels" else 0
        prior = 0.5 if config.objective == "literal" else OBJECTNESS_PRIOR
        self.appearance = AppearanceNetwork(NETWORKS[config.preset], objectness_prior=prior)
        self.motion: MotionNetwork | CostFeatures | None = None
        self.segment_motion: SegmentMotion | ArgminMotion | None = None
        if config.objective == "literal" and config.segment_motion == "mlp":
            self.motion = MotionNetwork(config.search_range)
            self.segment_motion = SegmentMotion(self.motion.channels)
        elif config.objective == "literal":
            self.motion, self.segment_motion = CostFeatures(), ArgminMotion()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 16 for the literal objective, else detector losses, em's M-step: named scalars with "total"."""
        return self._photometric_loss(batch) if self.needs == "pairs" else self._label_loss(batch)

    @torch.no_grad()
    def infer(self, batch: Batch, *, with_network: bool) -> list[Instances]:
        """em's E-step: see `Segmenter.infer`."""
        if batch.frame_before is None:
            raise ValueError("this objective infers from three frames, and the batch has no frame before")
        proposed = self._best_proposals(self.appearance(batch.frame_a)) if with_network else None
        model = self.config.motion_model
        return find_instances(batch.frame_a, batch.frame_b, batch.frame_before, proposed, motion_model=model)

    def propose(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Masks times objectness (B, K, H, W) in [0, 1] and objectness logits (B, K) of the top K proposals.

        Differentiable in everything, the boxes included. K is top_k, or all proposals where there are fewer.
        """
        masks, regions, logits = self._propose_regions(images)
        return paste_masks(masks, regions, (images.shape[2], images.shape[3])), logits

    def _propose_regions(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `propose`, before pasting: masks (B, K, S, S), their regions (B, K, 4) and logits (B, K)."""
        proposals = self.appearance(images)
        logits, index = proposals.logits.topk(min(self.config.top_k, proposals.logits.shape[1]), dim=1)  # (B, K)
        boxes = proposals.boxes.gather(1, index[..., None].expand(-1, -1, 4))  # (B, K, 4)
        regions = self.appearance.regions(boxes)
        mask_logits = self.appearance.mask_logits(proposals.mask_features, regions.unbind(0))
        masks = mask_logits.sigmoid().view(*index.shape, *mask_logits.shape[1:])  # (B, K, S, S)
        # Eq. 3 multiplies by these: the text calls both logits and uses both as probabilities. Pasting is linear.
        return masks * logits.sigmoid()[..., None, None], regions, logits

    @torch.no_grad()
    def predict(
        self, images: Tensor, *, score_threshold: float | None = None, output_size: tuple[int, int] | None = None
    ) -> list[Instances]:
        """Section 3.8 for each of `images` (B, 3, H, W) RGB in [0, 1]: see `Segmenter.predict`.

        Objectness and box NMS choose at most top_k proposals, masks are thresholded, empty ones dropped. With
        score_with_mask the threshold holds for the product, too. Boxes are cut at the image's border.
        """
        if len(images) == 0:
            return []
        threshold = self.config.score_threshold if score_threshold is None else score_threshold
        proposals = self.appearance(images)
        chosen = [
            _select(boxes, scores, threshold, self.config.nms_iou, self.config.top_k)
            for boxes, scores in zip(proposals.boxes.float(), proposals.logits.sigmoid(), strict=True)
        ]
        boxes = [image_boxes[kept] for image_boxes, kept in zip(proposals.boxes, chosen, strict=True)]
        regions = [self.appearance.regions(image_boxes) for image_boxes in boxes]
        masks = self.appearance.mask_logits(proposals.mask_features, regions).sigmoid()
        masks_by_image = masks.split([len(kept) for kept in chosen])
        return [
            self._finish(image_boxes, image_scores[kept].sigmoid(), image_masks, proposals, threshold, output_size)
            for image_boxes, image_scores, image_masks, kept in zip(
                boxes, proposals.logits, masks_by_image, chosen, strict=True
            )
        ]

    def _finish(
        self,
        boxes: Tensor,
        scores: Tensor,
        masks: Tensor,
        proposals: Proposals,
        threshold: float,
        output_size: tuple[int, int] | None,
    ) -> Instances:
        """One image's chosen proposals, masks (N, S, S) probabilities, as instances at the output's size."""
        size = output_size or proposals.image_size
        boxes = scale_boxes(boxes, proposals.image_size, size)
        if self.config.score_with_mask:
            scores = scores * mask_certainty(masks, self.config.mask_threshold)
        full = paste_binary(masks, self.appearance.regions(boxes), size, self.config.mask_threshold)
        boxes = mask_extents(full) if self.config.box_from_mask else clip_boxes(boxes, size)
        found = Instances(boxes, scores, full)[(scores >= threshold) & full.flatten(1).any(1)]
        if not self.config.box_from_mask:
            return found[torch.argsort(found.scores, descending=True, stable=True)]
        # Again, because boxes that differed may hold the same mask.
        return found[nms(found.boxes, found.scores, self.config.nms_iou)]

    def _label_loss(self, batch: Batch) -> dict[str, Tensor]:
        if batch.labels is None:
            raise ValueError("this objective learns from labels, and the batch has none")
        proposals = self.appearance(batch.frame_a)
        return label_loss(
            proposals,
            batch.labels,
            self.appearance,
            batch.whole,
        )

    @torch.no_grad()
    def _best_proposals(self, proposals: Proposals) -> Proposed:
        """What the network is most certain of, EM_PROPOSALS an image, whatever their objectness."""
        logits = proposals.logits.detach()
        index = torch.stack(
            [_best_apart(boxes, scores) for boxes, scores in zip(proposals.boxes.detach().float(), logits, strict=True)]
        )
        regions = self.appearance.regions(proposals.boxes.detach().gather(1, index[..., None].expand(-1, -1, 4)))
        masks = self.appearance.mask_logits(proposals.mask_features.detach(), regions.unbind(0)).sigmoid()
        pasted = paste_masks(masks.view(*index.shape, *masks.shape[1:]), regions, proposals.image_size)
        return Proposed(pasted, logits.gather(1, index).sigmoid())

    def _photometric_loss(self, batch: Batch) -> dict[str, Tensor]:
        assert self.motion is not None
        assert self.segment_motion is not None
        masks, regions, logits = self._propose_regions(torch.cat((batch.frame_a, batch.frame_b)))
        size = (batch.frame_a.shape[2], batch.frame_a.shape[3])
        # Each half is pasted alone: splitting afterwards would join their gradients, the largest of all, by a copy.
        masks_a, masks_b = (paste_masks(*half, size) for half in zip(masks.chunk(2), regions.chunk(2), strict=True))
        logits_a, logits_b = logits.chunk(2)
        return mosis_loss(
            batch.frame_a,
            batch.frame_b,
            masks_a,
            masks_b,
            logits_a,
            logits_b,
            self.motion,
            self.segment_motion,
            objectness_target=self.config.objectness_target,
            warp_direction=self.config.warp_direction,
            target_normalisation=self.config.target_normalisation,
            error_scale=self.config.error_scale,
            photometric=self.config.photometric,
            lambda_obj=self.config.lambda_obj,
        )


def _best_apart(boxes: Tensor, logits: Tensor) -> Tensor:
    """EM_PROPOSALS indices, best first, whose boxes (A, 4) overlap little; the last repeated to make up the number."""
    top = logits.topk(min(8 * EM_PROPOSALS, len(logits))).indices
    kept = top[nms(boxes[top], logits[top], EM_NMS)[:EM_PROPOSALS]]
    return torch.cat((kept, kept[-1:].expand(EM_PROPOSALS - len(kept))))


def _select(boxes: Tensor, scores: Tensor, threshold: float, iou: float, most: int) -> Tensor:
    """Indices, best first, of at most `most` boxes (A, 4) whose scores (A,) reach the threshold and survive NMS."""
    candidates = torch.nonzero(scores >= threshold)[:, 0]
    candidates = candidates[torch.argsort(scores[candidates], descending=True, stable=True)[:CANDIDATES]]
    return candidates[nms(boxes[candidates], scores[candidates], iou)[:most]]


def mask_certainty(masks: Tensor, threshold: float) -> Tensor:
    """Mean probability of the cells above the threshold: masks (N, S, S) -> (N,) in [0, 1], 0 where none is above."""
    inside = masks > threshold
    return (masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
