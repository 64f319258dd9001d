"""Frames that stay on the device: the same batches and the same training as without, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from training_toy import ToySegmenter, toy_recipe, toy_store

from models.common.instances import Instances
from models.interface import Batch
from tasks.errors import CollapseError
from tasks.frames import FrameStore
from tasks.labels import LabelStore
from tasks.training.batches import RawBatch, RowBatch, Samples, flow_samples, labelled_samples, make_batch, pair_samples
from tasks.training.checkpoint import Checkpoints
from tasks.training.loop import fit
from tasks.training.staging import ResidentFrames, Stager, fits, move_table

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def noise_store(size: tuple[int, int], *, optical_flow: bool = False) -> FrameStore:
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (count, *size, 3), dtype=np.uint8) for count in (5, 4, 3)]
    flow = [rng.normal(size=(len(clip), *size, 2)).astype(np.float32) for clip in clips] if optical_flow else None
    return FrameStore.from_arrays(clips, ["val", "train", "train"], 24.0, optical_flow=flow)


def assert_equal(one: Batch, other: Batch) -> None:
    for name in ("frame_a", "frame_b", "dt"):
        assert torch.equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).stride() == getattr(other, name).stride()
    assert (one.optical_flow is None) == (other.optical_flow is None)
    assert one.optical_flow is None or torch.equal(one.optical_flow, other.optical_flow)  # type: ignore[arg-type]
    assert (one.labels is None) == (other.labels is None)
    for a, b in zip(one.labels or (), other.labels or (), strict=True):
        assert isinstance(a, Instances)
        assert torch.equal(a.masks, b.masks)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.boxes, b.boxes)


def both(store: FrameStore, samples: Samples, labels: Any, **changes: Any) -> tuple[Batch, Batch]:
    raw = make_batch(store, samples, labels, **changes)
    rows = make_batch(store, samples, labels, **changes, resident=True)
    assert isinstance(raw, RawBatch)
    assert isinstance(rows, RowBatch)
    stager = Stager(CPU, ResidentFrames(store, CPU))
    return stager.finish(stager.ahead(raw)), stager.finish(stager.ahead(rows))


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("size", [(6, 6), (5, 8)])
def test_pairs_are_those_of_the_host_to_the_bit(size: tuple[int, int], augment: bool) -> None:  # noqa: FBT001
    store = noise_store(size, optical_flow=True)
    samples = flow_samples(store)
    for iteration in range(12):  # 48 draws: all eight moves
        settings = {"batch_size": 4, "seed": 3, "iteration": iteration, "augment": augment}
        one, other = both(store, samples, None, **settings, optical_flow=store.optical_flow)
        assert_equal(one, other)
        assert not torch.equal(one.frame_a, one.frame_b)


def test_labelled_frames_and_parts_of_a_batch_too() -> None:
    store, labels = toy_store()
    samples = labelled_samples(store, labels)
    settings = {"batch_size": 4, "seed": 1, "iteration": 2, "augment": True}
    one, other = both(store, samples, labels, **settings)
    assert_equal(one, other)
    assert other.frame_a is other.frame_b
    assert_equal(*both(store, samples, labels, **settings, part=(1, 2)))


def test_only_the_rows_of_samples_are_there() -> None:
    store = noise_store((6, 6))
    frames = ResidentFrames(store, CPU)
    assert np.array_equal(frames.gather(np.array([11, 5, 11]), None).numpy(), store.gather(np.array([11, 5, 11])))
    with pytest.raises(IndexError, match="row 4 is none"):  # of the val split
        frames.gather(np.array([5, 4]), None)


def test_frames_stay_where_half_of_the_free_memory_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    store = noise_store((6, 6))
    needed = 7 * 6 * 6 * 3  # of the train split's two clips
    for free, room in ((2 * needed, True), (2 * needed - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**12))
        assert fits(store, torch.device("cuda")) == room
    assert not fits(store, CPU), "on a CPU there is nothing to gain"


def test_moves_by_hand() -> None:
    """Of 2 x 2 pixels 0 1 / 2 3: as they are, y flipped, x flipped, both; then the same of 0 2 / 1 3."""
    table = [[0, 1, 2, 3], [2, 3, 0, 1], [1, 0, 3, 2], [3, 2, 1, 0]]
    transposed = [[0, 2, 1, 3], [1, 3, 0, 2], [2, 0, 3, 1], [3, 1, 2, 0]]
    assert move_table((2, 2)).tolist() == table + transposed
    assert move_table((1, 2)).tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]] + [[0, 0]] * 4


def weights_after(needs: Any, *, resident: bool | None, **changes: Any) -> list[torch.Tensor]:
    store, labels = toy_store()
    torch.manual_seed(0)
    model = ToySegmenter(needs)
    recipe = toy_recipe(iterations=8, augment=True, **changes)
    fit(model, store, recipe, labels=labels if needs == "labels" else None, resident=resident)
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("needs", ["pairs", "labels"])
def test_the_training_is_the_same(needs: Any) -> None:
    one, other = weights_after(needs, resident=False), weights_after(needs, resident=True)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], weights_after(needs, resident=True, seed=5)[0])


def test_rounds_of_other_labels_too() -> None:
    """Their rows are others than those of the first round."""
    store, labels = toy_store()
    first = LabelStore.from_items(labels.size, [(row, labels[row]) for row in (1, 2, 3)])
    later = LabelStore.from_items(labels.size, [(row, labels[row]) for row in (8, 9, 10)])
    made = []
    for resident in (False, True):
        torch.manual_seed(0)
        model, recipe = ToySegmenter("labels"), toy_recipe(iterations=8, augment=True, self_training=1)
        fit(model, store, recipe, labels=first, relabel=lambda number, current: later, resident=resident)
        made.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_too() -> None:
    store, gpu = noise_store((6, 6)), torch.device("cuda")
    samples, stager = pair_samples(store), Stager(gpu, ResidentFrames(store, gpu))
    for iteration in range(4):
        settings = {"batch_size": 4, "seed": 3, "iteration": iteration, "augment": True}
        one, other = (make_batch(store, samples, None, **settings, resident=resident) for resident in (False, True))
        assert_equal(stager.finish(stager.ahead(one)), stager.finish(stager.ahead(other)))


def test_with_copy_paste_frames_are_read_on_the_host() -> None:
    one, other = (weights_after("labels", resident=resident, copy_paste=True) for resident in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Diverging(ToySegmenter):
    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        losses = super().loss(batch)
        return {**losses, "total": losses["total"] * torch.nan}


def test_the_batch_that_broke_a_training_is_kept_with_its_frames(tmp_path: Any) -> None:
    store, _ = toy_store()
    kept = []
    for resident in (False, True):
        folder = tmp_path / str(resident)
        checkpoints = Checkpoints(folder, {"a": "b"})
        with pytest.raises(CollapseError):
            fit(Diverging("pairs"), store, toy_recipe(iterations=8), checkpoints=checkpoints, resident=resident)
        (file,) = folder.glob("*.npz")
        kept.append(dict(np.load(file)))
    assert kept[0].keys() == kept[1].keys() >= {"frame_a", "frame_b"}
    assert all(np.array_equal(kept[0][name], kept[1][name]) for name in kept[0])
