"""Copy-paste: pasted objects, what they hide, and labels that stay true to the picture."""

from __future__ import annotations

import numpy as np
import pytest
from training_toy import toy_store

from tasks.training import copy_paste
from tasks.training.batches import RawBatch, labelled_samples, make_batch
from tasks.training.copy_paste import Cutout, cut_out, draw_pastes, lay_over, paste_objects, resize

BLACK = np.zeros((20, 30, 3), np.uint8)


def square(top: int, left: int, side: int, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def block(side: int, value: int = 200) -> Cutout:
    """A square with a border of two pixels, as wide as the frame it comes from."""
    mask = square(2, 2, side, (side + 4, side + 4))
    return Cutout(np.full((*mask.shape, 3), value, np.uint8), mask, 0.5)


def test_a_cutout_is_the_extent_with_a_border_where_the_frame_has_one():
    frame = np.arange(20 * 30 * 3, dtype=np.uint16).astype(np.uint8).reshape(20, 30, 3)
    inside, corner = cut_out(frame, square(4, 6, 5), 0.7), cut_out(frame, square(0, 0, 3), 0.7)
    assert inside.mask.shape == (7, 7)
    assert inside.mask.sum() == 25
    assert (inside.picture == frame[3:10, 5:12]).all()
    assert corner.mask.shape == (4, 4)


def test_an_object_is_drawn_with_a_mixed_outline_and_its_cover_is_exact():
    frame = BLACK.copy()
    covered = lay_over(frame, block(6), (10, 15))
    assert (covered == square(7, 12, 6)).all()
    assert (frame[8:12, 13:17] == 200).all()
    assert (frame[7, 12:18] == 100).all()
    assert (frame[~covered] == 0).all()


@pytest.mark.parametrize(
    ("centre", "pixels"), [((0, 0), 36), ((19, 29), 49), ((10, 60), 0), ((-30, 5), 0), ((-5, 15), 0)]
)
def test_an_object_may_leave_the_frame_and_a_mere_rest_is_not_drawn(centre: tuple[int, int], pixels: int):
    frame = BLACK.copy()
    assert lay_over(frame, block(12), centre).sum() == pixels
    assert (frame.any(2).sum() > 0) == (pixels > 0)


def test_resizing_keeps_the_shape_of_the_mask():
    half = resize(Cutout(np.zeros((20, 30, 3), np.uint8), square(4, 8, 8), 1.0), 0.5)
    assert half.mask.shape == (10, 15)
    assert (half.mask == square(2, 4, 4, (10, 15))).all()
    assert resize(block(3), 0.01).mask.shape == (1, 1)


def draw_and_paste(
    frames: np.ndarray, masks: np.ndarray, scores: np.ndarray, counts: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pastes = draw_pastes(masks.sum((1, 2)), scores, counts, frames.shape[1:3], rng)
    return paste_objects(frames, masks, scores, counts, pastes, slice(None))


def paste(monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two grey images of one object each, always pasted into."""
    monkeypatch.setattr(copy_paste, "SHARE", 1.1)
    frames = np.stack([np.full((40, 40, 3), 50, np.uint8), np.full((40, 40, 3), 90, np.uint8)])
    masks = np.stack([square(5, 5, 12, (40, 40)), square(20, 20, 12, (40, 40))])
    for frame, mask, value in zip(frames, masks, (150, 250), strict=True):
        frame[mask] = value
    result = draw_and_paste(frames, masks, np.array([0.5, 1.0], np.float32), np.array([1, 1]), seed)
    return frames, *result


@pytest.mark.parametrize("seed", range(8))
def test_masks_say_what_is_to_be_seen(monkeypatch: pytest.MonkeyPatch, seed: int):
    frames, masks, scores, counts = paste(monkeypatch, seed)
    assert len(masks) == len(scores) == counts.sum()
    for image, (own, other) in enumerate(((150, 250), (250, 150))):
        here = masks[: counts[0]] if image == 0 else masks[counts[0] :]
        assert here.sum(0).max() <= 1  # nothing is two objects at once
        weights = scores[: counts[0]] if image == 0 else scores[counts[0] :]
        for mask, weight in zip(here, weights, strict=True):
            if weight == (0.5, 1.0)[image]:
                assert (frames[image][mask] == own).all()
            else:
                assert (frames[image][mask] == other).mean() > 0.3  # the inner part; the outline is mixed


def test_what_is_nearly_hidden_is_no_label_any_more():
    frame, layers, weights = BLACK.copy(), [square(7, 12, 6), square(0, 0, 5)], [0.1, 0.2]
    copy_paste._paste_one(frame, layers, weights, block(6), (10, 15))
    assert weights == [0.2, 0.5]
    assert (layers[1] == square(7, 12, 6)).all()


def test_nothing_to_paste_changes_nothing():
    frames = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3)).astype(np.uint8)
    before = frames.copy()
    empty = (np.zeros((0, 16, 16), bool), np.zeros(0, np.float32), np.zeros(3, np.int64))
    masks, scores, counts = draw_and_paste(frames, *empty)
    assert (frames == before).all()
    assert masks.shape == (0, 16, 16)
    assert len(scores) == 0
    assert counts.tolist() == [0, 0, 0]


def test_labels_without_weight_are_not_pasted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(copy_paste, "SHARE", 1.1)
    frames = np.zeros((2, 20, 30, 3), np.uint8)
    masks = np.stack([square(2, 2, 8)])
    _, scores, counts = draw_and_paste(frames, masks, np.zeros(1, np.float32), np.array([1, 0]))
    assert counts.tolist() == [1, 0]
    assert scores.tolist() == [0]


def test_a_batch_is_a_function_of_seed_and_iteration():
    store, labels = toy_store()
    samples = labelled_samples(store, labels)

    def batch(iteration: int, *, copy_paste: bool) -> RawBatch:
        return make_batch(
            store, samples, labels, batch_size=4, seed=0, iteration=iteration, augment=True, copy_paste=copy_paste
        )

    pasted = [batch(iteration, copy_paste=True) for iteration in range(4)]
    again = [batch(iteration, copy_paste=True) for iteration in range(4)]
    plain = [batch(iteration, copy_paste=False) for iteration in range(4)]
    assert all((a.frame_a == b.frame_a).all() for a, b in zip(pasted, again, strict=True))
    assert any((a.frame_a != b.frame_a).any() for a, b in zip(pasted, plain, strict=True))
    assert all(len(b.labels.masks) == b.labels.counts.sum() for b in pasted if b.labels is not None)


def test_a_part_of_a_batch_reads_its_own_frames_and_those_it_takes_from(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(copy_paste, "SHARE", 1.1)
    store, labels = toy_store()
    samples = labelled_samples(store, labels)
    gather, read = store.gather, []
    monkeypatch.setattr(store, "gather", lambda rows: read.append(len(rows)) or gather(rows))
    settings = {"batch_size": 24, "seed": 0, "iteration": 0, "augment": True, "copy_paste": True}
    whole = make_batch(store, samples, labels, **settings)
    parts = [make_batch(store, samples, labels, **settings, part=(number, 24)) for number in range(24)]
    assert read[0] == 24
    assert all(2 <= count <= 1 + copy_paste.MOST for count in read[1:])
    assert np.array_equal(np.concatenate([part.frame_a for part in parts]), whole.frame_a)
