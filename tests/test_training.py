"""The loop learns, validates and stops where it should; the optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_toy import SIDE, ToySegmenter, toy_recipe, toy_store

from models.common.images import to_tensor
from models.common.instances import Instances
from models.interface import Batch
from tasks.errors import CollapseError, NothingLeftError
from tasks.frames import FrameStore
from tasks.labels import LabelStore
from tasks.precision import autocast_dtype
from tasks.training.batches import (
    labelled_samples,
    make_batch,
    pair_samples,
)
from tasks.training.checkpoint import Checkpoints
from tasks.training.collapse import describe
from tasks.training.loop import Hooks, fit
from tasks.training.optimise import Optimisation, build_optimizer, learning_rate_at

pytestmark = pytest.mark.usefixtures("one_thread")


def test_learns_from_labels() -> None:
    store, labels = toy_store()
    torch.manual_seed(0)
    model = ToySegmenter()
    lines: list[tuple[int, dict[str, float]]] = []
    hooks = Hooks(on_log=lambda iteration, values: lines.append((iteration, values)))
    fitted = fit(model, store, toy_recipe(iterations=60), labels=labels, hooks=hooks)
    assert [iteration for iteration, _ in lines] == [10, 20, 30, 40, 50, 60]
    assert set(lines[0][1]) == {"mask", "size", "total", "learning_rate", "images_per_s"}
    assert lines[-1][1]["mask"] < 0.3 * lines[0][1]["mask"]
    assert fitted.iterations == 60
    assert fitted.peak_mib > 10
    clip = store.clips[2]
    found = model.eval().predict(to_tensor(store.clip_frames(clip)))
    for row, instances in zip(range(clip.first_row, clip.stop), found, strict=True):
        truth = labels[row].masks[0]
        iou = (instances.masks[0] & truth).sum() / (instances.masks[0] | truth).sum()
        assert iou > 0.7


def test_learns_from_pairs_and_reads_the_second_frame() -> None:
    store, _ = toy_store()
    model = ToySegmenter("pairs")
    losses: list[float] = []
    hooks = Hooks(on_log=lambda iteration, values: losses.append(values["mask"]))
    fit(model, store, toy_recipe(iterations=40, augment=True), hooks=hooks)
    assert losses[-1] < losses[0]


def test_validates_in_evaluation_mode_at_the_right_iterations_and_goes_on_training() -> None:
    store, labels = toy_store()
    seen: list[tuple[int, bool, bool]] = []

    def validate(iteration: int, model: Any) -> None:
        seen.append((iteration, model.training, torch.is_grad_enabled()))

    model = ToySegmenter()
    fit(model, store, toy_recipe(iterations=9, validate_every=4), labels=labels, hooks=Hooks(on_validate=validate))
    assert seen == [(4, False, False), (8, False, False), (9, False, False)]
    assert model.training


def test_a_method_that_needs_labels_is_refused_without() -> None:
    store, _ = toy_store()
    with pytest.raises(ValueError, match="learns from labels"):
        fit(ToySegmenter(), store, toy_recipe())


def test_no_pair_and_no_label_are_said() -> None:
    store, _ = toy_store(splits=("val", "val", "test"))
    with pytest.raises(NothingLeftError, match=r"dropped\.json"):
        pair_samples(store)
    with pytest.raises(NothingLeftError, match="things move"):
        labelled_samples(store, LabelStore.from_items((SIDE, SIDE), []))


def test_labelled_samples_are_the_rows_of_train_clips_that_have_labels_each_once() -> None:
    store = FrameStore.from_arrays(
        [np.zeros((frames, 2, 2, 3), np.uint8) for frames in (3, 2, 4)], ["train", "val", "train"], rate_hz=10.0
    )  # rows 0 to 2, 3 to 4, 5 to 8
    one = Instances.from_masks(torch.ones(1, 2, 2, dtype=torch.bool), torch.ones(1))
    two = Instances.from_masks(torch.ones(2, 2, 2, dtype=torch.bool), torch.ones(2))
    labels = LabelStore.from_items((2, 2), [(0, two), (2, one), (3, one), (4, two), (5, one), (8, two), (9, one)])
    np.testing.assert_array_equal(labels.labelled_rows(), [0, 2, 3, 4, 5, 8, 9])
    samples = labelled_samples(store, labels)
    np.testing.assert_array_equal(samples.row_a, [0, 2, 5, 8])
    assert samples.row_a.dtype == np.int64


class Diverging(ToySegmenter):
    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        losses = super().loss(batch)
        return {**losses, "total": losses["total"] * float("nan")} if self.steps > 12 else losses


def test_a_loss_that_is_no_number_fails_at_once_with_the_term_and_the_rate() -> None:
    store, labels = toy_store()
    with pytest.raises(CollapseError, match=r"by iteration 20: .*total is nan: lower train\.learning_rate \(now 0\.0"):
        fit(Diverging(), store, toy_recipe(), labels=labels)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_batch_that_broke_a_training_is_kept_for_a_look(tmp_path: Path, value: float) -> None:
    class BrokenByOne(ToySegmenter):
        def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
            losses = super().loss(batch)
            return {**losses, "size": losses["size"] * value} if self.steps == 14 else losses

    store, labels = toy_store()
    recipe = toy_recipe(augment=True)
    with pytest.raises(CollapseError, match=r"size is (nan|inf).*kept in .*diverged-00000013\.npz$"):
        fit(BrokenByOne(), store, recipe, labels=labels, checkpoints=Checkpoints(tmp_path, {}, every=5))
    read = {name: np.load(tmp_path / "diverged-00000013.npz")[name] for name in ("frame_a", "dt_s", "labels_counts")}
    samples = labelled_samples(store, labels)
    again = make_batch(store, samples, labels, batch_size=4, seed=0, iteration=13, augment=True)
    np.testing.assert_array_equal(read["frame_a"], again.frame_a)
    assert again.labels is not None
    np.testing.assert_array_equal(read["labels_counts"], again.labels.counts)
    assert not list(tmp_path.glob("*00000015.pt"))  # no checkpoint of weights that may be broken


class Constant(ToySegmenter):
    """Taught that everything is one object, whatever the picture."""

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        everywhere = Batch(batch.frame_a, batch.frame_b, batch.dt, [_everything() for _ in batch.frame_a])
        return super().loss(everywhere)


def _everything() -> Instances:
    return Instances.from_masks(torch.ones(1, SIDE, SIDE, dtype=torch.bool))


def test_a_training_that_really_collapses_is_stopped_by_what_it_predicts() -> None:
    store, labels = toy_store()
    hooks = Hooks(on_validate=lambda _, model: describe(model.predict(to_tensor(store.gather(np.arange(6))))))
    recipe = toy_recipe(iterations=120, validate_every=20, collapse_patience=3)
    torch.manual_seed(0)
    with pytest.raises(CollapseError, match=r"3 validations in a row.*one mask for everything"):
        fit(Constant(), store, recipe, labels=labels, hooks=hooks)
    torch.manual_seed(0)
    fit(ToySegmenter(), store, recipe, labels=labels, hooks=hooks)  # the same training on true masks goes through


class Silent(ToySegmenter):
    def predict(self, images: torch.Tensor, **_: Any) -> list[Instances]:
        return [Instances.empty(SIDE, SIDE) for _ in images]


def test_a_model_that_finds_nothing_fails_the_run() -> None:
    store, labels = toy_store()
    hooks = Hooks(on_validate=lambda _, model: describe(model.predict(to_tensor(store.gather(np.arange(4))))))
    recipe = toy_recipe(iterations=100, validate_every=10, collapse_patience=3)
    with pytest.raises(CollapseError, match=r"iteration 30: nothing anywhere.*iteration 50: nothing anywhere"):
        fit(Silent(), store, recipe, labels=labels, hooks=hooks)


def test_settings_of_torch_come_back() -> None:
    store, labels = toy_store()
    before = torch.are_deterministic_algorithms_enabled()
    fit(ToySegmenter(), store, toy_recipe(iterations=2), labels=labels)
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.parametrize(("precision", "kind", "expected"), [
    ("auto", "cpu", None), ("auto", "cuda", torch.bfloat16), ("float32", "cuda", None),
    ("bfloat16", "cpu", torch.bfloat16),
])  # fmt: skip
def test_precision(precision: str, kind: str, expected: torch.dtype | None) -> None:
    assert autocast_dtype(precision, torch.device(kind)) == expected


def test_bfloat16_trains() -> None:
    store, labels = toy_store()
    losses: list[float] = []
    hooks = Hooks(on_log=lambda iteration, values: losses.append(values["mask"]))
    fit(ToySegmenter(), store, toy_recipe(precision="bfloat16"), labels=labels, hooks=hooks)
    assert losses[-1] < losses[0]


def test_learning_rate_warms_up_then_falls_as_a_cosine() -> None:
    settings = Optimisation(iterations=12, learning_rate=1.0, warmup_iterations=4)
    rates = [learning_rate_at(i, settings) for i in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5)  # half of the way from 4 to 12
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    constant = Optimisation(iterations=3, learning_rate=1.0, warmup_iterations=9, schedule="constant")
    assert [learning_rate_at(i, constant) for i in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_norms_and_biases_do_not_decay() -> None:
    model = ToySegmenter()
    decayed, plain = build_optimizer(model, Optimisation(1, 0.1, weight_decay=0.5)).param_groups
    assert {id(p) for p in decayed["params"]} == {id(model.features[0].weight), id(model.head.weight)}
    assert len(plain["params"]) == 4
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
