"""Work done ahead of where it is needed, in one thread, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(make: Callable[[int], T], start: int, stop: int, *, depth: int = 3) -> Generator[T, None, None]:
    """make(start) ... make(stop - 1) in order, computed ahead in one thread; an error in it is raised here in turn."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        pending: deque[Future[T]] = deque(pool.submit(make, i) for i in range(start, min(start + depth, stop)))
        for index in range(start, stop):
            item = pending.popleft().result()
            if index + depth < stop:
                pending.append(pool.submit(make, index + depth))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
