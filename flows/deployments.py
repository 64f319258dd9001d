"""What the server runs by itself: a work pool, one deployment a flow, schedules, the event trigger, the heartbeat rule.

All of it is written anew by each `mosis up`, so that params.yaml is the only source.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.deployments.runner import EntrypointType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.flows import Flow
from prefect.schedules import Cron
from prefect.states import Crashed

from flows.new_video import new_video
from flows.notify import ARRIVED, GROWN, resource_id
from flows.retrain import retrain
from tasks.errors import ParamsError
from tasks.params import Params

POOL = "mosis"
HEARTBEAT_S = 30
"""Prefect's least. A run that has shown no heartbeat for three of them has no process any more."""
PENDING_S = 240
"""A run that its worker has taken and not started for so long never will be: that worker was killed."""

_NEVER_STARTED = "it was never started: its worker was killed"
_STARTED = (StateType.RUNNING, StateType.CANCELLING)


@dataclass(frozen=True)
class Served:
    """A flow to deploy, called with the workspace's path. cron: None runs it by hand and by event alone."""

    flow: Flow[Any, Any]
    cron: str | None
    trigger: DeploymentEventTrigger | None = None


def served(workspace: Path, settings: Params) -> list[Served]:
    """All flows that the service runs: a new one is a line here."""
    arrival = DeploymentEventTrigger(
        name="a video has arrived",
        enabled=True,
        expect={ARRIVED},
        match={"prefect.resource.id": resource_id(workspace)},
    )
    growth = DeploymentEventTrigger(
        name="the library has grown",
        enabled=True,
        expect={GROWN},
        match={"prefect.resource.id": resource_id(workspace)},
    )
    return [
        Served(new_video, settings.service.cron, arrival),
        Served(retrain, settings.service.retrain_cron, growth),
    ]


def register(workspace: Path, settings: Params, *, has_worker: bool = True) -> None:
    """Make the server that PREFECT_API_URL names run this workspace. Raises ParamsError where a cron is none.

    has_worker: whether the pool's worker lives; what a dead one had taken and not started is ended then.
    """
    logging.getLogger("prefect").setLevel(logging.ERROR)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
        for one in served(workspace, settings):
            deploy(client, one, workspace)
        for automation in watchdogs():
            replace_automation(client, automation)
        if not has_worker:
            end_taken(client)
        watch_again(client)


def deploy(client: SyncPrefectClient, one: Served, workspace: Path) -> None:
    """Its trigger is an automation of our own, kept where it is the same: Prefect's would be removed and made anew each
    time, and a server that has not heard of the new one yet (PostgreSQL was away) loses the events meanwhile.
    """
    try:
        schedules = [Cron(one.cron, timezone="UTC")] if one.cron else []
        deployment: Any = one.flow.to_deployment(
            name=one.flow.name,
            schedules=schedules,
            parameters={"folder": str(workspace)},
            # The others wait in line: two at once would do the same videos.
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
            work_pool_name=POOL,
            job_variables={"working_dir": str(workspace)},
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
    except ValueError as error:
        raise ParamsError(
            f"service: {one.flow.name} cannot be scheduled: {' '.join(str(error).split())[:200]}"
        ) from None
    deployment_id = deployment.apply(work_pool_name=POOL)
    if one.trigger is not None:
        one.trigger.set_deployment_id(deployment_id)
        replace_automation(client, one.trigger.as_automation().model_copy(update={"owner_resource": None}))


def watchdogs() -> list[AutomationCore]:
    """No run stays for ever in a state that only a process can end, when that process was killed with its worker."""
    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    return [
        _crash_unless(
            "runs without a heartbeat have crashed",
            after={"prefect.flow-run.Running", "prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ended},
            within_s=3 * HEARTBEAT_S,
            message="no heartbeat: its process was killed",
        ),
        _crash_unless(
            "runs that never start have crashed",
            after={"prefect.flow-run.Pending"},
            expect={"prefect.flow-run.Running", "prefect.flow-run.AwaitingConcurrencySlot", *ended},
            within_s=PENDING_S,
            message=_NEVER_STARTED,
        ),
    ]


def _crash_unless(name: str, *, after: set[str], expect: set[str], within_s: int, message: str) -> AutomationCore:
    trigger = EventTrigger(
        after=after,
        expect=expect,
        match={"prefect.resource.id": "prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within_s),
    )
    return AutomationCore(
        name=name,
        trigger=trigger,
        actions=[ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=message, force=True)],
    )


def watch_again(client: SyncPrefectClient) -> None:
    """Have the watchdogs watch all runs that are under way, from now on.

    They go by events, of which a server that is killed loses those that it has not looked at yet: a run that was taken
    up in its last seconds and died with it would be PENDING for ever, and all others wait in line behind it. A run that
    lives shows it in time and nothing happens.
    """
    under_way = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING, *_STARTED]))
    )
    events = [
        {
            "id": str(uuid.uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": "prefect.flow-run.heartbeat" if run.state_type in _STARTED else "prefect.flow-run.Pending",
            "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}"},
        }
        for run in client.read_flow_runs(flow_run_filter=under_way)
    ]
    if events:
        client.request("POST", "/events", json=events)


def end_taken(client: SyncPrefectClient) -> None:
    """End what a dead worker had taken and not started, which would hold up the line until the watchdog sees it."""
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    taken = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING])))
    for run in client.read_flow_runs(flow_run_filter=taken, work_pool_filter=pool):
        client.set_flow_run_state(run.id, Crashed(message=_NEVER_STARTED), force=True)


def replace_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Make it what the server has under its name, unless it is that already.

    A new trigger forgets what the old one was counting: runs that it watched would stay RUNNING for ever.
    """
    known = client.read_automations_by_name(automation.name)
    if not known:
        client.create_automation(automation)
    elif _content(known[0]) != _content(automation):
        client.update_automation(known[0].id, automation)


def _content(automation: AutomationCore) -> dict[str, Any]:
    content = automation.model_dump(mode="json", include={"name", "enabled", "trigger", "actions"})
    content["trigger"].pop("id", None)
    for name in ("after", "expect", "for_each"):  # sets, in any order
        content["trigger"][name] = sorted(content["trigger"][name])
    return content
