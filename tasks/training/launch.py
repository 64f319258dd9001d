"""Several processes on this machine that train one model: started together, ended together.

What torchrun does, for one machine and without its open port: its processes meet at an address that listens on every
interface of the machine, these at a file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import MosisError
from tasks.process import count_cores
from tasks.training.ranks import STORE

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 5.0


def launch(processes: int, command: Sequence[str], folder: Path) -> None:
    """Run `command`, which must read its rank (ranks.py) and die with its parent, `processes` times in `folder`.

    As soon as one fails the others are ended. Raises SystemExit with the code of one that failed, which has said why;
    MosisError for one that was killed.
    """
    with tempfile.TemporaryDirectory(prefix="mosis-ranks-") as meeting:
        running = [
            subprocess.Popen(command, cwd=folder, env=_environment(rank, processes, Path(meeting, "store")))
            for rank in range(processes)
        ]
        try:
            failed = _wait(running)
        except KeyboardInterrupt:
            # Ctrl-C has reached them, too; rank 0 says so.
            failed = None
            _wait_at_most(running, _GRACE_SECONDS)
            raise SystemExit(128 + signal.SIGINT) from None
        finally:
            _end(running)
    if failed is None:
        return
    code = running[failed].returncode
    if code > 0:
        raise SystemExit(code)
    raise MosisError(
        f"process {failed + 1} of {processes} was ended by signal {-code}, most likely out of memory: run again to go "
        "on from the last checkpoint, with a smaller train.batch_size or fewer compute.train_processes"
    )


def _environment(rank: int, processes: int, store: Path) -> dict[str, str]:
    number = str(rank)
    ours = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": str(processes), STORE: str(store)}
    # On loopback alone, and each with its share of the cores, unless the environment already says otherwise.
    loopback = "lo" if sys.platform.startswith("linux") else "lo0"
    defaults = {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "OMP_NUM_THREADS": str(max(1, count_cores() // processes)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # else a hint on speed that does not hold: parameters may go without gradient
    }
    return {**defaults, **os.environ, **ours}


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Until all have ended well, or one has not: its index."""
    while True:
        codes = [process.poll() for process in running]
        failed = next((index for index, code in enumerate(codes) if code), None)
        if failed is not None or None not in codes:
            return failed
        time.sleep(_POLL_SECONDS)


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            process.terminate()
    _wait_at_most(running, _GRACE_SECONDS)
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


def _wait_at_most(running: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    stop = time.monotonic() + seconds
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, stop - time.monotonic()))
