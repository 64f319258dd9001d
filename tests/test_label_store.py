"""Labels on disk and in memory: what was written comes back, what is broken is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.common.instances import Instances
from tasks.errors import DataError
from tasks.labels import LabelStore, LabelWriter
from tests.frames_toy import FIRST, SECOND, SIZE, assert_same


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_labels_come_back(tmp_path, kind):
    items = [(0, FIRST), (1, Instances.empty(*SIZE)), (4, SECOND)]
    if kind == "file":
        assert LabelStore.write(tmp_path / "labels", SIZE, iter(items)) == 3
        store = LabelStore.open(tmp_path / "labels")
    else:
        store = LabelStore.from_items(SIZE, items)
    assert store.count == 3
    assert_same(store[0], FIRST)
    assert_same(store[4], SECOND)
    for row in (1, 2, 5, 1000):
        assert_same(store[row], Instances.empty(*SIZE))


def test_no_labels_at_all(tmp_path):
    assert LabelStore.write(tmp_path / "labels", SIZE, []) == 0
    store = LabelStore.open(tmp_path / "labels")
    assert store.count == 0
    assert len(store[0]) == 0
    assert LabelStore.from_items(SIZE, []).count == 0


def test_truth_is_written_from_arrays(tmp_path):
    track_ids = np.array([7, 3])
    with LabelWriter(tmp_path, SIZE) as writer:
        writer.add_masks(2, FIRST.masks.numpy(), track_ids)
        writer.add_masks(3, np.zeros((0, *SIZE), bool), track_ids[:0])
        with pytest.raises(ValueError, match="row 4"):
            writer.add_masks(4, np.ones((1, 6, 5), bool), track_ids[:1])
    store = LabelStore.open(tmp_path)
    assert_same(store[2], FIRST.with_scores(torch.ones(2)))
    assert store.count == 2


def test_labels_must_ascend_and_fit(tmp_path):
    with pytest.raises(ValueError, match="ascending"):
        LabelStore.write(tmp_path / "labels", SIZE, [(2, FIRST), (1, SECOND)])
    with pytest.raises(ValueError, match="ascending"):
        LabelStore.from_items(SIZE, [(2, FIRST), (1, SECOND)])
    with pytest.raises(ValueError, match="masks of"):
        LabelStore.write(tmp_path / "labels", (6, 5), [(2, FIRST)])
    assert list(tmp_path.iterdir()) == []


def break_size(folder: Path) -> None:
    (folder / "size.json").write_text('{"height": 5}')


def break_scores(folder: Path) -> None:
    np.save(folder / "scores.npy", np.zeros(1, np.float32))


def break_rows(folder: Path) -> None:
    np.save(folder / "rows.npy", np.array([4, 0, 0]))


def break_masks(folder: Path) -> None:
    data = (folder / "masks.npy").read_bytes()
    (folder / "masks.npy").write_bytes(data[:-2])


def break_pickle(folder: Path) -> None:
    np.save(folder / "scores.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def break_text(folder: Path) -> None:
    (folder / "track_ids.npy").write_text("no array")


def break_missing(folder: Path) -> None:
    (folder / "rows.npy").unlink()


BREAK_LABELS = [break_size, break_scores, break_rows, break_masks, break_pickle, break_text, break_missing]


@pytest.mark.parametrize("damage", BREAK_LABELS)
def test_broken_labels_are_named_in_one_line(tmp_path, damage):
    LabelStore.write(tmp_path / "labels", SIZE, [(0, FIRST), (4, SECOND)])
    damage(tmp_path / "labels")
    with pytest.raises(DataError) as caught:
        LabelStore.open(tmp_path / "labels")
    assert "\n" not in str(caught.value)
    assert "labels" in str(caught.value)
