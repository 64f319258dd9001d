"""The page of a decision: what was compared, by which rule it fell, and all rounds so far. One file, for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from tasks.errors import DataError
from tasks.files import atomic_path
from tasks.promotion import ledger, scoring
from tasks.promotion.gate import CANARY, Rule
from tasks.promotion.ledger import Record
from tasks.report import INVISIBLE
from tasks.report.embed import Album, Picture
from tasks.report.words import figure, words

_COLUMNS = ("canary_mask_AP", "canary_box_AP", "photometric_gain", "temporal_iou", "empty_share")
_ROUNDS_SHOWN = 200


@dataclass(frozen=True)
class Pair:
    """One frame with what each version found in it; a picture that is not there is None."""

    caption: str
    generated: bool
    champion: Picture | None
    challenger: Picture | None


def write_page(workspace: Path, record: Record) -> Path:
    """Write `.mosis/decisions/NNN.html`, which needs nothing beside it. Raises StorageError."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"figure": figure, "words": words}
    album = Album()
    page = environment.get_template("decision.html").render(
        record=record,
        when=_time(record),
        rules=[_row(rule) for rule in record.decision.rules],
        pairs=hang_pairs(workspace, record, album),
        left_out=album.omitted,
        facts=_facts(record),
        columns=_COLUMNS,
        rounds=rounds_table([one for one in ledger.read_records(workspace) if one.number <= record.number]),
    )
    path = ledger.page_path(workspace, record.number)
    with atomic_path(path) as temporary:
        temporary.write_text(page.translate(INVISIBLE), encoding="utf-8", errors="replace")
    return path


def hang_pairs(workspace: Path, record: Record, album: Album) -> list[Pair]:
    """The pictures that both versions drew of the same frames, in their order; held-out video first."""
    drawn: dict[str, dict[tuple[Any, ...], tuple[dict[str, Any], Path]]] = {}
    for who, place in record.pictures.items():
        folder = workspace / place
        try:
            entries = scoring.read_scores(folder)[1]
        except DataError:
            continue
        drawn[who] = {(one.get("kind"), one.get("clip_id"), one.get("frame")): (one, folder) for one in entries}
    keys = sorted(drawn.get("challenger", {}), key=lambda key: key[0] == CANARY)
    pairs = []
    for key in keys:
        pictures = {}
        for who in ("champion", "challenger"):
            found = drawn.get(who, {}).get(key)
            pictures[who] = album.embed(found[1] / found[0]["file"], found[1]) if found else None
        caption = str(drawn["challenger"][key][0].get("caption", "")).rpartition(":")[0]
        pairs.append(Pair(caption, key[0] == CANARY, pictures["champion"], pictures["challenger"]))
    return pairs


def rounds_table(records: list[Record]) -> list[list[str]]:
    """One row a round, latest first; before the first the champion that it began with."""
    rows = [
        [str(one.number), _time(one), one.challenger, *_figures(one, "challenger"), _yes(one), _verdict(one)]
        for one in records
    ]
    if records and records[0].champion is not None:
        rows.insert(0, ["", "", records[0].champion, *_figures(records[0], "champion"), "", "first champion"])
    return rows[::-1][:_ROUNDS_SHOWN]


def _verdict(record: Record) -> str:
    return "promoted" if record.promotes else f"refused: {words(record.rule)}"


def _yes(record: Record) -> str:
    return "yes" if record.self_training else "no"


def _figures(record: Record, who: str) -> list[str]:
    return [figure(record.figures[who].get(name)) for name in _COLUMNS]


def _row(rule: Rule) -> dict[str, Any]:
    return {
        "name": words(rule.name),
        "cells": [figure(value) for value in (rule.champion, rule.challenger, rule.limit)],
        "passed": rule.passed,
        "note": rule.note,
    }


def _facts(record: Record) -> list[tuple[str, str]]:
    """What was compared on."""
    names = {
        "library": "Library as of commit",
        "git_revision": "Workspace's commit",
        "dvc_md5_clips": "DVC's MD5 of data/clips",
        "dvc_md5_pairs": "DVC's MD5 of data/pairs",
        "canary": "Canary",
        "held_out_clips": "Held-out clips",
        "held_out_frames": "Held-out frames",
    }
    return [(name, str(record.data[key])) for key, name in names.items() if record.data.get(key) is not None]


def _time(record: Record) -> str:
    return datetime.fromtimestamp(record.decided_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
