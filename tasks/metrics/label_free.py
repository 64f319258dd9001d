"""What can be said of detections in video without any truth."""

from __future__ import annotations

import cv2
import numpy as np

from models.common.instances import Instances
from models.motion_labels.motion import warp
from tasks.linking import WORK_SIDE, shrink_masks, soft_iou
from tasks.optical_flow import estimate_flow, limit_side


class LabelFreeEvaluator:
    """Collects detections frame by frame; hand it only those that would be used, above the score cut."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._counts: list[int] = []
        self._coverage: list[float] = []
        self._scores: list[float] = []
        self._overlaps: list[float] = []
        self._previous: tuple[np.ndarray, np.ndarray] | None = None

    def process(self, frame: np.ndarray, found: Instances, *, follows: bool) -> None:
        """frame: (H, W, 3) uint8 RGB. follows: whether it comes right after the frame given before, in one clip."""
        self._counts.append(len(found))
        self._scores += found.scores.tolist()
        covered = found.masks.any(0) if len(found) else None
        self._coverage.append(0.0 if covered is None else float(covered.float().mean()))
        size = limit_side((frame.shape[0], frame.shape[1]), WORK_SIDE)
        small = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_AREA)
        masks = shrink_masks(found.masks, size)
        if follows and self._previous is not None and len(self._previous[1]):
            self._overlaps += _overlaps(*self._previous, small, masks)
        self._previous = (small, masks)

    def evaluate(self) -> dict[str, float | None]:
        """Figures over all frames, None where nothing was given.

        instances_per_frame; empty_share: of frames without any; mean_score: over instances; coverage: mean share of
        pixels in any mask; temporal_iou: mean, over instances with a next frame, of the best mask IoU that optical
        flow brings them to there.
        """
        counts = np.array(self._counts)
        return {
            "instances_per_frame": _mean(counts),
            "empty_share": _mean(counts == 0),
            "mean_score": _mean(np.array(self._scores)),
            "coverage": _mean(np.array(self._coverage)),
            "temporal_iou": _mean(np.array(self._overlaps)),
        }


def _overlaps(previous: np.ndarray, masks: np.ndarray, frame: np.ndarray, found: np.ndarray) -> list[float]:
    """Best IoU of each of the previous frame's masks, brought to this frame, with a mask found here."""
    if len(found) == 0:
        return [0.0] * len(masks)
    flow_uv = estimate_flow(frame, previous)
    carried = np.stack([warp(mask, flow_uv, border=cv2.BORDER_CONSTANT) for mask in masks])
    best: list[float] = soft_iou(carried, found).max(1).tolist()
    return best


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
