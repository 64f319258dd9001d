from __future__ import annotations

import numpy as np
import pytest
import torch

from models.common.boxes import clip_boxes, jitter_boxes, pairwise_iou, scale_boxes, widen_boxes
from models.common.images import resize_frame, to_tensor


def test_resize_averages_areas_when_shrinking() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[:2, :2] = [[[0], [100]], [[100], [200]]]
    assert resize_frame(frame, (2, 2))[:, :, 0].tolist() == [[100, 0], [0, 0]]


def test_resize_leaves_a_frame_of_that_size_alone() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert resize_frame(frame, (5, 7)) is frame


def test_resize_takes_height_before_width() -> None:
    assert resize_frame(np.zeros((10, 20, 3), np.uint8), (32, 64)).shape == (32, 64, 3)


@pytest.mark.parametrize(
    "frame",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_resize_refuses_what_is_no_frame(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected a frame"):
        resize_frame(frame, (2, 2))


def test_to_tensor_scales_and_moves_channels_first() -> None:
    frames = np.zeros((2, 3, 5, 3), np.uint8)
    frames[1, 2, 4] = [255, 51, 0]
    tensor = to_tensor(frames)
    assert tensor.shape == (2, 3, 3, 5)
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor[1, :, 2, 4], torch.tensor([1.0, 0.2, 0.0]))


def test_to_tensor_of_no_frames_is_empty() -> None:
    assert to_tensor(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 3, 8, 8)


def test_to_tensor_refuses_floats() -> None:
    with pytest.raises(ValueError, match="uint8"):
        to_tensor(np.zeros((1, 8, 8, 3), np.float32))


def test_iou_of_boxes_without_area_is_zero() -> None:
    boxes = torch.tensor([[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 4.0, 2.0]])
    assert pairwise_iou(boxes, boxes).tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_boxes_are_clipped_and_scaled_by_height_and_width() -> None:
    box = torch.tensor([[-2.0, -3.0, 30.0, 9.0]])
    assert clip_boxes(box, (8, 20)).tolist() == [[0.0, 0.0, 20.0, 8.0]]
    assert scale_boxes(box, (10, 20), (30, 20)).tolist() == [[-2.0, -9.0, 30.0, 27.0]]


def test_widening_moves_every_edge_by_a_share_of_the_side() -> None:
    assert widen_boxes(torch.tensor([10.0, 20.0, 20.0, 60.0]), 0.1).tolist() == [9.0, 16.0, 21.0, 64.0]


def test_jitter_moves_edges_by_its_draw() -> None:
    boxes = torch.tensor([[10.0, 10.0, 20.0, 40.0]])
    draw = torch.tensor([[0.0, 0.5, 0.75, 0.25]])  # fully back, not at all, half forth, half back
    moved = jitter_boxes(boxes, 0.2, draw)
    assert moved.tolist() == [[8.0, 10.0, 21.0, 37.0]]
