"""This process among others: its cores, its threads, its allocator, and that it does not outlive its parent."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any

_PARENT = "MOSIS_PARENT"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def count_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def pin_threads(threads: int = 1) -> None:
    """Let torch and OpenCV use `threads` threads each in this process, where they are loaded or will be."""
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(threads)
    import cv2

    cv2.setNumThreads(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask Linux to send this process signal `number` when its parent ends, however that ends; elsewhere do nothing.

    The one guard that survives kill -9 of the parent: no handler and no `finally` of the parent runs then. What starts
    slowly must also be told who started it, by `multiprocessing` or by `tell_parent`, for it may be alone by now.
    """
    if not sys.platform.startswith("linux"):
        return
    told = os.environ.pop(_PARENT, "")  # not for our own children
    known = multiprocessing.parent_process()
    parent = (known.pid if known is not None else int(told) if told.isdecimal() else None) or os.getppid()
    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(number), 0, 0, 0)
    # A shell that lives may stand between us.
    if os.getppid() != parent and _has_ended(parent):
        os.kill(os.getpid(), number)


def tell_parent(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment for a child that calls `die_with_parent`: it tells that we are who started it."""
    return {**(os.environ if environment is None else environment), _PARENT: str(os.getpid())}


def _has_ended(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


class _LeanProcess(SpawnProcess):
    """A worker that does not import its parent's main module. Nothing that we call over there lies in that, and under
    Prefect it is Prefect's whole engine: two seconds of processor time for each worker, in which it has no guard yet.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # multiprocessing's own name for how a process starts
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _LeanContext(SpawnContext):
    Process = _LeanProcess


def spawn_context() -> SpawnContext:
    """For pools of worker processes, whose functions are importable by name and do not lie in the main module."""
    return _LeanContext()


def tune_allocator() -> None:
    """Keep freed memory in the process: CPU training allocates the same large tensors at every step, and giving each
    back to the kernel costs more in page faults than the arithmetic on it. glibc only; elsewhere nothing.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 256 * 2**20)


def sleep_when_idle() -> None:
    """Let OpenMP's threads sleep at a barrier instead of spinning there, unless the environment already says otherwise.

    Before torch is imported. Spinning threads take the core from whoever they wait for as soon as the machine does
    anything else: training steps then last seconds instead of fractions of one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def set_quiet_defaults() -> None:
    """No telemetry from the libraries, unless the environment already says otherwise."""
    for name, value in {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}.items():
        os.environ.setdefault(name, value)
