"""The only file that deals with DVC: stages through `dvc repro`, what dvc.lock says, the remote.

`python -m tasks.versioning STAGE` reproduces one stage of the current folder; `run_stage` starts that as a process of
its own, so that DVC and everything below it can be ended together.
"""

from __future__ import annotations

import configparser
import contextlib
import enum
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from tasks.errors import BusyError, DataError, MosisError, StageError, StorageError
from tasks.process import die_with_parent, tell_parent

REMOTE = "local"

CONFIG = """\
[core]
    analytics = false
    autostage = false
    check_update = false
    remote = local
['remote "local"']
    url = ~/.local/share/mosis/dvc
"""
""".dvc/config of every workspace. DVC expands the tilde itself: one store for all workspaces and clones of a user."""

_UNCHANGED, _RESTORED, _BUSY, _DVC_FAILED = 80, 81, 82, 83
"""Exit codes of `python -m tasks.versioning`, outside what stages and shells use; 0 means that the stage ran."""

_REMOTE_ADVICE = (
    "check the remote and the credentials in the environment, then run this again, it goes on (docs/stores.md)"
)

_GRACE_S = 10.0
"""How long a stage that is told to end may take to clean up."""


class Outcome(enum.StrEnum):
    RAN = "ran"
    RESTORED = "restored"
    """Not run: the same code, parameters and data were run before, and the outputs came back from the cache."""
    UNCHANGED = "unchanged"


def run_stage(workspace: Path, stage: str) -> Outcome:
    """`dvc repro --single-item STAGE` in `workspace`, its output passed through to the terminal.

    However this call ends, no process of the stage is left. Raises StageError (with the stage's exit code) after the
    stage has printed why, BusyError when another process works in the workspace.
    """
    code = _run_group([sys.executable, "-m", "tasks.versioning", stage], workspace)
    outcomes = {0: Outcome.RAN, _UNCHANGED: Outcome.UNCHANGED, _RESTORED: Outcome.RESTORED}
    if code in outcomes:
        return outcomes[code]
    if code == _BUSY:
        raise BusyError(f"{workspace}: another process works here: wait until it has finished, then run this again")
    who = "DVC could not run it" if code == _DVC_FAILED else f"it failed with exit code {code}"
    error = StageError(
        f"stage {stage}: {who}, the reason stands above: mend it and run this again, finished stages are kept"
    )
    error.exit_code = 1 if code >= _UNCHANGED else code
    raise error


def init(workspace: Path) -> None:
    """Make the git repository `workspace` a DVC one with the default remote; does nothing where it is one already."""
    if (workspace / ".dvc").is_dir():
        return
    run_dvc(workspace, "init", "--quiet")
    (workspace / ".dvc" / "config").write_text(CONFIG, encoding="utf-8")


def push(workspace: Path) -> None:
    """Send what dvc.lock names to the default remote. Raises StorageError."""
    run_dvc(workspace, "push")


def pull(workspace: Path) -> None:
    """Fetch and check out what dvc.lock names from the default remote. Raises StorageError.

    What comes from a remote of the user's own is checked: by itself DVC takes a download that was cut short, under the
    checksum of the whole.
    """
    if (name := _own_remote(workspace)) is not None:
        run_dvc(workspace, "remote", "modify", "--local", name, "verify", "true")
    run_dvc(workspace, "pull")


def changed_stages(workspace: Path) -> set[str]:
    """Names of the stages that the next run would not skip, going by what lies in the workspace now."""
    # Of dvc.yaml alone: to look at each video of a large library takes minutes.
    return set(json.loads(run_dvc(workspace, "status", "--json", "dvc.yaml") or "{}"))


def check_files(workspace: Path) -> None:
    """Raises DataError where dvc.yaml or dvc.lock is broken, by name, which DVC does not do."""
    _read_stages(workspace / "dvc.yaml", "restore it with git")
    _read_lock(workspace)


def data_md5(workspace: Path, output: str = "data/pairs") -> str | None:
    """MD5 by which DVC knows the output at the relative path `output`; None where it has not been made yet."""
    for stage in _read_lock(workspace).values():
        for entry in stage.get("outs") or ():
            if entry.get("path") == output:
                return entry.get("md5")
    return None


def stage_environment() -> dict[str, str]:
    """The environment for DVC: this interpreter's folder first, so that `python` in dvc.yaml is this one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # A shell that stays between DVC and the stage (fish, old ones) would hide DVC's death from the stage: sh execs it.
    return {**os.environ, "PATH": path, "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1"}


def run_dvc(workspace: Path, *arguments: str) -> str:
    """Standard output of a short `dvc` command. Raises StorageError with DVC's own last line."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=workspace,
        env=stage_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1]).removeprefix("ERROR: ")
    if "Unable to acquire lock" in reason:
        raise BusyError(f"{workspace}: another process works here: wait until it has finished, then run this again")
    advice = f": {_REMOTE_ADVICE}" if arguments[0] in ("push", "pull") else ""
    raise StorageError(f"{workspace}: dvc {arguments[0]}: {_hide_credentials(reason)}{advice}")


def _own_remote(workspace: Path) -> str | None:
    """Name of the default remote where that is not the one of `CONFIG`, and what it fetches is not checked yet."""
    # What DVC itself reads, by the same rules: later files win.
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read([workspace / ".dvc" / name for name in ("config", "config.local")], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return None  # DVC says what is wrong with it
    name = config.get("core", "remote", fallback=REMOTE).strip("\"'")
    verified = config.get(f"'remote \"{name}\"'", "verify", fallback="false").lower() == "true"
    return None if name == REMOTE or verified else name


def _hide_credentials(text: str) -> str:
    """Without what stands before the @ of a URL, scheme and all."""
    return re.sub(r"[^\s'\"()]*:[^\s'\"()]*@", "", text)


def add(workspace: Path, target: str) -> None:
    """`dvc add` a file or folder, relative to the workspace, in this process; its .dvc file lies beside it then.

    No other .dvc file is read: that no two name the same place is for the caller to see to.
    Raises StorageError, BusyError where another process works here.
    """
    with _open(workspace, "add", alone=True) as repo:
        repo.add(str(workspace / target))


def push_target(workspace: Path, target: str) -> None:
    """Send what the file `target`, a .dvc relative to the workspace, names to the default remote. Raises as `add`."""
    with _open(workspace, "push") as repo:
        repo.push(targets=[str(workspace / target)])


@contextlib.contextmanager
def _open(workspace: Path, command: str, *, alone: bool = False) -> Iterator[Any]:
    """DVC's Repo in this process: to start DVC for each of many small commands takes longer than they do.

    alone: one that knows of no .dvc files. DVC reads all of them to add one, a millisecond each.
    """
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.repo.index import Index

    class Alone(Repo):
        @property
        def index(self) -> Index:
            return Index(self, stages=[])

    with _overhear() as said:
        try:
            with (Alone if alone else Repo)(str(workspace)) as repo:
                yield repo
        except MosisError:
            raise
        except LockError:
            raise BusyError(
                f"{workspace}: another process works here: wait until it has finished, then run this again"
            ) from None
        except Exception as error:  # noqa: BLE001  # stores raise what their own libraries do: botocore's is no OSError
            from tasks.lineage import hide_secrets  # which imports us

            reasons = [_describe(error), *said[:1]]
            reason = hide_secrets(_hide_credentials(": ".join(reasons)))[:500]
            advice = f": {_REMOTE_ADVICE}" if command == "push" else ""
            raise StorageError(f"{workspace}: dvc {command}: {reason}{advice}") from None


def _describe(error: BaseException) -> str:
    """One line; the class where the text alone may say nothing."""
    from dvc.exceptions import DvcException

    cause = error.__cause__ or error
    text = " ".join(str(cause).split())
    return text if isinstance(cause, DvcException | OSError) and text else f"{type(cause).__name__}: {text}"


@contextlib.contextmanager
def _overhear() -> Iterator[list[str]]:
    """What DVC and its parts log as errors meanwhile, one line each: of files that fail it raises their number alone.
    Nothing of it, of their progress or of their hints is printed.
    """
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            cause = record.exc_info[1] if record.exc_info else None
            text = " ".join(record.getMessage().split())
            said.append(f"{text}: {_describe(cause)}" if cause else text)

    loggers = [logging.getLogger(name) for name in ("dvc", "dvc_objects", "dvc_data")]
    before = [(one.handlers, one.level, one.propagate) for one in loggers]
    for one in loggers:
        one.handlers, one.propagate = [Ear()], False
        one.setLevel(logging.ERROR)
    try:
        yield said
    finally:
        for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
            one.handlers, one.propagate = handlers, propagate
            one.setLevel(level)


def _read_lock(workspace: Path) -> dict[str, Any]:
    return _read_stages(workspace / "dvc.lock", "restore it with git, or delete it to run all stages anew")


def _read_stages(path: Path, advice: str) -> dict[str, Any]:
    """`stages` of a file of DVC's; empty where there is none."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError):
        document = ""
    stages = document.get("stages", {}) if isinstance(document, dict) else document
    if stages is not None and not isinstance(stages, dict):
        raise DataError(f"{path} is not valid YAML of DVC: {advice}")
    return stages or {}


def _run_group(command: list[str], folder: Path) -> int:
    """Exit code of `command`, run in a process group that is gone when this returns or raises.

    DVC does not end its stage when it is ended itself, and a stage left alive could overwrite outputs later. A group
    of its own also means that Ctrl-C reaches only us, and that we decide the order: the group first, then our line.
    """
    child: subprocess.Popen[bytes] | None = None
    try:
        child = subprocess.Popen(
            command, cwd=folder, env=tell_parent(stage_environment()), stdin=subprocess.DEVNULL, process_group=0
        )
        return _exit_code(child.wait())
    except OSError as error:
        raise StorageError(f"{folder}: cannot start {command[0]}: {error.strerror}") from None
    finally:
        if child is not None:
            _end_group(child)


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    """TERM, some time to clean up, then KILL, until no process of the group is left."""
    deadline = time.monotonic() + _GRACE_S
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            leader.poll()  # an unreaped leader would keep its group alive for ever
            os.killpg(leader.pid, 0)
            time.sleep(0.05)
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def _exit_code(returncode: int) -> int:
    """As shells write it: death by signal n is 128 + n."""
    return returncode if returncode >= 0 else 128 - returncode


def _stage_exit_code(message: str) -> int:
    """The stage's own exit code, which DVC keeps only in its message; 1 where it is not there."""
    found = re.search(r"exited with (-?\d+)$", message)
    code = _exit_code(int(found[1])) if found else 1
    return 1 if _UNCHANGED <= code <= _DVC_FAILED else code


class _CommandSeen(logging.Handler):
    """Notices that DVC starts a stage's command: the module dvc.stage.run logs then, and only then."""

    seen = False

    def emit(self, record: logging.LogRecord) -> None:
        self.seen = True


def _reproduce(stage: str) -> int:
    """Reproduce one stage of the current folder in this process; the exit codes above."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.stage.exceptions import StageCmdFailedError

    commands = _CommandSeen(level=logging.INFO)
    logging.getLogger("dvc.stage.run").addHandler(commands)
    for hints in ("dvc.repo.scm_context", "dvc.dvcfile"):  # "To track the changes with git, run ..." after every stage
        logging.getLogger(hints).setLevel(logging.WARNING)
    try:
        with Repo() as repo, repo.lock:
            pass  # that another is at work is said at once
        # But at the end of a stage, which may have taken hours, DVC waits for the lock as long as it takes.
        with Repo(_wait_for_lock=True) as repo:
            changed = repo.reproduce(stage, single_item=True)
    except DvcException as error:
        cause = error.__cause__ or error
        if isinstance(cause, StageCmdFailedError):
            return _stage_exit_code(str(cause))
        if isinstance(cause, LockError):  # whose text advises to remove the lock by hand
            return _BUSY
        print(f"dvc: {_hide_credentials(' '.join(str(cause).split()))}", file=sys.stderr)
        return _DVC_FAILED
    if not changed:
        return _UNCHANGED
    return 0 if commands.seen else _RESTORED


def _end_own_group(number: int, frame: FrameType | None) -> None:
    """Pass TERM on to the stage and leave in order, so that DVC removes its lock entries."""
    signal.signal(number, signal.SIG_IGN)
    if os.getpgrp() == os.getpid():  # else the group is the shell's, with processes that are not ours
        os.killpg(0, number)
    sys.exit(128 + number)


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, _end_own_group)
    die_with_parent(signal.SIGTERM)  # not KILL: the stage has to be ended too, and DVC has locks to release
    os.environ.update(tell_parent({}))
    if len(arguments) != 1:
        print("usage: python -m tasks.versioning STAGE", file=sys.stderr)
        return 2
    try:
        return _reproduce(arguments[0])
    except MosisError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
