"""Versions of the registered model: made, and told apart by their digest."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import registry
from tasks.lineage import read_revisions
from tasks.tracking import champion
from tasks.tracking.champion import CHALLENGER, CHAMPION, REGISTERED_NAME, RegisteredVersion
from tasks.tracking.connection import connect, is_on, process_wide, service_errors, tracking_uri
from tasks.tracking.runs import create_run, take_up, train_run

if TYPE_CHECKING:
    from mlflow import MlflowClient


def register(workspace: Path, *, alias: str = CHAMPION) -> RegisteredVersion:
    """Make the trained weights a version of the registered model and give it the alias, unless they are one already.

    A version that the gate refused or has not decided about, or that was rolled back, does not become champion so
    (docs/adr/0012): `RegisteredVersion.note` says it. Raises DataError where nothing has been trained, StorageError
    where MLflow cannot be reached.
    """
    package = registry.describe_package(workspace)
    if not is_on():
        return RegisteredVersion("none", f"{package.weights} (not registered: MOSIS_TRACKING=off)", created=False)
    with service_errors(workspace):
        client = connect(workspace)
        version = find_version(client, package.digest)
        created = version is None
        if version is None:
            # With the version, not after it: a kill between would leave one that anybody takes for decided.
            own = {champion.GATE: champion.UNDECIDED} if alias == CHALLENGER else {}
            version = _create_version(client, workspace, package, own)
        if alias != CHAMPION:
            client.set_registered_model_alias(REGISTERED_NAME, alias, version)
        else:
            leader = champion.holder(client, CHAMPION)
            reason = champion.why_not(client.get_model_version(REGISTERED_NAME, version).tags)
            if reason and leader not in (None, version):
                note = f"version {leader} stays champion: {reason}; `mosis promote {version}` makes it champion"
                return RegisteredVersion(version, f"models:/{REGISTERED_NAME}/{version}", created, note)
            champion.take_lead(client, version)
    return RegisteredVersion(version, f"models:/{REGISTERED_NAME}@{alias}", created)


def find_version(client: MlflowClient, digest: str) -> str | None:
    """The version that carries this package digest."""
    found = client.search_model_versions(f"name = '{REGISTERED_NAME}'")
    return next((str(entry.version) for entry in found if entry.tags.get("package_sha256") == digest), None)


def _create_version(
    client: MlflowClient, workspace: Path, package: registry.Package, own_tags: Mapping[str, str]
) -> str:
    import mlflow

    run_id = take_up(client, train_run(workspace)) or create_run(client, workspace, "register", {}, {})
    tags = {
        **read_revisions(workspace),
        **registry.read_scores(workspace),
        "weights_sha256": package.weights_sha256,
        "package_sha256": package.digest,
        **own_tags,
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
