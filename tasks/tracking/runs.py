"""Runs: what a stage measured and made, kept in MLflow. A dead server costs one line, never the work."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.files import read_json
from tasks.lineage import clean_name, flatten, hide_secrets, plain_params, read_revisions
from tasks.tracking.connection import connect, failures, has_server, is_on, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "mosis"
MAX_METRICS, MAX_PARAMS = 1000, 100
"""MLflow's own limits of one batch."""

T = TypeVar("T")


class Tracker:
    """One MLflow run. Metrics are kept back and sent in batches; after the first failure nothing is sent any more."""

    def __init__(self, client: MlflowClient | None = None, run_id: str | None = None) -> None:
        self._client = client
        self.run_id = run_id
        self._metrics: list[tuple[str, float, int, int]] = []  # name, value, milliseconds, step

    @classmethod
    def start(
        cls,
        workspace: Path,
        *,
        name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> Tracker:
        """Begin a run, or go on with `run_id`: a killed run stays RUNNING in MLflow until it is taken up again.

        params: nested settings, logged once as dotted names. The run carries the revision of git and of the data.
        """
        if not is_on():
            return cls()
        tracker = cls()
        tracker._attempt(lambda: tracker._open(workspace, name, dict(params or {}), dict(tags or {}), run_id))
        return tracker

    @property
    def is_open(self) -> bool:
        """Whether all that was sent so far has arrived."""
        return self._client is not None

    def log(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Keep metrics for the next flush; None is left out."""
        if self._client is None:
            return
        now = time.time_ns() // 1_000_000
        self._metrics += [(clean_name(name), float(v), now, step) for name, v in metrics.items() if v is not None]
        if len(self._metrics) >= MAX_METRICS:
            self.flush()

    def flush(self) -> None:
        pending, self._metrics = self._metrics, []
        for start in range(0, len(pending), MAX_METRICS):
            if self._client is None:  # a failure since, or of the batch before
                return
            self._attempt(lambda batch=pending[start : start + MAX_METRICS]: self._send(batch))  # type: ignore[misc]

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file or a whole folder with the run."""
        client, run_id = self._client, self.run_id
        if client is not None:
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            self._attempt(lambda: log(str(run_id), str(path), folder))

    def tag(self, name: str, value: str) -> None:
        client, run_id = self._client, self.run_id
        if client is not None:
            self._attempt(lambda: client.set_tag(str(run_id), clean_name(name), value))

    def picture(self, path: Path) -> None:
        self.artifact(path, "pictures")

    def finish(self, status: str = "FINISHED") -> None:
        """Send what is left and end the run: FINISHED, FAILED or KILLED."""
        self.flush()
        client, run_id = self._client, self.run_id
        if client is not None:
            self._attempt(lambda: client.set_terminated(str(run_id), status))

    def _open(
        self, workspace: Path, name: str, params: dict[str, Any], tags: dict[str, str], run_id: str | None
    ) -> None:
        client = connect(workspace)
        self.run_id = take_up(client, run_id) or create_run(client, workspace, name, params, tags)
        end_abandoned(client, workspace, name, kept=self.run_id)
        self._client = client

    def _send(self, batch: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        assert self._client is not None
        self._client.log_batch(str(self.run_id), metrics=[Metric(*entry) for entry in batch])

    def _attempt(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except failures() as error:
            self._client = None
            where = hide_secrets(os.environ.get("MLFLOW_TRACKING_URI", "mlruns/mlflow.db"))
            print(f"tracking: {where}: {one_line(error)}; going on without tracking", file=sys.stderr, flush=True)
            return None


def log_results(
    workspace: Path, metrics: Mapping[str, Any], artifacts: Sequence[Path] = (), *, prefix: str = ""
) -> None:
    """Add results of a later stage to the run that trained the weights: nested numbers under dotted names, files.

    Does nothing where that training was not tracked.
    """
    run_id = train_run(workspace)
    if run_id is None or not is_on():
        return
    tracker = Tracker()

    def send() -> None:
        tracker._client, tracker.run_id = connect(workspace), run_id

    tracker._attempt(send)
    numbers = {name: value for name, value in flatten(metrics, prefix).items() if _is_number(value)}
    tracker.log(numbers, step=0)
    tracker.flush()
    for path in artifacts:
        tracker.artifact(path, prefix or None)


def train_run(workspace: Path) -> str | None:
    """The run that trained outputs/train, None where it was not tracked."""
    path = workspace / "outputs" / "train" / "summary.json"
    summary = read_json(path) if path.is_file() else {}
    run_id = summary.get("run_id") if isinstance(summary, dict) else None
    return run_id if isinstance(run_id, str) and run_id else None


def take_up(client: MlflowClient, run_id: str | None) -> str | None:
    """Set a run of an earlier process to RUNNING again; None where the store does not have it."""
    if run_id is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            return None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    client.update_run(run_id, status="RUNNING")
    return run_id


def create_run(client: MlflowClient, workspace: Path, name: str, params: dict[str, Any], tags: dict[str, str]) -> str:
    from mlflow.entities import Param

    every_tag = {**read_revisions(workspace), "stage": name, "workspace": _workspace_tag(workspace), **tags}
    run = client.create_run(_experiment(client, workspace), run_name=name, tags=every_tag)
    entries = [Param(key, value) for key, value in plain_params(params).items()]
    for start in range(0, len(entries), MAX_PARAMS):
        client.log_batch(run.info.run_id, params=entries[start : start + MAX_PARAMS])
    return str(run.info.run_id)


def end_abandoned(client: MlflowClient, workspace: Path, name: str, *, kept: str) -> None:
    """End as KILLED what this workspace's runs of that name have left RUNNING: whoever starts one is alone at it, and
    a process that was killed before it could note its run's id left one that nobody takes up.
    """
    mine = f"tags.stage = '{name}' and tags.workspace = '{_workspace_tag(workspace)}'"
    found = client.search_runs([_experiment(client, workspace)], f"attributes.status = 'RUNNING' and {mine}")
    for run in found:
        if run.info.run_id != kept:
            client.set_terminated(run.info.run_id, "KILLED")


def _workspace_tag(workspace: Path) -> str:
    """Tells the workspaces of one server apart, and says nothing of where they lie."""
    return hashlib.sha256(str(workspace.resolve()).encode(errors="replace")).hexdigest()[:16]


def _experiment(client: MlflowClient, workspace: Path) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    place = None if has_server() else (workspace / "mlruns" / "artifacts").resolve().as_uri()
    return str(client.create_experiment(EXPERIMENT, artifact_location=place))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
