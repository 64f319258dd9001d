"""The record of what the gate decided: `.mosis/decisions/NNN.json`, one a challenger, and the page beside it.

A record is written before anything is done about it, so that a kill in between leaves a decision to carry out and not
one to take again. The version's own tags say the same (tasks/tracking/champion.py): a clone has those.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.files import read_json, write_json
from tasks.promotion.gate import Decision, Rule

FOLDER = Path(".mosis", "decisions")
_FORMAT = 1
_NAME = re.compile(r"(\d{3,9})\.json")
DECIDED, DONE = "decided", "done"


@dataclass(frozen=True)
class Record:
    """number: of the round, from 1. challenger, champion: versions' numbers, the champion's None where there was none.

    figures: by "champion" and "challenger". data: commit of the library, DVC's MD5 of the clips, git's revision, the
    canary. state: `DECIDED` until all that follows from it is done. led, cause: whether the challenger took the lead,
    and by which rule or event it did or did not; None and "" until the alias was to be moved. outcome: one line about
    that. run_id: of MLflow.
    """

    number: int
    decided_at: float
    challenger: str
    champion: str | None
    decision: Decision
    figures: Mapping[str, Mapping[str, float | None]]
    data: Mapping[str, Any]
    self_training: bool
    state: str = DECIDED
    led: bool | None = None
    cause: str = ""
    outcome: str = ""
    run_id: str | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)
    """Of each of "champion" and "challenger" the folder of its scores, relative to the workspace."""

    @property
    def promotes(self) -> bool:
        """Whether the challenger took the lead or, as long as that is open, is to take it."""
        return self.decision.promoted if self.led is None else self.led

    @property
    def rule(self) -> str:
        return self.cause or self.decision.rule


def page_path(workspace: Path, number: int) -> Path:
    return workspace / FOLDER / f"{number:03d}.html"


def record_path(workspace: Path, number: int) -> Path:
    return workspace / FOLDER / f"{number:03d}.json"


def write_record(workspace: Path, record: Record) -> None:
    write_json(record_path(workspace, record.number), {"format": _FORMAT, **dataclasses.asdict(record)})


def read_records(workspace: Path) -> list[Record]:
    """All of them, oldest first. Raises DataError for one that is broken: what was decided is not guessed."""
    folder = workspace / FOLDER
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [_read(folder / name) for name in sorted(names, key=_number_of) if _NAME.fullmatch(name)]


def find_record(workspace: Path, challenger: str) -> Record | None:
    """The latest about this version."""
    return next((one for one in reversed(read_records(workspace)) if one.challenger == challenger), None)


def describe(record: Record) -> str:
    return f"{record.number:03d}  {record.outcome or 'decided, not carried out yet: `mosis retrain` does it'}"


def best_figures(records: list[Record], data: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    """The best figure of all that were champion in a decision or by it, of those measured as `data` are: on the same
    canary, of detections from the same score on.
    """
    best: dict[str, float] = {}
    for record in records:
        if any(record.data.get(name, data[name]) != data[name] for name in ("canary", "score_floor")):
            continue
        led = ("champion", "challenger") if record.promotes else ("champion",)
        for value, name in ((record.figures[who].get(name), name) for who in led for name in names):
            if value is not None:
                best[name] = max(value, best.get(name, value))
    return best


def _number_of(name: str) -> int:
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else -1


def _read(path: Path) -> Record:
    document = read_json(path)
    try:
        fields = {name: value for name, value in document.items() if name != "format"}
        decision = dict(fields.pop("decision"))
        rules = tuple(Rule(**rule) for rule in decision.pop("rules"))
        record = Record(**fields, decision=Decision(**decision, rules=rules))
        fits = (
            document["format"] == _FORMAT
            and record.number == _number_of(path.name)
            and type(record.decision.promoted) is bool
            and record.state in (DECIDED, DONE)
            and record.led in (None, True, False)
            and isinstance(record.cause, str)
            and isinstance(record.challenger, str)
            and all(isinstance(record.figures[who], dict) for who in ("champion", "challenger"))
            and isinstance(record.data, dict)
        )
    except (TypeError, KeyError, AttributeError, ValueError):
        fits = False
    if not fits:
        raise DataError(
            f"{path} is not the record of a decision: move it away; the version's tags say what was decided"
        )
    return record
