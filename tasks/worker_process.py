"""One process that does one thing after the other: what kills it, or hangs in it, costs that thing and no more."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import TypeVar

from tasks.errors import MosisError
from tasks.pool import WorkerDied
from tasks.process import die_with_parent, set_quiet_defaults, sleep_when_idle, spawn_context, tune_allocator

T = TypeVar("T")
R = TypeVar("R")


class WorkerProcess:
    """Context manager. The process starts with the first call, and anew after it has died; it ends with us."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *unused: object) -> None:
        self.end()

    def call(self, function: Callable[[T], R], argument: T, *, timeout_s: float) -> R:
        """`function(argument)` over there, and its exceptions. Raises WorkerDied where the process died or hung.

        Call it from the main thread: the process ends with the thread that started it.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=spawn_context(), initializer=_prepare)
        try:
            return self._pool.submit(function, argument).result(timeout_s)
        except BrokenExecutor:
            self.end()
            raise WorkerDied("its process died: most likely out of memory, or a crash inside a library") from None
        except MosisError:
            raise
        except BaseException as error:
            # Interrupted, or out of time: what still runs over there must not go on. Other errors are the function's.
            if not isinstance(error, Exception) or isinstance(error, TimeoutError):
                self.end()
            if isinstance(error, TimeoutError):
                raise WorkerDied(f"it took longer than {timeout_s / 60:g} minutes") from None
            raise

    def end(self) -> None:
        """End the process now; the next call starts another."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for process in list((pool._processes or {}).values()):
            with contextlib.suppress(OSError):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tune_allocator()
    sleep_when_idle()
    set_quiet_defaults()
