"""The benchmarks of speed run, measure what they say, and need neither pydantic nor pycocotools to measure a step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import thesis_recipe, train_step
from benchmarks.harness import Setting
from models.interface import Batch
from models.mosis.config import MosisConfig, Objective
from models.mosis.model import Mosis
from tasks.errors import ParamsError
from tasks.training.loop import Hooks

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("objective", ["motion_labels", "literal"])
def test_a_step_is_measured_in_every_variant(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "_FRAMES", 4)
    plan = train_step.Plan(objective, "small", "auto", batch_size=1, rounds=1, steps=1)
    row = train_step.measure(plan, Setting(tmp_path, "cpu", 1, 1))
    assert set(row["pairs_per_s"]) == {"step", "naive", "convs", "data"}
    assert all(best >= median > 0 for best, median in row["pairs_per_s"].values())
    step, naive, convs = (row["pairs_per_s"][name][0] for name in ("step", "naive", "convs"))
    assert row["speedup_vs_naive"] == pytest.approx(step / naive, rel=0.02)
    assert row["share_of_conv_limit"] == pytest.approx(step / convs, rel=0.02)


def test_every_convolution_of_a_step_is_recorded_with_its_shape() -> None:
    model = Mosis(MosisConfig(), (64, 64)).train()
    seen: list[tuple[int, ...]] = []
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.register_forward_hook(lambda _, args, output: seen.append(tuple(args[0].shape)))
    labels = [train_step.Instances.from_masks(torch.ones(1, 64, 64, dtype=torch.bool))]
    batch = Batch(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), torch.ones(1), labels)
    recorded = train_step.record_convolutions(model, batch, None)
    assert len(seen) > 30
    assert [tuple(features.shape) for features, *_ in recorded] == seen
    assert [features.requires_grad for features, *_ in recorded] == [False] + [True] * (len(seen) - 1)


def test_it_runs_where_only_torch_numpy_and_cv2_are() -> None:
    missing = (
        "pycocotools",
        "prefect",
        "mlflow",
        "dvc",
        "pydantic",
        "yaml",
        "pandas",
        "pyarrow",
        "rich",
        "fsspec",
        "av",
    )
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing!r}))
from benchmarks import train_step
train_step._VIDEOS, train_step._FRAMES = 1, 3
train_step.generate_store()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def recipe(objective: Objective, **changes: object) -> thesis_recipe.Plan:
    settings: dict[str, object] = {
        "pairs": 8, "minutes": 5.0, "preset": "small", "as_written": False, "twin": False, "batch_size": 2,
        "learning_rate": 1e-4, "precision": "auto", "points": 2, "images": 2, "videos": 3, "frames": 4,
        "data_seed": 500, "seed": 0,
    }  # fmt: skip
    return thesis_recipe.Plan(objective, objective=objective, **(settings | changes))  # type: ignore[arg-type]


def test_the_recipe_ends_with_its_pairs_and_is_scored_at_the_end(tmp_path: Path) -> None:
    row = thesis_recipe.train(recipe("literal"), Setting(tmp_path, "cpu", 1, 1))
    assert (row["stopped_by"], row["pairs"]) == ("pairs", 8)
    assert [point["pairs"] for point in row["points"]] == [8]
    assert 0 <= row["points"][0]["mask_AP"] <= 1


def test_the_recipe_ends_with_its_minutes(tmp_path: Path) -> None:
    row = thesis_recipe.train(recipe("literal", pairs=10**6, minutes=1e-4, twin=True), Setting(tmp_path, "cpu", 1, 1))
    assert (row["stopped_by"], row["pairs"]) == ("minutes", 20)  # the first ten steps are the shortest that is timed
    assert row["points"][-1]["pairs"] == 20


def test_the_recipe_as_written_is_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fit(model: Mosis, *_: object, hooks: Hooks, **__: object) -> None:
        seen.append(model.config)
        hooks.on_log(1, {})

    monkeypatch.setattr(thesis_recipe, "fit", fit)
    thesis_recipe.train(recipe("literal", as_written=True), Setting(tmp_path, "cpu", 1, 1))
    thesis_recipe.train(recipe("literal"), Setting(tmp_path, "cpu", 1, 1))
    chosen = [(one.objectness_target, one.warp_direction, one.error_scale, one.nms_iou) for one in seen]
    assert chosen == [("literal", "literal", "literal", 0.1), ("gain", "consistent", "half", 0.5)]
    with pytest.raises(ParamsError, match="as-written is of the literal objective"):
        thesis_recipe.train(recipe("em", as_written=True), Setting(tmp_path, "cpu", 1, 1))
    assert [thesis_recipe.make_recipe(recipe(one)).copy_paste for one in ("literal", "motion_labels")] == [False, True]


def test_curves_are_drawn_where_they_belong(tmp_path: Path) -> None:
    points = [{"minutes": 0.0, "mask_AP": 0.0, "box_AP": None}, {"minutes": 2.0, "mask_AP": 0.8, "box_AP": 0.0}]
    thesis_recipe.draw_curves(tmp_path / "a.png", [{"row": "a", "points": points}])
    picture = cv2.imread(str(tmp_path / "a.png"))
    blue = np.argwhere((picture == (180, 80, 30)).all(-1))  # y, x
    assert picture.shape == (400, 640, 3)
    assert any(abs(y - 185) <= 2 and abs(x - 340) <= 2 for y, x in blue), "half-way up at half the time"
    thesis_recipe.draw_curves(tmp_path / "b.png", [{"row": "a", "failed": "x"}])
    assert not (tmp_path / "b.png").exists()


def test_objectives_whose_rounds_need_a_known_length_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for objective in ("literal", "motion_labels"):
        monkeypatch.setattr(sys, "argv", ["thesis_recipe", "--objective", objective])
        assert thesis_recipe.parse_options().objective == objective
    monkeypatch.setattr(sys, "argv", ["thesis_recipe", "--objective", "em"])
    with pytest.raises(SystemExit):
        thesis_recipe.parse_options()
