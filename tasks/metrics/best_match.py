"""Best-match IoU and AR: what is found of the objects that the truth names, where it does not name all of them.

A detection that fits no true object may well be an object: it costs nothing, so that these figures say nothing of
precision. Each true object is compared with the detection that fits it best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from tasks.metrics.coco import Encoded
from tasks.metrics.coco_engine import IOU_THRESHOLDS, MAX_DETECTIONS


class BestMatchEvaluator:
    """Collects images one by one; keeps a few numbers of each true object."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._best: list[np.ndarray] = []

    @property
    def objects(self) -> int:
        return sum(len(best) for best in self._best)

    def process(self, found: Encoded, truth: Encoded, *, score_cut: float = 0.0) -> None:
        """Add one image, masks of the same size. score_cut: see `evaluate`."""
        confident = int((found.scores >= score_cut).sum())
        self._best.append(best_ious(found, truth, (*MAX_DETECTIONS, confident)))

    def evaluate(self) -> dict[str, float | None]:
        """Figures over all true objects of all images, None where there are none.

        best_iou: mean IoU of the best match among the detections that score the cut or more. recall_50: share of
        objects with one of .5 or more there. AR1, AR10, AR100: share of objects met by the 1, 10 and 100 surest
        detections of the image, of any score, mean over IoU .5, .55, ... .95.
        """
        keys = (*(f"AR{most}" for most in MAX_DETECTIONS), "best_iou", "recall_50")
        if not self.objects:
            return dict.fromkeys(keys)
        best = np.concatenate(self._best)
        confident = best[:, -1]
        recalls = (best[:, :-1, None] >= IOU_THRESHOLDS).mean((0, 2))
        values = (*recalls.tolist(), float(confident.mean()), float((confident >= 0.5).mean()))
        return dict(zip(keys, values, strict=True))


def best_ious(found: Encoded, truth: Encoded, counts: Sequence[int]) -> np.ndarray:
    """(M, K) float64: the best IoU of each true mask among the surest detections, as many as each of `counts` says."""
    best = np.zeros((len(truth), len(counts)))
    if len(found) and len(truth):
        ious = coco_mask.iou(found.ranked().rles, truth.rles, [0] * len(truth))  # (N, M)
        for column, most in enumerate(counts):
            best[:, column] = ious[:most].max(0, initial=0)
    return best
