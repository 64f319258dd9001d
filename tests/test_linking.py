"""Tracks of textured squares whose way a hand can follow, and label-free figures of the same."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from models.common.instances import Instances
from tasks.linking import TrackLinker, match_masks, soft_iou
from tasks.metrics.label_free import LabelFreeEvaluator

SIDE, SQUARE = 96, 20


def texture(seed: int, side: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 1.5), None, 0, 255, cv2.NORM_MINMAX)


BACKGROUND = texture(0, SIDE) // 3
Places = list[tuple[int, int]]


def draw(places: Places, found: list[int] | None = None) -> tuple[np.ndarray, Instances]:
    """Square i with its top left pixel at places[i] = (row, column); `found` says which of them are detected."""
    frame = BACKGROUND.copy()
    masks = torch.zeros(len(places), SIDE, SIDE, dtype=torch.bool)
    for index, (row, column) in enumerate(places):
        frame[row : row + SQUARE, column : column + SQUARE] = texture(index + 1, SQUARE)
        masks[:index, row : row + SQUARE, column : column + SQUARE] = False
        masks[index, row : row + SQUARE, column : column + SQUARE] = True
    return frame, Instances.from_masks(masks)[list(range(len(places))) if found is None else found]


def ids(linker: TrackLinker, places: Places, found: list[int] | None = None) -> list[int]:
    linked = linker.link(*draw(places, found))
    assert linked.track_ids is not None
    return linked.track_ids.tolist()


def test_two_squares_that_cross_keep_their_identities() -> None:
    linker = TrackLinker(min_iou=0.3)
    # The second passes in front: at most 12 x 12 of the first one's 20 x 20 pixels are hidden.
    seen = [ids(linker, [(10 + 2 * t, 40), (40, 26 + 2 * t)]) for t in range(24)]
    assert seen == [[1, 2]] * 24


def test_fast_motion_is_followed_because_masks_are_warped() -> None:
    # 12 of 20 pixels a frame: the masks of two frames overlap by 8 / 32 = .25 only.
    assert [ids(TrackLinker(min_iou=0.5), [(30, 4 + 12 * t)]) for t in range(2)] == [[1], [1]]
    linker = TrackLinker(min_iou=0.5)
    assert [ids(linker, [(30, 4 + 12 * t)]) for t in range(5)] == [[1]] * 5


def test_identities_do_not_depend_on_the_order_of_detections() -> None:
    linker = TrackLinker(min_iou=0.3)
    assert ids(linker, [(10, 10), (60, 60)]) == [1, 2]
    assert ids(linker, [(10, 12), (60, 58)], [1, 0]) == [2, 1]


@pytest.mark.parametrize(("missed", "expected"), [(1, [1]), (2, [1]), (3, [2])])
def test_a_track_survives_a_gap_of_two_frames_and_not_of_three(missed: int, expected: list[int]) -> None:
    linker = TrackLinker(min_iou=0.3, max_gap=2)
    for t in range(3):
        assert ids(linker, [(30, 10 + 4 * t)]) == [1]
    for t in range(3, 3 + missed):
        assert ids(linker, [(30, 10 + 4 * t)], []) == []
    assert ids(linker, [(30, 10 + 4 * (3 + missed))]) == expected


def test_what_appears_elsewhere_is_new() -> None:
    linker = TrackLinker(min_iou=0.3, first_id=7)
    assert ids(linker, [(10, 10)]) == [7]
    assert ids(linker, [(10, 10), (60, 60)]) == [7, 8]
    assert linker.next_id == 9


def test_a_clip_without_any_instance() -> None:
    linker = TrackLinker(min_iou=0.3)
    for _ in range(4):
        linked = linker.link(BACKGROUND, Instances.empty(SIDE, SIDE))
        assert linked.track_ids is not None
        assert linked.track_ids.shape == (0,)
        assert linked.track_ids.dtype == torch.int64
    assert linker.next_id == 1


def test_large_and_tiny_frames() -> None:
    for size in ((600, 800), (7, 5), (1, 1)):
        linker = TrackLinker(min_iou=0.3)
        frame = np.zeros((*size, 3), np.uint8)
        everything = Instances.from_masks(torch.ones(1, *size, dtype=torch.bool))
        assert [linker.link(frame, everything).track_ids.tolist() for _ in range(3)] == [[1]] * 3  # type: ignore[union-attr]


def test_assignment_is_by_total_overlap_and_ignores_what_cannot_match() -> None:
    masks_a = np.zeros((2, 1, 10), np.float32)
    masks_b = np.zeros((2, 1, 10), np.float32)
    masks_a[0, 0, 0:4] = 1
    masks_a[1, 0, 2:6] = 1
    masks_b[0, 0, 1:5] = 1  # IoU .6 with both
    masks_b[1, 0, 2:6] = 1  # IoU 1 with the second, 1/3 with the first
    assert soft_iou(masks_a, masks_b) == pytest.approx(np.array([[0.6, 1 / 3], [0.6, 1]]))
    assert match_masks(masks_a, masks_b, 0.5) == {0: 0, 1: 1}
    assert match_masks(masks_a, masks_b, 0.9) == {1: 1}
    assert match_masks(masks_a[:0], masks_b, 0.5) == {}
    assert soft_iou(np.zeros((1, 2, 2)), np.zeros((1, 2, 2))).tolist() == [[0]]


def test_label_free_figures_by_hand() -> None:
    evaluator = LabelFreeEvaluator()
    assert set(evaluator.evaluate().values()) == {None}
    frame, found = draw([(30, 10), (60, 60)])
    evaluator.process(frame, found.with_scores(torch.tensor([0.9, 0.5])), follows=False)
    evaluator.process(*draw([(30, 10), (60, 60)], [0]), follows=True)
    evaluator.process(*draw([], []), follows=False)
    figures = evaluator.evaluate()
    assert figures["instances_per_frame"] == pytest.approx(1)
    assert figures["empty_share"] == pytest.approx(1 / 3)
    assert figures["mean_score"] == pytest.approx((0.9 + 0.5 + 1) / 3)
    assert figures["coverage"] == pytest.approx((2 + 1 + 0) * SQUARE**2 / SIDE**2 / 3)
    # Of two masks one is found again in place; the third frame follows nothing.
    assert figures["temporal_iou"] == pytest.approx(0.5, abs=0.02)


def test_temporal_overlap_counts_what_vanishes_and_follows_motion() -> None:
    moving = LabelFreeEvaluator()
    for t in range(4):
        moving.process(*draw([(30, 10 + 5 * t)]), follows=t > 0)
    assert (moving.evaluate()["temporal_iou"] or 0) > 0.85
    vanishing = LabelFreeEvaluator()
    vanishing.process(*draw([(30, 10)]), follows=False)
    vanishing.process(*draw([(30, 10)], []), follows=True)
    assert vanishing.evaluate()["temporal_iou"] == 0
