"""New video: find what has arrived -> ingest -> label with the champion -> version; one Prefect task per video.

All pixels are in a process of their own (tasks/worker_process.py): a video that kills its decoder, or hangs in it, is
set aside, and the rest go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.settings import get_current_settings
from prefect.states import Completed

from flows.line import keep_line_short
from flows.notify import DRIFTED, emit
from flows.retrain import announce_growth
from tasks import batch_record, drift, inbox, intake, library, params, tracking
from tasks.errors import BusyError, ModelError, MosisError, StorageError
from tasks.files import sha256_file
from tasks.inbox import Arrival, Found, MovingError, Seen
from tasks.library import Entry, Rejected
from tasks.lineage import hide_secrets
from tasks.params import Params
from tasks.pool import WorkerDied
from tasks.tracking import ModelVersion
from tasks.worker_process import WorkerProcess

RETRY_S = (5.0, 30.0, 120.0)
"""Before the first, second and every later retry."""
NO_FAULT_OF_THE_VIDEO = (StorageError, BusyError, ModelError)
MAX_FAILURES = 3
"""Of those in a row: then the others wait for the next run."""
_SHOWN = 80


@dataclass
class NewVideo:
    """What came of one run. moving: not whole yet. same: their content was in the library. waiting: left for the next
    run, through no fault of theirs."""

    version: str | None = None
    taken: list[Entry] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    moving: int = 0
    failures: list[MosisError] = field(default_factory=list)

    def describe(self) -> str:
        counts = {
            "labelled": len(self.taken),
            "known already": len(self.same),
            "set aside": len(self.rejected),
            "still being copied": self.moving,
            "waiting": len(self.waiting),
        }
        said = [f"{count} {what}" for what, count in counts.items() if count]
        model = f" with version {self.version}" if self.taken else ""
        return (", ".join(said) or "nothing new") + model


@dataclass(frozen=True)
class Batch:
    """What all videos of a run share."""

    workspace: Path
    settings: Params
    version: ModelVersion
    model_folder: Path
    worker: WorkerProcess
    seen: Seen
    attempt: str


@flow(name="new-video", flow_run_name="new video", validate_parameters=False, persist_result=False)
def new_video(folder: str) -> State[NewVideo]:
    """Take everything new in the inbox of the workspace `folder` into its library. Raises MosisError.

    Without a champion nothing is labelled, and the run says so and completes.
    """
    workspace = Path(folder).resolve()
    settings = params.load(workspace / "params.yaml")
    with intake.lock(workspace), keep_line_short():
        done = take_in_all(workspace, settings)
    if done.taken:
        announce_growth(workspace, settings)
    if done.failures:
        raise done.failures[-1]
    return Completed(message=done.describe(), data=done)


def take_in_all(workspace: Path, settings: Params) -> NewVideo:
    found = find(workspace, settings)
    seen = Seen(workspace / ".mosis" / "inbox.jsonl")
    seen.keep([*found.whole, *found.moving])
    attempt = library.attempt_fingerprint(settings)
    new = leave_out_known(workspace, found.whole, seen, attempt)
    result = NewVideo(moving=len(found.moving))
    if not new:
        publish(workspace, settings)
        return result
    champion = tracking.find_champion(workspace)
    if champion is None:
        result.waiting = [one.place.shown for one in new]
        get_run_logger().info("no champion yet: %d videos wait until `mosis run` has made one", len(new))
        return result
    from tasks import model_store  # imports torch, which most runs do without: they find nothing

    # By its number from here on: the alias may move while we work, and a batch has one model.
    uri = f"models:/{tracking.REGISTERED_NAME}/{champion.version}"
    place = workspace / intake.WORK
    with model_store.fetch_files(uri, workspace, place=place) as (version, model_folder), WorkerProcess() as worker:
        result.version = version.version
        batch = Batch(workspace, settings, version, model_folder, worker, seen, attempt)
        in_a_row = 0
        for number, arrival in enumerate(new):
            before = len(result.failures)
            take_in_one(batch, arrival, result)
            in_a_row = in_a_row + 1 if len(result.failures) > before else 0
            if in_a_row >= MAX_FAILURES:
                result.waiting += [one.place.shown for one in new[number + 1 :]]
                break
    publish(workspace, settings)
    get_run_logger().info(result.describe())
    return result


def publish(workspace: Path, settings: Params) -> None:
    """What people see of the batch, and of one that a killed run left: MLflow's run, alerts, the library's page."""
    batch_record.record(workspace, settings.service.drift)
    url = get_current_settings().api.url
    for verdict in drift.find_untold(workspace):
        get_run_logger().warning("drift: %s", verdict.describe())
        try:
            if url is not None:
                emit(url, workspace, DRIFTED, verdict.to_payload(), identity=f"{verdict.run_id} {verdict.version}")
        except StorageError as error:
            get_run_logger().warning("the event %s is sent by the next run: %s", DRIFTED, error)
            break
        drift.mark_told(workspace, verdict)
    show(workspace)


def show(workspace: Path) -> None:
    """The library's page, which a run that changed nothing leaves alone. What keeps it from being written costs a line:
    the next run tries again.
    """
    from tasks.report.library_page import update_page

    try:
        update_page(workspace)
    except MosisError as error:
        get_run_logger().warning("the library's page was not written: %s", error)


def leave_out_known(workspace: Path, arrivals: Sequence[Arrival], seen: Seen, attempt: str) -> list[Arrival]:
    """Those that are neither done nor set aside, as far as their content is known without reading it again."""
    done = set(library.done_videos(workspace))
    rejected = {one.sha256 for one in library.read_rejected(workspace).values() if one.attempt == attempt}
    digests = {one.place.url: seen.sha256(one) for one in arrivals}

    def is_known(digest: str | None) -> bool:
        return digest is not None and (library.video_id(digest) in done or digest in rejected)

    return [one for one in arrivals if not is_known(digests[one.place.url])]


def take_in_one(batch: Batch, arrival: Arrival, result: NewVideo) -> None:
    """One video through its task; whatever becomes of it goes to `result`, and nothing of it is raised but Ctrl-C."""
    retries = batch.settings.service.retries
    name = arrival.place.shown.rpartition("/")[2][:_SHOWN] or "video"
    work = take_in.with_options(
        task_run_name=lambda: name,  # Prefect takes a string for a template, in which a file's name could ask for more
        retries=retries,
        retry_delay_seconds=[RETRY_S[min(number, len(RETRY_S) - 1)] for number in range(retries)],
        retry_condition_fn=may_pass_on_retry,
    )
    state = work(batch, arrival, return_state=True)
    outcome = state.result(raise_on_failure=False)
    shown = arrival.place.shown
    if isinstance(outcome, Entry):
        result.taken.append(outcome)
    elif outcome is None:
        result.same.append(shown)
    elif isinstance(outcome, NO_FAULT_OF_THE_VIDEO):
        result.failures.append(outcome)
        result.waiting.append(shown)
    elif isinstance(outcome, MovingError):
        result.waiting.append(shown)
    else:
        set_aside(batch, arrival, outcome, result)


def set_aside(batch: Batch, arrival: Arrival, error: Any, result: NewVideo) -> None:
    """A content that failed for good; not one that nobody could read, or that is another by now."""
    digest = batch.seen.sha256(arrival)
    if digest is None or not inbox.is_as_listed(arrival):
        result.waiting.append(arrival.place.shown)
        return
    one = Rejected(arrival.place.shown, digest, explain(error, arrival.place.shown), batch.attempt)
    library.reject(batch.workspace, one)
    result.rejected.append(one)
    get_run_logger().warning("set aside %s: %s", one.source, one.reason)


@task(name="find", task_run_name="find", cache_policy=NO_CACHE, persist_result=False)
def find(workspace: Path, settings: Params) -> Found:
    return inbox.find_whole(inbox_of(workspace, settings), settings.service.settle_seconds)


@task(name="video", cache_policy=NO_CACHE, persist_result=False)
def take_in(batch: Batch, arrival: Arrival) -> Entry | None:
    """The video's entry in the library; None where its content is there already, or was set aside before."""
    with intake.local_file(arrival, batch.workspace) as file:
        digest = sha256_file(file)
        batch.seen.add(arrival, digest)
        if not leave_out_known(batch.workspace, [arrival], batch.seen, batch.attempt):
            return None
        request = intake.Request(
            arrival, file, digest, batch.workspace, batch.settings, batch.version, batch.model_folder
        )
        try:
            limit_s = 60 * batch.settings.service.video_timeout_minutes
            return batch.worker.call(intake.take_in, request, timeout_s=limit_s)
        except ModelError:
            batch.worker.end()  # what a device has left in a process fails ever after
            raise


def may_pass_on_retry(task: Any, task_run: TaskRun, state: State[Any]) -> bool:
    """Whether another try may end otherwise: not for a broken file, but for a store, a lock or a death unexplained."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, (*NO_FAULT_OF_THE_VIDEO, WorkerDied)) or not isinstance(error, MosisError)


def explain(error: Any, source: str) -> str:
    """One line; the source stands beside it."""
    text = hide_secrets(" ".join(str(error).split()).removeprefix(f"{source}: "))[:500]
    if isinstance(error, MosisError):
        return text
    if isinstance(error, MemoryError):
        return "needs more memory than there is: lower ingest.max_side"
    return f"unexpected {type(error).__name__}: {text[:200]}"


def inbox_of(workspace: Path, settings: Params) -> str:
    return inbox.inbox_url(settings.service.inbox, workspace)
