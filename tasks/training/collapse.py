"""Early detection of trainings that have degenerated, from what the model predicts on validation images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.common.instances import Instances
from tasks.errors import CollapseError

FAINT = 0.05
"""A best score below this on every image counts as nothing anywhere."""
CONFIDENT = 0.4
"""Detections from this score on are the ones that reports count: the thesis' s_min."""
FULL_COVER = 0.9
ALIKE_IOU = 0.95
NOTHING_GRACE = 0.25
"""Share of the training in which seeing nothing is healthy: scores start low and rise."""
MASK_GRACE = 0.1


@dataclass(frozen=True)
class PredictionStats:
    """Label-free description of predictions on some images.

    instances_per_image, coverage: of confident detections; coverage is the mean share of an image under their masks.
    best_score: highest score anywhere, 0 if there is no detection.
    main_cover: mean share of the image under each image's best mask, over images that have one.
    main_alike: intersection over union of all images' best masks, None where fewer than four images have one.
    """

    images: int
    instances_per_image: float
    coverage: float
    best_score: float
    main_cover: float
    main_alike: float | None


def describe(predictions: Sequence[Instances]) -> PredictionStats:
    """Measure predictions made with a low score threshold, best score first in each image."""
    confident = [instances[instances.scores >= CONFIDENT] for instances in predictions]
    mains = [p.masks[p.scores.argmax()] for p in predictions if len(p) and float(p.scores.max()) >= FAINT]
    return PredictionStats(
        images=len(predictions),
        instances_per_image=_mean([len(instances) for instances in confident]),
        coverage=_mean([_covered(instances) for instances in confident]),
        best_score=max((float(p.scores.max()) for p in predictions if len(p)), default=0.0),
        main_cover=_mean([float(mask.float().mean()) for mask in mains]),
        main_alike=_alike(mains) if len(mains) >= 4 else None,
    )


def diagnose(stats: PredictionStats, progress: float) -> str | None:
    """Why these predictions are degenerate, or None. progress: share of the training done, in [0, 1]."""
    if not stats.images:
        return None
    if stats.best_score < FAINT:
        return None if progress <= NOTHING_GRACE else f"nothing anywhere: the best score is {stats.best_score:.3f}"
    if progress <= MASK_GRACE:
        return None
    if stats.main_cover > FULL_COVER:
        return f"one mask for everything: the best mask covers {stats.main_cover:.0%} of an image"
    if stats.main_alike is not None and stats.main_alike > ALIKE_IOU:
        return f"the same mask on every image: their common part is {stats.main_alike:.0%} of their union"
    return None


@dataclass
class CollapseWatch:
    """Counts degenerate validations in a row. `streak` is all its state: it goes into a checkpoint."""

    patience: int
    streak: list[str] = field(default_factory=list)

    def see(self, stats: PredictionStats, iteration: int, iterations: int) -> str | None:
        """Take in one validation; returns its fault. Raises CollapseError after `patience` faulty ones in a row."""
        reason = diagnose(stats, iteration / iterations)
        self.streak = [*self.streak, f"iteration {iteration}: {reason}"] if reason else []
        if len(self.streak) >= self.patience:
            raise CollapseError(
                f"training has collapsed, {len(self.streak)} validations in a row ({'; '.join(self.streak)}): "
                "try a lower train.learning_rate, another train.seed, train.method mosis with its objective "
                "motion_labels, or footage in which more moves"
            )
        return reason


def explain_divergence(losses: dict[str, float], iteration: int, learning_rate: float, batch: Path | None) -> str:
    """One line about loss terms that are not finite numbers. batch: the file that keeps what gave them."""
    broken = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
    kept = "" if batch is None else f"; the batch that gave it is kept in {batch}"
    return (
        f"training has diverged by iteration {iteration}: {', '.join(broken)}: lower train.learning_rate "
        f"(now {learning_rate:g}) or train.clip_grad_norm, or set train.precision to float32{kept}"
    )


def _covered(instances: Instances) -> float:
    return float(instances.masks.any(0).float().mean()) if len(instances) else 0.0


def _alike(masks: list[Tensor]) -> float:
    stack = torch.stack(masks)
    union = int(stack.any(0).sum())
    return int(stack.all(0).sum()) / union if union else 1.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
