"""What a run was made from, in words fit for a tracking server: flat names, short values, revisions, no secret."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks import versioning

MAX_VALUE = 500
"""Characters kept of a parameter's value: every MLflow server takes so many."""

_SECRET = re.compile(r"secret|password|passwd|token|credential|api_?key|access_?key", re.IGNORECASE)
# A password may hold / and @ (SQLAlchemy takes it so). Where a colon has no port behind it, all up to the last @ of
# the word is hidden.
_URL = re.compile(r"([a-z][a-z0-9+.-]*://)(?:[^\s/@\"':]*:(?!\d+[/?#])[^\s\"']*@|[^\s/\"']*@)", re.IGNORECASE)
_QUERY = re.compile(r"([a-z][a-z0-9+.-]*://[^\s?\"']*)\?[^\s\"']*", re.IGNORECASE)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"seed": 0}} -> {"train.seed": 0}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        flat.update(flatten(value, key) if isinstance(value, Mapping) else {key: value})
    return flat


def hide_secrets(text: str) -> str:
    """Without users, passwords and queries in the URLs in `text`."""
    return _QUERY.sub(r"\1", _URL.sub(r"\1", text))


def plain_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Dotted names and short strings; what is named like a secret is left out."""
    flat = {clean_name(name): value for name, value in flatten(values).items() if not _SECRET.search(name)}
    return {name: hide_secrets(str(value))[:MAX_VALUE] for name, value in flat.items()}


def read_revisions(workspace: Path) -> dict[str, str]:
    """Tags that say what a run was made from: the revision of git and DVC's MD5 of the pairs."""
    tags = {"git_revision": _git_revision(workspace), "dvc_md5_pairs": versioning.data_md5(workspace)}
    return {name: value for name, value in tags.items() if value}


def code_version() -> dict[str, str]:
    """What runs: the package's version, and git's revision where it runs from a checkout."""
    root = Path(__file__).resolve().parents[1]
    revision = _git_revision(root) if (root / ".git").exists() else None
    return {"mosis": importlib.metadata.version("mosis"), **({"git_revision": revision} if revision else {})}


def _git_revision(workspace: Path) -> str | None:
    """HEAD of the workspace's repository, with +dirty where tracked files differ from it."""
    try:
        head = _git(workspace, "rev-parse", "HEAD")
        dirty = _git(workspace, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+dirty" if dirty else head


def _git(workspace: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=workspace, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


def clean_name(name: str) -> str:
    """A name of the characters that MLflow allows, at most 250 of them."""
    return re.sub(r"[^\w./: -]", "_", name)[:250]
