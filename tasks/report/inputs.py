"""What a report is made from: the files of a workspace, each of which may be missing, empty or broken."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tasks import params as parameters
from tasks.clips import REJECTED, ClipEntry, open_clips
from tasks.errors import DataError, MosisError
from tasks.files import parse_json, read_json
from tasks.frames import SPLITS
from tasks.lineage import read_revisions
from tasks.predict import read_resolved

T = TypeVar("T")
MAX_BYTES = 64 * 2**20
"""Larger tables are not read: they are none of ours."""


@dataclass(frozen=True)
class Piece(Generic[T]):
    """One input: its value, or None and the sentence that the report says instead."""

    value: T | None
    note: str = ""


Document = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A CSV file as columns of text, all of one length."""

    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def numbers(self, name: str) -> list[float]:
        """A column as numbers, NaN where a cell holds none; all NaN where there is no such column."""
        cells = self.columns.get(name)
        return [math.nan] * len(self) if cells is None else [_to_number(cell) for cell in cells]


@dataclass(frozen=True)
class Inputs:
    """Everything that one run left. pairs: their number per split. sample_pictures: of the training, oldest first."""

    params: Piece[parameters.Params]
    size: tuple[int, int] | None
    clips: Piece[list[ClipEntry]]
    rejected: Piece[list[Document]]
    dropped: Piece[Document]
    pairs: Piece[dict[str, int]]
    train: Piece[Document]
    losses: Piece[Table]
    validation: Piece[Table]
    sample_pictures: list[Path]
    metrics: Piece[Document]
    curves: Piece[Table]
    pictures: Piece[list[Document]]
    labels: Piece[Document]
    revisions: dict[str, str]


def read_inputs(workspace: Path) -> Inputs:
    """Read what there is; never raises for what there is not."""

    def read(relative: str, reader: Callable[[Path], T]) -> Piece[T]:
        path = workspace / relative
        if not path.exists():
            return Piece(None, f"{relative} is not there.")
        try:
            return Piece(reader(path))
        except (MosisError, OSError) as error:
            return Piece(None, " ".join(str(error).split()))

    resolved = read("outputs/train/params.resolved.yaml", read_resolved)
    present = read("params.yaml", parameters.load)
    return Inputs(
        params=_join_params(resolved, present),
        size=resolved.value[1] if resolved.value else None,
        clips=read("data/clips", open_clips),
        rejected=read(f"data/clips/{REJECTED}", _read_json_lines),
        dropped=read("data/pairs/dropped.json", _read_document),
        pairs=read("data/pairs/pairs.parquet", _count_pairs),
        train=read("outputs/train/summary.json", _read_document),
        losses=read("outputs/train/losses.csv", _read_table),
        validation=read("outputs/train/validation.csv", _read_table),
        sample_pictures=sorted((workspace / "outputs/train/pictures").glob("*.[jp][pn]g")),
        metrics=read("outputs/evaluate/metrics.json", _read_document),
        curves=read("outputs/evaluate/curves.csv", _read_table),
        pictures=read("outputs/evaluate/pictures.json", _read_documents),
        labels=read("outputs/labels/summary.json", _read_document),
        revisions=read_revisions(workspace),
    )


def _join_params(
    resolved: Piece[tuple[parameters.Params, tuple[int, int]]], present: Piece[parameters.Params]
) -> Piece[parameters.Params]:
    """Training as it was done, the other stages as they stand now: evaluation may have been repeated since."""
    if resolved.value is None:
        return present if present.value else Piece(None, f"{resolved.note} {present.note}")
    if present.value is None:
        return Piece(resolved.value[0])
    then, now = resolved.value[0], present.value
    return Piece(parameters.Params(now.ingest, now.pairs, then.train, now.evaluate, now.export))


def _read_document(path: Path) -> Document:
    document = read_json(path)
    if not isinstance(document, dict):
        raise DataError(f"{path} holds no mapping.")
    return document


def _read_documents(path: Path) -> list[Document]:
    documents = read_json(path)
    if not isinstance(documents, list):
        raise DataError(f"{path} holds no list.")
    return [document for document in documents if isinstance(document, dict)]


def _read_json_lines(path: Path) -> list[Document]:
    lines = _read_text(path).splitlines()
    documents = [parse_json(line.encode(errors="replace"), name=str(path)) for line in lines if line.strip()]
    return [document for document in documents if isinstance(document, dict)]


def _read_table(path: Path) -> Table:
    try:
        rows = list(csv.DictReader(io.StringIO(_read_text(path), newline="")))
    except csv.Error as error:
        raise DataError(f"{path} is not a table: {error}") from None
    names = [name for name in (rows[0] if rows else ()) if name]
    return Table({name: [row.get(name) or "" for row in rows] for name in names})


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} is larger than {MAX_BYTES // 2**20} MiB: not a file of this kind.")
    return path.read_text(encoding="utf-8", errors="replace")


def _count_pairs(path: Path) -> dict[str, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        splits = pq.read_table(path, columns=["split"])["split"].to_pylist()
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{path} is broken: {' '.join(str(error).split())[:120]}") from None
    counts = Counter(str(split) for split in splits)
    return {split: counts[split] for split in (*SPLITS, *sorted(set(counts) - set(SPLITS))) if counts[split]}


def _to_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
