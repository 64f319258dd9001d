"""Outlines settled by colour: the pixel's side, mixed pixels, and where colour says nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.common.instances import Instances
from models.common.outline import nearest_colour, settle_outline, settle_outlines

RED, GREEN = (200, 30, 30), (30, 160, 60)


def disc(radius: float, centre: tuple[float, float] = (24, 24), side: int = 48) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def paint(mask: np.ndarray, inside: tuple[int, ...] = RED, outside: tuple[int, ...] = GREEN) -> np.ndarray:
    return np.where(mask[..., None], inside, outside).astype(np.uint8)


def free(mask: np.ndarray) -> np.ndarray:
    return np.zeros_like(mask)


@pytest.mark.parametrize("error", [-1.5, -1, 1, 2])
def test_a_fat_or_thin_outline_moves_to_where_the_colours_change(error: float):
    true = disc(9)
    assert (settle_outline(paint(true), disc(9 + error), blocked=free(true)) == true).all()


def test_corners_and_tips_stay():
    true = np.zeros((48, 48), bool)
    true[14:30, 14:30] = True
    true[10:14, 20] = True  # a tip one pixel wide
    fat = np.pad(true, 1)[2:, 1:-1] | np.pad(true, 1)[:-2, 1:-1] | true | np.pad(true, 1)[1:-1, 2:]
    assert (settle_outline(paint(true), fat, blocked=free(true)) == true).all()


def test_a_mixed_pixel_goes_to_the_side_that_covers_more():
    true = np.zeros((48, 48), bool)
    true[12:36, 12:30] = True
    frame = paint(true).astype(np.float64)
    share = 0.7 * np.array(RED) + 0.3 * np.array(GREEN)
    frame[12:36, 30], frame[12:36, 31] = share, np.array(RED) + np.array(GREEN) - share
    fat = true.copy()
    fat[12:36, 30:32] = True
    settled = settle_outline(frame.astype(np.uint8), fat, blocked=free(true))
    assert settled[12:36, 30].all()
    assert not settled[12:36, 31].any()


def test_textures_are_told_apart_by_the_colours_nearby_not_by_their_mean():
    y, x = np.mgrid[:48, :48]
    checks = ((y // 3 + x // 3) % 2)[..., None]
    true = disc(10)
    inside = np.where(checks, (220, 20, 20), (20, 20, 220))
    outside = np.where(checks, (20, 220, 20), (120, 20, 120))
    frame = np.where(true[..., None], inside, outside).astype(np.uint8)
    settled = settle_outline(frame, disc(11.5), blocked=free(true))
    assert (settled & true).sum() / (settled | true).sum() > 0.97


def test_without_a_difference_of_colour_the_mask_is_thinned_by_less_than_a_pixel():
    mask = disc(10)
    settled = settle_outline(np.full((48, 48, 3), 90, np.uint8), mask, blocked=free(mask))
    assert not (settled & ~mask).any()
    assert not (disc(9) & ~settled).any()


def test_an_object_does_not_take_what_is_blocked_nor_grow_far():
    true, mask = disc(10), disc(9)
    blocked = np.zeros_like(true)
    blocked[:, :16] = True
    settled = settle_outline(paint(true), mask & ~blocked, blocked=blocked)
    assert not (settled & blocked).any()
    assert (settled[:, 19:] == true[:, 19:]).all()
    assert not (settle_outline(paint(disc(15)), disc(8), blocked=free(mask)) & ~disc(10.5)).any()


def test_the_border_of_the_frame_is_no_outline():
    true = disc(10, (0, 24))
    assert (settle_outline(paint(true), disc(11, (0, 24)), blocked=free(true)) == true).all()


def test_small_whole_and_empty_masks_are_no_trouble():
    frame = paint(disc(9))
    empty = np.zeros((48, 48), bool)
    assert not settle_outline(frame, empty, blocked=empty).any()
    assert settle_outline(frame, ~empty, blocked=empty).all()
    assert settle_outline(frame, disc(2), blocked=empty).sum() <= disc(2).sum()
    assert len(settle_outlines(frame, Instances.empty(48, 48))) == 0


def test_instances_keep_scores_and_tracks_and_stay_apart():
    left, right = disc(8, (24, 15)), disc(8, (24, 32))
    frame = paint(left | right)
    fat = np.stack([disc(9, (24, 15)), disc(9, (24, 32)) & ~disc(9, (24, 15))])
    labels = Instances.from_masks(torch.from_numpy(fat), torch.tensor([0.3, 0.8]), torch.tensor([4, 7]))
    settled = settle_outlines(frame, labels)
    assert settled.scores.tolist() == pytest.approx([0.3, 0.8])
    assert settled.track_ids is not None
    assert settled.track_ids.tolist() == [4, 7]
    assert not (settled.masks[0] & settled.masks[1]).any()
    assert (settled.masks.any(0).numpy() ^ (left | right)).sum() <= 4


def test_nearest_colour_against_a_plain_search():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (9, 11, 3)).astype(np.uint8)
    members, wanted = rng.random((9, 11)) < 0.1, rng.random((9, 11)) < 0.5
    expected = []
    for y, x in zip(*np.nonzero(wanted), strict=True):
        found = [
            np.abs(colours[y, x].astype(float) - colours[v, u]).mean()
            for v in range(max(y - 2, 0), min(y + 3, 9))
            for u in range(max(x - 2, 0), min(x + 3, 11))
            if members[v, u]
        ]
        expected.append(min(found, default=255.0))
    assert np.allclose(nearest_colour(colours, members, wanted, 2), expected)
    assert nearest_colour(colours, members, np.zeros_like(wanted), 2).shape == (0,)
