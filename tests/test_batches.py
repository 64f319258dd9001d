"""Which samples make a batch, what they hold, and the thread that has them ready."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training_toy import SIDE, ToySegmenter, toy_recipe, toy_store

from models.common.instances import Instances
from tasks.errors import NothingLeftError
from tasks.labels import LabelStore
from tasks.prefetch import prefetch
from tasks.training.batches import (
    RawLabels,
    draw_indices,
    labelled_samples,
    make_batch,
    pair_samples,
    read_labels,
    torch_seed,
    typical_confidence,
)
from tasks.training.reader import Reader

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_epoch_takes_every_sample_once_also_across_batches() -> None:
    drawn = np.concatenate([draw_indices(10, 4, seed=3, iteration=i) for i in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()


def test_order_follows_from_seed_and_iteration_alone() -> None:
    later = draw_indices(10, 4, seed=3, iteration=7)
    draw_indices(10, 4, seed=3, iteration=0)
    np.testing.assert_array_equal(draw_indices(10, 4, seed=3, iteration=7), later)
    assert draw_indices(1000, 8, seed=4, iteration=7).tolist() != draw_indices(1000, 8, seed=3, iteration=7).tolist()
    assert torch_seed(3, 7) == torch_seed(3, 7) != torch_seed(3, 8)


def test_fewer_samples_than_a_batch_are_repeated() -> None:
    assert sorted(draw_indices(2, 4, seed=0, iteration=0)) == [0, 0, 1, 1]


def test_batches_hold_pairs_of_the_train_split_and_their_labels() -> None:
    store, labels = toy_store()
    samples = pair_samples(store)
    assert len(samples) == 10  # two clips of six frames
    raw = make_batch(store, samples, labels, batch_size=10, seed=0, iteration=0, augment=False)
    assert raw.frame_b is not None
    batch = raw.to(torch.device("cpu"))
    rows = [
        int(np.flatnonzero([np.array_equal(frame, store.frame(row)) for row in range(18)])[0]) for frame in raw.frame_a
    ]
    assert sorted(rows) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert batch.labels is not None
    for row, second, instances in zip(rows, raw.frame_b, batch.labels, strict=True):
        assert np.array_equal(second, store.frame(row + 1))
        assert torch.equal(instances.masks, labels[row].masks)
        assert torch.equal(instances.boxes, labels[row].boxes)
    torch.testing.assert_close(batch.dt, torch.full((10,), 1 / 24))


def test_only_rows_with_a_label_are_drawn() -> None:
    store, labels = toy_store()
    some = LabelStore.from_items((SIDE, SIDE), [(row, labels[row]) for row in (1, 8, 14)])
    samples = labelled_samples(store, some)
    assert samples.row_a.tolist() == [1, 8]  # 14 is in the val split
    assert make_batch(store, samples, some, batch_size=2, seed=0, iteration=0, augment=True).frame_b is None


def test_prefetch_keeps_order_and_runs_in_another_thread() -> None:
    threads = set()

    def make(index: int) -> int:
        threads.add(threading.current_thread().name)
        return index

    assert list(prefetch(make, 3, 9)) == [3, 4, 5, 6, 7, 8]
    assert list(prefetch(make, 5, 5)) == []
    assert threading.current_thread().name not in threads


def test_prefetch_raises_the_error_in_its_turn() -> None:
    def make(index: int) -> int:
        if index == 2:
            raise NothingLeftError("broken shard")
        return index

    items = prefetch(make, 0, 9)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(NothingLeftError, match="broken shard"):
        next(items)


def test_images_keep_their_own_labels_and_empty_masks_go() -> None:
    masks = np.zeros((3, 4, 4), bool)
    masks[0, 1:3, 0:2] = masks[2, 0, 3] = True  # the second is empty
    labels = RawLabels(masks, np.array([0.5, 0.6, 0.7], np.float32), np.array([2, 0, 1]))
    first, none, last = labels.to(torch.device("cpu"))
    assert (first.boxes.tolist(), first.scores.tolist()) == ([[0, 1, 2, 3]], [0.5])
    assert (len(none), none.size) == (0, (4, 4))
    assert last.boxes.tolist() == [[3, 0, 4, 1]]
    nothing = RawLabels(np.zeros((0, 4, 4), bool), np.zeros(0, np.float32), np.array([0, 0]))
    assert [len(instances) for instances in nothing.to(torch.device("cpu"))] == [0, 0]


def test_labels_at_the_typical_confidence_count_in_full() -> None:
    masks = torch.ones(3, 4, 4, dtype=torch.bool)
    items = [(0, Instances.from_masks(masks, torch.tensor([0.1, 0.2, 0.6])))]
    unsure, sure = (
        LabelStore.from_items((4, 4), items),
        LabelStore.from_items((4, 4), [(0, Instances.from_masks(masks))]),
    )
    assert typical_confidence(unsure) == pytest.approx(0.3)
    weights = read_labels(unsure, np.array([0]), trusted=0.3).scores
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3, 1.0], rtol=1e-6)
    assert read_labels(sure, np.array([0]), trusted=typical_confidence(sure)).scores.tolist() == [1, 1, 1]
    assert typical_confidence(LabelStore.from_items((4, 4), [])) == 1
    worthless = LabelStore.from_items((4, 4), [(0, Instances.from_masks(masks, torch.zeros(3)))])
    assert typical_confidence(worthless) == 1


def test_labels_are_read_in_the_order_of_the_rows() -> None:
    _, labels = toy_store()
    two = Instances.cat([labels[4], labels[9]])
    some = LabelStore.from_items((SIDE, SIDE), [(4, two), (9, labels[9])])
    found = read_labels(some, np.array([9, 5, 4, 9]))
    assert found.counts.tolist() == [1, 0, 2, 1]
    for instances, row in zip(found.to(torch.device("cpu")), (9, 5, 4, 9), strict=True):
        assert torch.equal(instances.masks, some[row].masks)
        assert torch.equal(instances.boxes, some[row].boxes)


def test_each_process_reads_its_own_part_of_a_batch() -> None:
    """Else all of them would do the work of one, with the same weights in the end."""
    store, _ = toy_store()
    ranks: Any = [SimpleNamespace(number=number, count=2) for number in (0, 1)]
    readers = [Reader(store, None, ToySegmenter("pairs"), toy_recipe(), one) for one in ranks]
    parts = [reader.read(3, resident=False).dt_s for reader in readers]
    frames = [reader.read(3, resident=False).frame_a for reader in readers]  # type: ignore[union-attr]
    whole = readers[1].read_whole(3)
    assert [len(part) for part in parts] == [2, 2]
    np.testing.assert_array_equal(np.concatenate(frames), whole.frame_a)
