"""What can be said of detections in video without any truth."""

from __future__ import annotations

import numpy as np

from models.common.instances import Instances
from tasks.quality import Seen, compare, shrink


class LabelFreeEvaluator:
    """Collects detections frame by frame; hand it only those that would be used, above the score cut."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._counts: list[int] = []
        self._coverage: list[float] = []
        self._scores: list[float] = []
        self._overlaps: list[float] = []
        self._gains: list[float] = []
        self._previous: Seen | None = None

    def process(self, frame: np.ndarray, found: Instances, *, follows: bool) -> None:
        """frame: (H, W, 3) uint8 RGB. follows: whether it comes right after the frame given before, in one clip."""
        self._counts.append(len(found))
        self._scores += found.scores.tolist()
        covered = found.masks.any(0) if len(found) else None
        self._coverage.append(0.0 if covered is None else float(covered.float().mean()))
        seen = shrink(frame, found)
        if follows and self._previous is not None:
            fit = compare(seen, self._previous)
            self._overlaps += fit.overlap.max(1, initial=0).tolist()
            self._gains += fit.photometric_gain[np.isfinite(fit.photometric_gain)].tolist()
        self._previous = seen

    def evaluate(self) -> dict[str, float | None]:
        """Figures over all frames, None where nothing was given.

        instances_per_frame; empty_share: of frames without any; mean_score: over instances; coverage: mean share of
        pixels in any mask; temporal_iou: mean, over instances with a next frame, of the best mask IoU that optical
        flow brings them to there; photometric_gain: mean, over instances with a frame before, of how much better the
        motion of the segment explains its pixels than that of the background, in [-1, 1] (`tasks.quality`).
        """
        counts = np.array(self._counts)
        return {
            "instances_per_frame": _mean(counts),
            "empty_share": _mean(counts == 0),
            "mean_score": _mean(np.array(self._scores)),
            "coverage": _mean(np.array(self._coverage)),
            "temporal_iou": _mean(np.array(self._overlaps)),
            "photometric_gain": _mean(np.array(self._gains)),
        }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
