"""The line of runs that wait until the one before them has ended, kept short while that one works.

The schedule adds a run every few minutes however long one lasts. The worker asks the server about each of them again
and again: a long line keeps both, and the server's sqlite, busy with nothing else.
"""

from __future__ import annotations

import contextlib
import time

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


class Line:
    """Behind the run of a deployment that this process is; behind any other there is none."""

    def __init__(self) -> None:
        self._looked = -EVERY_S

    def shorten(self) -> int:
        """Cancel all that wait but the last, at most once in `EVERY_S`; how many.

        That one looks for all that has come in the meantime. A server that does not answer costs nothing but the try.
        """
        identity = deployment.id
        if not identity or time.monotonic() - self._looked < EVERY_S:
            return 0
        self._looked = time.monotonic()
        waiting = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[identity]),
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
