"""Photometric gain of masks over a textured square whose way a hand can follow, and the figures of whole clips."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from models.common.instances import Instances
from tasks.metrics.label_free import LabelFreeEvaluator
from tasks.quality import ClipQuality, measure_gain

SIDE, SQUARE = 96, 24
TOP = 36
RIGHT_MASK = (TOP, 36, TOP + SQUARE, 36 + SQUARE)


def texture(seed: int, side: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


GROUND, THING = texture(0, 2 * SIDE), texture(1, SQUARE)


def draw(*, column: int, pan: int = 0, square: bool = True) -> np.ndarray:
    """The camera looks at GROUND from `pan` on; a square has its left edge at `column` of the picture, row TOP."""
    frame = np.ascontiguousarray(GROUND[20 : 20 + SIDE, 20 + pan : 20 + pan + SIDE])
    if square:
        frame[TOP : TOP + SQUARE, column : column + SQUARE] = THING
    return frame


def boxes(*places: tuple[int, int, int, int], size: tuple[int, int] = (SIDE, SIDE)) -> Instances:
    """Filled boxes (top, left, bottom, right)."""
    masks = torch.zeros(len(places), *size, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, places, strict=True):
        mask[top:bottom, left:right] = True
    return Instances.from_masks(masks) if len(places) else Instances.empty(*size)


def gains(before: np.ndarray, frame: np.ndarray, found: Instances) -> list[float]:
    clip = ClipQuality()
    clip.add(before, Instances.empty(*found.size))
    return clip.add(frame, found).photometric_gain.tolist()


@pytest.mark.parametrize("pan", [0, 2, -3])
def test_a_mask_gains_by_how_much_of_it_moves_apart_from_the_background(pan: int) -> None:
    # The square goes 4 pixels to the right; a panning camera moves the ground under it by `pan` the other way.
    before, frame = draw(column=32), draw(column=36, pan=pan)
    on_ground = (4, 4, 28, 28)
    half = (TOP, 36 + SQUARE // 2, TOP + SQUARE, 36 + SQUARE + SQUARE // 2)
    right, wrong, ground = (gains(before, frame, boxes(place))[0] for place in (RIGHT_MASK, half, on_ground))
    assert right > 0.8
    assert abs(ground) < 0.1
    assert ground + 0.2 < wrong < right - 0.2


def test_what_stands_still_gains_nothing_whatever_the_camera_does() -> None:
    still = draw(column=36)
    assert gains(still, still, boxes(RIGHT_MASK)) == [0]
    before = draw(column=36, square=False)
    for pan in (0, 1, 3):  # the camera pans alone
        assert abs(gains(before, draw(column=36, pan=pan, square=False), boxes(RIGHT_MASK))[0]) < 0.1
    # The square is a thing on the ground: it moves in the picture as the ground does.
    assert abs(gains(draw(column=40), draw(column=36, pan=4), boxes(RIGHT_MASK))[0]) < 0.1


def test_noise_is_no_motion() -> None:
    rng = np.random.default_rng(2)
    before, frame = (
        np.clip(draw(column=36, square=False) + rng.normal(0, 1, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        for _ in range(2)
    )
    assert abs(gains(before, frame, boxes(RIGHT_MASK))[0]) < 0.1


def test_without_texture_nothing_can_be_told_and_nothing_is_gained() -> None:
    flat = np.full((SIDE, SIDE, 3), 90, np.uint8)
    assert gains(flat, flat, boxes(RIGHT_MASK, (4, 4, 20, 20))) == [0, 0]


def test_one_mask_over_everything_gains_nothing_though_things_move() -> None:
    before, frame = draw(column=32), draw(column=36)
    assert gains(before, frame, boxes((0, 0, SIDE, SIDE))) == [0]


def told(place: tuple[int, int, int, int], motion: tuple[float, float], before: np.ndarray, frame: np.ndarray) -> float:
    """The gain of one box where optical flow says that it comes from `motion` away, and all else stands still."""
    masks = boxes(place).masks.numpy().astype(np.float32)
    return float(measure_gain(frame, before, masks, masks[0][..., None] * np.float32(motion))[0])


def test_the_gain_goes_from_one_to_minus_one() -> None:
    before, frame = draw(column=32), draw(column=36)
    assert told(RIGHT_MASK, (-4, 0), before, frame) == pytest.approx(1, abs=1e-3)  # explained exactly
    assert told(RIGHT_MASK, (-4, 0), frame, frame) == pytest.approx(-1, abs=1e-3)  # nothing moved
    assert told(RIGHT_MASK, (0, 0), before, frame) == 0


def test_the_background_is_what_no_segment_covers_though_it_be_the_smaller_part() -> None:
    most = (6, 6, 80, 80)
    frame = draw(column=0, square=False)
    before = frame.copy()
    before[most[0] : most[2], most[1] - 4 : most[3] - 4] = frame[most[0] : most[2], most[1] : most[3]]
    assert told(most, (-4, 0), before, frame) > 0.9


def test_what_was_mostly_out_of_view_before_is_not_judged() -> None:
    frame = draw(column=0)
    left = (TOP, 0, TOP + SQUARE, 20)
    assert math.isnan(told(left, (-12, 0), frame, frame))  # 8 of 20 columns were in view
    assert told(left, (-8, 0), frame, frame) == pytest.approx(-1, abs=1e-3)  # 12


def test_tiny_and_thin_masks_and_tiny_frames() -> None:
    before, frame = draw(column=32), draw(column=36)
    tiny, right = gains(before, frame, boxes((0, 0, 3, 3), RIGHT_MASK))
    assert math.isnan(tiny)  # 9 pixels
    assert right > 0.8
    assert math.isfinite(gains(before, frame, boxes((10, 50, 40, 51)))[0])  # a line has no width to grow in
    for size in ((7, 5), (1, 1), (15, 200)):
        picture = np.zeros((*size, 3), np.uint8)
        assert all(not gain > 0 for gain in gains(picture, picture, boxes((0, 0, *size), size=size)))
    assert gains(before, frame, boxes()) == []


def test_large_frames_are_measured_as_small_ones_are() -> None:
    before, frame = (cv2.resize(draw(column=column), None, fx=6, fy=6) for column in (32, 36))
    place = (RIGHT_MASK[0] * 6, RIGHT_MASK[1] * 6, RIGHT_MASK[2] * 6, RIGHT_MASK[3] * 6)
    assert gains(before, frame, boxes(place, size=(6 * SIDE, 6 * SIDE)))[0] > 0.85


def test_quality_says_score_gain_and_overlap_of_each_instance() -> None:
    clip = ClipQuality()
    first = clip.add(draw(column=32), boxes((TOP, 32, TOP + SQUARE, 32 + SQUARE)).with_scores(torch.tensor([0.7])))
    assert first.score.tolist() == pytest.approx([0.7])
    assert np.isnan([*first.photometric_gain, *first.temporal_iou]).all()
    second = clip.add(draw(column=36), boxes(RIGHT_MASK, (4, 4, 20, 20)))
    assert second.temporal_iou[0] > 0.85
    assert second.temporal_iou[1] == 0  # nothing was there
    assert second.photometric_gain[0] > 0.85
    for found in (boxes(), boxes(RIGHT_MASK)):  # nothing after something, something after nothing
        quality = clip.add(draw(column=36), found)
        assert quality.temporal_iou.tolist() == [0] * len(found)


def test_the_gain_of_a_clip_is_the_mean_over_instances_with_a_frame_before() -> None:
    evaluator = LabelFreeEvaluator()
    evaluator.process(draw(column=32), boxes(RIGHT_MASK), follows=False)
    assert evaluator.evaluate()["photometric_gain"] is None  # one frame
    evaluator.process(draw(column=36), boxes(RIGHT_MASK, (4, 4, 28, 28), (0, 0, 3, 3)), follows=True)
    gain = evaluator.evaluate()["photometric_gain"]
    assert gain == pytest.approx(0.48, abs=0.07)  # of one that moves and one that does not; the tiny one is left out
    evaluator.process(draw(column=0), boxes(RIGHT_MASK), follows=False)
    evaluator.process(draw(column=0), boxes(), follows=True)
    assert evaluator.evaluate()["photometric_gain"] == gain
