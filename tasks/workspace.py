"""Workspaces: a folder with params.yaml, dvc.yaml, data/ and outputs/ under git and DVC of its own.

The code is not in it, so DVC cannot hash it there. Each stage instead depends on its line in code.lock.yaml, a
fingerprint of the sources that dvc.yaml names for that stage in the repository: an upgrade of the code re-runs what it
changed and nothing else (docs/adr/0002).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tasks import params, versioning
from tasks.errors import ParamsError, StorageError
from tasks.files import atomic_path, sha256_tree
from tasks.settings import Overrides, get_setting, override, read_mapping

CODE_LOCK = "code.lock.yaml"
_TRACKED = (".gitignore", ".dvcignore", ".dvc/.gitignore", ".dvc/config", "params.yaml", "dvc.yaml", CODE_LOCK)
_CODE_FOLDERS = ("tasks", "models")
_ROOM_BYTES = 4 * 2**20
"""What a run needs at the least: Prefect's empty database takes half of it."""
_NAMELESS = ("jpegimages", "images", "frames", "videos", "video")
"""Folder and file names that say nothing: their parent's name says more."""
_IDENTITY = ("-c", "user.name=mosis", "-c", "user.email=mosis@localhost")

_GITIGNORE = """\
# data, outputs and what servers keep: DVC, MLflow and Prefect own these
/data/
/outputs/
/.mosis/
/.prefect/
/mlruns/
/inbox/
"""
_DVCIGNORE = """\
/.mosis
/.prefect
/mlruns
/inbox
"""


def init(folder: Path, overrides: Overrides) -> None:
    """Make `folder` a workspace with the packaged params.yaml, changed by `overrides`.

    Raises ParamsError before anything is written, and where it is a workspace already.
    """
    if is_workspace(folder):
        raise ParamsError(f"{folder} is a workspace already: run `mosis run` in it, or edit its params.yaml")
    text = override(template("params.yaml"), overrides, name="params.yaml")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror}: choose another folder") from None
    if not (folder / ".git").exists():
        _git(folder, "init", "--quiet")
    versioning.init(folder)
    _add_lines(folder / ".gitignore", _GITIGNORE)
    _add_lines(folder / ".dvcignore", _DVCIGNORE)
    refresh_code(folder)
    _write(folder / "params.yaml", text)  # last: a folder with params.yaml is a whole workspace
    # By name: the folder may hold videos, and its index what somebody else has staged.
    _git(folder, "add", "--", *_TRACKED)
    identity = _identity(folder)
    _git(folder, *identity, "commit", "--quiet", "--no-verify", "--message", "New MoSIS workspace", "--", *_TRACKED)


def is_workspace(folder: Path) -> bool:
    return (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file()


def check_writable(folder: Path) -> None:
    """Raises StorageError where there is no permission or room: Prefect's database says the same over 200 lines."""
    probe = folder / ".mosis" / f"probe-{os.getpid()}"  # others may look at the same moment
    with atomic_path(probe) as temporary:
        temporary.write_bytes(bytes(_ROOM_BYTES))
    probe.unlink()


def place_for(sources: Sequence[str], parent: Path) -> Path:
    """The workspace of these sources in `parent`, named after the first; others of that name get a place beside."""
    path = PurePosixPath(sources[0].split("?")[0].rstrip("/"))
    name = path.parent.name if path.name.lower() in _NAMELESS and path.parent.name else path.name
    stem = re.sub(r"\.(mp4|m4v|mkv|avi|mov|webm|zip)$", "", name.lower())
    slug = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:48] or "video"
    folder = parent / slug
    if not is_workspace(folder):
        return folder
    document = read_mapping(_read(folder / "params.yaml"), str(folder / "params.yaml"))
    if get_setting(document, "ingest.sources") == list(sources):
        return folder
    return parent / f"{slug}-{_sha256(json.dumps(list(sources)))[:6]}"


def configure(folder: Path, overrides: Overrides) -> bool:
    """Set keys in the workspace's params.yaml, comments kept; whether anything changed. Raises ParamsError."""
    path = folder / "params.yaml"
    before = _read(path)
    document = read_mapping(before, str(path))
    if all(get_setting(document, key) == value for key, value in overrides.items()):
        params.parse(document, name=str(path))
        return False
    _write(path, override(before, overrides, name=str(path)))
    return True


def refresh_code(folder: Path) -> None:
    """Write code.lock.yaml for the installed code, and dvc.yaml where nobody has edited it since it was written here.

    Does nothing in a repository that holds the code itself: there DVC hashes the sources.
    """
    if (folder / "tasks" / "params.py").is_file():
        return
    source = template("dvc.yaml")
    recorded = _read_code_lock(folder)
    current = folder / "dvc.yaml"
    derived = derive_dvc_yaml(source)
    if not current.is_file() or _sha256(current.read_text(encoding="utf-8")) == recorded.get("dvc.yaml"):
        _write(current, derived)
        recorded["dvc.yaml"] = _sha256(derived)
    written = recorded.get("dvc.yaml", _sha256(derived))
    document = {"dvc.yaml": written, **fingerprints(source, code_root())}
    note = "# Which code each stage was last run with; written by `mosis`, see dvc.yaml.\n"
    _write(folder / CODE_LOCK, note + yaml.safe_dump(document, sort_keys=False))


def derive_dvc_yaml(source: str) -> str:
    """dvc.yaml of a workspace from the repository's: code.lock.yaml in place of the code that is not there."""
    document = yaml.safe_load(source)
    for stage, definition in document["stages"].items():
        definition["deps"] = [path for path in definition.get("deps", ()) if not _is_code(path)]
        if not definition["deps"]:
            del definition["deps"]
        definition["params"] = [*definition.get("params", ()), {CODE_LOCK: [stage]}]
    note = "# Made by `mosis`, and kept up to date by it for as long as nobody edits this file.\n"
    return note + yaml.safe_dump(document, sort_keys=False, width=120)


def fingerprints(source: str, root: Path) -> dict[str, str]:
    """Stage -> sha256 over the sources that dvc.yaml (`source`) names for it, found under `root`."""
    stages = yaml.safe_load(source)["stages"]
    return {
        stage: sha256_tree(root / path for path in definition.get("deps", ()) if _is_code(path))
        for stage, definition in stages.items()
    }


def code_root() -> Path:
    """The folder that holds tasks/ and models/: the repository, or site-packages."""
    return Path(__file__).resolve().parents[1]


def template(name: str) -> str:
    """Text of the packaged params.yaml or dvc.yaml; from an editable install, the repository's own."""
    for path in (code_root() / "flows" / "templates" / name, code_root() / name):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise StorageError(f"{name} is missing beside {code_root()}: install mosis again")


def _is_code(path: str) -> bool:
    return path.split("/")[0] in _CODE_FOLDERS


def _sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _read_code_lock(folder: Path) -> dict[str, Any]:
    """Empty where it is missing or broken: all but whether dvc.yaml was edited can be found again, and that is kept."""
    try:
        return read_mapping(_read(folder / CODE_LOCK), CODE_LOCK)
    except (FileNotFoundError, ParamsError):
        return {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ParamsError(f"{path} is not UTF-8 text: restore it with git") from None


def _add_lines(path: Path, lines: str) -> None:
    """Append those of `lines` that the file does not have yet."""
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    missing = [line for line in lines.splitlines() if line not in before.splitlines()]
    if missing:
        _write(path, before + ("\n" if before and not before.endswith("\n") else "") + "\n".join(missing) + "\n")


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _identity(folder: Path) -> tuple[str, ...]:
    """A stand-in author where git knows none, as on a fresh machine."""
    known = subprocess.run(["git", "var", "GIT_AUTHOR_IDENT"], cwd=folder, env=_git_environment(), capture_output=True)
    return () if known.returncode == 0 else _IDENTITY


def _git(folder: Path, *arguments: str) -> None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=_git_environment(), capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise StorageError("git is not installed: a workspace keeps its history with it") from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StorageError(f"{folder}: git {arguments[0]}: {reason}")


def _git_environment() -> dict[str, str]:
    """Without GIT_DIR and the like, which a git hook sets and which would point at another repository."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
