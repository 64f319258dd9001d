"""What fuzzing found: files that are no files, values of other kinds, names and numbers that spoil a message."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.clips import ClipEntry, open_clips, write_manifest
from tasks.errors import DataError, MosisError, ParamsError, SourceError, StorageError
from tasks.files import read_json
from tasks.params import IngestParams, load
from tasks.picture_codec import decode_labels
from tasks.sources import open_source
from tasks.sources.places import list_files, open_local

PARAMS = IngestParams(image_rate_hz=24)


@settings(deadline=None)
@example(text="a\x1b[31m\u2028\u2029\x00", kind=DataError)
@given(text=st.text(max_size=100), kind=st.sampled_from([DataError, SourceError, StorageError]))
def test_a_message_is_one_line_whatever_is_in_it(text: str, kind: type[MosisError]) -> None:
    error = kind(f"{text}\ud800\n: mend it")
    shown = str(error)
    assert len(shown.splitlines()) == 1
    assert shown.encode().endswith(b"\\ud800\\n: mend it")
    assert str(pickle.loads(pickle.dumps(error))) == shown  # noqa: S301 - as it comes from a pool
    assert kind("plain ä").args == ("plain ä",)


def test_a_message_quotes_no_megabytes() -> None:
    error = DataError("a.json: " + "x" * 10**6 + ": ingest again")
    assert len(str(error)) < 2_100
    assert str(error).startswith("a.json: xx")
    assert str(error).endswith("xx: ingest again")


def test_reading_json_sets_no_more_memory_aside_than_there_is_to_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    tracemalloc.start()
    assert read_json(tmp_path / "a.json", max_bytes=2**32) == [1]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 2**20


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
@pytest.mark.parametrize("put", [put_pipe, put_loop])
@pytest.mark.timeout(60)
def test_pipes_and_links_in_a_circle_are_set_aside_at_once(tmp_path: Path, name: str, put: Any) -> None:
    (tmp_path / "in").mkdir()
    put(tmp_path / "in" / name)
    with pytest.raises(SourceError):
        [job.run(tmp_path) for job in open_source(str(tmp_path / "in"), PARAMS)]


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    put_pipe(tmp_path / "a.json")
    [place] = list_files(str(tmp_path / "a.json"))
    with pytest.raises(SourceError, match=r"a\.json.*is no file"):
        open_local(place, tmp_path).__enter__()


def test_a_link_in_a_circle_is_no_failure_of_the_store(tmp_path: Path) -> None:
    """Which would end the whole stage, after five attempts."""
    put_loop(tmp_path / "a.json")
    with pytest.raises(SourceError, match=r"a\.json"):
        list_files(str(tmp_path / "a.json"))
    with pytest.raises(SourceError):
        list_files(str(tmp_path / ("a" * 300)))


def test_a_video_that_is_gone_when_its_turn_comes(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"a")
    [job] = open_source(str(tmp_path / "a.mp4"), PARAMS)
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        job.run(tmp_path)


def entry_in(folder: Path) -> ClipEntry:
    path = folder / "0123456789abcdef.zip"
    path.touch()
    return ClipEntry("0123456789abcdef", path, "a.mp4", 4, 8, 6, 24.0, None, False, 0.2)


@pytest.mark.parametrize(
    ("key", "value"),
    [("frames", "4"), ("frames", -1), ("width", None), ("rate_hz", float("nan")), ("seconds", float("inf"))]
    + [("truth", "yes"), ("exhaustive", None), ("source", 7), ("note", 7), ("split", 7), ("annotated_frames", 0.5)],
)
def test_a_manifest_with_a_value_of_another_kind_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    write_manifest(tmp_path, [entry_in(tmp_path)])
    [row] = pq.read_table(tmp_path / "manifest.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {key: value}]), tmp_path / "manifest.parquet")
    with pytest.raises(DataError, match=r"what it says of 0123456789abcdef\.zip is of the wrong kind"):
        open_clips(tmp_path)


def test_a_manifest_that_names_a_clip_twice_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, [entry_in(tmp_path)])
    table = pq.read_table(tmp_path / "manifest.parquet")
    pq.write_table(pa.concat_tables([table, table]), tmp_path / "manifest.parquet")
    with pytest.raises(DataError, match="stands in it twice"):
        open_clips(tmp_path)


def test_a_manifest_whose_text_is_no_text(tmp_path: Path) -> None:
    write_manifest(tmp_path, [entry_in(tmp_path)])
    table = pq.read_table(tmp_path / "manifest.parquet")
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\x80"))
    pq.write_table(table.set_column(2, "source", broken), tmp_path / "manifest.parquet")
    with pytest.raises(DataError, match="is not a manifest"):
        open_clips(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 10_000, "a: !!float x", "a: !!timestamp x", "a: 2026-99-99", f"a: {'9' * 5000}", "a: !!bool x"]
    + ["a: " + "x" * 2**20, "\0"],
    ids=["deep", "float", "timestamp", "date", "long", "bool", "large", "nul"],
)
def test_parameters_that_yaml_cannot_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=r"not valid YAML|larger than"):
        load(tmp_path / "params.yaml")


def test_parameters_that_are_no_file(tmp_path: Path) -> None:
    put_loop(tmp_path / "loop.yaml")
    for path in (tmp_path, tmp_path / "loop.yaml"):
        with pytest.raises(ParamsError, match="cannot be read"):
            load(path)


def test_a_coloured_mask_of_as_many_pixels_as_there_may_be(tmp_path: Path) -> None:
    """In fifteen bytes a pixel at most, so that 64 megapixels are decoded in less than a gigabyte."""
    pixels = np.zeros((3000, 3000, 3), np.uint8)
    pixels[0, :3] = ((1, 2, 3), (9, 9, 9), (255, 0, 0))
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=1)
    data = (tmp_path / "a.png").read_bytes()
    tracemalloc.start()
    ids = decode_labels(data, where="a.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ids[0, :4].tolist() == [256 + 65536 + 512 + 3, 9, 256 + 255 * 65536, 0]
    assert ids.dtype == np.int32
    assert peak < 15 * pixels[..., 0].size
