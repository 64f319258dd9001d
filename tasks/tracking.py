"""The only file that talks to MLflow (pyfunc_model.py is what MLflow itself loads): runs, metrics, registered models.

MLFLOW_TRACKING_URI says where; without it, sqlite and a folder in the workspace's mlruns/. MOSIS_TRACKING=off tracks
nothing. A server that is dead or full never costs a training: one line is said, and the work goes on untracked.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks import registry
from tasks.errors import StorageError
from tasks.files import read_json
from tasks.lineage import clean_name, flatten, hide_secrets, plain_params, read_revisions
from tasks.process import set_quiet_defaults

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "mosis"
REGISTERED_NAME = "mosis"
MAX_METRICS, MAX_PARAMS = 1000, 100
"""MLflow's own limits of one batch."""
# Without these a dead server blocks for minutes; who sets them knows better.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_QUIET = {
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}

T = TypeVar("T")


@dataclass(frozen=True)
class RegisteredVersion:
    """created: False where the same weights, parameters and code were a version already."""

    version: str
    uri: str
    created: bool


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
            self._attempt(lambda batch=pending[start : start + MAX_METRICS]: self._send(batch))  # type: ignore[misc]

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file or a whole folder with the run."""
        client, run_id = self._client, self.run_id
        if client is not None:
            log = client.log_artifacts if path.is_dir() else client.log_artifact
            self._attempt(lambda: log(str(run_id), str(path), folder))

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
        self.run_id = _take_up(client, run_id) or _create_run(client, workspace, name, params, tags)
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
            print(f"tracking: {where}: {_one_line(error)}; going on without tracking", file=sys.stderr, flush=True)
            return None


def is_on() -> bool:
    return os.environ.get("MOSIS_TRACKING", "").lower() not in ("off", "0", "false", "no")


def tracking_uri(workspace: Path) -> str:
    """MLFLOW_TRACKING_URI, else the workspace's own sqlite."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(workspace / 'mlruns' / 'mlflow.db').resolve()}"


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


def register(workspace: Path, *, alias: str = "champion") -> RegisteredVersion:
    """Make the trained weights a version of the registered model and give it the alias, unless they are one already.

    Raises DataError where nothing has been trained, StorageError where MLflow cannot be reached.
    """
    package = registry.describe_package(workspace)
    if not is_on():
        return RegisteredVersion("none", f"{package.weights} (not registered: MOSIS_TRACKING=off)", created=False)
    with service_errors(workspace):
        client = connect(workspace)
        version = find_version(client, package.digest)
        created = version is None
        if version is None:
            version = _create_version(client, workspace, package)
        client.set_registered_model_alias(REGISTERED_NAME, alias, version)
    return RegisteredVersion(version, f"models:/{REGISTERED_NAME}@{alias}", created)


def find_champion(workspace: Path, *, alias: str = "champion") -> RegisteredVersion | None:
    """The version that has the alias; None where there is none. Raises StorageError where MLflow cannot be reached."""
    own_store = workspace / "mlruns" / "mlflow.db"
    if not is_on() or not ("MLFLOW_TRACKING_URI" in os.environ or own_store.exists()):
        return None
    with service_errors(workspace):
        found = connect(workspace).search_registered_models(f"name = '{REGISTERED_NAME}'")
    version = found[0].aliases.get(alias) if found else None
    return RegisteredVersion(str(version), f"models:/{REGISTERED_NAME}@{alias}", created=False) if version else None


def find_version(client: MlflowClient, digest: str) -> str | None:
    """The version that carries this package digest."""
    found = client.search_model_versions(f"name = '{REGISTERED_NAME}'")
    return next((str(entry.version) for entry in found if entry.tags.get("package_sha256") == digest), None)


def connect(workspace: Path) -> MlflowClient:
    """A client for this workspace's tracking store, which leaves MLflow's process-wide settings alone."""
    for name, value in {**_PATIENCE, **_QUIET}.items():
        os.environ.setdefault(name, value)
    set_quiet_defaults()
    if not _has_server():
        (workspace / "mlruns").mkdir(parents=True, exist_ok=True)
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = tracking_uri(workspace)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def _has_server() -> bool:
    """Whether somebody else keeps the runs, rather than this workspace."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def failures() -> tuple[type[Exception], ...]:
    """What MLflow raises when its store cannot be reached or refuses; requests' errors are OSErrors."""
    try:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return (ImportError, OSError)
    return (MlflowException, SQLAlchemyError, OSError)


@contextmanager
def service_errors(workspace: Path) -> Iterator[None]:
    """Turn MLflow's errors into one line: StorageError."""
    try:
        yield
    except StorageError:
        raise
    except failures() as error:
        uri = hide_secrets(tracking_uri(workspace))
        raise StorageError(f"MLflow at {uri}: {_one_line(error)}: is it running, and is its disk not full?") from error


def train_run(workspace: Path) -> str | None:
    """The run that trained outputs/train, None where it was not tracked."""
    path = workspace / "outputs" / "train" / "summary.json"
    summary = read_json(path) if path.is_file() else {}
    run_id = summary.get("run_id") if isinstance(summary, dict) else None
    return run_id if isinstance(run_id, str) and run_id else None


def _take_up(client: MlflowClient, run_id: str | None) -> str | None:
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


def _create_run(client: MlflowClient, workspace: Path, name: str, params: dict[str, Any], tags: dict[str, str]) -> str:
    from mlflow.entities import Param

    every_tag = {**read_revisions(workspace), "stage": name, **tags}
    run = client.create_run(_experiment(client, workspace), run_name=name, tags=every_tag)
    entries = [Param(key, value) for key, value in plain_params(params).items()]
    for start in range(0, len(entries), MAX_PARAMS):
        client.log_batch(run.info.run_id, params=entries[start : start + MAX_PARAMS])
    return str(run.info.run_id)


def _experiment(client: MlflowClient, workspace: Path) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    place = None if _has_server() else (workspace / "mlruns" / "artifacts").resolve().as_uri()
    return str(client.create_experiment(EXPERIMENT, artifact_location=place))


def _create_version(client: MlflowClient, workspace: Path, package: registry.Package) -> str:
    import mlflow

    run_id = _take_up(client, train_run(workspace)) or _create_run(client, workspace, "register", {}, {})
    tags = {
        **read_revisions(workspace),
        **registry.read_scores(workspace),
        "weights_sha256": package.weights_sha256,
        "package_sha256": package.digest,
    }
    with _process_wide(tracking_uri(workspace)):
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(action="ignore"),
            mlflow.start_run(run_id=run_id),
        ):
            logged = mlflow.pyfunc.log_model(
                name=REGISTERED_NAME,
                python_model=str(registry.LOADER),
                artifacts={
                    "weights": str(package.weights),
                    "params": str(package.params),
                    "models": str(registry.copy_sources(package, Path(folder))),
                },
                pip_requirements=registry.requirements(),
                signature=_signature(package.score_threshold),
            )
        if not client.search_registered_models(f"name = '{REGISTERED_NAME}'"):
            client.create_registered_model(REGISTERED_NAME)
        made = client.create_model_version(
            REGISTERED_NAME, logged.model_uri, run_id=run_id, tags=tags, model_id=logged.model_id
        )
    return str(made.version)


@contextmanager
def _process_wide(uri: str) -> Iterator[None]:
    """Have mlflow's own functions use `uri` for a while; they keep it in the environment, too."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None takes it out of the environment again


def _signature(score_threshold: float) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    # -1: any number of images of any size; a fixed size would make serving refuse real images.
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    threshold = ParamSpec("score_threshold", DataType.double, score_threshold)
    return ModelSignature(inputs=images, params=ParamSchema([threshold]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_line(error: Exception) -> str:
    text = hide_secrets(" ".join(str(error).split()))
    return text if len(text) <= 160 else text[:157] + "..."
