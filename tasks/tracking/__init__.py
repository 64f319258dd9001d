"""All that talks to MLflow (pyfunc_model.py is what MLflow itself loads): runs, metrics, registered models.

MLFLOW_TRACKING_URI says where; without it, sqlite and a folder in the workspace's mlruns/. MOSIS_TRACKING=off tracks
nothing. A server that is dead or full never costs a training: one line is said, and the work goes on untracked.
"""

from tasks.tracking.champion import (
    CHALLENGER,
    CHAMPION,
    GATE,
    GATE_RULE,
    PROMOTED,
    REFUSED,
    REGISTERED_NAME,
    ROLLED_BACK,
    UNDECIDED,
    Move,
    RegisteredVersion,
    find_champion,
    find_previous,
    promote,
    read_version,
    rollback,
    tag_version,
)
from tasks.tracking.connection import connect, failures, is_on, service_errors, tracking_uri
from tasks.tracking.fetching import ModelVersion, download, resolve
from tasks.tracking.runs import EXPERIMENT, Tracker, log_results, train_run
from tasks.tracking.versions import find_version, register

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "EXPERIMENT",
    "GATE",
    "GATE_RULE",
    "PROMOTED",
    "REFUSED",
    "REGISTERED_NAME",
    "ROLLED_BACK",
    "UNDECIDED",
    "ModelVersion",
    "Move",
    "RegisteredVersion",
    "Tracker",
    "connect",
    "download",
    "failures",
    "find_champion",
    "find_previous",
    "find_version",
    "is_on",
    "log_results",
    "promote",
    "read_version",
    "register",
    "resolve",
    "rollback",
    "service_errors",
    "tag_version",
    "tracking_uri",
    "train_run",
]
