"""Runs, metrics and lineage arrive in a real store; a dead server costs one line and seconds; no secret gets out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.lineage import MAX_VALUE, flatten, hide_secrets, plain_params, read_revisions
from tasks.tracking import Tracker, connect, log_results
from tasks.tracking.connection import PATIENCE

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Setting up a store takes seconds, so the tests share one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MOSIS_TRACKING", raising=False)
        yield tmp_path_factory.mktemp("workspace")


def test_metrics_params_tags_and_files_arrive(workspace: Path) -> None:
    picture = workspace / "a.jpg"
    picture.write_bytes(b"jpeg")
    tracker = Tracker.start(workspace, name="train", params={"train": {"seed": 3}}, tags={"method": "mosis"})
    tracker.log({"loss/total": 2.0, "AP": None}, step=10)
    tracker.log({"loss/total": 1.0}, step=20)
    tracker.picture(picture)
    tracker.finish()
    assert tracker.run_id is not None
    client = connect(workspace)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.seed": "3"}
    assert (run.data.tags["stage"], run.data.tags["method"]) == ("train", "mosis")
    assert [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, "loss/total")] == [
        (10, 2.0),
        (20, 1.0),
    ]
    assert "AP" not in run.data.metrics
    assert [entry.path for entry in client.list_artifacts(tracker.run_id, "pictures")] == ["pictures/a.jpg"]
    assert run.info.artifact_uri.startswith((workspace / "mlruns" / "artifacts").as_uri())
    assert (workspace / "mlruns" / "mlflow.db").is_file()
    assert "MLFLOW_TRACKING_URI" not in os.environ  # or the next workspace of this process would write here


def test_metrics_go_in_few_batches(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker.start(workspace, name="train")
    assert tracker._client is not None
    sizes: list[int] = []
    send = tracker._client.log_batch

    def count(run_id: str, metrics: Any = (), **others: Any) -> Any:
        sizes.append(len(metrics))
        return send(run_id, metrics=metrics, **others)

    monkeypatch.setattr(tracker._client, "log_batch", count)
    for step in range(2500):
        tracker.log({"loss": float(step)}, step)
    assert sizes == [1000, 1000]
    tracker.finish()
    assert sizes == [1000, 1000, 500]
    assert tracker.run_id is not None
    assert len(connect(workspace).get_metric_history(tracker.run_id, "loss")) == 2500


def test_a_killed_run_is_taken_up_again(workspace: Path) -> None:
    killed = Tracker.start(workspace, name="train")
    killed.log({"loss": 1.0}, 1)
    killed.flush()  # and no finish: it stays RUNNING
    again = Tracker.start(workspace, name="train", run_id=killed.run_id)
    assert again.run_id == killed.run_id
    again.log({"loss": 0.5}, 2)
    again.finish()
    assert again.run_id is not None
    client = connect(workspace)
    assert len(client.get_metric_history(again.run_id, "loss")) == 2
    assert client.get_run(again.run_id).info.status == "FINISHED"


def test_what_a_killed_process_left_running_ends_when_the_next_of_its_kind_begins(workspace: Path) -> None:
    client = connect(workspace)
    left, other = (Tracker.start(workspace, name=name).run_id for name in ("new-video", "retrain"))
    elsewhere = Tracker()
    elsewhere._open(workspace, "new-video", {}, {"workspace": "another"}, None)
    kept = Tracker.start(workspace, name="new-video")
    statuses = [client.get_run(str(one)).info.status for one in (left, other, elsewhere.run_id, kept.run_id)]
    assert statuses == ["KILLED", "RUNNING", "RUNNING", "RUNNING"]
    again = Tracker.start(workspace, name="new-video", run_id=kept.run_id)
    assert client.get_run(str(again.run_id)).info.status == "RUNNING"
    for run_id in (other, elsewhere.run_id, kept.run_id):
        client.set_terminated(str(run_id))


def test_a_run_that_is_gone_is_begun_anew(workspace: Path) -> None:
    tracker = Tracker.start(workspace, name="train", run_id="0" * 32)
    assert tracker.run_id not in (None, "0" * 32)


def test_later_stages_add_to_the_run_of_the_training(workspace: Path) -> None:
    tracker = Tracker.start(workspace, name="train")
    tracker.finish()
    summary = workspace / "outputs" / "train" / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"run_id": tracker.run_id}))
    metrics = {"mask": {"AP50": 0.7, "APs": None}, "split": "test", "images": 4}
    log_results(workspace, metrics, [summary], prefix="evaluate")
    assert tracker.run_id is not None
    client = connect(workspace)
    run = client.get_run(tracker.run_id)
    assert run.data.metrics == {"evaluate.mask.AP50": 0.7, "evaluate.images": 4.0}
    assert run.info.status == "FINISHED"
    assert [entry.path for entry in client.list_artifacts(tracker.run_id, "evaluate")] == ["evaluate/summary.json"]


def test_results_of_an_untracked_training_go_nowhere(tmp_path: Path) -> None:
    log_results(tmp_path, {"AP": 1.0})
    assert list(tmp_path.iterdir()) == []


DEAD = """
import sys, time
from pathlib import Path
from tasks.tracking import Tracker
import mlflow
started = time.monotonic()
tracker = Tracker.start(Path(sys.argv[1]), name="train", params={"a": 1})
for step in range(3000):
    tracker.log({"loss": 1.0}, step)
tracker.artifact(Path(__file__) if "__file__" in globals() else Path("/etc/hostname"))
tracker.finish()
print(tracker.run_id, time.monotonic() - started)
"""


def test_a_dead_server_costs_one_line_and_seconds(tmp_path: Path) -> None:
    """Without the retry settings this blocks for minutes."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "http://me:hunter2@127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    for name in PATIENCE:
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", DEAD, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    run_id, seconds = done.stdout.split()
    assert run_id == "None"
    assert float(seconds) < 60
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("tracking: http://127.0.0.1:9: ")
    assert lines[0].endswith("going on without tracking")
    assert "hunter2" not in done.stderr


def test_a_store_that_breaks_in_mid_run_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(b"this is not a database" * 99)
    tracker = Tracker.start(tmp_path, name="train")
    tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    assert tracker.run_id is None
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("tracking:")]) == 1


def test_off_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSIS_TRACKING", "off")
    tracker = Tracker.start(tmp_path, name="train", params={"a": 1})
    tracker.log({"loss": 1.0}, 1)
    tracker.picture(tmp_path / "absent.jpg")
    tracker.finish()
    assert tracker.run_id is None
    assert list(tmp_path.iterdir()) == []


def test_looking_into_a_workspace_imports_neither_mlflow_nor_torch() -> None:
    """They take seconds, and `mosis status` and each run of new_video that finds nothing would pay them."""
    script = "import sys, tasks.tracking, flows.summary; assert not {'mlflow', 'torch', 'cv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=100)


def test_params_are_flat_short_and_without_secrets() -> None:
    values = {
        "ingest": {"sources": ["s3://key:hunter2@bucket/a", "https://x.org/v.mp4?X-Amz-Signature=abc&t=1"]},
        "remote": {"password": "hunter2", "api_key": "k"},
        "long": "x" * 9999,
        "none": None,
    }
    assert plain_params(values) == {
        "ingest.sources": "['s3://bucket/a', 'https://x.org/v.mp4']",
        "long": "x" * MAX_VALUE,
        "none": "None",
    }
    assert flatten({}) == {}
    assert hide_secrets("no URL here?yes") == "no URL here?yes"


def test_revisions_of_git_and_data(tmp_path: Path) -> None:
    assert read_revisions(tmp_path) == {}

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "first")
    (tmp_path / "dvc.lock").write_text(
        "stages:\n  pairs:\n    outs:\n    - path: data/pairs\n      md5: abc.dir\n  ingest:\n    outs: []\n"
    )
    head = git("rev-parse", "HEAD")
    assert read_revisions(tmp_path) == {"git_revision": head, "dvc_md5_pairs": "abc.dir"}
    (tmp_path / "a").write_text("2")
    assert read_revisions(tmp_path)["git_revision"] == f"{head}+dirty"


def test_time_is_milliseconds(workspace: Path) -> None:
    tracker = Tracker.start(workspace, name="train")
    tracker.log({"loss": 1.0}, 1)
    assert abs(tracker._metrics[0][2] / 1000 - time.time()) < 60
