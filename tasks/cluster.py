"""Work on a Dask cluster, through the executor that Dask offers for it: what `compute.executor: dask` means.

Workers need this project at the same version, the same environment variables (keys of a store, for one) and the same
file system at the same paths: they write into the stage's own temporary folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tasks.errors import MosisError
from tasks.files import sha256_file
from tasks.pool import DIED, ClusterError, WorkerDied
from tasks.process import pin_threads

if TYPE_CHECKING:
    from tasks.params import ComputeParams

T = TypeVar("T")
R = TypeVar("R")

_ANSWER_SECONDS = 10
_WIDTH_SECONDS = 5.0


@contextlib.contextmanager
def open_executor(compute: ComputeParams) -> Iterator[Executor | None]:
    """What `pool.map_unordered` takes: None for processes of this machine, else the cluster's executor.

    Raises ClusterError where no scheduler answers within seconds, MosisError where Dask is not installed.
    """
    if compute.executor == "local":
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise MosisError("compute.executor: dask is not installed here: pip install 'mosis[dask]'") from None
    address = str(compute.dask_address)
    try:
        client = Client(address, timeout=_ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(f"no Dask scheduler answers at compute.dask_address {address} ({reason})") from None
    with client:
        yield ClusterExecutor(client, address)


class ClusterExecutor(Executor):
    """Dask's executor with our errors: WorkerDied for what Dask gives up, ClusterError for a lost cluster."""

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address
        self._executor = client.get_executor()
        self._seen, self._width = -_WIDTH_SECONDS, 0

    @property
    def width(self) -> int:
        """Threads of all workers just now; a cluster may grow."""
        if time.monotonic() - self._seen > _WIDTH_SECONDS:
            self._width = sum(self._client.nthreads().values())
            self._seen = time.monotonic()
        return self._width

    def submit(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        outer: Future[R] = Future()
        work = _OnWorker(function, os.getcwd(), digest_code())
        self._executor.submit(work, *args, **kwargs).add_done_callback(partial(self._pass_on, outer))
        return outer

    def _pass_on(self, outer: Future[R], inner: Future[R]) -> None:
        from distributed.scheduler import KilledWorker

        error = None if inner.cancelled() else inner.exception()
        if inner.cancelled():
            outer.set_exception(ClusterError(f"the Dask scheduler at {self._address} was lost: run again"))
        elif isinstance(error, KilledWorker):
            outer.set_exception(WorkerDied(DIED))
        elif error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(inner.result())


@dataclass(frozen=True)
class _OnWorker(Generic[R]):
    """A function as a worker runs it: in the workspace, one thread a library, and only where the code is this one's."""

    function: Callable[..., R]
    folder: str
    code: str

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        if digest_code() != self.code:
            raise ClusterError("a Dask worker runs other code than this: install one version everywhere and restart it")
        try:
            os.chdir(self.folder)  # sources may be relative to it
        except OSError:
            raise ClusterError(f"a Dask worker has no {self.folder}: all must share one file system") from None
        _pin_threads_once()
        return self.function(*args, **kwargs)


@lru_cache(maxsize=1)
def _pin_threads_once() -> None:
    pin_threads()


@lru_cache(maxsize=1)
def digest_code() -> str:
    """Hex digest of this project's sources as they were when this process first asked."""
    import models

    folders = [Path(__file__).parent, Path(str(models.__file__)).parent]
    files = sorted(path for folder in folders for path in folder.rglob("*.py"))
    content = "".join(f"{path.name} {sha256_file(path)}\n" for path in files)
    return hashlib.sha256(content.encode()).hexdigest()
