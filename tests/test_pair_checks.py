"""Which pairs are dropped, on pictures made by hand: motion, sweeps, noise, small objects, histograms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tasks.pair_checks import PairJudge, PairLimits, SeenFrame, histogram_distance
from tasks.sources.synthetic.draw import Draw
from tasks.sources.synthetic.textures import texture

SIDE = 64
LIMITS = PairLimits(longest_dt_s=0.09, cut=0.5, frozen=0.25, motion_px=16.0)
SCENE = texture(Draw(1), 96, 160)


def view(x: int) -> np.ndarray:
    """(64, 64, 3): a window of one textured picture, moved."""
    return np.ascontiguousarray(SCENE[:SIDE, x : x + SIDE])


def look(frame: np.ndarray) -> SeenFrame:
    return SeenFrame.look_at(frame)


def test_reasons_in_order():
    judge = PairJudge(LIMITS)
    assert judge.find_fault(look(view(0)), look(view(0)), 0.0) == "order"
    assert judge.find_fault(look(view(0)), look(view(2)), -0.05) == "order"
    assert judge.find_fault(look(view(0)), look(view(0)), 0.2) == "rate"
    assert judge.find_fault(look(view(0)), look(view(2)), 0.09) is None


@pytest.mark.parametrize("shift", [1, 4, 8, 18, 32, 48])
def test_motion_is_measured_within_a_pixel(shift):
    """Small motion by optical flow, sweeps by phase correlation."""
    wide = texture(Draw(0), 128, 180, scale=2.0)
    before, after = (look(np.ascontiguousarray(wide[:, x : x + 128])) for x in (0, shift))
    for limit, fast in ((shift - 1, True), (shift + 1, False)):
        assert PairJudge(dataclasses.replace(LIMITS, motion_px=limit)).is_fast(before, after) == fast


@pytest.mark.parametrize("size", [(128, 128), (64, 128), (96, 256)])
def test_a_judged_frame_is_not_changed_by_it(size):
    """Phase correlation with a window tapers its inputs in place where no padding is needed."""
    picture = texture(Draw(3), size[0], size[1] + 40)
    seen = [look(np.ascontiguousarray(picture[:, x : x + size[1]])) for x in (0, 2, 40)]
    assert min(seen[0].glance.shape) == 32
    expected = [tuple(part.copy() for part in dataclasses.astuple(one)) for one in seen]
    judge = PairJudge(LIMITS)
    assert [judge.is_fast(seen[0], other) for other in (*seen, *seen)] == [False, False, True] * 2
    for one, parts in zip(seen, expected, strict=True):
        for part, before in zip(dataclasses.astuple(one), parts, strict=True):
            np.testing.assert_array_equal(part, before)


def test_a_glance_counts_in_pixels_of_the_frame():
    """24 px of 256 are 3 px of a glance, a quarter of a limit of 16 px four of the frame."""
    wide = texture(Draw(0), 256, 280, scale=2.0)
    before, after = (look(np.ascontiguousarray(wide[:, x : x + 256])) for x in (0, 24))
    assert PairJudge(LIMITS)._may_sweep(before, after)
    assert not PairJudge(LIMITS)._may_sweep(before, before)


@pytest.mark.parametrize(("share", "fault"), [(0.2, "frozen"), (0.3, None)])
def test_frozen_is_a_mean_over_all_values(share, fault):
    """One grey level in a share of them, which is 0.25 at the limit."""
    before, after = view(0), view(0).copy()
    after.reshape(-1)[: round(share * after.size)] ^= 1
    assert PairJudge(LIMITS).find_fault(look(before), look(after), 0.05) == fault


def test_frames_smaller_than_a_glance():
    small = look(np.ascontiguousarray(SCENE[:24, :20]))
    assert small.glance.shape == (24, 20)
    assert not PairJudge(LIMITS).is_fast(small, small)


def test_one_pixel_in_ten_may_move_fast():
    """The percentile by hand: of a flow field with a share of fast pixels, 10 % are passed over and more are not."""
    judge = PairJudge(LIMITS)
    seen = look(view(0))
    for fast_rows, fast in ((6, False), (7, True)):  # of 64: 9.4 % and 10.9 %
        flow_uv = np.zeros((SIDE, SIDE, 2), np.float32)
        flow_uv[:fast_rows] = (12.0, 12.0)
        judge._dis = Constant(flow_uv)
        assert judge.is_fast(seen, seen) == fast


class Constant:
    """An optical flow that always answers the same."""

    def __init__(self, flow_uv: np.ndarray) -> None:
        self.flow_uv = flow_uv

    def calc(self, a: np.ndarray, b: np.ndarray, flow_uv: None) -> np.ndarray:
        return self.flow_uv


@pytest.mark.parametrize("seed", range(4))
def test_noise_and_repeating_patterns_are_no_sweep(seed):
    """Phase correlation always names some shift; alone, it would call a dark noisy room or a fence fast."""
    draw = Draw(seed)
    stripes = [np.tile((np.arange(128) + x) // 10 % 2 * 100, (128, 1)) for x in (0, 1)]
    for a, b in (stripes, (0, 0)):
        noisy = ((picture + draw.array(60, 100, (128, 128))).astype(np.uint8) for picture in (a, b))
        before, after = (look(np.dstack([picture] * 3)) for picture in noisy)
        assert not PairJudge(LIMITS).is_fast(before, after)
    strict = PairJudge(dataclasses.replace(LIMITS, motion_px=1.0))
    strict._dis = Constant(np.zeros((128, 128, 2), np.float32))
    assert strict._may_sweep(before, after)
    assert not strict.is_fast(before, after), "a shift that explains no more than none does"


def test_a_small_fast_object_is_no_fast_pair():
    before, after = view(0).copy(), view(1).copy()
    before[20:30, 4:14], after[20:30, 44:54] = (255, 0, 0), (255, 0, 0)
    assert PairJudge(LIMITS).find_fault(look(before), look(after), 0.05) is None


def test_histogram_distance_by_hand():
    assert histogram_distance(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == pytest.approx(0, abs=1e-6)
    assert histogram_distance(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1
    assert histogram_distance(np.array([1.0, 0.0]), np.array([0.25, 0.75])) == pytest.approx(np.sqrt(0.5))
