"""The line of runs that wait until the one before them has ended, kept short while that one works.

The schedule adds a run every few minutes however long one lasts. The worker asks the server about each of them again
and again: a long line keeps both, and the server's sqlite, busy with nothing else.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectException
from prefect.runtime import deployment
from prefect.states import Cancelled

EVERY_S = 60.0


@contextlib.contextmanager
def keep_line_short() -> Iterator[None]:
    """While the block lasts, in a thread: behind the run of a deployment; behind any other there is no line."""
    identity, over = deployment.id, threading.Event()
    if not identity:
        yield
        return

    def work() -> None:
        while True:
            shorten(identity)
            if over.wait(EVERY_S):
                return

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True, name="short line")
    thread.start()
    try:
        yield
    finally:
        over.set()  # and nobody waits for a server that does not answer


def shorten(identity: str) -> int:
    """Cancel all runs of the deployment that wait but the last; how many.

    That one looks for all that has come in the meantime. A server that does not answer costs nothing but the try.
    """
    waiting = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[UUID(identity)]),
        state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["AwaitingConcurrencySlot"])),
    )
    ended = 0
    with contextlib.suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=waiting, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
        for run in found[1:]:
            state: State[None] = Cancelled(message="a run behind it looks for the same")
            client.set_flow_run_state(run.id, state, force=True)
            ended += 1
    return ended
