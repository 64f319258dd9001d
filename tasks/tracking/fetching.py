"""Versions out of the registry: an alias becomes a version number once, and that version's files a local folder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import DataError, ParamsError
from tasks.lineage import hide_secrets
from tasks.tracking.connection import connect, has_server, process_wide, service_errors, tracking_uri

_URI = re.compile(r"models:/(?P<name>[^/@:\s]+)(?:/(?P<version>[1-9]\d{0,8})|@(?P<alias>[A-Za-z][\w-]*))")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model. alias: by which it was asked for, None where by its number."""

    name: str
    version: str
    alias: str | None
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """With the number, so that it means the same for ever."""
        return f"models:/{self.name}/{self.version}"


def resolve(uri: str, workspace: Path) -> ModelVersion:
    """The version that models:/NAME/NUMBER or models:/NAME@ALIAS means now, by MLFLOW_TRACKING_URI or `workspace`.

    Raises ParamsError for other URIs, DataError where there is no such version, StorageError where MLflow cannot be
    reached.
    """
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise ParamsError(f"{hide_secrets(uri)[:200]}: write models:/NAME@ALIAS or models:/NAME/NUMBER")
    if not has_server() and not (workspace / "mlruns" / "mlflow.db").is_file():
        raise DataError(
            f"{uri}: {workspace.resolve()} has no model registry: set MLFLOW_TRACKING_URI or go to a workspace"
        )
    from mlflow.exceptions import MlflowException

    with service_errors(workspace):
        client = connect(workspace)
        try:
            if parts["alias"]:
                found = client.get_model_version_by_alias(parts["name"], parts["alias"])
            else:
                found = client.get_model_version(parts["name"], parts["version"])
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            where = hide_secrets(tracking_uri(workspace))
            raise DataError(f"{uri}: not in the registry at {where}: `mosis status` shows what there is") from None
    return ModelVersion(parts["name"], str(found.version), parts["alias"], dict(found.tags))


def download(version: ModelVersion, workspace: Path, folder: Path) -> Path:
    """Copy the files of a version below `folder`; where they lie then. Raises StorageError where that fails."""
    uri = tracking_uri(workspace)
    with service_errors(workspace), process_wide(uri), warnings.catch_warnings(action="ignore"):
        import mlflow.artifacts

        return Path(
            mlflow.artifacts.download_artifacts(version.uri, dst_path=str(folder), tracking_uri=uri, registry_uri=uri)
        )
