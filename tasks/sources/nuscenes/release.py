"""A release of nuScenes or nuImages: which there is at a URL, and its tables record by record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import DataError, SourceError
from tasks.formats.json_stream import read_values
from tasks.sources.nuscenes.pictures import FILE_NAME
from tasks.sources.places import Place, hide_credentials, join_url, list_files, open_local

VERSIONS = ("v1.0-mini", "v1.0-trainval", "v1.0-test", "v1.0-train", "v1.0-val")
"""Folders of tables as they are published: the first three of nuScenes, the first and the last three of nuImages."""

_MAX_TABLE_BYTES = 64 * 2**30
_MAX_RECORD = 2**20


@dataclass(frozen=True)
class Release:
    """A folder of tables below `url`. folder: for local copies of remote tables."""

    url: str = field(repr=False)
    version: str
    folder: Path

    @property
    def shown(self) -> str:
        return f"{hide_credentials(self.url).rstrip('/')}/{self.version}"

    def has(self, table: str) -> bool:
        try:
            return bool(self._find(table))
        except SourceError:
            return False

    def read(self, table: str, *texts: str) -> Iterator[dict[str, Any]]:
        """The records of a table, in each of which the fields `texts` are strings. Raises DataError, SourceError."""
        (place,) = self._find(table)
        with open_local(place, self.folder) as path:
            records = read_values(path, where=place.shown, max_bytes=_MAX_TABLE_BYTES, max_value=_MAX_RECORD)
            for number, record in enumerate(records):
                if not isinstance(record, dict):
                    raise DataError(f"{place.shown}: record {number} is no object: not a table of nuScenes")
                for key in texts:
                    if type(record.get(key)) is not str:
                        raise DataError(f"{place.shown}: record {number} has no {key}: not a table of nuScenes")
                yield record

    def _find(self, table: str) -> list[Place]:
        found = list_files(join_url(self.url, f"{self.version}/{table}.json"))
        if len(found) != 1:
            raise SourceError(f"{self.shown}/{table}.json: is no file")
        return found


def find_release(url: str, version: str | None, folder: Path) -> Release:
    """The release at `url`; raises SourceError where there is none, or several and `version` names none of them."""
    shown = hide_credentials(url)
    if version is not None:
        if not FILE_NAME.fullmatch(version) or "/" in version or set(version) == {"."}:
            raise SourceError(f"ingest.nuscenes.version: {version!r} is not the name of a folder")
        release = Release(url, version, folder)
        release._find("sample_data")
        return release
    found, reasons = [], []
    for name in VERSIONS:
        try:
            Release(url, name, folder)._find("sample_data")
            found.append(name)
        except SourceError as error:
            reasons.append(str(error))
    if not found:
        raise SourceError(f"{shown}: no tables of nuScenes or nuImages, the first tried: {reasons[0]}")
    if len(found) > 1:
        raise SourceError(f"{shown}: holds {', '.join(found)}: choose one with ingest.nuscenes.version")
    return Release(url, found[0], folder)
