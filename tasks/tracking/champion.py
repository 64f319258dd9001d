"""Which version is champion: an alias of the registry, moved in one call, and a way back for each move.

A version that becomes champion carries the tag `champion_before`: the number of the one whose place it took. The tag
is written before the alias moves, and only the champion's is ever read: a kill between the two changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import DataError, ParamsError
from tasks.tracking.connection import connect, is_on, service_errors
from tasks.tracking.fetching import ModelVersion, resolve

if TYPE_CHECKING:
    from mlflow import MlflowClient

REGISTERED_NAME = "mosis"
CHAMPION, CHALLENGER = "champion", "challenger"
BEFORE, ROLLED_BACK, GATE, GATE_RULE = "champion_before", "rolled_back", "gate", "gate_rule"
"""Tags of a version. GATE is one of the next three, and absent where `mosis run` made the version."""
PROMOTED, REFUSED, UNDECIDED = "promoted", "refused", "undecided"


@dataclass(frozen=True)
class RegisteredVersion:
    """created: False where the same weights, parameters and code were a version already. note: why it is not champion,
    where a person might expect so.
    """

    version: str
    uri: str
    created: bool
    note: str = ""


@dataclass(frozen=True)
class Move:
    """The champion was `before` and is `version` now."""

    version: str
    before: str | None


def find_champion(workspace: Path, *, alias: str = CHAMPION) -> RegisteredVersion | None:
    """The version that has the alias; None where there is none. Raises StorageError where MLflow cannot be reached."""
    own_store = workspace / "mlruns" / "mlflow.db"
    if not is_on() or not ("MLFLOW_TRACKING_URI" in os.environ or own_store.exists()):
        return None
    with service_errors(workspace):
        version = holder(connect(workspace), alias)
    return RegisteredVersion(version, f"models:/{REGISTERED_NAME}@{alias}", created=False) if version else None


def promote(workspace: Path, version: str) -> Move:
    """Make it champion, whatever the gate says. Raises DataError where it is no version, or is champion already."""
    wanted = read_version(workspace, version)
    with service_errors(workspace):
        client = connect(workspace)
        before = holder(client, CHAMPION)
        if before == wanted.version:
            raise DataError(f"version {before} is champion already: nothing changed")
        if ROLLED_BACK in wanted.tags:
            client.delete_model_version_tag(REGISTERED_NAME, wanted.version, ROLLED_BACK)
        take_lead(client, wanted.version)
    return Move(wanted.version, before)


def find_previous(workspace: Path) -> str:
    """The version whose place the champion took. Raises DataError where there is none."""
    champion = find_champion(workspace)
    if champion is None:
        raise DataError("there is no champion, so nothing to go back to: `mosis run` makes one")
    before = read_version(workspace, champion.version).tags.get(BEFORE)
    if before is None:
        raise DataError(
            f"version {champion.version} took nobody's place, so there is nothing to go back to: name a version with "
            "`mosis promote VERSION`"
        )
    return read_version(workspace, before).version


def rollback(workspace: Path) -> Move:
    """Make that version champion again. Raises DataError where there is none."""
    target, champion = find_previous(workspace), find_champion(workspace)
    assert champion is not None
    with service_errors(workspace):
        client = connect(workspace)
        # First the mark: a kill before the alias moves leaves a champion with a mark, which changes nothing.
        client.set_model_version_tag(REGISTERED_NAME, champion.version, ROLLED_BACK, "true")
        client.set_registered_model_alias(REGISTERED_NAME, CHAMPION, target)
        client.delete_model_version_tag(REGISTERED_NAME, champion.version, BEFORE)
    return Move(target, champion.version)


def tag_version(workspace: Path, version: str, tags: Mapping[str, str]) -> None:
    """Write tags of a version. Raises StorageError."""
    with service_errors(workspace):
        client = connect(workspace)
        for name, value in tags.items():
            client.set_model_version_tag(REGISTERED_NAME, version, name, value)


def read_version(workspace: Path, version: str) -> ModelVersion:
    """By its number. Raises ParamsError where that is none, DataError where there is no such version."""
    if not (version.isascii() and version.isdecimal()):
        raise ParamsError(f"{version[:60]!r} is no version: write its number, as in `mosis promote 3`")
    return resolve(f"models:/{REGISTERED_NAME}/{version.lstrip('0') or '0'}", workspace)


def why_not(tags: Mapping[str, str]) -> str | None:
    """Why a version with these tags does not become champion by `mosis run` alone, or None."""
    if ROLLED_BACK in tags:
        return "somebody rolled it back"
    if tags.get(GATE) == REFUSED:
        return f"the gate refused it ({tags.get(GATE_RULE, 'no rule recorded')})"
    if tags.get(GATE) == UNDECIDED:
        return "the gate has not decided about it yet"
    return None


def holder(client: MlflowClient, alias: str) -> str | None:
    """Number of the version that has the alias."""
    found = client.search_registered_models(f"name = '{REGISTERED_NAME}'")
    version = found[0].aliases.get(alias) if found else None
    return str(version) if version else None


def take_lead(client: MlflowClient, version: str) -> None:
    """Move the alias, with the way back written down before; nothing where it is champion already."""
    before = holder(client, CHAMPION)
    if before == version:
        return
    if before is not None:
        client.set_model_version_tag(REGISTERED_NAME, version, BEFORE, before)
    client.set_registered_model_alias(REGISTERED_NAME, CHAMPION, version)
