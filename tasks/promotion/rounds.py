"""Rounds of training: when one is due, on what data, and the one that is under way.

The data of a round are frozen as `library:library@COMMIT` in params.yaml, and `.mosis/retrain.json` names the round
until its decision is done: a killed one is gone on with, on the same data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import history, library
from tasks.errors import DataError
from tasks.files import atomic_folder, read_json, sole_process, storage_errors, write_json
from tasks.params import Params
from tasks.promotion.ledger import read_records
from tasks.workspace import configure

STATE = Path(".mosis", "retrain.json")
TEACHER = Path(".mosis", "teacher")
_FORMAT = 1
_SOURCE = re.compile(r"library:(?P<folder>.+?)(?:@(?P<revision>[0-9a-f]{7,64}))?")


@dataclass(frozen=True)
class Round:
    """revision: the commit whose library is trained on, None where there is none. minutes: new since the last round.

    teacher: folder of the version that adds labels, relative to the workspace, or None. failed: why it ended last time.
    """

    revision: str | None
    minutes: float
    teacher: str | None = None
    failed: str | None = None


def new_minutes(workspace: Path, settings: Params) -> float:
    """Minutes of video that came into the library after the last training's data were frozen."""
    done = set(library.done_videos(workspace))
    since = frozen_revision(workspace, settings)
    if since is not None:
        with contextlib.suppress(DataError):  # a history that was rewritten: all of it is new
            done -= set(library.done_videos(workspace, since))
    seconds = 0.0
    for video in done:
        with contextlib.suppress(DataError):  # not pulled
            seconds += library.read_entry(library.entry_folder(workspace, video)).seconds
    return seconds / 60


def is_due(workspace: Path, settings: Params) -> bool:
    """Whether enough has come for a new round."""
    minutes = new_minutes(workspace, settings)
    return minutes > 0 and minutes >= settings.service.min_new_minutes


def next_round(workspace: Path, settings: Params, *, force: bool) -> Round | None:
    """The round to work on: the one under way, or a new one where it is due or asked for; None: nothing to do.

    One that failed is begun anew where enough has come since: with the same data it may fail in the same way.
    """
    under_way = read_round(workspace)
    if under_way is not None and not (under_way.failed and is_due(workspace, settings)):
        return under_way
    if not force and not is_due(workspace, settings):
        return None
    minutes = new_minutes(workspace, settings)
    revision = frozen_revision(workspace, settings)
    if minutes or (revision is None and library.done_videos(workspace)):
        revision = history.run_git(workspace, "rev-parse", "HEAD").strip()
    return Round(revision, round(minutes, 3))


def freeze(workspace: Path, settings: Params, one: Round) -> None:
    """Write the round down, then make params.yaml say its data; both can be repeated."""
    write_round(workspace, one)
    configure(workspace, settings_of(workspace, settings, one))


def settings_of(workspace: Path, settings: Params, one: Round) -> dict[str, Any]:
    """What a round sets in params.yaml."""
    wanted: dict[str, Any] = {}
    if one.revision is not None:
        others = [source for source in settings.ingest.sources if own_library(workspace, source) is None]
        wanted["ingest.sources"] = [*others, f"library:{library.LIBRARY}@{one.revision}"]
    share = settings.service.held_out_share
    if share and settings.pairs.train_share + settings.pairs.val_share >= 1 and not settings.pairs.val_share:
        wanted |= {"pairs.train_share": round(1 - share, 6), "pairs.val_share": share}
    teacher = settings.train.teacher
    if teacher != one.teacher and (one.teacher or str(teacher).startswith(f"{TEACHER}/")):
        wanted["train.teacher"] = one.teacher
    return wanted


def keep_teacher(workspace: Path, model_folder: Path, digest: str) -> str:
    """Copy weights and parameters of a version, which have been checked, in place of those of earlier rounds; where
    they lie then, relative to the workspace.
    """
    place = workspace / TEACHER / digest[:16]
    files = [model_folder / "artifacts" / name for name in ("weights.safetensors", "params.resolved.yaml")]
    if not all((place / file.name).is_file() for file in files):
        with storage_errors(place), atomic_folder(place) as folder:
            for file in files:
                shutil.copyfile(file, folder / file.name)
    for other in place.parent.iterdir():
        if other != place:
            shutil.rmtree(other, ignore_errors=True)
    return place.relative_to(workspace).as_posix()


def frozen_revision(workspace: Path, settings: Params) -> str | None:
    """The commit of the library that the last training was about: of params.yaml, else of the last decision."""
    for source in settings.ingest.sources:
        if revision := own_library(workspace, source):
            return revision
    for record in reversed(read_records(workspace)):
        if isinstance(record.data.get("library"), str):
            return str(record.data["library"])
    return None


def own_library(workspace: Path, source: str) -> str | None:
    """The revision that a source names of this workspace's library, "" where it names none; None: another source."""
    found = _SOURCE.fullmatch(source)
    if found is None or (workspace / found["folder"]).resolve() != (workspace / library.LIBRARY).resolve():
        return None
    return found["revision"] or ""


def read_round(workspace: Path) -> Round | None:
    """The round under way. Raises DataError where its file is broken."""
    path = workspace / STATE
    if not path.is_file():
        return None
    document = read_json(path)
    try:
        fields = {name: value for name, value in document.items() if name != "format"}
        one = Round(**fields)
        fits = document["format"] == _FORMAT and all(
            value is None or isinstance(value, str) for value in (one.revision, one.teacher, one.failed)
        )
    except (TypeError, KeyError, AttributeError):
        fits = False
    if not fits:
        raise DataError(f"{path} is not the state of a retraining: remove it, the next run begins a round anew")
    return one


def write_round(workspace: Path, one: Round) -> None:
    write_json(workspace / STATE, {"format": _FORMAT, **dataclasses.asdict(one)})


def close_round(workspace: Path) -> None:
    (workspace / STATE).unlink(missing_ok=True)


def lock(workspace: Path) -> AbstractContextManager[None]:
    """One retraining at a time in a workspace. Raises BusyError."""
    busy = f"{workspace}: a retraining is under way already: wait until that ends"
    return sole_process(workspace / ".mosis" / "retrain.lock", busy)
