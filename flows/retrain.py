"""Retrain: consider -> freeze the data -> the pipeline's stages -> register a challenger -> score both -> decide.

The champion changes in the last step alone, by one call. Killed anywhere, the next run goes on: DVC skips finished
stages, the registry knows the challenger by its digest, and a decision that was written down is carried out
(docs/adr/0012).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.events import emit_event
from prefect.states import Completed

from flows import pipeline
from flows.line import keep_line_short
from flows.notify import GROWN, resource_id
from tasks import history, params, tracking, versioning
from tasks import workspace as workspaces
from tasks.errors import BusyError, ParamsError, StorageError
from tasks.params import Params
from tasks.promotion import ledger, rounds
from tasks.promotion.ledger import Record
from tasks.promotion.rounds import Round
from tasks.tracking import CHALLENGER, RegisteredVersion

if TYPE_CHECKING:  # imports torch, which a run that finds nothing to do is spared
    from tasks.promotion.scoring import Plan

RETRY_S = (2.0, 5.0, 15.0, 30.0, 60.0, 120.0, 120.0, 120.0)
"""Before each retry of what another process, at its new videos most likely, keeps busy, or a store that is away."""

R = TypeVar("R")


@dataclass(frozen=True)
class Retrained:
    """What came of one run. record: the decision, None where there was nothing to decide, and `note` says why."""

    record: Record | None
    note: str

    def describe(self) -> str:
        return self.record.outcome if self.record is not None else self.note


@flow(name="retrain", flow_run_name="retrain", validate_parameters=False, persist_result=False)
def retrain(folder: str, force: bool = False) -> State[Retrained]:  # noqa: FBT001  # a deployment's parameter
    """Train on what has come into the library of the workspace `folder`, and promote what comes of it if it is no
    worse. force: whether enough has come or not. Raises MosisError; the champion is as it was then.
    """
    workspace = Path(folder).resolve()
    if not tracking.is_on():
        raise ParamsError("retraining needs the model registry: unset MOSIS_TRACKING")
    with rounds.lock(workspace), keep_line_short():
        done = run_round(workspace, force=force)
    get_run_logger().info(done.describe())
    return Completed(message=done.describe(), data=done)


def run_round(workspace: Path, *, force: bool) -> Retrained:
    if pending := patient(finish)(workspace):  # the end of a round whose process was killed
        rounds.close_round(workspace)
        show(workspace, pending[-1])
        return Retrained(pending[-1], "")
    settings = params.load(workspace / "params.yaml")
    one = rounds.next_round(workspace, settings, force=force)
    if one is None:
        minutes = rounds.new_minutes(workspace, settings)
        note = f"nothing to do: {minutes:.1f} of {settings.service.min_new_minutes:g} minutes of new video have come"
        return Retrained(None, note)
    settings = patient(freeze)(workspace, settings, one)
    one = rounds.read_round(workspace) or one
    try:
        run_stages(workspace, settings)
        patient(version)(workspace)
        challenger = patient(register)(workspace).version
        done = try_out(workspace, settings, one, challenger)
    except (BusyError, StorageError):
        raise  # these pass
    except Exception as error:
        rounds.write_round(workspace, dataclasses.replace(one, failed=str(error)))
        raise
    rounds.close_round(workspace)
    return done


def run_stages(workspace: Path, settings: Params) -> None:
    """As the pipeline does, but patient with what takes in new video beside it."""
    networked = pipeline.reads_network(settings.ingest.sources)
    for stage in pipeline.STAGE_TASKS:
        patient(stage, also=pipeline.may_pass_on_retry if networked and stage is pipeline.ingest else None)(workspace)


def try_out(workspace: Path, settings: Params, one: Round, challenger: str) -> Retrained:
    """Score, decide, carry out: unless that was done with this version before."""
    from tasks.promotion import trial

    found = tracking.find_champion(workspace)
    champion = found.version if found else None
    note = trial.why_nothing_new(workspace, challenger, champion)
    if note is not None:
        return Retrained(None, f"nothing new: {note}")
    plan = patient(plan_scores)(workspace, settings)
    theirs = (champion, score_champion(workspace, settings, plan, champion)) if champion else None
    ours = (challenger, score_challenger(workspace, settings, plan, challenger))
    decide(workspace, settings, one, plan, ours, theirs)
    (record,) = patient(finish)(workspace)
    show(workspace, record)
    return Retrained(record, "")


def make_task(name: str) -> Callable[[Callable[..., R]], Task[..., R]]:
    """Neither cached nor persisted: files and the registry say what is done."""
    return task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)


@make_task("freeze")
def freeze(workspace: Path, settings: Params, one: Round) -> Params:
    """The settings of the round, in params.yaml from here on."""
    if one.teacher is None and settings.service.self_training:
        from tasks.promotion import trial

        one = dataclasses.replace(one, teacher=trial.take_teacher(workspace))
    rounds.freeze(workspace, settings, dataclasses.replace(one, failed=None))
    workspaces.refresh_code(workspace)
    get_run_logger().info("training data: library as of %s, %.1f new minutes", one.revision, one.minutes)
    return params.load(workspace / "params.yaml")


@make_task("version")
def version(workspace: Path) -> None:
    """Outputs to the remote, then what made them to git: git never names what the remote does not have.

    Not where the code itself lies: its history is no workspace's.
    """
    if (workspace / "tasks" / "params.py").is_file():
        return
    versioning.push_target(workspace, "dvc.yaml")
    names = [name for name in pipeline.COMMITTED if (workspace / name).is_file()]
    history.commit_files(workspace, names, pipeline.COMMIT_MESSAGE)


@make_task("register")
def register(workspace: Path) -> RegisteredVersion:
    return tracking.register(workspace, alias=CHALLENGER)


@make_task("plan")
def plan_scores(workspace: Path, settings: Params) -> Plan:
    from tasks.promotion import scoring

    return scoring.make_plan(workspace, settings)


@make_task("score champion")
def score_champion(workspace: Path, settings: Params, plan: Plan, number: str) -> Path:
    from tasks.promotion import trial

    return trial.score_version(workspace, settings, plan, number)


@make_task("score challenger")
def score_challenger(workspace: Path, settings: Params, plan: Plan, number: str) -> Path | str:
    from tasks.promotion import trial

    return trial.score_challenger(workspace, settings, plan, number)


@make_task("decide")
def decide(
    workspace: Path,
    settings: Params,
    one: Round,
    plan: Plan,
    challenger: tuple[str, Path | str],
    champion: tuple[str, Path] | None,
) -> Record:
    from tasks.promotion import trial

    return trial.decide_about(workspace, settings, one, plan, challenger, champion)


@make_task("carry out")
def finish(workspace: Path) -> list[Record]:
    """Carry out what was decided, here or before a kill; mostly nothing."""
    if all(one.state == ledger.DONE for one in ledger.read_records(workspace)):
        return []
    from tasks.promotion import trial

    return trial.carry_out_pending(workspace)


def show(workspace: Path, record: Record) -> None:
    """The decision on Prefect's page of the run."""
    rows = [
        f"| {rule.name} | {_cell(rule.champion)} | {_cell(rule.challenger)} | {_cell(rule.limit)} "
        f"| {'passed' if rule.passed else '**failed**'} |"
        for rule in record.decision.rules
    ]
    head = ["| rule | champion | challenger | limit | |", "|---|---|---|---|---|"]
    page = ledger.page_path(workspace, record.number)
    notes = [record.decision.note] if record.decision.note else []
    text = [f"# {record.outcome}", "", *head, *rows, "", *notes, "", f"Side by side: [{page.name}]({page.as_uri()})"]
    create_markdown_artifact(key="decision", markdown="\n".join(text), description=record.outcome)


def announce_growth(workspace: Path, settings: Params) -> bool:
    """Start a retraining by event where enough new video has come; whether it did. The schedule finds it otherwise."""
    due = rounds.is_due(workspace, settings)
    if due:
        emit_event(event=GROWN, resource={"prefect.resource.id": resource_id(workspace)})
    return due


def patient(work: Task[..., R], *, also: Callable[..., bool] | None = None) -> Task[..., R]:
    """The task with retries for what passes by itself: another process at work here, a store that is away."""

    def may_pass(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
        error = state.result(raise_on_failure=False)
        return isinstance(error, BusyError | StorageError) or (also is not None and also(task, task_run, state))

    return work.with_options(retries=len(RETRY_S), retry_delay_seconds=list(RETRY_S), retry_condition_fn=may_pass)


def _cell(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.3f}"
