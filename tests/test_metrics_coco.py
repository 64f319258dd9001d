"""COCO scores against cases worked by hand, an independent implementation, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.common.instances import Instances
from tasks.metrics.coco import CocoEvaluator, evaluate_coco

SIZE = (16, 16)


def squares(*corners: tuple[int, int], side: int = 4, scores: list[float] | None = None) -> Instances:
    """Squares of side^2 pixels with their top left pixel at (row, column)."""
    masks = torch.zeros(len(corners), *SIZE, dtype=torch.bool)
    for mask, (row, column) in zip(masks, corners, strict=True):
        mask[row : row + side, column : column + side] = True
    return Instances.from_masks(masks, None if scores is None else torch.tensor(scores))


NOTHING = Instances.empty(*SIZE)


def test_one_perfect_detection_scores_one_everywhere_it_counts() -> None:
    for scores in evaluate_coco([squares((2, 2), scores=[0.9])], [squares((2, 2))]).values():
        assert scores["APm"] is None
        assert scores["APl"] is None
        assert [scores[key] for key in ("AP", "AP50", "AP75", "APs", "AR1", "AR10", "AR100")] == pytest.approx([1] * 7)


def test_a_false_positive_ranked_first_halves_precision() -> None:
    found = squares((10, 10), (2, 2), scores=[0.9, 0.8])
    mask = evaluate_coco([found], [squares((2, 2))])["mask"]
    # One true positive at rank two: precision 1/2 at recall 1 and, interpolated, at every recall below.
    assert mask["AP50"] == pytest.approx(0.5)
    assert mask["AR1"] == 0
    assert mask["AR10"] == 1


def test_a_miss_halves_recall() -> None:
    mask = evaluate_coco([squares((2, 2), scores=[0.9])], [squares((2, 2), (10, 10))])["mask"]
    # Precision 1 up to recall .5: 51 of the 101 recalls 0, .01, ... 1.
    assert mask["AP50"] == pytest.approx(51 / 101)
    assert mask["AR100"] == pytest.approx(0.5)


def test_a_duplicate_is_a_false_positive_but_costs_nothing_behind_full_recall() -> None:
    twice = squares((2, 2), (2, 2), scores=[0.9, 0.8])
    assert evaluate_coco([twice], [squares((2, 2))])["mask"]["AP50"] == pytest.approx(1)
    # With a second object found last, the duplicate stands before it: precision 2/3 for the upper 50 recalls.
    found = squares((2, 2), (2, 2), (10, 10), scores=[0.9, 0.8, 0.7])
    mask = evaluate_coco([found], [squares((2, 2), (10, 10))])["mask"]
    assert mask["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_iou_decides_which_thresholds_count() -> None:
    # 4 x 4 against the same moved by one column: 12 / 20 = .6, so three of the ten thresholds .5, .55, .6.
    mask = evaluate_coco([squares((2, 3), scores=[0.9])], [squares((2, 2))])["mask"]
    assert mask["AP50"] == pytest.approx(1)
    assert mask["AP75"] == 0
    assert mask["AP"] == pytest.approx(0.3)


def test_boxes_and_masks_are_scored_apart() -> None:
    truth = squares((2, 2))
    hollow = truth.masks.clone()
    hollow[0, 3:5, 3:5] = False
    scores = evaluate_coco([Instances(truth.boxes, torch.tensor([0.9]), hollow)], [truth])
    assert scores["box"]["AP"] == pytest.approx(1)
    assert scores["mask"]["AP"] == pytest.approx(0.6)  # 12 / 16 = .75: thresholds .5 to .75


def test_size_bins_go_by_pixels_of_the_truth() -> None:
    masks = torch.zeros(1, 128, 128, dtype=torch.bool)
    masks[0, :40, :40] = True  # 1600 pixels: medium
    truth = Instances.from_masks(masks)
    scores = evaluate_coco([truth], [truth])["mask"]
    assert (scores["APs"], scores["APl"]) == (None, None)
    assert scores["APm"] == pytest.approx(1)


def test_nothing_found_scores_zero_and_nothing_to_find_scores_none() -> None:
    for scores in evaluate_coco([NOTHING], [squares((2, 2))]).values():
        assert (scores["AP"], scores["AP50"], scores["AR100"]) == (0, 0, 0)
    for found in (NOTHING, squares((2, 2), scores=[0.9])):
        for scores in evaluate_coco([found], [NOTHING]).values():
            assert set(scores.values()) == {None}
    for scores in evaluate_coco([], []).values():
        assert set(scores.values()) == {None}


def test_a_frame_without_truth_still_charges_its_false_positives() -> None:
    found = [squares((2, 2), scores=[0.8]), squares((5, 5), scores=[0.9])]
    assert evaluate_coco(found, [squares((2, 2)), NOTHING])["mask"]["AP50"] == pytest.approx(0.5)


def test_the_cut_drops_detections_below_it() -> None:
    evaluator = CocoEvaluator()
    evaluator.process(7, squares((2, 2), (10, 10), scores=[0.9, 0.3]), squares((2, 2), (10, 10)))
    assert evaluator.evaluate()["mask"]["AP50"] == pytest.approx(1)
    assert evaluator.evaluate(score_cut=0.4)["mask"]["AP50"] == pytest.approx(51 / 101)
    assert evaluator.evaluate(score_cut=0.25)["mask"]["AP50"] == pytest.approx(1)


def test_curves_and_what_the_evaluator_says_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = CocoEvaluator()
    evaluator.process(3, squares((2, 2), scores=[0.9]), squares((2, 2), (10, 10)))
    assert (evaluator.images, evaluator.instances) == (1, 2)
    curves = evaluator.curves()
    assert [(curve.kind, curve.iou) for curve in curves] == [("mask", 0.5), ("mask", 0.75), ("box", 0.5), ("box", 0.75)]
    assert curves[0].recall == pytest.approx(np.arange(101) / 100)
    assert curves[0].precision == pytest.approx(np.where(np.arange(101) <= 50, 1, 0))
    with pytest.raises(ValueError, match="twice"):
        evaluator.process(3, NOTHING, NOTHING)
    with pytest.raises(ValueError, match="size"):
        evaluator.process(4, Instances.empty(8, 8), NOTHING)
    evaluator.reset()
    assert (evaluator.images, evaluator.curves()) == (0, [])
    assert capsys.readouterr().out == ""


def random_images(seed: int) -> tuple[list[Instances], list[Instances]]:
    """Six images with up to four objects each, detections shifted, missed, doubled and invented."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(6):
        objects = [(int(r), int(c)) for r, c in rng.integers(0, 12, (rng.integers(0, 5), 2))]
        shifts = rng.integers(-1, 2, (len(objects), 2))
        guesses = [
            (int(np.clip(r + y, 0, 12)), int(np.clip(c + x, 0, 12)))
            for (r, c), (y, x) in zip(objects, shifts, strict=True)
        ]
        guesses += [(int(r), int(c)) for r, c in rng.integers(0, 12, (rng.integers(0, 3), 2))]
        truth.append(squares(*objects) if objects else NOTHING)
        found.append(squares(*guesses, scores=rng.random(len(guesses)).tolist()) if guesses else NOTHING)
    return found, truth


def average_precision(found: list[Instances], truth: list[Instances], iou: float) -> float:
    """AP of masks written from the definition: greedy by score, 101 recalls, interpolated precision."""
    ranked = sorted(
        ((float(score), image, index) for image, f in enumerate(found) for index, score in enumerate(f.scores)),
        reverse=True,
    )
    taken: set[tuple[int, int]] = set()
    hits = []
    for _, image, index in ranked:
        overlaps = {
            number: float((found[image].masks[index] & mask).sum() / (found[image].masks[index] | mask).sum())
            for number, mask in enumerate(truth[image].masks)
            if (image, number) not in taken
        }
        best = max(overlaps, key=lambda number: (overlaps[number], number), default=None)
        hits.append(best is not None and overlaps[best] >= iou)
        if hits[-1]:
            taken.add((image, int(best)))  # type: ignore[arg-type]
    positives = np.cumsum(hits)
    recall = positives / sum(len(t) for t in truth)
    precision = positives / np.arange(1, len(hits) + 1)
    return float(np.mean([max(precision[recall >= r - 1e-12], default=0) for r in np.linspace(0, 1, 101)]))


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_an_independent_implementation(seed: int) -> None:
    found, truth = random_images(seed)
    mask = evaluate_coco(found, truth)["mask"]
    assert mask["AP50"] == pytest.approx(average_precision(found, truth, 0.5), abs=1e-9)
    assert mask["AP75"] == pytest.approx(average_precision(found, truth, 0.75), abs=1e-9)


def test_order_of_images_and_of_instances_does_not_matter() -> None:
    found, truth = random_images(9)
    reference = evaluate_coco(found, truth)
    shuffled_found = [f[torch.randperm(len(f), generator=torch.Generator().manual_seed(1))] for f in found[::-1]]
    shuffled_truth = [t[torch.arange(len(t) - 1, -1, -1)] for t in truth[::-1]]
    again = evaluate_coco(shuffled_found, shuffled_truth)
    for kind, scores in reference.items():
        assert list(again[kind].values()) == pytest.approx(list(scores.values()))
