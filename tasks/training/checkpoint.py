"""Checkpoints of a training: whole or not at all, the last two kept, resumed only by the same params, data and code."""

from __future__ import annotations

import contextlib
import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from tasks.files import atomic_path, sha256_file

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{8})\.pt")
# What torch.load raises for files that are cut short, overwritten or not checkpoints.
_BROKEN = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, UnpicklingError)


@dataclass(frozen=True)
class State:
    """All that a training needs to go on after `iteration` steps; randomness follows from (seed, iteration).

    seconds: training time so far. streak: degenerate validations in a row, see collapse.CollapseWatch.
    """

    iteration: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    seconds: float
    streak: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """What a folder holds for this training: a state to go on from, or None; `notes` say in a line each why not."""

    state: State | None
    notes: list[str]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in one folder. fingerprint: named digests of all that shapes the result. every: iterations from
    one to the next, seconds: the least time between them; the last iteration has one whatever they are.
    """

    folder: Path
    fingerprint: Mapping[str, str]
    every: int = 50
    seconds: float = 0.0

    def save(self, state: State) -> Path:
        """Write `state`, then drop all but the last two. Raises StorageError where the disk refuses."""
        path = self.folder / f"checkpoint-{state.iteration:08d}.pt"
        # Plain strings: of a subclass (torch's own version is one) a weights-only load refuses the whole file.
        fingerprint = {str(name): str(value) for name, value in self.fingerprint.items()}
        document = {"format": FORMAT, "fingerprint": fingerprint, **vars(state)}
        with atomic_path(path) as temporary:
            _write(document, temporary)
        for old in self._paths()[KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> Found:
        """The newest checkpoint that is whole, if its fingerprint is this training's.

        Those that do not fit are removed, so that a later kill cannot bring them back.
        """
        notes: list[str] = []
        for path in self._paths():
            document = _read(path)
            if document is None:
                notes.append(f"{path.name} is broken: falling back to the one before it, or starting fresh")
                path.unlink(missing_ok=True)
                continue
            differing = differences(document["fingerprint"], self.fingerprint)
            if differing:
                notes.append(f"an earlier training's checkpoint differs in {', '.join(differing)}: starting fresh")
                self.clear()
                return Found(None, notes)
            return Found(State(**{key: document[key] for key in State.__dataclass_fields__}), notes)
        return Found(None, notes)

    def clear(self) -> None:
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """Newest first."""
        with contextlib.suppress(FileNotFoundError):
            return sorted((p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)
        return []


def differences(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of the parts in which two fingerprints differ."""
    return sorted(name for name in {*earlier, *now} if earlier.get(name) != now.get(name))


def digest_sources(folders: Iterable[Path]) -> str:
    """Hex SHA-256 over the Python files of source folders: names from the folder's own on, and content."""
    files = {path.relative_to(folder.parent).as_posix(): path for folder in folders for path in folder.rglob("*.py")}
    lines = [f"{name} {sha256_file(path)}\n" for name, path in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _write(document: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        try:
            torch.save(document, file)
        except RuntimeError as error:
            # torch closes its archive after the write that failed, and its complaint hides the reason (a full disk).
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _read(path: Path) -> dict[str, Any] | None:
    """The document, or None if the file is broken. Tensors arrive on the CPU; load_state_dict moves them."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN:
        return None
    keys = {"format", "fingerprint", *State.__dataclass_fields__}
    whole = isinstance(document, dict) and keys <= document.keys() and isinstance(document["fingerprint"], dict)
    return document if whole else None
