"""Damage by seed inside of archives, pictures and tables, whose checksums are right afterwards: decoders go on."""

from __future__ import annotations

import contextlib
import io
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import yaml
from PIL import Image

from benchmarks.fuzzing.values import OUTSIDE, spoil_bytes, spoil_json, spoil_value, spoil_yaml

_BROKEN_ALREADY: tuple[type[Exception], ...] = (
    *(ValueError, TypeError, AttributeError, LookupError, RecursionError, OSError),
    *(zipfile.BadZipFile, yaml.YAMLError),
)
"""What a parser raises where the damage before has left it nothing to parse."""


def spoil(data: bytes, suffix: str, chance: random.Random) -> tuple[str, bytes]:
    """(what was done, the bytes spoiled): by what they hold, or as bytes whatever that is."""
    known = _BY_SUFFIX.get(suffix)
    if known is not None and chance.random() < 0.6:
        with contextlib.suppress(*_BROKEN_ALREADY):
            return known(data, chance)
    return spoil_bytes(data, chance)


def _spoil_zip(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    """An entry spoiled under a right checksum; now and then packed, doubled, or under a name that leads elsewhere."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    if not entries:
        raise ValueError("no entries")
    tables = [place for place, (name, _) in enumerate(entries) if name.endswith(".json")]
    at = chance.choice(tables) if tables and chance.random() < 0.6 else chance.randrange(len(entries))
    name, content = entries[at]
    how, content = spoil(content, Path(name).suffix, chance)
    entries[at] = (name, content)
    kind = chance.choice(("plain", "plain", "plain", "plain", "packed", "double", "name", "bomb"))
    if kind == "double":
        entries.insert(chance.randrange(len(entries)), (name, b"{}"))
    elif kind == "name":
        entries[at] = (chance.choice((f"../{OUTSIDE}", "/etc/passwd", "frames/", "a\nb", "clip.json")), content)
    elif kind == "bomb":
        entries[at] = (name, bytes(50 * 2**20))
    packed = zipfile.ZIP_DEFLATED if kind in ("packed", "bomb") else zipfile.ZIP_STORED
    target = io.BytesIO()
    with contextlib.redirect_stderr(io.StringIO()), zipfile.ZipFile(target, "w", packed) as archive:
        for entry, content in entries:
            archive.writestr(zipfile.ZipInfo(entry), content, packed)
    return f"{kind} {name}: {how}", target.getvalue()


def _spoil_png(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Inside a chunk, with its checksum made right again, so that decoders go on."""
    if chance.random() < 0.05:
        return _draw_bomb(chance)
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("no PNG")
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    place = chance.choice((0, chance.randrange(len(chunks))))
    kind, content = chunks[place]
    if kind == b"IHDR" and chance.random() < 0.5:
        sides = [chance.choice((0, 1, 8000, 60_000, 2**31 - 1)).to_bytes(4, "big") for _ in range(2)]
        how, content = "claims another size", b"".join(sides) + content[8:]
    else:
        how, content = spoil_bytes(content, chance)
    chunks[place] = (kind, content)
    if chance.random() < 0.1:
        chunks.insert(chance.randrange(len(chunks) + 1), chance.choice(chunks))
    parts = [len(c).to_bytes(4, "big") + k + c + zlib.crc32(k + c).to_bytes(4, "big") for k, c in chunks]
    return f"{kind!r} {how}", data[:8] + b"".join(parts)


def _spoil_jpeg(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    """The frame header says another size or sampling."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    if at < 0 or chance.random() < 0.3:
        raise ValueError("no frame header")
    spoiled = bytearray(data)
    where = at + chance.choice((5, 7, 5, 7, 4, 9, 11, 12))
    spoiled[where : where + 2] = chance.choice((0, 1, 63, 65, 8000, 65_500, 65_535)).to_bytes(2, "big")
    return f"frame header, byte {where - at}", bytes(spoiled)


def _draw_bomb(chance: random.Random) -> tuple[str, bytes]:
    """As many pixels as are just allowed, in very few bytes."""
    mode = chance.choice(("RGB", "RGBA", "L", "P", "1", "I;16"))
    target = io.BytesIO()
    Image.new(mode, (8000, 8000)).save(target, "PNG", compress_level=1)
    return f"64 megapixels of {mode}", target.getvalue()


def _spoil_parquet(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Rows with other values, columns gone, doubled or of other types, other metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    rows = table.to_pylist()
    done = [spoil_value(rows, chance) for _ in range(chance.choice((1, 1, 3)))]
    columns = [name for name in table.column_names if all(isinstance(row, dict) and name in row for row in rows)]
    arrays = []
    for name in columns:
        values = [row[name] for row in rows]
        try:
            arrays.append(pa.array(values, table.schema.field(name).type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            arrays.append(pa.array([None if v is None else ascii(v) for v in values]))
    table = pa.Table.from_arrays(arrays, columns)
    kind = chance.choice(("plain", "plain", "drop", "double", "metadata", "dictionary"))
    if kind == "drop" and columns:
        table = table.drop_columns([chance.choice(columns)])
    elif kind == "double":
        table = table.append_column(chance.choice([*columns, "more", "a\nb"]), pa.array([1] * len(rows)))
    elif kind == "metadata":
        table = table.replace_schema_metadata({b"pandas": b"[" * 1000, b"ARROW:schema": b"AAAA", b"\xff": b"\0"})
    target = io.BytesIO()
    pq.write_table(table, target, use_dictionary=kind == "dictionary", version=chance.choice(("1.0", "2.6")))
    return f"{kind}, {', '.join(done)}", target.getvalue()


_BY_SUFFIX: dict[str, Callable[[bytes, random.Random], tuple[str, bytes]]] = {
    ".json": spoil_json,
    ".yaml": spoil_yaml,
    ".zip": _spoil_zip,
    ".png": _spoil_png,
    ".jpg": _spoil_jpeg,
    ".parquet": _spoil_parquet,
}
