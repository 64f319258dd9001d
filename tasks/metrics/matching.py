"""How well the detections of one frame fit its truth, for finding the frames worth looking at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pycocotools import mask as coco_mask

from tasks.formats.rle import RLE


class FrameFit(NamedTuple):
    """Ordered from worst to best: f1 in [0, 1], 1 where nothing is found and nothing is there; `worst_error` is minus
    the score of the most confident detection that fits nothing, 0 where there is none.
    """

    f1: float
    worst_error: float


def fit_frame(found: Sequence[RLE], scores: Sequence[float], truth: Sequence[RLE], *, iou: float = 0.5) -> FrameFit:
    """Greedy matching by falling score at one mask IoU, as COCO does it."""
    if not found or not truth:
        return FrameFit(float(not found and not truth), -max(scores, default=0.0))
    overlaps = coco_mask.iou(list(found), list(truth), [0] * len(truth))  # (N, M)
    taken: set[int] = set()
    unmatched = 0.0
    for index in sorted(range(len(found)), key=lambda i: -scores[i]):
        free = [(overlaps[index, number], number) for number in range(len(truth)) if number not in taken]
        best, number = max(free, default=(0.0, -1))
        if best >= iou:
            taken.add(number)
        else:
            unmatched = max(unmatched, scores[index])
    return FrameFit(2 * len(taken) / (len(found) + len(truth)), -unmatched)
