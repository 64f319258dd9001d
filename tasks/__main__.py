"""`python -m tasks STAGE`: one stage in the workspace that is the current folder. dvc.yaml runs this."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from tasks import params as parameters
from tasks.errors import BusyError, MosisError, ParamsError, StorageError
from tasks.files import storage_errors
from tasks.process import die_with_parent, set_quiet_defaults, sleep_when_idle, tune_allocator
from tasks.training.ranks import read_rank

LOCK = Path(".mosis", "stage.lock")
_USES_NETWORKS = ("train", "evaluate", "export")
_INTERRUPTED = 130
_USAGE = "python -m tasks STAGE in a workspace, with STAGE one of"


def main(arguments: list[str]) -> int:
    """Exit code: 0, that of the MosisError (ParamsError 2, StoreError 3, others 1), 130 after Ctrl-C."""
    stage = arguments[0] if arguments else ""
    if stage in ("-h", "--help"):
        print(f"{_USAGE}: {', '.join(parameters.STAGES)}")
        return 0
    try:
        _check_stage(arguments)
        _run(stage, Path.cwd())
    except KeyboardInterrupt:
        return _fail(stage, "interrupted", _INTERRUPTED)
    except MosisError as error:
        return _fail(stage, str(error), error.exit_code)
    except MemoryError:
        return _fail(stage, "out of memory: lower batch_size, the training size or workers in params.yaml", 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _fail(
            stage, "the disk is full: free some space or use a workspace on another disk", StorageError.exit_code
        )
    return 0


def _check_stage(arguments: list[str]) -> None:
    known = ", ".join(parameters.STAGES)
    if len(arguments) != 1:
        raise ParamsError(f"name one stage: {_USAGE}: {known}")
    if arguments[0] not in parameters.STAGES:
        close = difflib.get_close_matches(arguments[0], parameters.STAGES, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"known are {known}"
        raise ParamsError(f"unknown stage {arguments[0]!r}: {hint}")


def _run(stage: str, workspace: Path) -> None:
    params = parameters.load()
    rank = read_rank()
    if rank.count > 1 and stage != "train":
        raise ParamsError("runs in one process: start it without torchrun, only the train stage takes several")
    with lock_workspace(workspace, stage) if rank.holds_workspace else contextlib.nullcontext():
        if stage in _USES_NETWORKS:
            tune_allocator()
            sleep_when_idle()
        importlib.import_module(f"tasks.{stage}").run(params, workspace)


@contextlib.contextmanager
def lock_workspace(workspace: Path, stage: str) -> Iterator[None]:
    """Hold .mosis/stage.lock, which names this process and its stage; the kernel frees it however the process ends.

    Raises BusyError where another process holds it, StorageError where it cannot be made.
    """
    path = workspace / LOCK
    with storage_errors(path):
        path.parent.mkdir(exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, and must stay open until then
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = " ".join(file.read(200).split()) or "another process"
            raise BusyError(f"{holder} works in {workspace}: wait for it to end, or stop it") from None
        except OSError:
            pass  # a network disk without locks: work without one rather than not at all
        file.seek(0)
        file.truncate()
        file.write(f"stage {stage} of process {os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()


def _fail(stage: str, message: str, code: int) -> int:
    if os.environ.get("MOSIS_TRACEBACK") == "1":
        traceback.print_exc()
    where = f"{stage}: " if stage in parameters.STAGES else ""
    print(f"mosis: {where}{message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    die_with_parent()
    set_quiet_defaults()
    sys.exit(main(sys.argv[1:]))
