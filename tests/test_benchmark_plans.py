"""Plans that train: budgets in minutes, rows that wait for others, and no training twice."""

from __future__ import annotations

import argparse
import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.data import Dataset
from benchmarks.harness import Setting, describe_plan
from benchmarks.plans import describe_work, run_plans
from benchmarks.training import INFERENCE, Plan, as_yardstick, clock_of, fit_minutes, time_inference, train_row
from models.common.instances import Instances
from tasks.errors import ParamsError
from tasks.training.batches import Samples


def test_minutes_become_iterations(monkeypatch):
    now = [5.0]

    def fit_at_two_rates(model: Any, store: Any, recipe: Any, *, hooks: Any, **others: Any) -> None:
        for iteration, seconds in ((10, 20.0), (20, 5.0)):
            now[0] += seconds
            hooks.on_log(iteration, {"images_per_s": 1000.0})

    monkeypatch.setattr("benchmarks.training.clock_of", lambda device: lambda: now[0])
    needs = argparse.Namespace(needs="pairs")
    monkeypatch.setattr("benchmarks.training.build_model", lambda *arguments: needs)
    monkeypatch.setattr("benchmarks.training.fit", fit_at_two_rates)
    monkeypatch.setattr("benchmarks.training.time_inference", lambda *arguments: (None, 20.0))
    video: Any = argparse.Namespace(store=argparse.Namespace(size=(32, 32)))
    plan = Plan("row", "kind", Dataset(0), minutes=1.0, recipe={"batch_size": 2})
    # Warm, two iterations a second.
    setting = Setting(Path(), "cpu", 1, 1)
    assert fit_minutes(plan, video, None, setting) == 120
    assert fit_minutes(dataclasses.replace(plan, minutes=1e-6), video, None, setting) == 1
    needs.needs = "own_labels"  # a third of the minute goes to inferring them
    assert fit_minutes(plan, video, None, setting) == 80


def test_minutes_of_another_row_are_measured_at_the_rate_it_has_now(monkeypatch):
    """The other row's 100 iterations took a minute; by now the machine is slower, and gets faster again."""
    seconds = {"twin": [2.0, 1.0], "em": [0.75]}
    monkeypatch.setattr("benchmarks.training.build_model", lambda name, *others: argparse.Namespace(needs=name))
    monkeypatch.setattr("benchmarks.training.choose_labels", lambda plan, setting: (plan.labels, {}))

    def time_training(plan: Plan, model: Any, video: Any, labels: Any, *others: Any) -> float:
        assert (model.needs, labels) == ((plan.method, "truth") if plan.method == "twin" else ("em", None))
        return seconds[plan.method].pop(0)

    monkeypatch.setattr("benchmarks.training.time_training", time_training)
    video: Any = argparse.Namespace(store=argparse.Namespace(size=(32, 32)))
    twin = as_yardstick(Plan("twin", "twin", Dataset(0), method="twin", labels="truth", iterations=100))
    plan = Plan("em", "em", Dataset(0), method="em", iterations=7, minutes=1.0, yardstick=twin)
    assert fit_minutes(plan, video, None, Setting(Path(), "cpu", 1, 1)) == 200
    assert seconds == {"twin": [], "em": []}


def test_the_first_round_is_timed_without_the_network(monkeypatch):
    now = [0.0]
    rounds = [Samples(*(np.arange(count) for _ in range(4))) for count in (30, 20, 10)]

    def infer(model: Any, store: Any, samples: Samples, *, with_network: bool, device: Any) -> Any:
        for row in samples.row_a.tolist():
            now[0] += 3.0 if with_network else 1.0
            yield row, Instances.from_masks(torch.ones(1, 4, 4, dtype=torch.bool))

    monkeypatch.setattr("benchmarks.training.clock_of", lambda device: lambda: now[0])
    monkeypatch.setattr("benchmarks.training.round_samples", lambda number, model, store: rounds[number])
    monkeypatch.setattr("benchmarks.training.infer_labels", infer)
    model: Any = argparse.Namespace(rounds=2, to=lambda device: None)
    store: Any = argparse.Namespace(size=(4, 4))
    sample, seconds = time_inference(model, store, torch.device("cpu"))
    assert sample.count == 10
    assert seconds == 30 * 1.0 + (20 + 10) * 3.0
    model.rounds = 0
    assert time_inference(model, store, torch.device("cpu"))[1] == 30 * 1.0


def test_a_budget_is_of_processor_time_but_on_a_gpu():
    clocks = [clock_of(torch.device(name)) for name in ("cpu", "cuda")]
    before = [clock() for clock in clocks]
    time.sleep(0.2)  # as if others had the cores
    idle = [clock() - start for clock, start in zip(clocks, before, strict=True)]
    assert idle[0] < 0.1
    assert idle[1] >= 0.2
    before = [clock() for clock in clocks]
    worker = threading.Thread(target=lambda: sum(i * i for i in range(10**6)))
    worker.start(), worker.join()
    assert clocks[0]() - before[0] > 0.01  # other threads of the process count


def test_a_warm_row_begins_with_what_motion_labels_taught(tmp_path):
    data = Dataset(500, 3, {"frames": 8, "height": 64, "width": 64}, fresh=1, fresh_frames=2)
    setting = Setting(tmp_path, "cpu", 1, 1)
    settings = {"objective": "motion_labels", **INFERENCE}
    taught = train_row(Plan("a", "a", data, settings=settings, labels="motion", iterations=3, seed=1), setting)
    settings = {"objective": "literal", "segment_motion": "closed_form", **INFERENCE}
    plan = Plan("b", "b", data, settings=settings, iterations=1, seed=1, warm=3)
    row = train_row(plan, setting)
    assert row["before"] == {name: taught[name] for name in row["before"]}
    assert {"mask", "box", "fresh"} <= set(row["before"])
    assert row["iterations"] == 1
    assert "before" not in taught
    with pytest.raises(ParamsError, match="method amd has not the appearance network"):
        train_row(dataclasses.replace(plan, method="amd", settings={}), setting)


class FakeReport:
    """Rows without work: those of the first seed take 2.5 minutes of processor time, those of seed 2 fail."""

    def __init__(self, cpu_minutes: float | None = 2.5) -> None:
        self.options = argparse.Namespace(device="cpu")
        self.rows: list[dict[str, Any]] = []
        self.seen: list[Plan] = []
        self.ordered: list[str] = []
        self.times = {"minutes": 4.0, "cpu_minutes": cpu_minutes}

    def expect(self, plans: list[Plan]) -> None:
        self.ordered += [plan.row for plan in plans]

    def run(self, function: Any, plans: list[Plan], cache: Path) -> None:
        self.seen += plans
        for plan in plans:
            made = {"kind": plan.kind, **self.times, "plan": describe_plan(plan)}
            self.rows.append({"row": plan.row, **(made if plan.seed == 1 else {"failed": "x"})})

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def test_rows_take_the_minutes_of_others_seed_by_seed(monkeypatch, tmp_path):
    prepared: list[Plan] = []
    monkeypatch.setattr("benchmarks.plans.run_in_child", lambda function, plan, setting: prepared.append(plan))
    plans = []
    for seed in (1, 2):
        data = Dataset(seed)
        plans.append(Plan(f"em {seed}", "em", data, seed=seed, minutes_of=f"twin {seed}"))
        plans.append(Plan(f"twin {seed}", "twin", data, seed=seed))
        plans.append(Plan(f"labels {seed}", "labels", data, seed=seed, labels="motion"))
    report: Any = FakeReport()
    run_plans(report, plans, tmp_path)
    assert [row["row"] for row in report.rows] == ["twin 1", "labels 1", "em 1", "twin 2", "labels 2", "em 2"]
    assert [plan.minutes for plan in report.seen] == [None, None, 2.5, None, None]
    assert [plan.yardstick for plan in report.seen] == [None, None, as_yardstick(plans[1]), None, None]
    assert report.ordered == [plan.row for plan in plans]
    assert report.rows[-1]["failed"] == "there is no row 'twin 2' whose minutes to take"
    # What reads the same video and labels is prepared once.
    assert sorted((plan.data.seed, plan.labels) for plan in prepared) == [
        (1, "motion"), (1, "none"), (2, "motion"), (2, "none")
    ]  # fmt: skip
    by_clock: Any = FakeReport(cpu_minutes=None)  # as on a GPU, or of another harness
    run_plans(by_clock, plans[:2], tmp_path)
    assert [plan.minutes for plan in by_clock.seen] == [None, 4.0]


def alike(name: str, seed: int = 1, **changes: Any) -> Plan:
    return Plan(f"{name}, seed {seed}", name, Dataset(seed), seed=seed, **changes)


def test_the_same_work_has_one_description():
    work = describe_work(alike("a"))
    assert work == describe_work(alike("b", settings={"frame_gap": 4}, recipe={"copy_paste": True}))
    assert work == describe_work(alike("c", labeller={"window": 0}))  # no labels are read
    assert work == describe_work(Plan(**describe_plan(alike("a"))))
    others = [
        alike("a", seed=2), alike("a", settings={"frame_gap": 2}), alike("a", recipe={"copy_paste": False}),
        alike("a", labels="motion"), alike("a", labels="motion", labeller={"window": 0}), alike("a", iterations=3),
        alike("a", minutes=1.0), alike("a", minutes_of="b"), alike("a", test_step=2), alike("a", settings={"no": 1}),
    ]  # fmt: skip
    assert len({work, *map(describe_work, others)}) == 1 + len(others)


def test_the_same_plan_of_two_groups_is_trained_once(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.plans.run_in_child", lambda *arguments: {})
    plans = [alike("a"), alike("b", settings={"frame_gap": 2}), alike("c", settings={"frame_gap": 4})]
    report: Any = FakeReport()
    run_plans(report, plans, tmp_path)
    assert [plan.row for plan in report.seen] == ["a, seed 1", "b, seed 1"]
    rows = {row["row"]: row for row in report.rows}
    copied = rows["c, seed 1"]
    assert (copied["kind"], copied["same_as"], copied["minutes"]) == ("c", "a, seed 1", 4.0)
    assert copied["plan"] == rows["a, seed 1"]["plan"] | {"row": "c, seed 1", "kind": "c"}
    assert "same_as" not in rows["a, seed 1"]
    # Resumed: by a table of other groups, and where only the copy was missing.
    run_plans(report, [alike("d"), *plans], tmp_path)
    assert len(report.seen) == 2
    assert [row["row"] for row in report.rows] == ["a, seed 1", "b, seed 1", "c, seed 1", "d, seed 1"]
    assert report.rows[-1]["same_as"] == "a, seed 1"
    run_plans(report, [], tmp_path)


def test_copies_fail_with_what_they_are_the_same_as_and_take_minutes_like_it(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.plans.run_in_child", lambda *arguments: {})
    report: Any = FakeReport()
    run_plans(report, [alike("a", 2), alike("b", 2)], tmp_path)
    assert report.rows[-1] == {"row": "b, seed 2", "failed": "as a, seed 2: x"}
    assert [plan.row for plan in report.seen] == ["a, seed 2"]
    report = FakeReport()
    names = ("one", "two", "three")
    run_plans(report, [alike("twin"), *(alike(name, minutes_of="twin, seed 1") for name in names)], tmp_path)
    assert [(plan.row, plan.minutes) for plan in report.seen] == [("twin, seed 1", None), ("one, seed 1", 2.5)]
    assert [row.get("same_as") for row in report.rows] == [None, None, "one, seed 1", "one, seed 1"]
