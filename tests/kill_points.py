"""An intake that kills itself at a named point: python -m tests.kill_points WORKSPACE POINT. And workers' memory."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tasks import files, history, inbox, intake, params, versioning
from tasks.files import sha256_file
from tasks.intake import Request
from tasks.library import Entry
from tasks.sources.video import VideoJob

POINTS = (
    "before ingest",
    "before labels",
    "before the folder is in place",
    "before dvc add",
    "before dvc push",
    "before git add",
    "before git commit",
    "after git commit",
)


def kill(*unused: Any, **also: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    from tasks import label

    take_place, run_git, commit = files._take_place, history.run_git, history.commit_files

    def kill_at_the_last_rename(temporary: Path, path: Path) -> None:
        take_place(temporary, path) if path.name == "labels" else kill()

    def kill_at_commit(workspace: Path, *arguments: str) -> str:
        return kill() or "" if "commit" in arguments else run_git(workspace, *arguments)

    def kill_after(*arguments: Any) -> None:
        commit(*arguments)
        kill()

    place: dict[str, tuple[Any, str, Any]] = {
        "before ingest": (VideoJob, "run", kill),
        "before labels": (label, "label_clips", kill),
        "before the folder is in place": (files, "_take_place", kill_at_the_last_rename),
        "before dvc add": (versioning, "add", kill),
        "before dvc push": (versioning, "push_target", kill),
        "before git add": (history, "commit_files", kill),
        "before git commit": (history, "run_git", kill_at_commit),
        "after git commit": (history, "commit_files", kill_after),
    }
    owner, name, value = place[point]
    setattr(owner, name, value)


def take_in(workspace: Path) -> None:
    """The one video of the inbox, as the flow does it."""
    from tasks import model_store

    settings = params.load(workspace / "params.yaml")
    (arrival,) = inbox.list_arrivals(str(workspace / "inbox"))
    with (
        model_store.fetch_files("models:/mosis/1", workspace) as (version, folder),
        intake.lock(workspace),
        intake.local_file(arrival, workspace) as file,
    ):
        intake.take_in(Request(arrival, file, sha256_file(file), workspace, settings, version, folder))


def die_of_broken_names(request: Request) -> Entry:
    """intake.take_in in a process that a video with `broken` in its name kills."""
    if "broken" in request.arrival.place.shown:
        with open(request.workspace / "deaths", "a") as file:
            file.write("x")
        kill()
    return intake.take_in(request)


def worker_bytes() -> int:
    """Resident bytes of the worker processes below this one."""
    return sum(_resident(pid) for pid in _workers())


def _workers() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            for pid in (task / "children").read_text().split():
                if b"spawn_main" in Path("/proc", pid, "cmdline").read_bytes():
                    found.append(int(pid))
        except OSError:
            continue
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path("/proc", str(pid), "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


if __name__ == "__main__":
    arm(sys.argv[2])
    take_in(Path(sys.argv[1]))
