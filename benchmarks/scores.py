"""Scores of detections as the tables show them: AP with and without the thesis' cut, recall by what an object does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from models.common.images import to_tensor
from models.common.instances import Instances
from models.interface import Segmenter
from tasks.frames import FrameStore
from tasks.metrics.coco import CocoEvaluator

FLOOR = 0.02
"""Detections that score less are not counted at all."""
CUT = 0.4
"""s_min of thesis section 3.8."""
SHOWN = ("AP", "AP50", "AP75", "AR100")
_BATCH = 16

Scores = dict[str, dict[str, float | None]]


def predict(
    model: Segmenter, store: FrameStore, rows: np.ndarray, *, device: torch.device, dtype: torch.dtype | None
) -> list[Instances]:
    """What `model` finds in frames `rows`, scores from FLOOR on, on the CPU. Leaves the model in evaluation mode."""
    model.eval()
    found: list[Instances] = []
    for start in range(0, len(rows), _BATCH):
        images = to_tensor(store.gather(rows[start : start + _BATCH]), device)
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            instances = model.predict(images, score_threshold=FLOOR)
        found += [Instances(i.boxes.float(), i.scores.float(), i.masks).to("cpu") for i in instances]
    return found


def score(found: list[Instances], truth: list[Instances]) -> Scores:
    """{"mask": {AP, AP50, AP75, AR100}, "box": ..., "mask_at_cut": ..., "box_at_cut": ...}; None: nothing to score."""
    evaluator = CocoEvaluator()
    for image, (detections, expected) in enumerate(zip(found, truth, strict=True)):
        evaluator.process(image, detections, expected)
    scores: Scores = {}
    for suffix, cut in (("", None), ("_at_cut", CUT)):
        for kind, values in evaluator.evaluate(score_cut=cut).items():
            scores[f"{kind}{suffix}"] = {name: values[name] for name in SHOWN}
    return scores


def recall_by_motion(found: list[Instances], truth: list[Instances], still: list[np.ndarray]) -> dict[str, Any]:
    """Share of true masks met by a detection at IoU above .5, apart for those that stand still and those that move.

    still: per image (N,) bool, which of its true instances stand still. {"still": {"instances", "recall_50",
    "recall_50_at_cut"}, "moving": ...}; a recall of no instance is None.
    """
    flags = np.concatenate([np.zeros(0, bool), *still])
    best = [_best_iou(one, expected) for one, expected in zip(found, truth, strict=True)]
    sure = [_best_iou(one[one.scores >= CUT], expected) for one, expected in zip(found, truth, strict=True)]
    met, met_at_cut = (np.concatenate([np.zeros(0), *values]) > 0.5 for values in (best, sure))
    return {
        name: {
            "instances": int(chosen.sum()),
            "recall_50": float(met[chosen].mean()) if chosen.any() else None,
            "recall_50_at_cut": float(met_at_cut[chosen].mean()) if chosen.any() else None,
        }
        for name, chosen in (("still", flags), ("moving", ~flags))
    }


def _best_iou(found: Instances, truth: Instances) -> np.ndarray:
    """(M,) for each true mask the IoU of the detection that fits it best, 0 where there is none."""
    best: np.ndarray = iou_table(found.masks, truth.masks).max(0, initial=0)
    return best


def iou_table(found: torch.Tensor, expected: torch.Tensor) -> np.ndarray:
    """(N, M) float IoU of masks (N, H, W) and (M, H, W) bool."""
    one, other = found.flatten(1).float(), expected.flatten(1).float()
    shared = one @ other.T
    union = one.sum(1)[:, None] + other.sum(1)[None] - shared
    return np.asarray((shared / union.clamp(min=1)).numpy())
