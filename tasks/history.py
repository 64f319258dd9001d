"""Git of a workspace, where it is the record of what is done: commits of single files, and what is in one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import BusyError, DataError, StorageError

_IDENTITY = ("-c", "user.name=mosis", "-c", "user.email=mosis@localhost")
"""A stand-in author where git knows none, as on a fresh machine."""
_LOCK_IS_STALE_S = 5.0


def commit_files(workspace: Path, paths: Sequence[str], message: str) -> bool:
    """Commit these files, relative to the workspace, and nothing else; whether there was anything to commit.

    What somebody has staged stays staged. Raises StorageError with git's own words, BusyError where another git works.
    """
    _clear_stale_locks(workspace)
    run_git(workspace, "add", "--", *paths)
    if not run_git(workspace, "status", "--porcelain", "--untracked-files=no", "--", *paths).strip():
        return False
    known = subprocess.run(
        ["git", "var", "GIT_AUTHOR_IDENT"], cwd=workspace, env=git_environment(), capture_output=True, check=False
    )
    identity = () if known.returncode == 0 else _IDENTITY
    run_git(workspace, *identity, "commit", "--quiet", "--no-verify", "--message", message, "--", *paths)
    return True


def committed_files(workspace: Path, folder: str, revision: str = "HEAD") -> list[str]:
    """Names of the files directly in `folder` (relative to the workspace) as of a commit; [] where it is not there.

    Raises DataError where there is no such commit.
    """
    if revision == "HEAD" and not _has_commit(workspace):
        return []
    try:
        names = run_git(workspace, "ls-tree", "-z", "--name-only", "--end-of-options", revision, "--", f"./{folder}/")
    except StorageError as error:
        raise DataError(f"{workspace}: no commit {revision[:60]!a}: {error}") from None
    return [name.rpartition("/")[2] for name in names.split("\0") if name]


def run_git(workspace: Path, *arguments: str) -> str:
    """Standard output of git. Raises StorageError with its last line, BusyError where another git works."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=workspace,
            env=git_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        raise StorageError("git is not installed: a workspace keeps its history with it") from None
    if done.returncode == 0:
        return done.stdout
    command = next((word for word in arguments if word in ("add", "commit", "status", "ls-tree")), arguments[0])
    if ".lock': File exists" in done.stderr:
        raise BusyError(f"{workspace}: another git works here: wait until it has finished, then run this again")
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
    raise StorageError(f"{workspace}: git {command}: {lines[-1]}")


def git_environment() -> dict[str, str]:
    """Without GIT_DIR and the like, which a git hook sets and which would point at another repository."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}


def _has_commit(workspace: Path) -> bool:
    done = subprocess.run(
        ["git", "rev-parse", "--quiet", "--verify", "HEAD"], cwd=workspace, env=git_environment(), capture_output=True
    )
    return done.returncode == 0


def _clear_stale_locks(workspace: Path) -> None:
    """Remove what a git that was killed has left locked, which would stop every later commit: index, HEAD, the branch.

    Only what has lain for some seconds while no git works in this repository, as far as Linux tells.
    """
    places = [workspace, workspace / run_git(workspace, "rev-parse", "--git-common-dir").strip()]
    names = ["index", "HEAD"]
    with contextlib.suppress(StorageError):  # HEAD is on no branch
        names.append(run_git(workspace, "symbolic-ref", "--quiet", "HEAD").strip())
    paths = [word for name in names for word in ("--git-path", f"{name}.lock")]
    for line in run_git(workspace, "rev-parse", *paths).splitlines():
        lock = workspace / line
        with contextlib.suppress(FileNotFoundError):
            if (
                time.time() - lock.stat().st_mtime > _LOCK_IS_STALE_S
                and Path("/proc/self").exists()
                and not _git_runs(places)
            ):
                lock.unlink()


def _git_runs(places: Sequence[Path]) -> bool:
    """Whether a git works in any of these folders, or above or below them. One whose folder we may not see might."""
    resolved = [place.resolve() for place in places]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "comm").read_text() != "git\n":
                continue
            try:
                folder = Path(os.readlink(process / "cwd"))
            except PermissionError:
                return True
            if any(folder.is_relative_to(place) or place.is_relative_to(folder) for place in resolved):
                return True
    return False
