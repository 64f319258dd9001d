"""J, F and J&F of DAVIS against cases worked by hand and a slow implementation that goes pixel by pixel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from tasks.errors import DataError
from tasks.formats.rle import RLE, encode_masks
from tasks.metrics.boundaries import compare_masks, trace_boundaries
from tasks.metrics.davis import DavisEvaluator, Measure, summarise_frames
from tasks.metrics.tracks import MaskTrack

SIZE = (20, 24)


def box(top: int, left: int, height: int, width: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def encode(mask: np.ndarray) -> RLE:
    return encode_masks(torch.from_numpy(mask[None]))[0]


def track(masks: Sequence[np.ndarray | None], score: float = 1.0) -> MaskTrack:
    return MaskTrack([None if mask is None else encode(mask) for mask in masks], score)


def compare(found: np.ndarray, truth: np.ndarray, void: np.ndarray | None = None) -> tuple[float, float]:
    region, boundary = compare_masks(found[None], truth[None], void)
    return float(region[0, 0]), float(boundary[0, 0])


NOTHING = np.zeros(SIZE, bool)


def test_region_of_shifted_squares() -> None:
    assert compare(box(2, 2, 4, 4), box(2, 3, 4, 4))[0] == pytest.approx(12 / 20)
    assert compare(box(2, 2, 4, 4), box(2, 2, 4, 4)) == (1, 1)


def test_empty_cases() -> None:
    assert compare(NOTHING, NOTHING) == (1, 1)
    assert compare(box(2, 2, 4, 4), NOTHING) == (0, 0)
    assert compare(NOTHING, box(2, 2, 4, 4)) == (0, 0)
    whole = np.ones(SIZE, bool)
    # The border of the picture is no boundary: there is none to find, and none found.
    assert compare(NOTHING, whole) == (0, 1)
    no_objects = compare_masks(np.zeros((3, *SIZE), bool), np.zeros((0, *SIZE), bool))
    assert [table.shape for table in no_objects] == [(3, 0), (3, 0)]


def test_a_boundary_lies_half_a_pixel_towards_the_origin() -> None:
    assert np.argwhere(trace_boundaries(box(2, 3, 1, 1, (5, 6))[None])[0]).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    # At the lower right border there is nothing to differ from; at the upper left the pixel itself differs.
    assert np.argwhere(trace_boundaries(box(4, 5, 1, 1, (5, 6))[None])[0]).tolist() == [[3, 4], [3, 5], [4, 4]]
    assert np.argwhere(trace_boundaries(box(0, 0, 1, 1, (5, 6))[None])[0]).tolist() == [[0, 0]]


def test_boundaries_match_within_a_disc_of_the_tolerance() -> None:
    # A diagonal of 250 gives a tolerance of 2 pixels: vertical lines across the picture 2 apart match, 3 apart do not.
    size = (150, 200)
    truth = box(0, 0, 150, 100, size)
    assert compare(box(0, 0, 150, 102, size), truth)[1] == 1
    assert compare(box(0, 0, 150, 103, size), truth)[1] == 0
    # The upper half of the picture with the line 2 away, the lower half with it 9 away: precision and recall one half,
    # but for the step of the line and the one row, or two, next to it.
    mixed = box(0, 0, 75, 102, size) | box(75, 0, 75, 109, size)
    assert compare(mixed, truth)[1] == pytest.approx(0.5, abs=0.03)
    # 251 is over: 0.008 of it is rounded up to 3.
    wider = (150, 202)
    assert compare(box(0, 0, 150, 103, wider), box(0, 0, 150, 100, wider))[1] == 1


def test_the_disc_is_round() -> None:
    # Single boundary corners: a mask that is one pixel in the lower right corner has the boundary (h-2, w-2), (h-2,
    # w-1), (h-1, w-2). A tolerance of 2 reaches (0, 2), (1, 1), not (2, 2) nor (1, 2).
    size = (150, 200)
    truth, found = np.zeros(size, bool), np.zeros(size, bool)
    truth[70, 70] = True
    found[73, 72] = True
    # Boundaries 69..70 x 69..70 and 72..73 x 71..72: nearest pairs (70, 70)-(72, 71) at sqrt(5), beyond; then moved up.
    assert compare(found, truth)[1] == 0
    found = np.roll(found, -1, axis=0)
    # (70, 70)-(71, 71) at sqrt(2), (70, 70)-(71, 72) at sqrt(5), (69, 70)-(71, 71) at sqrt(5), (70, 69)-(71, 71) too,
    # (70, 70)-(72, 71) at sqrt(5): one of the four pixels of each side matches.
    assert compare(found, truth)[1] == pytest.approx(1 / 4)


def test_void_pixels_count_for_nobody() -> None:
    void = box(0, 12, 20, 12)
    assert compare(box(2, 2, 4, 4) | box(3, 14, 9, 9), box(2, 2, 4, 4), void)[0] == 1
    assert compare(box(3, 14, 9, 9), NOTHING, void) == (1, 1)


def slow_compare(found: np.ndarray, truth: np.ndarray, void: np.ndarray) -> tuple[float, float]:
    """J and F pixel by pixel."""
    height, width = found.shape
    pixels = list(itertools.product(range(height), range(width)))

    def inside(mask: np.ndarray, y: int, x: int) -> bool:
        y, x = min(y, height - 1), min(x, width - 1)
        return bool(mask[y, x]) and not void[y, x]

    def edge(mask: np.ndarray) -> list[tuple[int, int]]:
        around = ((0, 1), (1, 0), (1, 1))
        return [(y, x) for y, x in pixels if any(inside(mask, y, x) != inside(mask, y + a, x + b) for a, b in around)]

    def share(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> float:
        near = [any(math.dist(p, q) <= reach for q in other) for p in one]
        return sum(near) / len(near) if near else 1.0

    reach = math.ceil(0.008 * math.hypot(height, width))
    shared = sum(inside(found, *p) and inside(truth, *p) for p in pixels)
    union = sum(inside(found, *p) or inside(truth, *p) for p in pixels)
    precision, recall = share(edge(found), edge(truth)), share(edge(truth), edge(found))
    both = precision + recall
    return shared / union if union else 1.0, 2 * precision * recall / both if both else 0.0


def random_mask(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Some overlapping boxes, now and then nothing."""
    mask = np.zeros(size, bool)
    for _ in range(rng.integers(0, 3)):
        y, x = rng.integers(0, size[0] - 3), rng.integers(0, size[1] - 3)
        mask |= box(int(y), int(x), int(rng.integers(1, 15)), int(rng.integers(1, 40)), size)
    return mask


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_going_pixel_by_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (13, 126)  # 126.7 on the diagonal: a tolerance of 2 pixels
    found = np.stack([random_mask(rng, size) for _ in range(4)])
    truth = np.stack([random_mask(rng, size) for _ in range(3)])
    void = random_mask(rng, size)
    region, boundary = compare_masks(found, truth, void)
    for i, j in itertools.product(range(4), range(3)):
        assert (region[i, j], boundary[i, j]) == pytest.approx(slow_compare(found[i], truth[j], void))


def test_mean_recall_and_decay() -> None:
    # Five cuts at 1, 3, 5, 7, 9 of nine frames, each cut in both its quarters: frames 1-3 against 7-9.
    values = np.array([1, 0.9, 0.8, 0.5, 0.5, 0.51, 0.3, 0.2, 0.1])
    mean, recall, decay = summarise_frames(values)
    assert mean == pytest.approx(values.mean())
    assert recall == pytest.approx(4 / 9)
    assert decay == pytest.approx(0.9 - 0.2)
    # 1, 2.5, 4, 5.5, 7 of seven are 1, 3, 4, 6, 7: half is rounded up.
    assert summarise_frames(np.array([1, 0.8, 0.3, 0, 0, 0.4, 0.2]))[2] == pytest.approx(0.7 - 0.3)
    assert summarise_frames(np.array([0.7])) == pytest.approx((0.7, 1, 0))


def test_decay_is_right_in_long_sequences() -> None:
    assert summarise_frames(np.linspace(1, 0, 401))[2] == pytest.approx(0.75)


def test_a_single_foreground_is_united_and_first_and_last_frame_do_not_count() -> None:
    left, right = box(2, 2, 4, 4), box(2, 12, 4, 4)
    evaluator = DavisEvaluator("single")
    truth = [track([NOTHING, left, left, left, NOTHING]), track([None, right, right, right, None])]
    found = [track([left, left | right, left, None, left], score=0.3)]
    evaluator.process("a", SIZE, found, truth, frames=5)
    region = evaluator.evaluate()["J"]
    assert region["mean"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert region["recall"] == pytest.approx(1 / 3)  # .5 is not above .5
    # Three frames are cut at 1, 2 (1.5 rounded up), 2, 3 (2.5 up) and 3: the first two against the last.
    assert region["decay"] == pytest.approx((1 + 0.5) / 2 - 0)
    assert evaluator.per_sequence()["a"]["J"] == pytest.approx(0.5)


def test_void_pixels_of_each_frame_count_for_nobody_in_a_sequence() -> None:
    left, right = box(2, 2, 4, 4), box(2, 12, 8, 8)
    for task in ("single", "unsupervised"):
        evaluator = DavisEvaluator(task)  # type: ignore[arg-type]
        void: list[RLE | None] = [None, encode(right), None, None]
        evaluator.process(
            "a", SIZE, [track([left, left | right, left | right, left])], [track([left] * 4)], void, frames=4
        )
        frames = [1, 16 / 80] if task == "single" else [1, 1, 16 / 80, 1]
        assert evaluator.evaluate()["J"]["mean"] == pytest.approx(np.mean(frames))


def test_sequences_weigh_the_same_whatever_their_length() -> None:
    evaluator = DavisEvaluator("single")
    good = box(2, 2, 4, 4)
    evaluator.process("short", SIZE, [track([good] * 3)], [track([good] * 3)], frames=3)
    evaluator.process("long", SIZE, [], [track([good] * 9)], frames=9)
    scores = evaluator.evaluate()
    for measure in ("J", "F", "J&F"):
        assert scores[measure] == {"mean": 0.5, "recall": 0.5, "decay": 0}  # type: ignore[index]


def test_tracks_are_paired_over_the_whole_sequence() -> None:
    one, two = box(2, 2, 6, 6), box(10, 12, 6, 6)
    truth = [track([one] * 4), track([two] * 4)]
    # A is right about `one` in three frames, B in one; frame by frame each would be right everywhere.
    found = [track([one, one, one, two], 0.9), track([two, two, two, one], 0.8)]
    evaluator = DavisEvaluator("unsupervised")
    evaluator.process("a", SIZE, found, truth, frames=4)
    scores = evaluator.evaluate()
    assert scores["J"]["mean"] == scores["F"]["mean"] == pytest.approx(0.75)
    assert scores["J"]["recall"] == pytest.approx(0.75)
    assert scores["J"]["decay"] == pytest.approx(1 - 0.5)


def test_a_pixel_in_two_tracks_goes_to_the_surer_one() -> None:
    one, two = box(0, 0, 4, 4), box(0, 4, 4, 4)
    evaluator = DavisEvaluator("unsupervised")
    evaluator.process("a", SIZE, [track([one | two], 0.2), track([one], 0.7)], [track([one]), track([two])], frames=1)
    assert evaluator.evaluate()["J"]["mean"] == 1


def test_only_the_twenty_surest_tracks_are_looked_at() -> None:
    rows = [box(0, column, 20, 1) for column in range(22)]
    found = [track([mask], score=1 - 0.01 * rank) for rank, mask in enumerate(rows)]
    for column, expected in ((19, 1.0), (20, 0.0)):
        evaluator = DavisEvaluator("unsupervised")
        evaluator.process("a", SIZE, found[::-1], [track([rows[column]])], frames=1)
        assert evaluator.evaluate()["J"]["mean"] == expected


def test_an_object_without_a_track_is_held_against_nothing() -> None:
    one = box(0, 0, 4, 4)
    evaluator = DavisEvaluator("unsupervised")
    # Seen in half of the frames: where it is not seen, nothing found is right.
    evaluator.process("a", SIZE, [], [track([one, one, None, NOTHING])], frames=4)
    assert evaluator.evaluate()["J"]["mean"] == 0.5
    # With a track to spare it must take it, as in the official evaluation: that is wrong everywhere.
    other = box(10, 10, 4, 4)
    evaluator.process("b", SIZE, [track([other] * 4)], [track([one, one, None, None])], frames=4)
    assert evaluator.per_sequence()["b"]["J"] == 0


def test_nothing_to_score_is_none() -> None:
    nothing = dict.fromkeys(("mean", "recall", "decay"))
    for task in ("single", "unsupervised"):
        evaluator = DavisEvaluator(task)  # type: ignore[arg-type]
        assert evaluator.evaluate() == {"J": nothing, "F": nothing, "J&F": nothing}
    single = DavisEvaluator("single")
    single.process("two frames", SIZE, [], [track([NOTHING, NOTHING])], frames=2)
    unsupervised = DavisEvaluator("unsupervised")
    unsupervised.process("no object", SIZE, [track([box(0, 0, 4, 4)])], [], frames=1)
    for evaluator in (single, unsupervised):
        assert evaluator.evaluate()["J&F"] == nothing
        assert evaluator.per_sequence() == {}
    # No object and nothing found in a sequence with a single foreground: all of it is right.
    single.process("empty", SIZE, [], [], frames=3)
    assert single.evaluate()["J&F"]["mean"] == 1


def random_sequence(seed: int, frames: int = 5) -> tuple[list[MaskTrack], list[MaskTrack], list[RLE | None]]:
    rng = np.random.default_rng(seed)
    truth = [track([random_mask(rng, SIZE) for _ in range(frames)]) for _ in range(3)]
    found = [track([random_mask(rng, SIZE) for _ in range(frames)], 0.5) for _ in range(4)]
    return found, truth, [None, *(encode(random_mask(rng, SIZE)) for _ in range(frames - 1))]


@pytest.mark.parametrize("task", ["single", "unsupervised"])
def test_order_of_sequences_and_tracks_does_not_matter(task: str) -> None:
    sequences = {str(seed): random_sequence(seed) for seed in range(3)}
    scores = []
    for step in (1, -1):
        evaluator = DavisEvaluator(task)  # type: ignore[arg-type]
        for name in list(sequences)[::step]:
            found, truth, void = sequences[name]
            evaluator.process(name, SIZE, found[::step], truth[::step], void, frames=5)
        scores.append(evaluator.evaluate())
    assert scores[0] == scores[1]


def test_matching_is_the_best_of_all_pairings() -> None:
    found, truth, void = random_sequence(60)  # where neither J nor F alone would pair them so
    found = [replace(one, score=1 - 0.1 * rank) for rank, one in enumerate(found)]
    taken = [NOTHING.copy() for _ in range(5)]
    apart = []
    for one in found:
        masks = [decode(rle) & ~covered for rle, covered in zip(one.rles, taken, strict=True)]
        taken = [mask | covered for mask, covered in zip(masks, taken, strict=True)]
        apart.append(track(masks))
    pairs = np.array(
        [
            [
                [slow_compare(decode(one.rles[i]), decode(two.rles[i]), decode(void[i])) for i in range(5)]
                for two in truth
            ]
            for one in apart
        ]
    )  # (4, 3, T, 2)
    best = max(
        (pairs[list(chosen), range(3)] for chosen in itertools.permutations(range(4), 3)), key=lambda one: one.mean()
    )
    evaluator = DavisEvaluator("unsupervised")
    evaluator.process("a", SIZE, found, truth, void, frames=5)
    scores = evaluator.evaluate()
    means: dict[Measure, float] = {"J": best[..., 0].mean(), "F": best[..., 1].mean(), "J&F": best.mean()}
    for measure, mean in means.items():
        assert scores[measure]["mean"] == pytest.approx(mean)


def decode(rle: RLE | None) -> np.ndarray:
    return NOTHING if rle is None else coco_mask.decode(rle).astype(bool)


def test_tracks_that_do_not_fit_are_refused_in_one_line() -> None:
    evaluator = DavisEvaluator("unsupervised")
    good = track([box(0, 0, 4, 4)])
    for bad, message in (
        (track([NOTHING, NOTHING]), "2 frames does not fit a video of 1"),
        (track([box(0, 0, 4, 4, (5, 6))]), "6 x 5 is not 24 x 20"),
        (MaskTrack(good.rles, float("nan")), "finite"),
    ):
        for found, truth in (([bad], [good]), ([good], [bad])):
            with pytest.raises(DataError, match=f"^sequence a.*{message}"):
                evaluator.process("a", SIZE, found, truth, frames=1)
    evaluator.process("a", SIZE, [good], [good], frames=1)
    with pytest.raises(ValueError, match="twice"):
        evaluator.process("a", SIZE, [], [], frames=1)
