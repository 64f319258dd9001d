"""Work spread over processes: one result or one error per item, never a hang, never more in flight than needed."""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

from tasks.errors import MosisError
from tasks.process import count_cores, die_with_parent, pin_threads, spawn_context
from tasks.progress import Progress

T = TypeVar("T")
R = TypeVar("R")

_IN_FLIGHT_PER_WORKER = 2
DIED = "its process died: most likely out of memory, or a crash inside a library"


class WorkerDied(MosisError):
    """The process that worked on an item died: killed by the kernel for its memory, or crashed in a library."""


class ClusterError(MosisError):
    """A cluster that cannot be reached, was lost, or runs other code than this: no fault of any item."""


@dataclass(frozen=True)
class Outcome(Generic[T, R]):
    """What became of `item`, the `index`-th one: `value`, or `error` where the function raised."""

    index: int
    item: T
    value: R | None = None
    error: Exception | None = None

    def get(self) -> R:
        """The value; raises the item's error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def count_workers(workers: int, items: int) -> int:
    """Processes to use: `workers`, or one per core for 0, and no more than there are items."""
    return max(1, min(workers or count_cores(), items))


def map_unordered(
    function: Callable[[T], R],
    items: Sequence[T],
    workers: int,
    description: str | None,
    *,
    executor: Executor | None = None,
) -> Iterator[Outcome[T, R]]:
    """Yield an Outcome for each of `items`, in order of completion, with a progress bar.

    workers: processes; 0 takes one per core. With one worker or one item all runs in this process.
    description: stands beside the bar; None shows none, so that one inside `function` may.
    executor: any concurrent.futures.Executor to use instead (it is not shut down here); it has `workers` processes,
        unless it says better by an attribute `width`.
    An exception that `function` raises is its item's outcome; so is the death of its process (WorkerDied). Raises
    ClusterError where it is not the function that failed, but what runs it.
    """
    count = count_workers(workers, len(items))
    with Progress(description, len(items)) if description else contextlib.nullcontext() as progress:
        if executor is not None:
            outcomes = _map_over_executor(executor, function, items, max(count, getattr(executor, "width", 0)))
        elif count == 1:
            outcomes = (_call(function, index, item) for index, item in enumerate(items))
        else:
            outcomes = _map_over_processes(function, items, count)
        for outcome in outcomes:
            if progress is not None:
                progress.advance()
            yield outcome


def _call(function: Callable[[T], R], index: int, item: T) -> Outcome[T, R]:
    try:
        return Outcome(index, item, value=function(item))
    except Exception as error:  # noqa: BLE001 - whatever one item raises is that item's outcome, for the caller to judge
        return Outcome(index, item, error=error)


def _map_over_executor(
    executor: Executor, function: Callable[[T], R], items: Sequence[T], workers: int
) -> Iterator[Outcome[T, R]]:
    """What a cluster gives up, since its workers died of it again and again, may only have stood beside the one that
    killed them: it runs once more, alone.
    """
    waiting = deque(enumerate(items))
    suspects: list[tuple[int, T]] = []
    yield from _drain(executor, function, waiting, _IN_FLIGHT_PER_WORKER * workers, suspects)
    for index, item in sorted(suspects, key=lambda suspect: suspect[0]):
        yield from _drain(executor, function, deque([(index, item)]), 1, None)
    yield from (Outcome(index, item, error=WorkerDied(DIED)) for index, item in waiting)


def _map_over_processes(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[Outcome[T, R]]:
    """A dead process breaks the whole pool, and all in flight fail alike. They run again one by one, so that the death
    is charged to the item that causes it, and the others go on in a new pool.
    """
    waiting = deque(enumerate(items))
    while waiting:
        suspects: list[tuple[int, T]] = []
        with _process_pool(workers) as pool:
            yield from _drain(pool, function, waiting, _IN_FLIGHT_PER_WORKER * workers, suspects)
        for index, item in sorted(suspects, key=lambda suspect: suspect[0]):
            with _process_pool(1) as pool:
                yield from _drain(pool, function, deque([(index, item)]), 1, None)


@contextlib.contextmanager
def _process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A spawn pool that does not wait for running work when the caller leaves early (Ctrl-C, an error)."""
    pool = ProcessPoolExecutor(workers, mp_context=spawn_context(), initializer=_prepare_worker)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the parent ends them, in one line
    pin_threads()


def _drain(
    executor: Executor,
    function: Callable[[T], R],
    waiting: deque[tuple[int, T]],
    in_flight: int,
    suspects: list[tuple[int, T]] | None,
) -> Iterator[Outcome[T, R]]:
    """Run `waiting` until it is empty or the pool breaks. What was in flight then goes to `suspects`; where that is
    None, it and all that waits become WorkerDied outcomes.
    """
    running: dict[Future[R], tuple[int, T]] = {}
    broken = False
    while running or (waiting and not broken):
        while waiting and len(running) < in_flight and not broken:
            try:
                running[executor.submit(function, waiting[0][1])] = waiting[0]
                waiting.popleft()
            except BrokenExecutor:
                broken = True
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            index, item = running.pop(future)
            error = future.exception()
            if isinstance(error, ClusterError):
                raise error
            if not isinstance(error, BrokenExecutor | WorkerDied):
                yield _to_outcome(index, item, future, error)
                continue
            broken = broken or isinstance(error, BrokenExecutor)
            if suspects is None:
                yield Outcome(index, item, error=WorkerDied(DIED))
            else:
                suspects.append((index, item))
    if suspects is None:
        yield from (Outcome(index, item, error=WorkerDied(DIED)) for index, item in waiting)


def _to_outcome(index: int, item: T, future: Future[R], error: BaseException | None) -> Outcome[T, R]:
    if error is None:
        return Outcome(index, item, value=future.result())
    if isinstance(error, Exception):
        return Outcome(index, item, error=error)
    raise error
