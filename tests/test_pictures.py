"""Overlays, panels and the flow colour wheel on pictures that a hand can check."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.common.instances import Instances
from tasks import pictures
from tasks.optical_flow import estimate_flow, limit_side


def one_pixel(row: int, column: int, size: tuple[int, int] = (4, 6), track_id: int | None = None) -> Instances:
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[0, row, column] = True
    return Instances.from_masks(masks, track_ids=None if track_id is None else torch.tensor([track_id]))


def test_overlay_paints_the_mask_and_nothing_else() -> None:
    frame = np.full((4, 6, 3), 100, np.uint8)
    painted = pictures.overlay(frame, one_pixel(1, 2), scale=2)
    changed = (painted != 100).any(-1)
    expected = np.zeros((8, 12), bool)
    expected[2:4, 4:6] = True
    assert np.array_equal(changed, expected)
    assert (frame == 100).all(), "the frame itself must stay"


def test_overlay_of_nothing_is_the_frame() -> None:
    frame = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert np.array_equal(pictures.overlay(frame, Instances.empty(4, 6), show_scores=True), frame)


def test_scores_stand_clear_of_each_other_the_best_first() -> None:
    size, canvas = (20, 10), (60, 100)
    first = pictures.find_room(size, [(30, 30)], canvas, [])
    assert first == (30, 20, 50, 30)
    assert pictures.find_room(size, [(45, 25)], canvas, [first]) is None
    assert pictures.find_room(size, [(45, 25), (45, 41)], canvas, [first]) == (45, 31, 65, 41)
    assert pictures.find_room(size, [(-5, 3), (0, 0)], canvas, []) == (0, 0, 20, 10)
    assert pictures.find_room(size, [(95, 99)], canvas, []) == (80, 49, 100, 59)
    assert pictures.find_room(size, [(0, 0)], (4, 4), []) == (0, 0, 20, 10)  # smaller than the text


def test_each_of_two_objects_in_one_place_has_its_score() -> None:
    whole = torch.ones(1, 40, 60, dtype=torch.bool)
    masks = Instances.from_masks(whole.repeat(2, 1, 1), torch.tensor([0.9, 0.3]))
    frame = np.full((40, 60, 3), 200, np.uint8)
    shown = [pictures.overlay(frame, one, show_scores=True) for one in (masks, masks[:1])]
    both, best = (int((picture == 0).all(-1).sum()) for picture in shown)
    assert both > 1.6 * best > 0


def test_colours_go_by_track_so_that_an_object_keeps_its_colour() -> None:
    frame = np.zeros((4, 6, 3), np.uint8)
    both = Instances.cat([one_pixel(0, 0, track_id=5), one_pixel(3, 5, track_id=2)])
    painted = pictures.overlay(frame, both)
    alone = pictures.overlay(frame, one_pixel(3, 5, track_id=2))
    assert np.array_equal(painted[3, 5], alone[3, 5])
    assert not np.array_equal(painted[3, 5], painted[0, 0])
    assert len({pictures.instance_colour(identity) for identity in range(20)}) == 20


def test_panels_stand_side_by_side_and_shrink_to_the_widest_allowed() -> None:
    picture = pictures.side_by_side([np.zeros((2, 3, 3), np.uint8), np.zeros((4, 3, 3), np.uint8)])
    assert picture.shape == (4, 10, 3)
    assert (picture[:, 3:7] == 255).all()
    assert (picture[2:, :3] == 255).all()
    assert pictures.side_by_side([np.zeros((500, 2000, 3), np.uint8)]).shape == (160, 640, 3)
    with pytest.raises(ValueError, match="no panels"):
        pictures.side_by_side([])


@pytest.mark.parametrize(("size", "width"), [((64, 64), 584), ((128, 128), 640), ((1080, 1920), 638), ((1, 1), 640)])
def test_three_panels_fit_any_frame(size: tuple[int, int], width: int) -> None:
    frame = np.zeros((*size, 3), np.uint8)
    truth = one_pixel(0, 0, size)
    assert pictures.detection_panels(frame, Instances.empty(*size), truth).shape[1] == width
    assert pictures.detection_panels(frame, truth, None).shape[1] <= pictures.MAX_WIDTH


def test_flow_colours_follow_direction_and_speed() -> None:
    # Baker et al.: right is red, down yellow-green, left cyan-blue, up violet; rest white, unknown black.
    field = np.array([[(1, 0), (0, 1), (-1, 0), (0, -1), (0, 0), (np.nan, 1), (0.5, 0)]], np.float32)
    red, down, left, up, rest, unknown, slow = pictures.flow_to_colour(field)[0].astype(int)
    assert red[0] == 255
    assert red[1:].max() <= 1
    assert down[1] > 200 > down[2]
    assert left[2] > left[0]
    assert up[2] > 150 > up[1]
    assert up[0] > up[1]
    assert rest.tolist() == [255, 255, 255]
    assert unknown.tolist() == [0, 0, 0]
    assert slow[0] == 255
    assert 120 < slow[1] < 135
    fast = pictures.flow_to_colour(field, max_motion=0.5)[0, 0]
    assert fast.tolist() == [191, 0, 0], "beyond the limit is darkened by a quarter"
    assert pictures.flow_to_colour(np.zeros((2, 2, 2), np.float32)).min() == 255


def test_the_wheel_has_the_published_hues() -> None:
    wheel = pictures.colour_wheel()
    assert wheel.shape == (55, 3)
    for place, colour in {
        0: (1, 0, 0),
        15: (1, 1, 0),
        21: (0, 1, 0),
        25: (0, 1, 1),
        36: (0, 0, 1),
        49: (1, 0, 1),
    }.items():
        assert wheel[place].tolist() == list(colour)


def test_flow_of_a_shifted_picture_is_the_shift() -> None:
    rng = np.random.default_rng(0)
    canvas = cv2.GaussianBlur(rng.integers(0, 256, (80, 90, 3)).astype(np.uint8), (0, 0), 2)
    field = estimate_flow(canvas[8:72, 8:72], canvas[8:72, 5:69])  # what was at x is now at x + 3
    assert np.median(field[8:-8, 8:-8], (0, 1)) == pytest.approx([3, 0], abs=0.2)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (12, 64), (64, 12)])
def test_flow_of_frames_too_small_for_the_search(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    field = estimate_flow(frame, frame)
    assert field.shape == (*size, 2)
    assert field.dtype == np.float32
    assert np.abs(field).max() < 0.5


def test_limit_side() -> None:
    assert limit_side((100, 200), 256) == (100, 200)
    assert limit_side((1080, 1920), 256) == (144, 256)
    assert limit_side((5000, 1), 256) == (256, 1)


def test_jpeg_is_written_in_true_colours(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "red.jpg"
    pictures.write_jpeg(path, np.full((16, 16, 3), (250, 10, 10), np.uint8))
    blue, _, red = cv2.imread(str(path))[8, 8].astype(int)
    assert red > 230
    assert blue < 30
    assert [p.name for p in path.parent.iterdir()] == ["red.jpg"]
