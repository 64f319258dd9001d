"""Long JSON files value by value: as json reads them, wherever the window ends; broken and endless ones in one line."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.formats import json_stream
from tasks.formats.json_stream import Entry, load, read_entries, read_values

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


def read(path: Path, **limits: int) -> list[Entry]:
    return list(read_entries(path, where="file", **({"max_bytes": 10**6} | limits)))


@pytest.mark.parametrize("block", [1, 3, 7, 1000])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(document=st.dictionaries(TEXT, VALUES, max_size=4), indent=st.sampled_from([None, 2]), plain=st.booleans())
def test_values_are_those_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, document: Any, indent: int | None, *, plain: bool
) -> None:
    monkeypatch.setattr(json_stream, "_BLOCK", block)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document, indent=indent, ensure_ascii=plain), encoding="utf-8")
    expected = []
    for key, value in document.items():
        expected += [(key, True, one) for one in value] if isinstance(value, list) else [(key, False, value)]
    entries = read(path)
    assert [(entry.key, entry.in_list, entry.value) for entry in entries] == expected
    assert [load(entry.text) for entry in entries] == [value for _, _, value in expected]


def test_what_json_does_not_have_breaks_its_own_value_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [{"x": NaN}, {"x": -Infinity}, 1e999]}')
    assert [entry.value for entry in read(path)] == [{"x": "NaN"}, {"x": "-Infinity"}, float("inf")]
    assert load(read(path)[0].text) == {"x": "NaN"}


@pytest.mark.parametrize(
    "content",
    [b"", b" ", b"[1]", b"null", b'{"a": 1', b'{"a": [1, 2', b'{"a": [1,]}', b'{"a" 1}', b'{"a": 1,}', b'{"a": 1} x']
    + [b"{1: 2}", b'{"a": 1, "a": 2}', b'{"a": nul}', b'{"a": "\xff\xfe"}', b'{"a": "' + b"b" * 50, b"\x89PNG"]
    + [b'{"a": ' + b"9" * 5000 + b"}", b'{"a": ' + b"[" * 100_000, b'{"a": [' + b"[" * 100_000, b"{" + b" " * 3000],
)  # fmt: skip
def test_broken_files_fail_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for block in (1, 2**20):
        monkeypatch.setattr(json_stream, "_BLOCK", block)
        with pytest.raises(DataError, match="file is not valid JSON") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_one_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, expected in ((b'[1, {"a": []}]', [1, {"a": []}]), (b" [] ", [])):
        path.write_bytes(content)
        assert list(read_values(path, where="file", max_bytes=100)) == expected
    for content in (b"{}", b"[1", b"[1] x", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="file is not valid JSON"):
            list(read_values(path, where="file", max_bytes=100))


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_BLOCK", 10)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": ["x" * 100] * 50}))
    size = path.stat().st_size
    assert len(read(path, max_bytes=size, max_value=200)) == 50
    with pytest.raises(DataError, match="too large"):
        read(path, max_bytes=size - 1)
    with pytest.raises(DataError, match="longer than 40 characters"):
        read(path, max_value=40)
    with pytest.raises(DataError, match="cannot read file"):
        read(tmp_path / "absent.json")


def test_memory_is_that_of_the_largest_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_BLOCK", 2**14)
    path = tmp_path / "a.json"
    path.write_text('{"a": [' + ", ".join(['{"runs": [' + "1, " * 3000 + "1]}"] * 200) + "]}")  # 1.8 MB
    tracemalloc.start()
    count = sum(1 for _ in read_entries(path, where="file", max_bytes=10**8))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 200
    assert peak < 300_000
