"""The pipeline: one Prefect task a stage, in order; then the model is registered.

When and where, not what: each task reproduces one DVC stage in a process of its own, and DVC skips what is unchanged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from tasks import history, params, tracking, versioning, workspace
from tasks.errors import MosisError, StageError, StorageError, StoreError
from tasks.tracking import RegisteredVersion
from tasks.versioning import Outcome

NETWORK_RETRY_S = (10.0, 60.0)

COMMITTED = ("params.yaml", "dvc.yaml", "dvc.lock", workspace.CODE_LOCK)
COMMIT_MESSAGE = "Training: parameters, and what came of which data"

T = TypeVar("T")


@dataclass(frozen=True)
class StageRun:
    stage: str
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class PipelineRun:
    stages: tuple[StageRun, ...]
    model: RegisteredVersion


def run_stage(folder: Path, stage: str) -> StageRun:
    started = time.monotonic()
    outcome = versioning.run_stage(folder, stage)
    seconds = time.monotonic() - started
    get_run_logger().info("%s: %s, %.1f s", stage, outcome, seconds)
    return StageRun(stage, outcome, seconds)


def stage_task(stage: str) -> Task[[Path], StageRun]:
    # Neither cached nor persisted, whatever Prefect's settings say: DVC alone decides what is skipped.
    @task(name=stage, task_run_name=stage, cache_policy=NO_CACHE, persist_result=False)
    def reproduce(folder: Path) -> StageRun:
        return run_stage(folder, stage)

    return reproduce


def may_pass_on_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether waiting can mend it: not a wrong key, parameter or file, but a server that did not answer."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, StageError):
        return error.exit_code == StoreError.exit_code
    return isinstance(error, StorageError) or not isinstance(error, MosisError)


ingest = stage_task("ingest")
pairs = stage_task("pairs")
train = stage_task("train")
evaluate = stage_task("evaluate")
export = stage_task("export")


@task(name="register", task_run_name="register", cache_policy=NO_CACHE, persist_result=False)
def register(folder: Path) -> RegisteredVersion:
    return tracking.register(folder)


STAGE_TASKS = (ingest, pairs, train, evaluate, export)


@flow(name="mosis", flow_run_name="{folder.name}", validate_parameters=False, persist_result=False)
def pipeline(folder: Path) -> PipelineRun:
    """Run what has changed in the workspace `folder`, then register the model. Raises MosisError."""
    settings = params.load(folder / "params.yaml")
    workspace.refresh_code(folder)
    stages = (
        patient(ingest, where=reads_network(settings.ingest.sources))(folder),
        pairs(folder),
        train(folder),
        evaluate(folder),
        export(folder),
    )
    registered = patient(register)(folder)
    keep_history(folder)
    return PipelineRun(stages, registered)


def keep_history(folder: Path) -> None:
    """Commit what this run was made with and what came of it: git, and DVC's cache, lead back to it. What keeps it
    from being committed costs a line. Not where the code itself lies: its history is no workspace's.
    """
    if (folder / "tasks" / "params.py").is_file():
        return
    try:
        history.commit_files(folder, [name for name in COMMITTED if (folder / name).is_file()], COMMIT_MESSAGE)
    except MosisError as error:
        get_run_logger().warning("the run was not committed: %s", error)


def patient(work: Task[[Path], T], *, where: bool = True) -> Task[[Path], T]:
    """The task with retries, where a server or a network it needs may come back by itself."""
    if not where:
        return work
    delays = list(NETWORK_RETRY_S)
    return work.with_options(retries=len(delays), retry_delay_seconds=delays, retry_condition_fn=may_pass_on_retry)


def reads_network(sources: Sequence[str]) -> bool:
    """Local files do not mend themselves; what lies behind another protocol may."""
    return any("://" in source and "file" not in source.partition("://")[0].split(":") for source in sources)
