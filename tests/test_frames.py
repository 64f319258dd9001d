"""The frame store: what goes in comes out, and a broken folder is named in one line."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.common.instances import Instances
from tasks.errors import DataError, StorageError
from tasks.frame_writer import ClipPreparer, FrameWriter, PreparedClip
from tasks.frames import FrameStore, open_clip
from tasks.npy import open_npy
from tests.frames_toy import FIRST, SECOND, SIZE, assert_same


def frames_of(clip: int, count: int) -> np.ndarray:
    """(T, 5, 6, 3): every pixel says clip and frame."""
    frames = np.zeros((count, *SIZE, 3), np.uint8)
    frames[..., 0], frames[..., 1] = clip, np.arange(count)[:, None, None]
    return frames


def in_memory() -> FrameStore:
    return FrameStore.from_arrays(
        [frames_of(0, 3), frames_of(1, 1), frames_of(2, 4)],
        ["train", "val", "train"],
        rate_hz=10.0,
        truth=[[FIRST, Instances.empty(*SIZE), SECOND], None, [SECOND] * 4],
        optical_flow=[None, None, np.ones((4, *SIZE, 2), np.float32)],
    )


def on_disk(folder: Path) -> FrameStore:
    """The same clips through files, two clips a shard at most."""
    folder.mkdir()
    with FrameWriter(folder, SIZE, shard_bytes=4 * 5 * 6 * 3) as writer:
        for number, (count, truth) in enumerate(
            [(3, [FIRST, Instances.empty(*SIZE), SECOND]), (1, None), (4, [SECOND] * 4)]
        ):
            part = folder / f"part{number}"
            with ClipPreparer(part, SIZE, truth=truth is not None) as preparer:
                for row, frame in enumerate(frames_of(number, count)):
                    preparer.add_frame(frame)
                    if truth is not None and preparer.labels is not None:
                        preparer.labels.add(row, truth[row])
                    if number == 2 and row < 3:
                        preparer.add_flow(row, np.ones((*SIZE, 2), np.float32))
            writer.add(PreparedClip(part, f"clip-{number:05d}", "x", truth is not None, number == 2))
            shutil.rmtree(part)
        writer.finish(["train", "val", "train"])
    rows = [0, 1, 4, 5, 6]
    columns = {
        "clip_id": ["-"] * 5,
        "row_a": rows,
        "row_b": [r + 1 for r in rows],
        "dt_s": [0.1] * 5,
        "split": ["train"] * 5,
    }
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    return FrameStore.open(folder)


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path) -> FrameStore:
    return in_memory() if request.param == "memory" else on_disk(tmp_path / "pairs")


def test_frames_by_row(store):
    assert len(store) == 8
    assert store.size == SIZE
    for row, (clip, frame) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]):
        assert tuple(store.frame(row)[0, 0]) == (clip, frame, 0)
    for row in (-1, 8):
        with pytest.raises(IndexError):
            store.frame(row)
        with pytest.raises(IndexError):
            store.gather(np.array([0, row]))


def test_gather_keeps_order_and_repeats(store):
    rows = np.array([7, 0, 3, 0, 5])
    np.testing.assert_array_equal(store.gather(rows), np.stack([store.frame(int(row)) for row in rows]))
    assert store.gather(np.zeros(0, np.int64)).shape == (0, *SIZE, 3)


def test_clips_and_pairs(store):
    assert [(clip.first_row, clip.stop, clip.split, clip.truth) for clip in store.clips] == [
        (0, 3, "train", True), (3, 4, "val", False), (4, 8, "train", True)
    ]  # fmt: skip
    np.testing.assert_array_equal(store.clip_frames(store.clips[2]), frames_of(2, 4))
    pairs = store.pairs("train")
    np.testing.assert_array_equal(pairs.row_a, [0, 1, 4, 5, 6])
    np.testing.assert_array_equal(pairs.row_b, [1, 2, 5, 6, 7])
    np.testing.assert_allclose(pairs.dt_s, 0.1)
    assert pairs.row_a.dtype == np.int64
    assert pairs.dt_s.dtype == np.float32
    assert len(store.pairs("val")) == len(store.pairs("test")) == 0
    assert len(store.pairs()) == 5
    with pytest.raises(ValueError, match="unknown split"):
        store.pairs("trian")


def test_truth_and_flow_by_row(store):
    assert_same(store.truth[0], FIRST)
    assert len(store.truth[1]) == len(store.truth[3]) == 0
    assert_same(store.truth[2], SECOND)
    np.testing.assert_array_equal(store.optical_flow.rows, [4, 5, 6])
    np.testing.assert_array_equal(store.optical_flow[4], 1)
    assert store.optical_flow[7] is None
    assert store.optical_flow[0] is None


def test_shards_hold_whole_clips(tmp_path):
    store = on_disk(tmp_path / "pairs")
    assert [(clip.shard, clip.start) for clip in store.clips] == [(0, 0), (0, 3), (1, 0)]
    assert np.load(tmp_path / "pairs" / "frames-00000.npy").shape == (4, *SIZE, 3)


def test_a_store_without_truth():
    store = FrameStore.from_arrays([frames_of(0, 2)], ["test"], 24.0)
    assert store.truth is None
    assert store.optical_flow is None
    assert len(store.pairs("test")) == 1


def test_arrays_that_do_not_fit():
    with pytest.raises(ValueError, match="one size"):
        FrameStore.from_arrays([frames_of(0, 2), np.zeros((2, 4, 4, 3), np.uint8)], ["train"] * 2, 24.0)
    with pytest.raises(ValueError, match="one size"):
        FrameStore.from_arrays([np.zeros((2, 4, 4, 3), np.float32)], ["train"], 24.0)
    with pytest.raises(ValueError, match="length"):
        FrameStore.from_arrays([frames_of(0, 2)], [], 24.0)


@contextlib.contextmanager
def files_allowed(count: int) -> Iterator[None]:
    """What this process opens meanwhile must have a descriptor below `count`."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_store_may_have_more_shards_than_files_may_be_open(tmp_path):
    folder = tmp_path / "pairs"
    on_disk(folder)
    count = 300
    for number in range(count):
        np.save(folder / f"frames-{number:05d}.npy", frames_of(number % 256, 1))
    clip = {"source": "x", "split": "train", "start": 0, "frames": 1}
    clips = [clip | {"clip_id": str(n), "shard": n, "first_row": n} for n in range(count)]
    edit_document(folder, shards=[1] * count, clips=clips)
    edit_pairs(folder, **{name: [] for name in ("clip_id", "row_a", "row_b", "dt_s", "split")})
    rows = np.array([299, 0, 150, 299, *range(300)])
    with files_allowed(200):
        store = FrameStore.open(folder)
        np.testing.assert_array_equal(store.gather(rows)[:, 0, 0, 0], rows % 256)


def test_too_many_open_files_are_not_taken_for_a_broken_store(tmp_path):
    on_disk(tmp_path / "pairs")
    with files_allowed(0), pytest.raises(StorageError, match=r"frames-00000\.npy: .*ulimit -n"):
        open_npy(tmp_path / "pairs" / "frames-00000.npy", np.uint8, (*SIZE, 3))


def test_one_clip_is_opened_without_the_rest(tmp_path):
    store = on_disk(tmp_path / "pairs")
    (tmp_path / "pairs" / "pairs.parquet").unlink()
    np.testing.assert_array_equal(open_clip(tmp_path / "pairs", store.clips[1], SIZE), frames_of(1, 1))
    with pytest.raises(DataError, match="ends before"):
        open_clip(tmp_path / "pairs", replace(store.clips[1], frames=2), SIZE)


def test_pairs_take_little_more_memory_than_what_is_kept_of_them(tmp_path):
    on_disk(tmp_path / "pairs")
    count = 200_000
    columns = {"clip_id": ["-"] * count, "row_a": [4] * count, "row_b": [5] * count, "dt_s": [0.1] * count}
    edit_pairs(tmp_path / "pairs", **columns, split=["train"] * count)
    FrameStore.open(tmp_path / "pairs")  # imports
    tracemalloc.start()
    try:
        store = FrameStore.open(tmp_path / "pairs")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(store.pairs("train")) == count
    assert peak < 60 * count  # 20 are kept of each


def edit_clips(folder: Path, **changes: object) -> None:
    document = json.loads((folder / "clips.json").read_text())
    document["clips"][0] |= changes
    (folder / "clips.json").write_text(json.dumps(document))


def edit_document(folder: Path, **changes: object) -> None:
    document = json.loads((folder / "clips.json").read_text())
    (folder / "clips.json").write_text(json.dumps(document | changes))


def edit_pairs(folder: Path, **changes: object) -> None:
    columns = pq.read_table(folder / "pairs.parquet").to_pydict()
    pq.write_table(pa.table(columns | changes), folder / "pairs.parquet")


DAMAGES = {
    "no clips.json": lambda folder: (folder / "clips.json").unlink(),
    "text for clips.json": lambda folder: (folder / "clips.json").write_text("[1, 2"),
    "a list for clips.json": lambda folder: (folder / "clips.json").write_text("[]"),
    "other format": lambda folder: (folder / "clips.json").write_text('{"format": 99}'),
    "unknown field": lambda folder: edit_clips(folder, extra=1),
    "shard that is not there": lambda folder: edit_clips(folder, shard=5),
    "negative shard": lambda folder: edit_clips(folder, shard=-1),
    "too many frames": lambda folder: edit_clips(folder, frames=2000),
    "rows that overlap": lambda folder: edit_clips(folder, first_row=1),
    "row as text": lambda folder: edit_clips(folder, first_row="0"),
    "no frames": lambda folder: edit_clips(folder, frames=0),
    "of an older format": lambda folder: edit_document(folder, format=1),
    "unknown split": lambda folder: edit_clips(folder, split="trian"),
    "shard missing": lambda folder: (folder / "frames-00001.npy").unlink(),
    "shard cut short": lambda folder: (folder / "frames-00000.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00"),
    "shard of another size": lambda folder: np.save(folder / "frames-00000.npy", np.zeros((4, 6, 5, 3), np.uint8)),
    "shard of floats": lambda folder: np.save(folder / "frames-00000.npy", np.zeros((4, *SIZE, 3), np.float32)),
    "pairs missing": lambda folder: (folder / "pairs.parquet").unlink(),
    "text for pairs": lambda folder: (folder / "pairs.parquet").write_text("text"),
    "pair beyond the end": lambda folder: edit_pairs(folder, row_b=[1, 2, 5, 6, 8]),
    "pair across clips": lambda folder: edit_pairs(folder, row_b=[1, 2, 5, 6, 0]),
    "negative row": lambda folder: edit_pairs(folder, row_a=[-1, 1, 4, 5, 6]),
    "pairs of another split": lambda folder: edit_pairs(folder, split=["test"] * 5),
    "rows as words": lambda folder: edit_pairs(folder, row_a=list("abcde")),
    "truth of another size": lambda folder: (folder / "truth" / "size.json").write_text('{"height": 6, "width": 5}'),
    "truth beyond the end": lambda folder: np.save(folder / "truth" / "rows.npy", np.array([0, 0, 2, 4, 5, 6, 70])),
    "flow of other length": lambda folder: np.save(folder / "flow" / "rows.npy", np.array([4, 5])),
    "flow as text": lambda folder: (folder / "flow" / "flow.npy").write_text("text"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_broken_stores_are_named_in_one_line(tmp_path, name):
    on_disk(tmp_path / "pairs")
    DAMAGES[name](tmp_path / "pairs")
    with pytest.raises(DataError) as caught:
        FrameStore.open(tmp_path / "pairs")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "pairs") in str(caught.value)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="run the pairs stage"):
        FrameStore.open(tmp_path / "nowhere")
