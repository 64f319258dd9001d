"""The motion labeller: what moves alone is labelled, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from models.common.instances import Instances
from models.motion_labels.appearance import BINS, colour_bins, count_colours, looks_like, spread_cube
from models.motion_labels.background import Motion, border_parts, fit_homography, homography_flow
from models.motion_labels.carry import carry_on, collect_labels, move_mask, split_tracks
from models.motion_labels.config import MotionLabelsConfig
from models.motion_labels.consensus import UNKNOWN, FrameVotes, agree, link, overlap
from models.motion_labels.labeller import add_appearance, label_clip, weigh_by_length
from models.motion_labels.motion import FlowReader, find_shots
from models.motion_labels.proposals import merge_seeds
from models.motion_labels.refine import blame_hiding, clean_mask, smooth_labels, votes_from_costs

CONFIG = MotionLabelsConfig(settle_outlines=False)
"""Object and ground of these scenes are the same noise: what is found is found by motion. Outlines have tests of their
own, and one below."""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gaps": ()}, "gaps"),
        ({"gaps": (0, 2)}, "gaps"),
        ({"window": -1}, "window must be a finite number of 0 or more"),
        ({"photometric_cap": 0.0}, "photometric_cap must be a finite number above 0"),
        ({"max_area": 1.5}, "max_area"),
        ({"smoothness": float("nan")}, "smoothness"),
        ({"min_speed": float("inf")}, "min_speed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        MotionLabelsConfig(**changes)


def textured(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8: smooth noise with full contrast."""
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.5), np.float32)
    return (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def scene(
    squares: list[tuple[int, int, int, int]], *, count: int = 5, size: tuple[int, int] = (64, 64), seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Frames (count, H, W, 3) uint8 over a background that pans 1 px a frame, and masks (D, count, H, W) bool.

    squares: top, left, and motion per frame (down, right) of squares of 18 px each.
    """
    height, width = size
    ground = textured(height, width + count, seed)
    frames = np.stack([ground[:, t : t + width] for t in range(count)])
    masks = np.zeros((len(squares), count, height, width), bool)
    for number, (top, left, down, right) in enumerate(squares):
        picture = textured(18, 18, seed + 10 + number)
        for t in range(count):
            place = np.s_[top + down * t : top + down * t + 18, left + right * t : left + right * t + 18]
            frames[t][place] = picture
            masks[number, t][place] = True
    return frames, masks


def iou(one: np.ndarray | torch.Tensor, other: np.ndarray) -> float:
    one = np.asarray(one)
    return float((one & other).sum() / (one | other).sum())


def test_labels_move_with_the_scene() -> None:
    frames, _ = scene([(20, 20, 1, 2)], size=(80, 96), count=7)
    whole, cut = label_clip(frames, CONFIG), label_clip(frames[:, 8:, 6:], CONFIG)
    assert counts(whole) == counts(cut) == [1] * 7
    for one, other in zip(whole, cut, strict=True):
        assert iou(one.masks[0, 8:, 6:], other.masks[0].numpy()) > 0.85


def counts(labels: list[Instances]) -> list[int]:
    return [len(part) for part in labels]


def test_a_square_that_moves_alone_is_found_and_nothing_else() -> None:
    frames, masks = scene([(20, 8, 0, 3)])
    labels = label_clip(frames, CONFIG)
    assert counts(labels) == [1] * 5
    # The first and last frames have one neighbour only, so that what it hides cannot be told.
    assert min(iou(labels[t].masks[0], masks[0, t]) for t in range(1, 4)) > 0.9
    assert min(iou(labels[t].masks[0], masks[0, t]) for t in (0, 4)) > 0.75
    assert {int(part.track_ids[0]) for part in labels if part.track_ids is not None} == {1}


def test_an_object_of_its_own_colours_gets_its_outline_to_the_pixel() -> None:
    frames, masks = scene([(20, 8, 0, 3)])
    frames[masks[0]] = frames[masks[0]] // 2 + np.array([120, 0, 0], np.uint8)
    labels = label_clip(frames, MotionLabelsConfig())
    plain = label_clip(frames, CONFIG)
    assert counts(labels) == [1] * 5
    assert min(iou(labels[t].masks[0], masks[0, t]) for t in range(5)) > 0.96
    assert min(iou(plain[t].masks[0], masks[0, t]) for t in range(5)) < 0.96
    assert {int(part.track_ids[0]) for part in labels if part.track_ids is not None} == {1}


def test_two_squares_that_move_apart_are_two_with_an_identity_each() -> None:
    frames, masks = scene([(6, 20, 0, 3), (38, 26, 0, -3)])
    labels = label_clip(frames, CONFIG)
    assert counts(labels) == [2] * 5
    for t in range(5):
        least = 0.8 if 0 < t < 4 else 0.75
        assert all(max(iou(mask, masks[number, t]) for mask in labels[t].masks) > least for number in range(2))
    first = labels[0].track_ids
    assert first is not None
    assert all(
        sorted(part.track_ids.tolist()) == sorted(first.tolist()) for part in labels if part.track_ids is not None
    )


def test_touching_squares_with_opposite_motion_are_two() -> None:
    frames, masks = scene([(13, 20, 0, 2), (31, 26, 0, -2)], size=(64, 72))
    labels = label_clip(frames, CONFIG)
    assert counts(labels)[1:4] == [2] * 3
    assert all(max(iou(mask, masks[number, 2]) for mask in labels[2].masks) > 0.8 for number in range(2))


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (40, 33)])
def test_a_pan_without_objects_has_no_labels(size: tuple[int, int]) -> None:
    assert counts(label_clip(scene([], size=size)[0], CONFIG)) == [0] * 5


def test_non_square_frames() -> None:
    frames, masks = scene([(12, 10, 0, 3)], size=(48, 96))
    labels = label_clip(frames, CONFIG)
    assert labels[2].size == (48, 96)
    assert iou(labels[2].masks[0], masks[0, 2]) > 0.9


@pytest.mark.parametrize(
    "frames",
    [
        np.repeat(textured(64, 64, 1)[None], 4, 0),
        textured(64, 64, 1)[None],
        np.full((4, 64, 64, 3), 128, np.uint8),
        np.stack([np.full((64, 64, 3), grey, np.uint8) for grey in (0, 255, 0, 90)]),
        np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8),
        np.zeros((3, 1, 1, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (2, 16, 700, 3), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 256, (2, 700, 16, 3), dtype=np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
    ],
    ids=["static", "one frame", "uniform", "flicker", "noise", "one pixel", "long", "tall", "no frame"],
)
def test_nothing_moves_so_there_is_no_label(frames: np.ndarray) -> None:
    labels = label_clip(frames, CONFIG)
    assert counts(labels) == [0] * len(frames)
    assert all(part.size == frames.shape[1:3] for part in labels)


def test_two_frames_are_enough() -> None:
    frames, masks = scene([(20, 8, 0, 3)], count=2)
    labels = label_clip(frames, CONFIG)
    assert counts(labels) == [1, 1]
    assert iou(labels[0].masks[0], masks[0, 0]) > 0.6


def test_a_cut_makes_no_labels() -> None:
    still = [np.repeat(textured(64, 64, seed)[None], 3, 0) for seed in (1, 2)]
    assert find_shots(np.concatenate(still)) == [(0, 3), (3, 6)]
    assert counts(label_clip(np.concatenate(still), CONFIG)) == [0] * 6


def test_both_sides_of_a_cut_are_labelled_with_identities_of_their_own() -> None:
    (before, first), (after, second) = scene([(20, 8, 0, 3)]), scene([(30, 40, 0, -3)], seed=50)
    labels = label_clip(np.concatenate([before, after]), CONFIG)
    assert counts(labels) == [1] * 10
    assert iou(labels[4].masks[0], first[0, 4]) > 0.8
    assert iou(labels[5].masks[0], second[0, 0]) > 0.8
    assert labels[4].track_ids != labels[5].track_ids


def test_labels_are_the_same_each_time_and_confidences_are_shares() -> None:
    frames, _ = scene([(6, 20, 0, 3), (38, 26, 0, -3)])
    one, two = label_clip(frames, CONFIG), label_clip(frames.copy(), CONFIG)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.masks, b.masks)
        assert torch.equal(a.scores, b.scores)
        assert ((a.scores > 0) & (a.scores <= 1)).all()


@pytest.mark.parametrize("window", [0, 1])
def test_short_windows(window: int) -> None:
    frames, masks = scene([(20, 8, 0, 3)])
    labels = label_clip(frames, MotionLabelsConfig(window=window, settle_outlines=False))
    assert counts(labels) == [1] * 5
    assert iou(labels[2].masks[0], masks[0, 2]) > 0.9


def test_objects_seen_in_few_frames_are_dropped_and_trusted_less() -> None:
    def label(*tracks: int) -> Instances:
        masks = torch.ones(len(tracks), 4, 4, dtype=torch.bool)
        return Instances.from_masks(masks, torch.ones(len(tracks)), torch.tensor(tracks))

    weighed = weigh_by_length([label(1, 2), label(1, 3), label(1, 3), Instances.empty(4, 4)], min_track=2)
    assert [part.track_ids.tolist() for part in weighed if part.track_ids is not None] == [[1], [1, 3], [1, 3]]
    assert weighed[1].scores.tolist() == pytest.approx([3 / 9, 2 / 8])
    assert len(weighed[3]) == 0


@pytest.mark.parametrize("size", [(16, 700), (700, 16)])
def test_very_long_frames(size: tuple[int, int]) -> None:
    assert counts(label_clip(scene([], count=3, size=size)[0], CONFIG)) == [0] * 3


def test_size_limits() -> None:
    frames, _ = scene([(20, 8, 0, 3)])
    assert counts(label_clip(frames, MotionLabelsConfig(min_area=400))) == [0] * 5
    assert counts(label_clip(frames, MotionLabelsConfig(max_area=0.05))) == [0] * 5


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        label_clip(np.zeros((4, 64, 64, 3), np.float32), CONFIG)
    with pytest.raises(ValueError, match=r"\(T, H, W, 3\)"):
        label_clip(np.zeros((4, 64, 64), np.uint8), CONFIG)


def test_flow_points_from_start_to_end_and_chains() -> None:
    ground = textured(64, 80, 3)
    reader = FlowReader(np.stack([ground[:, 2 * t : 2 * t + 64] for t in range(4)]))
    middle = np.s_[16:48, 16:48]
    assert np.allclose(np.median(reader.between(0, 2)[middle], (0, 1)), (-4, 0), atol=0.2)
    assert np.allclose(np.median(reader.chain(3, 0)[middle], (0, 1)), (6, 0), atol=0.3)


def test_background_is_fitted_under_a_moving_quarter() -> None:
    truth = homography_flow(np.array([[1.01, 0, 2], [0, 1, -1], [0, 0, 1]]), (64, 64))
    flow_uv = truth.copy()
    flow_uv[:32, :32] += 8
    fitted = fit_homography(flow_uv, 0.25)
    assert fitted is not None
    assert np.abs(fitted - truth).max() < 0.05
    noise = np.random.default_rng(0).normal(0, 20, (64, 64, 2)).astype(np.float32)
    assert fit_homography(noise, 0.25) is None


def test_only_large_parts_along_the_border_are_background() -> None:
    mask = np.zeros((64, 64), bool)
    mask[44:] = True
    mask[10:30, 20:40] = True
    (part,) = border_parts(mask)
    assert part[50:].all()
    assert not part[10:30].any()


def test_votes_prefer_the_motion_with_less_error_within_reach() -> None:
    seeds = np.zeros((1, 20, 40), bool)
    seeds[0, 5:15, 5:15] = True
    costs = np.stack([np.full((20, 40), 0.3), np.full((20, 40), 0.1)]).astype(np.float32)
    labels = smooth_labels(votes_from_costs(costs, seeds, 0.02, 3), 1.0)
    assert (labels[5:15, 5:15] == 1).all()
    assert (labels[:, 20:] == 0).all()


def test_what_no_motion_explains_lies_behind() -> None:
    seeds = np.array([[[True, True, False, False]]])
    costs = np.array([[[0.3, 0.3, 0.2, 0.01]], [[0.01, 0.01, 0.2, 0.3]]], np.float32)
    assert blame_hiding(costs, seeds)[0].tolist() == np.array([[0.3, 0.3, 0, 0.01]], np.float32).tolist()


def test_clean_mask_fills_holes_and_keeps_the_largest_part() -> None:
    mask = np.zeros((10, 10), bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = False
    mask[8, 8] = True
    expected = np.zeros((10, 10), bool)
    expected[1:6, 1:6] = True
    assert (clean_mask(mask) == expected).all()
    assert not clean_mask(np.zeros((4, 4), bool)).any()


def test_link_takes_each_track_once_and_numbers_the_rest() -> None:
    rows = np.array([[1, 1, 1, 0, 2, 2, 3, 3]])
    past = np.array([[7, 7, 7, 0, 7, 0, UNKNOWN, UNKNOWN]])
    assert link(rows, 3, [past], 9) == [7, 9, 10]
    older = np.array([[0, 0, 0, 0, 4, 4, 0, 0]])
    assert link(rows, 3, [past, older], 9) == [7, 4, 9]
    parted = np.array([[7, 7, 7, 7, 7, 7, 0, 0]])
    assert link(np.array([[1, 1, 1, 2, 2, 2, 0, 0]]), 2, [parted], 9) == [9, 7]
    assert link(np.zeros((2, 2), int), 0, [], 1) == []


def test_overlap_counts_known_pixels_alone() -> None:
    mask = np.array([True, True, True, False])
    assert overlap(mask, np.array([5, 5, UNKNOWN, 5]), 5) == pytest.approx(2 / 3)
    assert overlap(mask, np.full(4, UNKNOWN), 5) == 0


def test_a_track_that_one_frame_misses_is_taken_up_again() -> None:
    track = np.zeros((6, 6), np.int16)
    track[1:5, 1:5] = 1
    around = [FrameVotes(t, np.zeros((2, 6, 6), np.float32), track, [4]) for t in (0, 2)]
    seen = [np.array([0, 4])[track]] * 2
    votes, ids = agree(FrameVotes.empty(1, (6, 6)), around, seen)
    assert ids == [4]
    assert (votes.argmin(0) == track).all()
    # Seen on one side only: it may have left.
    assert agree(FrameVotes.empty(1, (6, 6)), around[:1], seen[:1])[1] == []


def test_rigid_things_stay_apart_and_limbs_join() -> None:
    seeds = np.zeros((2, 20, 30), bool)
    seeds[0, 5:15, 2:14], seeds[1, 5:15, 16:28] = True, True
    still, telling = np.zeros((20, 30, 2), np.float32), np.ones((20, 30), bool)
    rigid = np.where(seeds[0][..., None], (3, 0), (0, 3)).astype(np.float32)
    assert len(merge_seeds(seeds, [Motion(1, rigid, still, telling)], 0.7)) == 2
    bending = np.zeros((20, 30, 2), np.float32)
    bending[..., 0] = 3 + np.resize((-1, 1), 30) + 0.5 * seeds[1]
    assert len(merge_seeds(seeds, [Motion(1, bending, still, telling)], 0.1)) == 1
    assert len(merge_seeds(seeds[:0], [Motion(1, rigid, still, telling)], 0.7)) == 0


def test_colours_tell_an_object_from_what_is_around_it() -> None:
    frame = np.zeros((20, 20, 3), np.uint8)
    frame[5:15, 5:15] = (240, 0, 0)
    frame[0:2] = (0, 240, 0)
    rows = np.zeros((20, 20), int)
    rows[5:15, 5:17] = 1  # two columns too wide
    bins = colour_bins(frame)
    counted = count_colours(bins, rows, 1, 0.25)
    assert counted[0, 0].sum() == 120
    # The ring is two pixels wide, with round corners: it never reaches the green rows.
    assert counted[0, 1][bins[0, 0]] == 0
    likeness = looks_like(bins, counted[0])
    assert likeness[7, 7] > 0.95
    assert likeness[7, 15] < 0.2
    assert likeness[0, 10] == pytest.approx(0.5)


def test_a_colour_histogram_spreads_to_neighbouring_cells_and_keeps_its_sum() -> None:
    histogram = np.zeros(BINS, np.float32)
    histogram[0] = 8
    spread = spread_cube(histogram)
    assert spread.sum() == pytest.approx(8)
    assert spread[0, 0, 0] > spread[1, 0, 0] > spread[1, 1, 0] > 0
    assert spread[2].sum() == 0


def test_colours_cut_what_moves_along_but_looks_like_the_ground() -> None:
    here = FrameVotes(0, np.zeros((2, 8, 8), np.float32), np.zeros((8, 8), np.int16), [4])
    bins = np.zeros((8, 8), np.int32)
    bins[2:5, 2:5] = 100
    here.rows[2:5, 2:7] = 1
    here = replace(here, colours=count_colours(bins, here.rows, 1, 1.0))
    votes = add_appearance(here.votes, [4], [here], bins, 1.0)
    assert votes[0].max() == 0
    assert votes[1, 3, 3] < 0 < votes[1, 3, 6]
    assert np.array_equal(add_appearance(here.votes, [4], [here], bins, 0.0), here.votes)


def test_a_mask_moves_against_the_flow_that_points_to_it() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:5, 6:9] = True
    flow_uv = np.zeros((10, 12, 2), np.float32)
    flow_uv[..., 0] = 2
    expected = np.zeros((10, 12), bool)
    expected[2:5, 4:7] = True
    assert np.array_equal(move_mask(mask, flow_uv), expected)


def test_tracks_and_labels_are_two_views_of_the_same() -> None:
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[0, :3, :3], masks[1, 4:, 4:] = True, True
    labels = [
        Instances.from_masks(masks, torch.tensor([0.5, 0.25]), torch.tensor([2, 7])),
        Instances.empty(6, 6),
        Instances.from_masks(masks[1:], torch.tensor([0.75]), torch.tensor([7])),
    ]
    tracks = split_tracks(labels, 10)
    assert {number: sorted(track.masks) for number, track in tracks.items()} == {2: [10], 7: [10, 12]}
    assert tracks[7].scores == {10: 0.25, 12: 0.75}
    back = collect_labels(tracks, 10, 3, (6, 6))
    assert counts(back) == [2, 0, 1]
    assert torch.equal(back[0].masks, masks)
    assert torch.equal(back[0].scores, labels[0].scores)
    assert collect_labels({}, 0, 1, (6, 6))[0].size == (6, 6)


def resting_scene() -> tuple[np.ndarray, list[Instances]]:
    """16 frames of a red square that stands still, labelled in the first 10 only."""
    frames = np.repeat(textured(64, 64, 3)[None] // 4, 16, 0)
    frames[:, 20:40, 20:40, 0] = 200 + textured(20, 20, 4)[..., 0] // 5
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 20:40, 20:40] = True
    one = Instances.from_masks(mask, torch.tensor([0.8]), torch.tensor([5]))
    return frames, [one] * 10 + [Instances.empty(64, 64)] * 6


def test_what_stands_still_is_carried_on_with_falling_confidence() -> None:
    frames, labels = resting_scene()
    carried = carry_on(labels, FlowReader(frames), (0, 16), most=4, min_area=40)
    assert counts(carried) == [1] * 14 + [0] * 2
    assert iou(carried[13].masks[0], labels[0].masks[0].numpy()) > 0.95
    scores = [float(part.scores[0]) for part in carried[9:14]]
    assert scores == sorted(scores, reverse=True)
    assert scores[1] == pytest.approx(0.7 * 0.8)


def test_nothing_is_carried_to_where_it_is_not() -> None:
    frames, labels = resting_scene()
    frames[11:] = textured(64, 64, 3) // 4  # the square has gone
    reader = FlowReader(frames)
    assert counts(carry_on(labels, reader, (0, 16), most=4, min_area=40)) == [1] * 11 + [0] * 5
    short = [*labels[:3], *[Instances.empty(64, 64)] * 13]
    assert counts(carry_on(short, reader, (0, 16), most=4, min_area=40)) == counts(short)
    other = Instances.from_masks(labels[0].masks, torch.tensor([0.8]), torch.tensor([6]))
    assert counts(carry_on([*labels[:10], other, *labels[11:]], reader, (0, 16), most=4, min_area=40))[10] == 1
