"""Augmentation takes frames, masks and motion alike."""

from __future__ import annotations

import numpy as np
import torch
from training_toy import toy_store

from tasks.training.augment import Augmentation, draw_augmentation, grey_table
from tasks.training.batches import (
    RawLabels,
    make_batch,
    pair_samples,
)

IDENTITY = grey_table(1.0, 0.0, invert=False)


def test_moves_take_frame_and_mask_alike_on_a_square_that_a_hand_can_check() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[0, 1] = (10, 20, 30)  # row 0, column 1
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 1] = True
    cases = {(False, False, False): (0, 1), (True, False, False): (1, 0), (False, True, False): (0, 2),
             (False, False, True): (3, 1), (True, True, True): (2, 3)}  # fmt: skip
    for (transpose, flip_x, flip_y), (row, column) in cases.items():
        augmentation = Augmentation(transpose, flip_x, flip_y, (2, 0, 1), IDENTITY)
        moved = augmentation.frames(frame)
        assert moved[row, column].tolist() == [30, 10, 20]
        assert (moved.sum(-1) > 0).sum() == 1
        masks = augmentation.masks(mask.numpy())
        (instances,) = RawLabels(masks, np.ones(1, np.float32), np.array([1])).to(torch.device("cpu"))
        assert instances.masks[0].nonzero().tolist() == [[row, column]]
        assert instances.boxes.tolist() == [[column, row, column + 1, row + 1]]


def test_grey_table() -> None:
    assert IDENTITY.tolist() == list(range(256))
    assert grey_table(1.0, 0.0, invert=True)[[0, 100, 255]].tolist() == [255, 155, 0]
    assert grey_table(1.0, 10.0, invert=False)[[0, 250]].tolist() == [10, 255]
    assert grey_table(0.5, 0.0, invert=False)[[0, 255]].tolist() == [64, 191]


def test_every_draw_keeps_squares_under_their_masks_in_both_frames() -> None:
    store, labels = toy_store()
    samples = pair_samples(store)
    for iteration in range(10):
        raw = make_batch(store, samples, labels, batch_size=4, seed=1, iteration=iteration, augment=True)
        assert raw.labels is not None
        for frame, inside in zip(raw.frame_a, raw.labels.masks, strict=True):  # one square an image
            # Inversion swaps bright and dark; either way the square stands out by its whole contrast.
            assert abs(frame[inside].mean() - frame[~inside].mean()) > 80
            assert inside.sum() in {side * side for side in range(8, 13)}
        again = make_batch(store, samples, labels, batch_size=4, seed=1, iteration=iteration, augment=True)
        assert raw.frame_b is not None
        assert again.frame_b is not None
        np.testing.assert_array_equal(raw.frame_b, again.frame_b)


def test_transposes_only_squares_and_draws_every_move() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_augmentation(rng, square=True) for _ in range(200)]
    for move in ("transpose", "flip_x", "flip_y"):
        assert 60 < sum(getattr(draw, move) for draw in draws) < 140
    assert len({draw.channels for draw in draws}) == 6
    assert not any(draw_augmentation(rng, square=False).transpose for _ in range(50))
