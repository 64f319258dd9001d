"""Self-training: the network adds what labels miss, and takes nothing away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_toy import SIDE, ToySegmenter, toy_recipe, toy_store

from models.common.instances import Instances
from models.interface import Batch, Segmenter
from tasks.labels import LabelStore
from tasks.training.checkpoint import Checkpoints
from tasks.training.loop import fit
from tasks.training.self_training import add_missing, relabel, round_starts


def instances(*boxes: tuple[int, int, int, int], scores: list[float] | None = None) -> Instances:
    """Filled boxes (x1, y1, x2, y2) in a frame of 20 x 20."""
    masks = torch.zeros(len(boxes), 20, 20, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return Instances.from_masks(masks, torch.tensor(scores if scores is not None else [0.5] * len(boxes)))


def test_rounds_divide_the_training_evenly():
    assert round_starts(90, 2) == [30, 60]
    assert round_starts(4, 1) == [2]
    assert round_starts(100, 0) == []
    assert round_starts(2, 5) == [1]


def test_what_no_label_touches_is_added_and_labels_stay():
    labels = instances((0, 0, 5, 5), scores=[0.3])
    found = instances((1, 1, 6, 6), (10, 10, 15, 15), scores=[0.9, 0.8])
    merged = add_missing(labels, found)
    assert merged.boxes.tolist() == [[0, 0, 5, 5], [10, 10, 15, 15]]
    assert merged.scores.tolist() == pytest.approx([0.3, 0.8])


def test_a_little_overlap_is_cut_off_and_twins_are_added_once():
    labels = instances((0, 0, 5, 20))
    found = instances((10, 0, 20, 10), (4, 0, 14, 10), (4, 0, 10, 10), scores=[0.5, 0.6, 0.9])
    merged = add_missing(labels, found)
    # The surest comes first and loses the column that the label holds; what overlaps it too much stays out.
    assert merged.boxes.tolist() == [[0, 0, 5, 20], [5, 0, 10, 10], [10, 0, 20, 10]]


def test_nothing_found_changes_nothing():
    for labels in (instances((0, 0, 5, 5)), Instances.empty(20, 20)):
        assert torch.equal(add_missing(labels, Instances.empty(20, 20)).masks, labels.masks)
    assert len(add_missing(Instances.empty(20, 20), instances((1, 1, 3, 3)))) == 1


def test_frames_of_the_train_split_without_labels_get_what_a_trained_network_sees():
    store, labels = toy_store()
    model = ToySegmenter()
    fit(model, store, toy_recipe(iterations=30), labels=labels)
    half = LabelStore.from_items((SIDE, SIDE), [(row, labels[row]) for row in range(6)])
    found = dict(relabel(model, store, half, score_threshold=0.5))
    assert set(found) == set(range(12))  # two clips of the train split; the third is for validation
    assert model.training
    for row in range(6):
        assert torch.equal(found[row].masks[0], labels[row].masks[0])
    overlap = [(found[row].masks[0] & labels[row].masks[0]).sum() / labels[row].masks[0].sum() for row in range(6, 12)]
    assert min(overlap) > 0.7


def test_a_threshold_out_of_reach_adds_nothing(tmp_path: Path):
    store, labels = toy_store()
    some = LabelStore.from_items((SIDE, SIDE), [(3, labels[3])])
    assert [row for row, _ in relabel(ToySegmenter(), store, some, score_threshold=1.0)] == [3]


class Watched(ToySegmenter):
    """Remembers what it was shown, and stops where it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.shown: list[torch.Tensor] = []
        self.stop_at = stop_at

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        if len(self.shown) == self.stop_at:
            raise KeyboardInterrupt
        self.shown.append(batch.frame_a)
        return super().loss(batch)


def train(model: Watched, folder: Path | None = None) -> list[tuple[int, int]]:
    """Two rounds in 12 iterations, each with the labels of one row; (round, iterations done by then) as asked for."""
    store, labels = toy_store()
    asked = []

    def again(number: int, current: Segmenter) -> LabelStore:
        asked.append((number, len(model.shown)))
        return LabelStore.from_items((SIDE, SIDE), [(number, labels[number])])

    checkpoints = None if folder is None else Checkpoints(folder, {"params": "p"}, every=5)
    recipe = toy_recipe(iterations=12, self_training=2, batch_size=1)
    fit(model, store, recipe, labels=labels, relabel=again, checkpoints=checkpoints)
    return asked


def test_each_round_learns_from_its_own_labels():
    torch.manual_seed(7)
    model, store = Watched(), toy_store()[0]
    assert train(model) == [(1, 4), (2, 8)]
    for number, shown in ((1, model.shown[4:8]), (2, model.shown[8:])):
        frame = torch.from_numpy(store.frame(number).copy()).permute(2, 0, 1)[None] / 255
        assert all(torch.allclose(image, frame) for image in shown)


def test_a_run_stopped_within_a_round_ends_like_one_that_was_not(tmp_path: Path):
    torch.manual_seed(7)
    whole = Watched()
    train(whole)
    torch.manual_seed(7)
    stopped = Watched(stop_at=7)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, tmp_path)
    resumed = Watched()
    assert train(resumed, tmp_path) == [(1, 0), (2, 3)]  # the checkpoint is that of iteration 5, within round 1
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
