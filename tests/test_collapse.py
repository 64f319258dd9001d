"""Predictions that have degenerated are named."""

from __future__ import annotations

import pytest
import torch

from models.common.instances import Instances
from tasks.errors import CollapseError
from tasks.training.collapse import CollapseWatch, describe, diagnose

pytestmark = pytest.mark.usefixtures("one_thread")


def mask_at(y: int, x: int, side: int, score: float = 0.9, size: int = 20) -> Instances:
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[0, y : y + side, x : x + side] = True
    return Instances.from_masks(mask, torch.tensor([score]))


def test_description_counts_confident_detections() -> None:
    stats = describe([mask_at(0, 0, 10), mask_at(0, 0, 10, score=0.3), Instances.empty(20, 20)])
    assert stats.images == 3
    assert stats.instances_per_image == pytest.approx(1 / 3)
    assert stats.coverage == pytest.approx(0.25 / 3)
    assert stats.best_score == pytest.approx(0.9)
    assert stats.main_alike is None  # too few images to judge
    assert diagnose(describe([]), 1.0) is None


def test_health_is_left_alone() -> None:
    healthy = describe([mask_at(i, 2 * i, 6) for i in range(5)])
    early = describe([mask_at(0, 0, 6, score=0.01) for _ in range(5)])
    assert diagnose(healthy, 1.0) is None
    assert diagnose(early, 0.25) is None
    assert diagnose(describe([mask_at(0, 0, 20)] * 5), 0.1) is None


@pytest.mark.parametrize(("predictions", "reason"), [
    ([Instances.empty(20, 20)] * 5, "nothing anywhere"),
    ([mask_at(0, 0, 6, score=0.01)] * 5, "nothing anywhere: the best score is 0.010"),
    ([mask_at(0, 0, 20)] * 2, "one mask for everything: the best mask covers 100%"),
    ([mask_at(4, 4, 6)] * 4, "the same mask on every image"),
])  # fmt: skip
def test_collapse_is_named(predictions: list[Instances], reason: str) -> None:
    found = diagnose(describe(predictions), 0.5)
    assert found is not None
    assert found.startswith(reason)


def test_one_good_validation_ends_a_streak() -> None:
    bad, good = describe([Instances.empty(20, 20)]), describe([mask_at(0, 0, 6)])
    watch = CollapseWatch(patience=3)
    for iteration, stats in ((50, bad), (60, bad), (70, good), (80, bad), (90, bad)):
        watch.see(stats, iteration, 100)
    with pytest.raises(CollapseError, match=r"3 validations in a row.*try a lower train\.learning_rate"):
        watch.see(bad, 100, 100)
