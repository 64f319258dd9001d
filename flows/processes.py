"""Processes that outlive the command that started them: known by number and moment of start, ended exactly."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import StorageError

MARK = "MOSIS_SERVICE"
"""Variable of the environment that each process of a service has, and all that they start inherit."""
_PROC = Path("/proc")
_POLL_S = 0.1


@dataclass(frozen=True)
class Process:
    """started: tells it from another process that has its number later, after a reboot as well."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        return identify(self.pid) == self

    def send(self, number: int) -> None:
        """The signal, to this very process or to none."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        except (OSError, AttributeError):  # not Linux, or an old one
            if self.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)
            return
        try:
            if self.is_alive():  # the handle holds on to whom we ask about
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def identify(pid: int) -> Process | None:
    """The living process of that number; None where there is none, or only a zombie that nobody has reaped."""
    if _PROC.is_dir():
        try:
            fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else Process(pid, f"{_boot()} {fields[19]}")
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return Process(pid, done.stdout.strip()) if done.stdout.strip() else None


def start(command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> Process:
    """Start a process that does not end with us or our terminal; what it prints is added to `log`."""
    try:
        with open(log, "ab") as output:
            process = subprocess.Popen(
                list(command),
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise StorageError(f"cannot start {command[0]}: {error.strerror}") from None
    process.returncode = 0  # we do not wait for it, and Popen need not warn of that
    return identify(process.pid) or Process(process.pid, "ended at once")


def find_marked(mark: str) -> list[Process]:
    """All living processes of ours whose environment says MOSIS_SERVICE=`mark`, whoever their parent is; Linux only."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for place in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (place / "environ").read_bytes().split(b"\0"):
                process = identify(int(place.name))
                if process is not None and process.pid != os.getpid():
                    found.append(process)
    return found


def end(processes: Sequence[Process], grace_s: float) -> None:
    """TERM, `grace_s` to leave in order, then KILL; returns when none of them lives."""
    for process in processes:
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while (living := [process for process in processes if process.is_alive()]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    for process in living:
        process.send(signal.SIGKILL)
    while any(process.is_alive() for process in living):
        time.sleep(_POLL_S)


def _boot() -> str:
    with contextlib.suppress(OSError):
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    return "?"
