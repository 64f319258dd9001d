"""Methods that infer their own labels: rounds over the train split, resumed as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_toy import ToySegmenter, toy_recipe, toy_store

from models.common.instances import Instances
from models.interface import Batch, Segmenter
from tasks.errors import NothingLeftError
from tasks.labels import LabelStore
from tasks.training.checkpoint import Checkpoints
from tasks.training.loop import fit
from tasks.training.own_labels import collect_labels, infer_round, round_samples


class Thinker(ToySegmenter):
    """Infers what is bright in all three frames, the part of a bright square that all have; keeps what it was asked."""

    frame_gap = 1
    rounds = 2

    def __init__(self, stop_at: int | None = None, *, blind: bool = False) -> None:
        super().__init__(needs="own_labels")
        self.asked: list[bool] = []
        self.learnt: list[list[Instances]] = []
        self.stop_at, self.blind = stop_at, blind

    def infer(self, batch: Batch, *, with_network: bool) -> list[Instances]:
        assert not self.training
        assert batch.frame_before is not None
        self.asked.append(with_network)
        seen = torch.stack((batch.frame_before, batch.frame_a, batch.frame_b)).mean(2).amin(0) > 0.5
        if self.blind:
            seen = torch.zeros_like(seen)
        found = [Instances.from_masks(mask[None], torch.ones(1)) for mask in seen]
        return [instances[instances.masks.flatten(1).any(1)] for instances in found]

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        if len(self.learnt) == self.stop_at:
            raise KeyboardInterrupt
        assert batch.labels is not None
        self.learnt.append(batch.labels)
        self.needs = "labels"
        try:
            return super().loss(batch)
        finally:
            self.needs = "own_labels"


def test_frames_with_neighbours_on_both_sides_are_asked_about_and_outlines_follow_colour() -> None:
    store, truth = toy_store()
    found = dict(infer_round(0, Thinker(), store))
    assert sorted(found) == [1, 2, 3, 4, 7, 8, 9, 10]  # two train clips of six frames; the third is for validation
    for row, instances in found.items():
        expected = truth[row].masks[0]
        overlap = (instances.masks[0] & expected).sum() / (instances.masks[0] | expected).sum()
        # A square that moves by a pixel loses a column on each side; its colours give them back.
        assert overlap > 0.95, row


def test_each_round_takes_other_frames_and_fewer_only_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    store, model = toy_store()[0], Thinker()
    model.frame_step = 4

    def rows(number: int) -> list[int]:
        samples = round_samples(number, model, store)
        assert samples.row_before is not None
        assert (samples.row_b - samples.row_a == 1).all()
        assert (samples.row_a - samples.row_before == 1).all()
        return samples.row_a.tolist()

    assert rows(0) == rows(2) == [1, 2, 3, 4, 7, 8, 9, 10]
    monkeypatch.setattr("tasks.training.own_labels.FEWEST", 2)
    assert [rows(number) for number in range(3)] == [[1, 7], [2, 8], [3, 9]]
    assert [row for row, _ in infer_round(2, model, store)] == [3, 9]
    assert model.asked == [True]
    monkeypatch.setattr("tasks.training.own_labels.FEWEST", 4)
    assert rows(0) == [1, 3, 7, 9]


def test_each_round_asks_anew_and_only_the_first_does_without_the_network() -> None:
    torch.manual_seed(7)
    model = Thinker()
    fit(model, toy_store()[0], toy_recipe(iterations=6))
    assert model.asked == [False, True, True]
    assert model.training
    assert len(model.learnt) == 6
    assert all(len(instances) == 1 for labels in model.learnt for instances in labels)


def test_a_run_stopped_within_a_round_asks_for_that_round_alone(tmp_path: Path) -> None:
    def run(model: Thinker, folder: Path | None) -> list[int]:
        asked = []

        def relabel(number: int, current: Segmenter) -> LabelStore:
            asked.append(number)
            return collect_labels(number, current, store=store)

        store = toy_store()[0]
        checkpoints = None if folder is None else Checkpoints(folder, {"params": "p"}, every=5)
        fit(model, store, toy_recipe(iterations=12), relabel=relabel, checkpoints=checkpoints)
        return asked

    torch.manual_seed(7)
    whole = Thinker()
    assert run(whole, None) == [0, 1, 2]
    torch.manual_seed(7)
    with pytest.raises(KeyboardInterrupt):
        run(Thinker(stop_at=7), tmp_path)
    resumed = Thinker()
    assert run(resumed, tmp_path) == [1, 2]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_checkpoints_need_someone_who_keeps_the_labels_of_a_round(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="relabel"):
        fit(Thinker(), toy_store()[0], toy_recipe(iterations=2), checkpoints=Checkpoints(tmp_path, {}, every=5))


def test_nothing_to_infer_is_said_in_one_line() -> None:
    with pytest.raises(NothingLeftError, match="nothing was inferred to move"):
        fit(Thinker(blind=True), toy_store()[0], toy_recipe(iterations=2))
    with pytest.raises(NothingLeftError, match="3 good frames"):
        collect_labels(0, Thinker(), store=toy_store(frames=2)[0])
