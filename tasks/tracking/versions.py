"""Versions of the registered model: made, found, named by an alias."""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import registry
from tasks.lineage import read_revisions
from tasks.tracking.connection import connect, is_on, process_wide, service_errors, tracking_uri
from tasks.tracking.runs import create_run, take_up, train_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

REGISTERED_NAME = "mosis"


@dataclass(frozen=True)
class RegisteredVersion:
    """created: False where the same weights, parameters and code were a version already."""

    version: str
    uri: str
    created: bool


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


def _create_version(client: MlflowClient, workspace: Path, package: registry.Package) -> str:
    import mlflow

    run_id = take_up(client, train_run(workspace)) or create_run(client, workspace, "register", {}, {})
    tags = {
        **read_revisions(workspace),
        **registry.read_scores(workspace),
        "weights_sha256": package.weights_sha256,
        "package_sha256": package.digest,
    }
    with process_wide(tracking_uri(workspace)):
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


def _signature(score_threshold: float) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    # -1: any number of images of any size; a fixed size would make serving refuse real images.
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    threshold = ParamSpec("score_threshold", DataType.double, score_threshold)
    return ModelSignature(inputs=images, params=ParamSchema([threshold]))
