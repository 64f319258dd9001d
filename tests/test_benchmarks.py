"""Benchmarks: their data, plans and scores, figures by hand; `test_benchmark_harness.py` has how rows are run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks import ablations, hard_synthetic, optical_flow, thesis
from benchmarks.data import GENERATOR, Dataset, generator_settings, open_fresh, open_motion_labels, open_video
from benchmarks.harness import ROOT
from benchmarks.plans import describe_work
from benchmarks.scores import recall_by_motion, score
from benchmarks.tables import format_rows, share, spread, summarise
from benchmarks.training import (
    INFERENCE,
    SELF_TRAINING_SCORE,
    Plan,
    build_config,
    build_model,
    make_recipe,
    make_relabel,
)
from models.common.instances import Instances
from tasks import params, train
from tasks.errors import ParamsError
from tasks.frames import FrameStore
from tasks.labels import LabelStore
from tasks.settings import override, parse_setting
from tasks.sources.synthetic import generate_video
from tasks.sources.synthetic.jobs import assign_splits
from tests.training_toy import toy_store

TINY: dict[str, Any] = {"frames": 6, "height": 64, "width": 64}


def test_settings_are_the_pipelines_own():
    defaults = params.to_dict(params.SyntheticParams(dense_flow=False))
    assert json.loads(json.dumps(GENERATOR)) == defaults
    with pytest.raises(ValueError, match="colour"):
        generator_settings(0, colour="red")
    known = params.load(ROOT / "params.yaml").train
    assert all(getattr(known.mosis, name) == value for name, value in INFERENCE.items())
    plan = Plan("row", "kind", Dataset(0), seed=3)
    assert known.self_training_score == SELF_TRAINING_SCORE
    expected = train.make_recipe(dataclasses.replace(known, seed=3, iterations=7, validate_every=10**9))
    assert make_recipe(plan, 7) == expected


def test_the_commands_of_the_methods_readme_train_what_the_tables_train():
    text = (ROOT / "models" / "mosis" / "README.md").read_text()
    commands = re.findall(r"mosis run VIDEOS((?:[\s\\]+--set [^\s`\\]+)+)", text)
    documents = [dict(parse_setting(one) for one in re.findall(r"--set ([^\s`\\]+)", command)) for command in commands]
    assert len(documents) == 2
    template = (ROOT / "params.yaml").read_text()
    for settings, kind, preset in zip(documents, ("mosis literal", "mosis em"), ("yolov3", "small"), strict=True):
        train_params = params.parse(yaml.safe_load(override(template, settings, name="params.yaml"))).train
        changes = {name: value for name, value in thesis.KINDS[kind].items() if name in ("settings", "recipe")}
        plan = Plan("row", "kind", Dataset(0), **changes)
        assert train_params.mosis == build_config("mosis", {**plan.settings, "preset": preset})
        expected = make_recipe(plan, train_params.iterations)
        assert train.make_recipe(dataclasses.replace(train_params, validate_every=10**9)) == expected


def test_video_is_the_generators_and_made_once(tmp_path):
    data = Dataset(500, 3, TINY, step=2, fresh=2, fresh_frames=2)
    video = open_video(data, tmp_path)
    splits = assign_splits(3, 500)
    assert [clip.split for clip in video.store.clips] == splits
    assert [clip.frames for clip in video.store.clips] == [3 if split == "train" else 6 for split in splits]
    assert set(video.store.pairs("train").dt_s.tolist()) == {np.float32(2 / 24)}
    for number, clip in enumerate(video.store.clips):
        expected = generate_video(generator_settings(500, **TINY), number)
        step = 2 if clip.split == "train" else 1
        np.testing.assert_array_equal(video.store.clip_frames(clip), expected.frames[::step])
        for row in range(clip.first_row, clip.stop):
            truth = video.truth(np.array([row]))[0]
            masks = expected.masks[:, (row - clip.first_row) * step]
            np.testing.assert_array_equal(truth.masks.numpy(), masks[masks.any((1, 2))])
    fresh = open_fresh(data, tmp_path)
    np.testing.assert_array_equal(
        fresh.store.gather(fresh.rows("test"))[:2], generate_video(generator_settings(1000, **TINY), 0).frames[[1, 4]]
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    open_video(data, tmp_path), open_fresh(data, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert len(open_fresh(Dataset(501, 3, TINY, fresh=2, fresh_frames=2), tmp_path).store) == 4
    assert len(list(tmp_path.iterdir())) == 2


def test_what_stands_still_is_known(tmp_path):
    data = Dataset(500, 3, {**TINY, "frames": 60, "objects": (1, 1), "speed": (3.0, 3.0), "standing_still": 0.5})
    video = open_video(data, tmp_path)
    for clip in video.store.clips:
        rows = np.arange(clip.first_row + 1, clip.stop - 1)
        masks = [one.masks for one in video.truth(np.arange(clip.first_row, clip.stop))]
        unmoved = [
            torch.equal(masks[t - 1], masks[t]) and torch.equal(masks[t], masks[t + 1])
            for t in range(1, len(masks) - 1)
        ]
        assert [bool(flags[0]) for flags in video.still_in(rows)] == unmoved
        assert 0 < sum(unmoved) < len(unmoved)


def test_motion_labels_are_kept_with_their_seconds_and_scores(tmp_path):
    data = Dataset(500, 3, {**TINY, "frames": 12}, fresh=0)
    motion = open_motion_labels(data, {"window": 1}, tmp_path)
    again = open_motion_labels(data, {"window": 1}, tmp_path)
    assert motion.seconds == again.seconds > 0
    assert motion.scores == again.scores
    assert set(motion.labels.rows) <= set(open_video(data, tmp_path).rows("train"))
    with pytest.raises(TypeError, match="colour"):
        open_motion_labels(data, {"colour": 1}, tmp_path)


def square(left: int, score: float = 1.0) -> Instances:
    mask = torch.zeros(1, 8, 16, dtype=torch.bool)
    mask[0, 2:6, left : left + 4] = True
    return Instances.from_masks(mask, torch.tensor([score]))


def test_scores_by_hand():
    truth = [Instances.cat([square(0), square(10)]), Instances.empty(8, 16)]
    found = [Instances.cat([square(0, 0.9), square(10, 0.3)]), square(5, 0.2)]
    scores = score(found, truth)
    assert scores["mask"]["AP"] == scores["box"]["AP"] == pytest.approx(1)
    # One of two is left: precision 1 up to half the recall, 51 of the 101 points.
    assert scores["mask_at_cut"]["AP50"] == pytest.approx(51 / 101)
    recall = recall_by_motion(found, truth, [np.array([False, True]), np.zeros(0, bool)])
    assert recall == {
        "still": {"instances": 1, "recall_50": 1.0, "recall_50_at_cut": 0.0},
        "moving": {"instances": 1, "recall_50": 1.0, "recall_50_at_cut": 1.0},
    }
    nothing = recall_by_motion([Instances.empty(8, 16)], [Instances.empty(8, 16)], [np.zeros(0, bool)])
    assert nothing["still"] == {"instances": 0, "recall_50": None, "recall_50_at_cut": None}
    assert score([], [])["mask"]["AP"] is None


def toy_result(kind: str, seed: int, mask: float, box: float) -> dict[str, Any]:
    scores = {"mask": {"AP": mask}, "box": {"AP": box}}
    return {"row": f"{kind} {seed}", "kind": kind, "data_seed": seed, "minutes": 2.0, **scores}


def test_means_and_shares_by_hand():
    rows = [
        toy_result("twin", 1, 0.8, 0.5), toy_result("twin", 2, 0.4, 0.0), toy_result("free", 1, 0.4, 0.5),
        toy_result("free", 2, 0.4, 0.1), {"row": "free 3", "failed": "killed"},
    ]  # fmt: skip
    summary = summarise(rows, twin="twin")
    assert summary["free"]["rows"] == 2
    assert summary["twin"]["mask_AP"] == pytest.approx({"mean": 0.6, "std": 0.28284, "min": 0.4, "max": 0.8}, abs=1e-4)
    assert summary["free"]["mask_share"]["mean"] == pytest.approx((0.5 + 1) / 2)
    # A twin that finds nothing gives no share.
    assert summary["free"]["box_share"] == {"mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0}
    assert summary["free"]["fresh_mask_AP"] is None
    assert share(rows[2], None, "mask") is None
    assert spread([None]) is None
    assert summarise([], twin="twin") == {}


def test_a_table_shows_what_labelling_took_beside_the_training():
    costs = {"iterations": 2000, "images_per_s": 75.0, "pairs_per_s": None, "peak_mib": 500.0}
    scores = dict.fromkeys(("mask", "box", "mask_at_cut", "box_at_cut"), dict.fromkeys(("AP", "AP50", "AP75"), 0.5))
    row = {"minutes": 7.0, **costs, **scores}
    table = format_rows([{"row": "motion", "label_seconds": 90.0, **row}, {"row": "twin", **row}])
    header, motion, twin = (re.split(r"  +", line.strip()) for line in table.splitlines())
    assert header[header.index("minutes") + 1] == "labelling"
    places = [line[header.index("minutes") : header.index("minutes") + 3] for line in (motion, twin)]
    assert [[float(cell) if cell != "-" else None for cell in cells] for cells in places] == [
        [7.0, 1.5, 2000.0], [7.0, None, 2000.0]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("moses", {}, "no method 'moses' yet: there are .*mosis"),
        ("mosis", {"colour": 1}, "no setting 'colour' yet"),
        ("mosis", {"objective": "magic"}, "no objective 'magic' yet: there are .*literal"),
    ],
)
def test_what_does_not_exist_is_named(method, settings, message):
    with pytest.raises(ParamsError, match=message):
        build_model(method, settings, (64, 64))
    with pytest.raises(ParamsError, match="training has no setting 'colour' yet"):
        make_recipe(Plan("row", "kind", Dataset(0), recipe={"colour": 1}), 1)


def test_self_training_adds_what_the_labels_miss():
    store, labels = toy_store()

    class Finder:
        training = True

        def eval(self) -> None: ...

        def train(self, mode: bool) -> None: ...  # noqa: FBT001

        def predict(self, images: torch.Tensor, *, score_threshold: float) -> list[Instances]:
            mask = torch.zeros(1, 32, 32, dtype=torch.bool)
            mask[0, 28:, :4] = True
            return [Instances.from_masks(mask, torch.tensor([score_threshold]))] * len(images)

    finder: Any = Finder()
    plan = Plan("", "", Dataset(500))
    again = make_relabel(plan, store, labels, torch.device("cpu"))(1, finder)
    assert (len(labels[0]), len(again[0])) == (1, 2)
    assert again[0].scores.max() == 1
    assert again[0].scores.min() == SELF_TRAINING_SCORE


def test_rounds_of_em_learn_from_what_it_infers_with_the_network_as_it_stands(monkeypatch):
    """Given no label at all, with the weights that the network has then."""
    frames = np.stack(
        [np.roll(generate_video(generator_settings(500), 0).frames[0, :64, :64], t, 1) for t in range(12)]
    )
    store = FrameStore.from_arrays([frames], ["train"], 24.0)
    settings = {"preset": "small", "objective": "motion_labels"}
    model = build_model("mosis", settings, store.size)
    seen = []

    def infer(self, batch, *, with_network):
        assert self.config.frame_step == 1  # all frames, as before
        seen.append((self.config.objective, with_network, {k: v.clone() for k, v in self.state_dict().items()}))
        return [Instances.from_masks(torch.ones(1, 64, 64).bool())] * len(batch.frame_a)

    monkeypatch.setattr(type(model), "infer", infer)
    plan = Plan("", "", Dataset(500), settings=settings, rounds="em")
    corner = Instances.from_masks(torch.ones(1, 64, 64).bool().tril(-50))
    labels = LabelStore.from_items(store.size, [(row, corner) for row in (0, 5)])
    found = make_relabel(plan, store, labels, torch.device("cpu"))(1, model)
    # Frames 4 to 7 have neighbours four frames away on both sides; what was known of others stays.
    assert found.labelled_rows().tolist() == [0, 4, 5, 6, 7]
    assert torch.equal(found[0].masks, corner.masks)
    assert int(found[5].masks.sum()) > int(corner.masks.sum())
    (objective, with_network, weights), *_ = seen
    assert (objective, with_network) == ("em", True)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def options(*arguments: str, **changes: Any) -> argparse.Namespace:
    known = {"seeds": [500], "videos": 3, "frames": 6, "fresh": 0, "iterations": 2}
    return argparse.Namespace(**{**known, **changes})


def test_plans_of_the_thesis():
    chosen = options(rows=list(thesis.KINDS), preset="small", minutes_equivalent=2, minutes=None, seeds=[500, 501])
    plans = thesis.make_plans(chosen)
    assert len({plan.row for plan in plans}) == len(plans) == 2 * len(thesis.KINDS)
    by_row = {plan.row: plan for plan in plans}
    assert {plan.minutes_of for plan in plans} == {None, "yolo_supervised, seed 500", "yolo_supervised, seed 501"}
    assert all(plan.minutes_of in by_row for plan in plans if plan.minutes_of)
    assert by_row["yolo_supervised, seed 500"].minutes_of is None
    assert all(plan.minutes_of is None for plan in thesis.make_plans(options(**{**vars(chosen), "minutes": 1.0})))
    # Neither the thesis nor AMD has augmentation.
    bare = {plan.kind for plan in plans if not make_recipe(plan, 1).augment}
    assert bare == {"mosis literal", "amd", "amd as written"}


def test_the_video_of_section_9_2_is_scored_where_it_was_learnt():
    options = argparse.Namespace(
        seed=500, videos=24, step=2, batch=4, iterations=1, learning_rate=1.0, square_frames=5,
        unsupervised_iterations=1, unsupervised_learning_rate=1.0, raft_weights="", raft_size="small",
    )  # fmt: skip
    (plan,) = [plan for plan in optical_flow.plan_rows(options) if plan.row.startswith("section 9.2")]
    store = optical_flow.open_store(plan.data, ("train",))
    assert (plan.objective, len(store.pairs(plan.data.scored)), len(store.clips)) == ("supervised", 4, 1)
    still = optical_flow.score(optical_flow.build(dataclasses.replace(plan, method="still")), store, plan.data)
    moved = np.stack([store.optical_flow[row] for row in range(4)])
    assert still["mse"] == pytest.approx(float((moved**2).mean()), rel=1e-3)
    assert still["pairs"] == 4


def test_plans_of_hard_scenes():
    plans = hard_synthetic.make_plans(options(rows=list(hard_synthetic.SCENES)))
    assert len({plan.row for plan in plans}) == len(plans) == 2 * len(hard_synthetic.SCENES)
    for plan in plans:
        video = generate_video(generator_settings(500, **{**plan.data.changes, "frames": 2}), 0)
        assert video.masks.any()


def test_plans_of_ablations_leave_out_what_does_not_exist(monkeypatch, capsys):
    plans, missing = ablations.make_plans(options(rows=list(ablations.GROUPS)))
    assert len({plan.row for plan in plans}) == len(plans)
    assert len(plans) + len(missing) == sum(len(group) for group in ablations.GROUPS.values())
    assert {plan.data.step for plan in plans if "frame rate" in plan.kind} == {1, 2, 4, 12}
    assert missing == {}
    for group in ("motion by", "photometric error", "em, motion model"):
        works = [describe_work(plan) for plan in plans if plan.kind.startswith(f"{group}:")]
        assert len(works) == len(set(works)) == 2  # rows of a group differ
        assert len({describe_work(plan) for plan in plans} - set(works)) < len({*map(describe_work, plans)})
    default = describe_work(next(plan for plan in plans if plan.kind == "objective: literal, motion by MLP"))
    shared = [plan.kind for plan in plans if describe_work(plan) == default]
    assert {"motion by: literal, MLP", "photometric error: ssim", "objectness target: gain"} < set(shared)
    monkeypatch.setattr(ablations, "GROUPS", {"new": {"row": {"settings": {"colour": 1}}}})
    assert ablations.make_plans(options(rows=["new"]))[0] == []
    assert "left out new: row: method mosis has no setting 'colour'" in capsys.readouterr().err


@pytest.mark.slow
def test_hard_scenes_from_end_to_end_on_a_bare_machine(tmp_path):
    """Neither prefect, mlflow, dvc nor pydantic: importing them fails in every process of the run."""
    absent = (
        "prefect",
        "mlflow",
        "dvc",
        "pydantic",
        "yaml",
        "pandas",
        "pyarrow",
        "fsspec",
        "av",
        "rich",
        "safetensors",
    )
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n")
    command = [sys.executable, "-m", "benchmarks.hard_synthetic", "--rows", "standing still", "--seeds", "500"]
    sizes = [
        "--videos",
        "3",
        "--frames",
        "8",
        "--fresh",
        "1",
        "--iterations",
        "1",
        "--output",
        str(tmp_path / "x.json"),
    ]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{ROOT}", "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, *sizes], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=250
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    free, twin = document["rows"]
    assert (free["labels"], twin["labels"]) == (False, True)
    assert (free["method"], free["objective"], twin["method"]) == ("mosis", "motion_labels", "yolo_supervised")
    assert free["parameters"] == twin["parameters"]
    assert free["iterations"] == twin["iterations"] == 1
    assert free["peak_mib"] > 100
    assert free["images_per_s"] > 0
    assert free["pairs_per_s"] is None
    assert "label_scores" in free
    for row in (free, twin):
        assert {"mask", "box", "mask_at_cut", "box_at_cut", "fresh", "minutes", "threads", "seed"} <= set(row)
    assert set(document["summary"]) == {"standing still"}
    assert document["machine"]["cores"] >= 1
    assert document["versions"]["torch"] == torch.__version__
