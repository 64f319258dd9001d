"""The loop learns, batches and augmentation are what they say, collapse is told from health."""

from __future__ import annotations

import threading
from collections.abc import Iterator
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
from tasks.prefetch import prefetch
from tasks.training.augment import Augmentation, draw_augmentation, grey_table
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
from tasks.training.checkpoint import Checkpoints
from tasks.training.collapse import CollapseWatch, describe, diagnose
from tasks.training.loop import Hooks, fit
from tasks.training.optimise import Optimisation, build_optimizer, learning_rate_at

IDENTITY = grey_table(1.0, 0.0, invert=False)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second thread, and on a busy machine they wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- the loop


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


# ---- optimiser


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


# ---- batches


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


# ---- augmentation


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


# ---- collapse


def mask_at(y: int, x: int, side: int, score: float = 0.9, size: int = 20) -> Instances:
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[0, y : y + side, x : x + side] = True
    return Instances.from_masks(mask, torch.tensor([score]))


def test_description_counts_confident_detections() -> None:
    stats = describe([mask_at(0, 0, 10), mask_at(0, 0, 10, score=0.3), Instances.empty(20, 20)])
    assert stats.images == 3
    assert stats.instances_per_image == pytest.approx(1 / 3)
    assert stats.coverage == pytest.approx(0.25 / 3)
    assert stats.best_score == pytest.approx(0.9)
    assert stats.main_alike is None  # too few images to judge
    assert diagnose(describe([]), 1.0) is None


def test_health_is_left_alone() -> None:
    healthy = describe([mask_at(i, 2 * i, 6) for i in range(5)])
    early = describe([mask_at(0, 0, 6, score=0.01) for _ in range(5)])
    assert diagnose(healthy, 1.0) is None
    assert diagnose(early, 0.25) is None
    assert diagnose(describe([mask_at(0, 0, 20)] * 5), 0.1) is None


@pytest.mark.parametrize(("predictions", "reason"), [
    ([Instances.empty(20, 20)] * 5, "nothing anywhere"),
    ([mask_at(0, 0, 6, score=0.01)] * 5, "nothing anywhere: the best score is 0.010"),
    ([mask_at(0, 0, 20)] * 2, "one mask for everything: the best mask covers 100%"),
    ([mask_at(4, 4, 6)] * 4, "the same mask on every image"),
])  # fmt: skip
def test_collapse_is_named(predictions: list[Instances], reason: str) -> None:
    found = diagnose(describe(predictions), 0.5)
    assert found is not None
    assert found.startswith(reason)


def test_one_good_validation_ends_a_streak() -> None:
    bad, good = describe([Instances.empty(20, 20)]), describe([mask_at(0, 0, 6)])
    watch = CollapseWatch(patience=3)
    for iteration, stats in ((50, bad), (60, bad), (70, good), (80, bad), (90, bad)):
        watch.see(stats, iteration, 100)
    with pytest.raises(CollapseError, match=r"3 validations in a row.*try a lower train\.learning_rate"):
        watch.see(bad, 100, 100)
