"""Composites and the scores of the real-video benchmark, on pictures made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.composites import (
    SIZE,
    Davis,
    Layer,
    Path2D,
    Sources,
    compose,
    composite_clips,
    cut_object,
    draw_path,
    paste,
    there_and_back,
)
from benchmarks.data import Dataset
from benchmarks.real import (
    TWIN,
    Footage,
    RealPlan,
    format_rows,
    run_plans,
    score_sequence,
    score_sequences,
    train_row,
    union_j,
)
from benchmarks.training import Plan
from models.common.instances import Instances
from tasks.frames import FrameStore
from tasks.labels import LabelStore

HEIGHT, WIDTH = 2 * SIZE[0], 2 * SIZE[1]


def square_layer(x: float, y: float, side: int, colour: int) -> Layer:
    """A square of `side` oversize pixels whose middle is at (x, y)."""
    picture = np.full((side + 8, side + 8, 3), colour, np.float32)
    alpha = np.zeros((side + 8, side + 8), np.float32)
    alpha[4:-4, 4:-4] = 1
    path = Path2D(np.array([[x, y]]), np.zeros(1), np.ones(1))
    return Layer([picture], [alpha], np.zeros(1, int), path)


def test_truth_is_what_is_in_view_and_the_later_layer_is_in_front() -> None:
    ground = np.full((HEIGHT, WIDTH, 3), 10, np.uint8)
    picture, truth = paste(ground, None, [square_layer(100, 100, 40, 100), square_layer(120, 100, 40, 200)], 0)
    assert picture.shape == (*SIZE, 3)
    assert truth.track_ids is not None
    assert truth.track_ids.tolist() == [1, 2]
    # 20 by 20 pixels each in the final frame; half of the first is hidden.
    assert truth.masks.flatten(1).sum(1).tolist() == [200, 400]
    assert not bool(truth.masks.all(0).any())
    assert picture[50, 45].tolist() == [100] * 3
    assert picture[50, 60].tolist() == [200] * 3
    assert picture[10, 10].tolist() == [10] * 3


def test_the_grounds_own_object_is_truth_and_what_is_hidden_is_none() -> None:
    ground = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    own = np.zeros((HEIGHT, WIDTH), bool)
    own[80:120, 80:120] = True
    _, seen = paste(ground, own, [square_layer(300, 100, 40, 100)], 0)
    assert seen.track_ids is not None
    assert seen.track_ids.tolist() == [0, 1]
    _, hidden = paste(ground, own, [square_layer(100, 100, 60, 100)], 0)
    assert hidden.track_ids is not None
    assert hidden.track_ids.tolist() == [1]
    assert len(paste(ground, None, [], 0)[1]) == 0


def small_sources() -> Sources:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    masks = np.zeros((3, HEIGHT, WIDTH), bool)
    masks[:, 100:160, 200:300] = True
    return Sources({"one": Davis(frames, masks), "two": Davis(frames[::-1].copy(), masks)}, [frames[0]])


def test_a_clip_follows_from_its_seed() -> None:
    sources = small_sources()
    frames, truth = compose(sources, np.random.default_rng(3), 4)
    again, _ = compose(sources, np.random.default_rng(3), 4)
    other, _ = compose(sources, np.random.default_rng(4), 4)
    assert frames.shape == (4, *SIZE, 3)
    assert len(truth) == 4
    assert np.array_equal(frames, again)
    assert not np.array_equal(frames, other)


def test_a_cut_out_has_the_size_that_its_path_says_and_lands_on_it() -> None:
    sequence = small_sources().sequences["one"]
    path = Path2D(np.tile([200.0, 120.0], (5, 1)), np.zeros(5), np.ones(5))
    layer = cut_object(sequence, np.random.default_rng(0), path)
    _, truth = paste(np.zeros((HEIGHT, WIDTH, 3), np.uint8), None, [layer], 0)
    ys, xs = np.nonzero(truth.masks[0].numpy())
    assert (xs.mean(), ys.mean()) == (pytest.approx(100, abs=1.5), pytest.approx(60, abs=1.5))
    assert 0.004 < truth.masks.float().mean() < 0.07


def test_paths_pass_through_the_frame_and_sequences_run_there_and_back() -> None:
    path = draw_path(np.random.default_rng(1), 30, (HEIGHT, WIDTH))
    inside = ((path.centre > 0) & (path.centre < (WIDTH, HEIGHT))).all(1)
    assert inside.any()
    assert there_and_back(3, np.random.default_rng(0), 9).tolist() in (
        [0, 1, 2, 1] * 2 + [0], [1, 2, 1, 0] * 2 + [1], [2, 1, 0, 1] * 2 + [2], [1, 0, 1, 2] * 2 + [1],
    )  # fmt: skip


def test_without_the_data_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no DAVIS sequence in"):
        composite_clips(tmp_path, 400, 1, 2)


def test_j_of_the_best_match_and_of_the_union() -> None:
    truth, one, two = (torch.zeros(1, 10, 10, dtype=torch.bool) for _ in range(3))
    truth[:, :4, :5], one[:, :2, :5], two[:, 2:4, :5] = True, True, True
    expected = Instances.from_masks(truth)
    parts = Instances.from_masks(torch.cat([one, two]), torch.tensor([0.9, 0.3]))
    assert union_j(parts, expected) == 1
    assert union_j(Instances.empty(10, 10), expected) == 0
    assert union_j(Instances.empty(10, 10), Instances.empty(10, 10)) == 1
    scores = score_sequence([parts], [expected], cut=0.4)
    # The second half scores too little to be counted in the union.
    assert scores["best_j"] == 0.5
    assert scores["union_j"] == 0.5
    assert scores["union_j_low"] == 1
    assert scores["per_frame"] == 1


class FakeReport:
    """Rows without work: label-free ones have 1,000 iterations and one for each of their seed, those of seed 3 fail."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.ran: dict[str, Plan] = {}

    def expect(self, plans: list[RealPlan]) -> None:
        self.expected = [plan.row for plan in plans]

    def run(self, function: Any, plans: list[RealPlan], cache: Path) -> None:
        assert function is train_row
        for plan in plans:
            seed = plan.training.seed
            self.ran[plan.row] = plan.training
            made = {"failed": "x"} if seed == 3 else {"kind": plan.kind, "seed": seed, "iterations": 1000 + seed}
            self.rows.append({"row": plan.row, **made})

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def test_the_twin_trains_as_many_iterations_as_the_row_beside_it() -> None:
    plans = []
    for seed, kinds in ((1, (TWIN, "composites")), (2, (TWIN,)), (3, ("composites", TWIN))):
        for kind in kinds:
            training = Plan("", kind, Dataset(seed), seed=seed, minutes=10.0)
            plans.append(RealPlan(f"{kind} {seed}", kind, training, Path(), 1, 1, 1, 1, None))
    report: Any = FakeReport()
    run_plans(report, plans, Path())
    assert report.expected == [plan.row for plan in plans]
    budgets = {row: (training.minutes, training.iterations) for row, training in report.ran.items()}
    assert budgets[f"{TWIN} 1"] == (None, 1001)
    assert budgets[f"{TWIN} 2"][0] == budgets["composites 1"][0] == 10.0
    assert f"{TWIN} 3" not in budgets
    assert "whose iterations to take" in next(row for row in report.rows if row["row"] == f"{TWIN} 3")["failed"]


def test_network_and_labels_are_cut_alike() -> None:
    halves = torch.zeros(2, 4, 4, dtype=torch.bool)
    halves[0, :2] = halves[1, 2:] = True
    parts, whole = Instances.from_masks(halves, torch.tensor([0.9, 0.2])), Instances.from_masks(halves.any(0)[None])
    store = FrameStore.from_arrays([np.zeros((1, 4, 4, 3), np.uint8)], ["train"], 24.0, [[whole]])
    row = score_sequences(Footage(store, ["dog"]), [parts], LabelStore.from_items((4, 4), [(0, parts)]))
    assert row["sequences"]["dog"]["network"] == row["sequences"]["dog"]["labels"]
    assert (row["labels_union_j"], row["labels_union_j_low"], row["labels_best_j"]) == (0.5, 1.0, 0.5)


def test_the_table_of_sequences_shows_more_than_the_best_of_many_tries() -> None:
    figures = {"best_j": 0.6, "union_j": 0.5, "AP50": 0.25, "AR100": 0.4}
    means = {f"{who}_{key}": value for who in ("network", "labels") for key, value in figures.items()}
    row = {"row": "real", "kind": "real", "seed": 1, "sequences": {"dog": {"network": figures, "labels": figures}}}
    header, *lines = format_rows([{**row, **means}]).splitlines()
    for who in ("network", "labels"):
        assert all(f"{who}: {name}" in header for name in ("J best, 0.02", "J union, 0.4", "AP50"))
    assert [line.split()[-8:] for line in lines] == [["0.600", "0.500", "0.250", "0.400"] * 2] * 2
