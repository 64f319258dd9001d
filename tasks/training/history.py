"""Tables that grow while a training runs and survive its death: one CSV line appended at a time."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from tasks.files import atomic_path, storage_errors


class History:
    """One CSV file whose first column is `iteration`. Columns are fixed, or those of the first row."""

    def __init__(self, path: Path, columns: tuple[str, ...] = ()) -> None:
        self.path = path
        self.columns = columns
        self.last: dict[str, str] = {}

    def rewind(self, iteration: int) -> None:
        """Drop the rows after `iteration`, and any line that a crash cut short: training goes on from there."""
        rows = [row for row in self._read() if int(row["iteration"]) <= iteration]
        self.columns = tuple(rows[0]) if rows else self.columns
        self.last = rows[-1] if rows else {}
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            if self.columns:
                writer = csv.DictWriter(file, self.columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

    def append(self, iteration: int, values: Mapping[str, float | None]) -> None:
        """Add a row; None and missing columns are left empty."""
        shown = {name: "" if value is None else f"{value:.6g}" for name, value in values.items()}
        row = {"iteration": str(iteration), **shown}
        fresh = not self.columns
        self.columns = self.columns or tuple(row)
        with storage_errors(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        self.last = {name: row.get(name, "") for name in self.columns}

    def sync(self) -> None:
        """Bring it to the disk: called before a checkpoint, which must not be newer."""
        with storage_errors(self.path):
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
            return [row for row in csv.DictReader(file, restkey="") if _is_whole(row)]


def _is_whole(row: Mapping[str, str | None]) -> bool:
    return None not in row.values() and "" not in row and (row.get("iteration") or "").isdigit()
