"""Where MLflow keeps runs and models, and what becomes of its errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import StorageError
from tasks.lineage import hide_secrets
from tasks.process import set_quiet_defaults

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Without these a dead server blocks for minutes; who sets them knows better.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_QUIET = {
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def is_on() -> bool:
    return os.environ.get("MOSIS_TRACKING", "").lower() not in ("off", "0", "false", "no")


def tracking_uri(workspace: Path) -> str:
    """MLFLOW_TRACKING_URI, else the workspace's own sqlite."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(workspace / 'mlruns' / 'mlflow.db').resolve()}"


def connect(workspace: Path) -> MlflowClient:
    """A client for this workspace's tracking store, which leaves MLflow's process-wide settings alone."""
    for name, value in {**PATIENCE, **_QUIET}.items():
        os.environ.setdefault(name, value)
    set_quiet_defaults()
    if not has_server():
        (workspace / "mlruns").mkdir(parents=True, exist_ok=True)
    import mlflow

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = tracking_uri(workspace)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def has_server() -> bool:
    """Whether somebody else keeps the runs, rather than this workspace."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def failures() -> tuple[type[Exception], ...]:
    """What MLflow raises when its store cannot be reached or refuses. Requests' errors are OSErrors; where a database's
    driver is not installed, it is an ImportError.
    """
    try:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return (ImportError, OSError)
    return (MlflowException, SQLAlchemyError, OSError, ImportError)


@contextmanager
def service_errors(workspace: Path) -> Iterator[None]:
    """Turn MLflow's errors into one line: StorageError."""
    try:
        yield
    except StorageError:
        raise
    except failures() as error:
        uri = hide_secrets(tracking_uri(workspace))
        raise StorageError(f"MLflow at {uri}: {one_line(error)}: is it running, and is its disk not full?") from error


@contextmanager
def process_wide(uri: str) -> Iterator[None]:
    """Have mlflow's own functions use `uri` for a while; they keep it in the environment, too."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None takes it out of the environment again


def one_line(error: Exception) -> str:
    text = hide_secrets(" ".join(str(error).split()))
    return text if len(text) <= 160 else text[:157] + "..."
