"""The manifest of a folder of clips: which there are, without opening them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

from tasks.clips.info import ClipEntry, is_clip_id
from tasks.errors import DataError
from tasks.files import atomic_path

MANIFEST = "manifest.parquet"
REJECTED = "rejected.jsonl"


def write_manifest(folder: Path, entries: Iterable[ClipEntry]) -> None:
    """Write folder/manifest.parquet, sorted by clip_id, paths relative to it; a clip given twice stands once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = {entry.clip_id: entry for entry in entries}
    rows = [dataclasses.asdict(kept[clip_id]) | {"path": kept[clip_id].path.name} for clip_id in sorted(kept)]
    kinds = {
        **dict.fromkeys(("clip_id", "path", "source", "split", "note"), pa.string()),
        **dict.fromkeys(("frames", "width", "height", "annotated_frames"), pa.int64()),
        **dict.fromkeys(("rate_hz", "seconds"), pa.float64()),
        **dict.fromkeys(("truth", "exhaustive"), pa.bool_()),
    }
    schema = pa.schema([(f.name, kinds[f.name]) for f in dataclasses.fields(ClipEntry)])
    with atomic_path(folder / MANIFEST) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def open_clips(folder: Path) -> list[ClipEntry]:
    """The clips that folder/manifest.parquet lists, sorted by clip_id. Raises DataError where one is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{path} not found: run the ingest stage first (`dvc repro ingest`)")
    try:
        rows = pq.ParquetFile(path).read().to_pylist()  # read_table imports pandas
        entries = [ClipEntry(**row | {"path": folder / row["path"]}) for row in rows]
    except (OSError, pa.ArrowException, TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a manifest of clips ({str(error)[:200]}): ingest again") from None
    for entry in entries:
        if not _fits(entry):
            raise DataError(f"{path}: what it says of {entry.path.name} is of the wrong kind: ingest again")
        if not is_clip_id(entry.clip_id) or entry.path != folder / f"{entry.clip_id}.zip":
            raise DataError(f"{path}: {entry.path} is not the name of a clip archive: ingest again")
        if not entry.path.is_file():
            raise DataError(f"{entry.path} is listed in {MANIFEST} and missing: `dvc pull` or ingest again")
    if len({entry.clip_id for entry in entries}) < len(entries):
        raise DataError(f"{path}: a clip stands in it twice: ingest again")
    return sorted(entries, key=lambda entry: entry.clip_id)


def _fits(entry: ClipEntry) -> bool:
    """Whether every field is of its type, and every number one that a clip can have."""
    texts = (entry.clip_id, entry.source, entry.split or "", entry.note or "")
    counts = (entry.frames, entry.width, entry.height, entry.annotated_frames)
    return (
        all(type(text) is str for text in texts)
        and all(type(count) is int and count >= 0 for count in counts)
        and all(type(number) is float and 0 <= number < math.inf for number in (entry.rate_hz, entry.seconds))
        and type(entry.truth) is bool
        and type(entry.exhaustive) is bool
    )
