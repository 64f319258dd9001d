"""The train stage: labels made once, outputs whole or absent, a killed stage goes on, failures in one line."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_training, write_params

from models.common.instances import Instances
from tasks import params as parameters
from tasks import tracking, train
from tasks.errors import CollapseError, MosisError, ParamsError
from tasks.files import read_json
from tasks.frames import FrameStore
from tasks.labels import LabelStore
from tasks.params import Params
from tasks.predict import Predictor
from tasks.training import validation
from tasks.training.history import History
from tests.registered_toy import write_outputs

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def workspace(prepared_workspace: Path) -> Path:
    return prepared_workspace


def tiny_params(**changes: Any) -> Params:
    return parameters.parse(tiny_training(**changes))


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_own_labels_are_inferred_in_rounds_and_found_again_after_a_stop(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    em = tiny_params(mosis={"objective": "em", "frame_gap": 2, "rounds": 1})
    train.run(em, workspace)
    whole = (workspace / "outputs/train/weights.safetensors").read_bytes()
    said = capsys.readouterr().err
    assert "round 0:" in said
    assert "round 1:" in said
    shutil.rmtree(workspace / "outputs")

    def stop(session: Any, iteration: int, model: Any) -> None:
        if iteration == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train._Session, "on_validate", stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(em, workspace)
    kept = {path.name: path.stat().st_mtime_ns for path in (workspace / "outputs/train/checkpoint").glob("round-*")}
    assert len(kept) == 2
    capsys.readouterr()
    train.run(em, workspace)
    assert "round 0:" not in capsys.readouterr().err  # the checkpoint lies within round 1
    assert (workspace / "outputs/train/weights.safetensors").read_bytes() == whole
    assert not (workspace / "outputs/train/checkpoint").exists()


def test_self_training_adds_labels_on_the_way(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.run(tiny_params(self_training=1, self_training_score=0.0), workspace)
    assert "labels added" in capsys.readouterr().err


def taught_params(**changes: Any) -> Params:
    """The teacher's few best of each frame are added where they are seen twice."""
    trust = {"teacher_min_score": 0.53, "teacher_min_photometric_gain": -1, "teacher_min_temporal_iou": 0}
    return tiny_params(iterations=2, teacher=".mosis/teacher/one", **trust, **changes)


def test_a_teacher_adds_labels_before_the_training_and_is_on_record(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, out = workspace / ".mosis" / "teacher" / "one", workspace / "outputs" / "train"
    with pytest.raises(ParamsError, match="teacher"):
        train.run(taught_params(), workspace)
    assert not out.exists()  # before any work
    write_outputs(workspace)
    out.rename(teacher.parent.mkdir(parents=True) or teacher)

    with monkeypatch.context() as patch:
        patch.setattr(train._Session, "train", lambda _: sys.exit("killed"))
        with pytest.raises(SystemExit):
            train.run(taught_params(), workspace)
    monkeypatch.setattr("tasks.training.teacher.teach", None)  # what was made before the kill is found again
    train.run(taught_params(), workspace)
    summary = read_json(out / "summary.json")
    assert summary["labels"]["count"] > summary["teacher"]["added"] > 0
    assert summary["teacher"]["sha256"] == summary["fingerprint"]["teacher"]
    assert f"{summary['teacher']['added']} of them by the teacher" in capsys.readouterr().err


def test_who_learns_from_no_labels_has_no_use_for_a_teacher(workspace: Path) -> None:
    with pytest.raises(ParamsError, match="set it to null"):
        train.run(taught_params(mosis={"objective": "literal"}), workspace)


def test_outputs_are_those_of_the_architecture(workspace: Path) -> None:
    train.run(tiny_params(), workspace)
    out = workspace / "outputs" / "train"
    assert sorted(path.name for path in out.iterdir()) == [
        "losses.csv", "params.resolved.yaml", "pictures", "summary.json", "validation.csv", "weights.safetensors",
    ]  # fmt: skip
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["00000003.jpg", "00000006.jpg"]
    losses = read_rows(out / "losses.csv")
    assert [row["iteration"] for row in losses] == ["2", "3", "4", "6"]
    assert {"total", "learning_rate", "images_per_s"} < losses[0].keys()
    found = read_rows(out / "validation.csv")
    assert tuple(found[0]) == validation.COLUMNS
    assert [row["iteration"] for row in found] == ["3", "6"]
    assert all(0 <= float(row["mask_AP50"]) <= 1 for row in found)
    summary = read_json(out / "summary.json")
    assert summary.keys() >= {
        "method", "objective", "parameters", "iterations", "seconds", "images_per_s", "peak_mib", "device", "labels",
        "run_id", "fingerprint",
    }  # fmt: skip
    assert (summary["objective"], summary["iterations"], summary["run_id"]) == ("motion_labels", 6, None)
    assert summary["labels"]["count"] >= summary["labels"]["images"] > 0
    predictor = Predictor.load(out / "weights.safetensors", out / "params.resolved.yaml", device="cpu")
    assert predictor.size == (64, 64)
    assert sum(p.numel() for p in predictor.model.parameters()) == summary["parameters"]


def test_the_literal_objective_learns_from_pairs_and_needs_no_labels(workspace: Path) -> None:
    train.run(tiny_params(iterations=2, mosis={"objective": "literal"}), workspace)
    summary = read_json(workspace / "outputs" / "train" / "summary.json")
    assert (summary["labels"], summary["objective"]) == (None, "literal")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_stage_ends_with_the_same_weights_and_one_run(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(workspace, tmp_path / "whole"))
    for folder in (whole, workspace):
        write_params(folder, tiny_training(iterations=24, collapse_patience=99))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tasks", "train"]
    subprocess.run(command, cwd=whole, env=environment, check=True, capture_output=True)

    monkeypatch.delenv("MOSIS_TRACKING")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    environment.pop("MOSIS_TRACKING")
    environment.pop("MLFLOW_TRACKING_URI", None)
    checkpoint = workspace / "outputs" / "train" / "checkpoint"
    with subprocess.Popen(command, cwd=workspace, env=environment, stderr=subprocess.PIPE) as stage:
        deadline = time.monotonic() + 400
        while not list(checkpoint.glob("checkpoint-0000001*.pt")):
            assert stage.poll() is None, stage.stderr and stage.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(stage.pid, signal.SIGKILL)
    assert not (workspace / "outputs" / "train" / "weights.safetensors").exists()
    run_id = read_json(checkpoint / "run.json")["run_id"]

    done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, check=True)
    assert "going on at iteration" in done.stderr
    assert "found again" in done.stderr  # the labels
    first, second = (folder / "outputs" / "train" for folder in (whole, workspace))
    assert (first / "weights.safetensors").read_bytes() == (second / "weights.safetensors").read_bytes()
    assert (first / "validation.csv").read_bytes() == (second / "validation.csv").read_bytes()
    timed = "images_per_s"
    rows = [[{**row, timed: ""} for row in read_rows(out / "losses.csv")] for out in (first, second)]
    assert rows[0] == rows[1]
    assert read_json(second / "summary.json")["run_id"] == run_id
    client = tracking.connect(workspace)
    steps = [metric.step for metric in client.get_metric_history(run_id, "train/total")]
    assert sorted(set(steps)) == [int(row["iteration"]) for row in rows[0]]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_kill_while_publishing_is_mended_without_training_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = workspace / "outputs" / "train"

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_summarise", die)
        with pytest.raises(KeyboardInterrupt):
            train.run(tiny_params(), workspace)
    assert not (out / "summary.json").exists()
    train.run(tiny_params(), workspace)
    summary = read_json(out / "summary.json")
    assert summary["resumed_at"] == summary["iterations"] == 6
    assert len(read_rows(out / "losses.csv")) == 4
    assert len(list((out / "pictures").iterdir())) == 2
    assert not (out / "checkpoint").exists()


def test_changed_parameters_train_every_iteration_anew(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_publish", die)
        with pytest.raises(KeyboardInterrupt):
            train.run(tiny_params(), workspace)
    capsys.readouterr()
    train.run(tiny_params(learning_rate=1e-4), workspace)
    said = capsys.readouterr().err
    assert "an earlier training's checkpoint differs in parameters: starting fresh" in said
    assert "found again" in said  # the labels do not depend on the learning rate
    summary = read_json(workspace / "outputs" / "train" / "summary.json")
    assert (summary["resumed_at"], summary["iterations"]) == (0, 6)
    assert len(read_rows(workspace / "outputs" / "train" / "losses.csv")) == 4


def test_the_fingerprint_covers_params_data_and_code(workspace: Path) -> None:
    pairs = workspace / "data" / "pairs"

    def take(**changes: Any) -> dict[str, str]:
        return train.take_fingerprint(tiny_params(**changes).train, pairs, CPU)

    before = take()
    assert set(before) == {"parameters", "data", "code", "torch version", "device"}
    assert take(seed=1)["parameters"] != before["parameters"]
    assert take(mosis={"top_k": 3})["parameters"] != before["parameters"]
    assert take(workers=2, checkpoint_every=7, checkpoint_seconds=1, collapse_patience=9) == before
    frames = pairs / "frames-00000.npy"
    content = bytearray(frames.read_bytes())
    content[-1] ^= 1
    frames.write_bytes(content)
    assert take()["data"] != before["data"]


def test_collapse_fails_the_stage_and_leaves_what_was_there(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train.run(tiny_params(iterations=2), workspace)
    weights = workspace / "outputs" / "train" / "weights.safetensors"
    before = weights.read_bytes()
    with pytest.raises(CollapseError, match=r"nothing anywhere.*try a lower train\.learning_rate"):
        train.run(tiny_params(validate_every=1, learning_rate=1e-9, mosis={"score_with_mask": True}), workspace)
    assert weights.read_bytes() == before


def test_a_gpu_that_is_too_small_is_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee documentation ...")

    monkeypatch.setattr(train, "fit", fail)
    with pytest.raises(MosisError, match=r"lower train\.batch_size \(now 2\) or pairs\.height") as caught:
        train.run(tiny_params(), workspace)
    assert "\n" not in str(caught.value)
    assert not (workspace / "outputs" / "train" / "weights.safetensors").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_without_a_gpu_is_said(workspace: Path) -> None:
    with pytest.raises(ParamsError, match="use auto or cpu"):
        train.run(tiny_params(device="cuda"), workspace)


def test_no_train_split_is_said(workspace: Path) -> None:
    clips = workspace / "data" / "pairs" / "clips.json"
    clips.write_text(clips.read_text().replace('"train"', '"test"'))
    with pytest.raises(MosisError):
        train.run(tiny_params(), workspace)


# ---- what is validated on


def store_of(splits: list[str], *, truth: bool) -> FrameStore:
    frames = [np.zeros((5, 32, 32, 3), np.uint8) for _ in splits]
    known = [[Instances.empty(32, 32)] * 5 for _ in splits] if truth else None
    return FrameStore.from_arrays(frames, splits, 24.0, truth=known)


def test_frames_come_from_the_val_split_else_from_the_train_split() -> None:
    store = store_of(["train", "val", "val"], truth=True)
    frames = validation.choose_frames(store, None, most=4)
    assert (frames.split, frames.rows.tolist(), frames.has_truth) == ("val", [6, 8, 11, 13], True)
    assert validation.choose_frames(store, None, most=99).rows.tolist() == list(range(5, 15))
    assert validation.choose_frames(store_of(["train", "test"], truth=False), None, most=2).split == "train"


def test_labels_stand_in_for_pictures_but_not_for_scores() -> None:
    labels = LabelStore.from_items((32, 32), [])
    frames = validation.choose_frames(store_of(["train"], truth=False), labels, most=2)
    assert frames.known is not None
    assert not frames.has_truth
    assert validation.choose_frames(store_of(["train", "val"], truth=False), labels, most=2).known is None


# ---- tables that survive a kill


def test_history_goes_back_to_a_checkpoint_and_drops_a_torn_line(tmp_path: Path) -> None:
    history = History(tmp_path / "losses.csv")
    history.rewind(0)
    for iteration in (10, 20, 30):
        history.append(iteration, {"total": iteration / 7, "AP": None})
    with open(history.path, "a") as file:
        file.write("40,1.")
    resumed = History(tmp_path / "losses.csv")
    resumed.rewind(20)
    assert history.path.read_text() == "iteration,total,AP\n10,1.42857,\n20,2.85714,\n"
    resumed.append(30, {"total": 1.0, "AP": 0.5, "new": 3.0})
    assert read_rows(history.path)[-1] == {"iteration": "30", "total": "1", "AP": "0.5"}
    assert resumed.last == {"iteration": "30", "total": "1", "AP": "0.5"}
    resumed.rewind(0)
    assert read_rows(history.path) == []


def test_run_file_of_another_training_is_not_taken_up(workspace: Path) -> None:
    folder = workspace / "outputs" / "train" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run_id": "abc", "fingerprint": {"code": "old"}}))
    train.run(tiny_params(iterations=2), workspace)
    assert read_json(workspace / "outputs" / "train" / "summary.json")["run_id"] is None
