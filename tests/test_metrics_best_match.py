"""Best-match IoU and AR against cases worked by hand, and against COCO's AR where the two must agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tasks.formats.rle import encode_masks
from tasks.metrics.best_match import BestMatchEvaluator
from tasks.metrics.coco import CocoEvaluator, Encoded

SIZE = (10, 120)
KEYS = ["AR1", "AR10", "AR100", "best_iou", "recall_50"]


def spans(*columns: tuple[int, int], scores: Sequence[float] | None = None) -> Encoded:
    """Each mask the columns from - to of four rows."""
    masks = torch.zeros(len(columns), *SIZE, dtype=torch.bool)
    for mask, (left, right) in zip(masks, columns, strict=True):
        mask[:4, left:right] = True
    boxes = np.array([[left, 0, right, 4] for left, right in columns], dtype=np.float64).reshape(-1, 4)
    return Encoded(boxes, np.ones(len(columns)) if scores is None else np.array(scores), encode_masks(masks))


def score(*images: tuple[Encoded, Encoded], cut: float = 0.0) -> dict[str, float | None]:
    evaluator = BestMatchEvaluator()
    for found, truth in images:
        evaluator.process(found, truth, score_cut=cut)
    return evaluator.evaluate()


def test_hand_worked() -> None:
    truth = spans((0, 10), (20, 30))
    found = spans((0, 10), (22, 30), (50, 60), scores=[0.3, 0.9, 0.95])
    scores = score((found, truth))
    assert list(scores) == KEYS
    assert scores["best_iou"] == pytest.approx((1 + 0.8) / 2)
    assert scores["recall_50"] == 1
    # 8 of 10 columns is met at .5 to .8, seven of the ten thresholds; alone at the top stands what fits nothing.
    assert scores["AR10"] == scores["AR100"] == pytest.approx((1 + 0.7) / 2)
    assert scores["AR1"] == 0


def test_the_cut_leaves_out_what_scores_less_but_not_of_ar() -> None:
    truth, found = spans((0, 10), (20, 30)), spans((0, 10), (22, 30), scores=[0.3, 0.9])
    scores = score((found, truth), cut=0.4)
    assert (scores["best_iou"], scores["recall_50"]) == (pytest.approx(0.4), 0.5)
    assert scores["AR10"] == pytest.approx(0.85)
    assert score((found, truth), cut=0.3)["recall_50"] == 1  # the cut itself is in


def test_detections_that_fit_nothing_cost_nothing() -> None:
    truth = spans((0, 10))
    good = spans((0, 9), scores=[0.9])
    more = spans((0, 9), *((left, left + 5) for left in range(20, 100, 10)), scores=[0.9, *[0.5] * 8])
    assert score((good, truth)) == score((more, truth))


def test_ten_and_a_hundred_are_those_of_an_image() -> None:
    truth = spans((0, 10))
    wrong = [(20 + i % 90, 21 + i % 90) for i in range(99)]
    for rank, expected in ((0, (1, 1, 1)), (9, (0, 1, 1)), (10, (0, 0, 1)), (99, (0, 0, 1))):
        found = spans(*wrong[:rank], (0, 10), *wrong[rank:], scores=np.linspace(1, 0.5, 100).tolist())
        scores = score((found, truth))
        assert (scores["AR1"], scores["AR10"], scores["AR100"]) == expected


def test_exactly_half_is_met() -> None:
    scores = score((spans((0, 5), scores=[0.9]), spans((0, 10))))
    assert (scores["recall_50"], scores["AR1"]) == (1, pytest.approx(0.1))


def test_empty_cases() -> None:
    nothing, one = spans(), spans((0, 10))
    assert score() == score((one, nothing)) == dict.fromkeys(KEYS)
    assert score((nothing, one)) == dict.fromkeys(KEYS, 0)
    assert score((one, one), (one, nothing)) == pytest.approx(dict.fromkeys(KEYS, 1))
    evaluator = BestMatchEvaluator()
    evaluator.process(one, one)
    assert evaluator.objects == 1
    evaluator.reset()
    assert evaluator.objects == 0


def random_image(rng: np.random.Generator) -> tuple[Encoded, Encoded]:
    """Objects that do not overlap, three detections near each, none of two of a score."""
    truth = [(left, left + int(rng.integers(5, 18))) for left in range(0, 100, 20) if rng.random() < 0.7]
    found = [(max(left + int(rng.integers(-3, 4)), 0), right + int(rng.integers(-1, 4))) for left, right in truth * 3]
    return spans(*found, scores=rng.random(len(found)).tolist()), spans(*truth)


@pytest.mark.parametrize("seed", range(4))
def test_ar_is_that_of_coco_where_objects_do_not_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [random_image(rng) for _ in range(5)]
    coco = CocoEvaluator()
    for number, (found, truth) in enumerate(images):
        coco.process_encoded(number, found, truth)
    scores, expected = score(*images), coco.evaluate()["mask"]
    for key in ("AR1", "AR10", "AR100"):
        assert scores[key] == pytest.approx(expected[key])


def test_order_does_not_matter_even_with_tied_scores() -> None:
    truth = spans((0, 10), (20, 30), (40, 50))
    columns = [(0, 10), (21, 30), (40, 47), (60, 70)]
    scores = score((spans(*columns, scores=[0.5] * 4), truth), (spans(), truth))
    again = score((spans(), truth), (spans(*columns[::-1], scores=[0.5] * 4), spans((40, 50), (20, 30), (0, 10))))
    assert scores == pytest.approx(again)
    assert 0 < scores["AR1"] < scores["AR10"]  # type: ignore[operator]
