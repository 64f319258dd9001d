"""The pairs stage on clips made by hand: every reason to drop a pair, exact rows, splits, broken clips."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks import pairs
from tasks.clips import ClipEntry, ClipWriter, make_clip_id, write_manifest
from tasks.errors import DataError, NothingLeftError
from tasks.files import sha256_tree
from tasks.frames import FrameStore
from tasks.pair_checks import PairLimits
from tasks.params import IngestParams, PairsParams, Params, SyntheticParams
from tasks.pool import Outcome
from tasks.sources.synthetic import open_synthetic
from tasks.sources.synthetic.draw import Draw
from tasks.sources.synthetic.textures import texture

SIDE = 64
LIMITS = PairLimits(longest_dt_s=0.09, cut=0.5, frozen=0.25, motion_px=16.0)
SCENE = texture(Draw(1), 96, 160)
DARK, BRIGHT = SCENE[:SIDE, :SIDE] // 4, SCENE[:SIDE, :SIDE] // 4 + 190


def view(x: int, y: int = 0) -> np.ndarray:
    """(64, 64, 3): a window of one textured picture, moved."""
    return np.ascontiguousarray(SCENE[y : y + SIDE, x : x + SIDE])


def write_clip(
    folder: Path,
    frames: list[np.ndarray],
    *,
    name: str = "a",
    times_us: list[int] | None = None,
    split: str | None = "train",
    ingest: dict[str, Any] | None = None,
    **truth: Any,
) -> ClipEntry:
    """A clip at 20 Hz. truth: `masks` and `flow`, one entry per frame each."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    clip_id = make_clip_id(digest, {}, len(list(folder.glob("*"))))
    times_us = times_us or [50_000 * i for i in range(len(frames))]
    masks, flow = truth.get("masks", [None] * len(frames)), truth.get("flow", [None] * len(frames))
    known = {"source": name, "source_sha256": digest, "split": split, "ingest": ingest}
    with ClipWriter(folder, clip_id=clip_id, lossless=True, **known) as writer:  # type: ignore[arg-type]
        for i, frame in enumerate(frames):
            writer.add(frame, times_us[i], masks=masks[i], flow=flow[i])
    return writer.entry


@pytest.fixture
def clips(tmp_path) -> Path:
    folder = tmp_path / "data" / "clips"
    folder.mkdir(parents=True)
    return folder


def run(clips: Path, entries: list[ClipEntry], **changes: Any) -> FrameStore:
    write_manifest(clips, entries)
    workspace = clips.parents[1]
    params = PairsParams(**({"height": SIDE, "width": SIDE, "workers": 1} | changes))
    pairs.run(Params(pairs=params), workspace)
    return FrameStore.open(workspace / "data" / "pairs")


def read_dropped(clips: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((clips.parent / "pairs" / "dropped.json").read_text())
    return document


def test_exact_rows(clips):
    steady = write_clip(clips, [view(2 * i) for i in range(4)], name="steady")
    broken = write_clip(
        clips, [view(0), view(2), view(4), view(6)], name="gap", times_us=[0, 50_000, 250_000, 300_000], split="val"
    )
    single = write_clip(clips, [view(0)], name="single", split="test")
    entries = sorted([steady, broken, single], key=lambda entry: entry.clip_id)
    store = run(clips, entries)
    assert [clip.clip_id for clip in store.clips] == [entry.clip_id for entry in entries]
    first = {clip.source: clip.first_row for clip in store.clips}
    assert len(store) == 9
    np.testing.assert_array_equal(store.pairs("train").row_a, first["steady"] + np.arange(3))
    np.testing.assert_array_equal(store.pairs("val").row_a, first["gap"] + np.array([0, 2]))
    np.testing.assert_array_equal(store.pairs("val").row_b, first["gap"] + np.array([1, 3]))
    assert len(store.pairs("test")) == 0
    for i in range(4):
        np.testing.assert_array_equal(store.frame(first["steady"] + i), view(2 * i))
    table = pq.read_table(clips.parent / "pairs" / "pairs.parquet").to_pydict()
    assert set(table) == {"clip_id", "row_a", "row_b", "dt_s", "split"}
    assert table["dt_s"] == [0.05] * 5
    assert table["row_a"] == sorted(table["row_a"])
    assert read_dropped(clips) == {
        "total": {"order": 0, "rate": 1, "cut": 0, "frozen": 0, "fast": 0},
        "clips": {broken.clip_id: {"rate": 1}},
        "unreadable": [],
    }


@pytest.mark.parametrize(
    ("reason", "frames", "times_us"),
    [
        ("rate", [view(0), view(2), view(4)], [0, 50_000, 150_000]),
        ("cut", [DARK, np.roll(DARK, 1, 1), BRIGHT], None),
        ("frozen", [view(0), view(2), view(2)], None),
        ("fast", [view(0), view(2), view(26)], None),
    ],
)
def test_every_reason(clips, capsys, reason, frames, times_us):
    entry = write_clip(clips, frames, times_us=times_us)
    store = run(clips, [entry])
    np.testing.assert_array_equal(store.pairs("train").row_a, [0])
    assert read_dropped(clips)["total"] == dict.fromkeys(("order", "rate", "cut", "frozen", "fast"), 0) | {reason: 1}
    assert read_dropped(clips)["clips"] == {entry.clip_id: {reason: 1}}
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1
    assert f"1 dropped: {reason} 1" in printed


def test_rate_has_a_tolerance(clips):
    jitter = [0, 90_000, 170_000, 262_000]  # 12 Hz is 83 ms, ten per cent more 91.7 ms
    store = run(clips, [write_clip(clips, [view(2 * i) for i in range(4)], times_us=jitter)])
    np.testing.assert_array_equal(store.pairs().row_a, [0, 1])


def test_a_rate_that_was_accepted_when_ingested_is_enough(clips, capsys):
    """Each clip has its own bound, or that of all; whichever is lower."""
    times = [0, 166_667, 350_000, 550_000]  # 6.0, 5.5 and 5 Hz
    slow = write_clip(clips, [view(2 * i) for i in range(4)], times_us=times, name="a", ingest={"min_rate_hz": 6})
    other = write_clip(clips, [view(2 * i) for i in range(4)], times_us=times, name="b", ingest={"rate_hz": 6})
    fast = write_clip(clips, [view(0), view(2)], times_us=[0, 90_000], name="c", ingest={"min_rate_hz": 24.0})
    entries = sorted([slow, other, fast], key=lambda entry: entry.clip_id)
    store = run(clips, entries)
    counts = {clip.source: 0 for clip in store.clips}
    for row in store.pairs().row_a.tolist():
        counts[next(c.source for c in store.clips if c.first_row <= row < c.stop)] += 1
    assert counts == {"a": 2, "b": 0, "c": 1}
    assert "; 1 clips down to 6 Hz, below pairs.min_rate_hz, as accepted when ingested" in capsys.readouterr().out
    run(clips, entries, min_rate_hz=5)
    assert "accepted" not in capsys.readouterr().out


@pytest.mark.parametrize("bound", ["6", True, 0, -6, 10**400, None, [6]])
def test_an_accepted_rate_that_is_none(clips, bound):
    slow = write_clip(clips, [view(0), view(2)], times_us=[0, 500_000], name="a", ingest={"min_rate_hz": bound})
    fine = write_clip(clips, [view(0), view(2)], name="b")
    assert len(run(clips, [slow, fine]).pairs()) == 1


def box_mask(height: int, width: int, x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_truth_at_training_size(clips):
    """128 x 96 (width x height) to 64 x 64: a half across, two thirds down; flow likewise."""
    big = [np.ascontiguousarray(SCENE[:96, x : x + 128]) for x in (0, 2)]
    masks = [{5: box_mask(96, 128, 32, 24, 64, 48), 8: box_mask(96, 128, 127, 95, 128, 96)}, {}]
    flow = [np.full((96, 128, 2), (-2.0, 3.0), np.float32), None]
    flow[0][:, :64] = np.nan  # type: ignore[index]
    entry = write_clip(clips, big, masks=masks, flow=flow)
    store = run(clips, [entry])
    assert store.truth is not None
    assert store.optical_flow is not None
    truth = store.truth[0]
    assert truth.boxes.tolist() == [[16.0, 16.0, 32.0, 32.0]]
    assert truth.track_ids is not None
    assert truth.track_ids.tolist() == [5]
    assert len(store.truth[1]) == 0
    assert store.clips[0].truth
    field = store.optical_flow[0]
    assert field is not None
    np.testing.assert_allclose(field[:, 32:], np.broadcast_to((-1.0, 2.0), (64, 32, 2)), atol=1e-2)
    assert np.isnan(field[:, :31]).all()
    assert store.optical_flow[1] is None


def test_masks_cover_half_a_pixel_or_go():
    masks = np.stack([box_mask(8, 8, 0, 0, 3, 4), box_mask(8, 8, 6, 6, 7, 7), box_mask(8, 8, 4, 0, 5, 2)])
    resized, track_ids = pairs.resize_truth(masks, np.array([7, 5, 6]), (4, 4))
    # 3 columns of 8 are 1.5 of 4: the second is half covered. A lone pixel covers a quarter; a column of two, a half.
    np.testing.assert_array_equal(resized, [box_mask(4, 4, 0, 0, 2, 2), box_mask(4, 4, 2, 0, 3, 1)])
    assert track_ids.tolist() == [7, 6]
    same, track_ids = pairs.resize_truth(np.stack([masks[0], np.zeros_like(masks[0])]), np.array([7, 5]), (8, 8))
    np.testing.assert_array_equal(same, masks[:1])
    assert track_ids.tolist() == [7]
    nothing, track_ids = pairs.resize_truth(np.zeros((0, 8, 8), bool), np.zeros(0, np.int64), (4, 4))
    assert (nothing.shape, track_ids.shape) == ((0, 4, 4), (0,))


def test_neither_frames_nor_truth_need_torch(clips):
    """A third of a GB in each of its processes."""
    entry = write_clip(clips, [view(0), view(2)], masks=[{1: box_mask(SIDE, SIDE, 0, 0, 4, 4)}, {}])
    write_manifest(clips, [entry])
    code = f"""
import sys
from pathlib import Path
from tasks import __main__, pairs
from tasks.params import Params, PairsParams
pairs.run(Params(pairs=PairsParams(height=32, width=32, workers=1)), Path({str(clips.parents[1])!r}))
print(sorted({{"torch", "av", "mlflow", "dvc", "prefect"}} & set(sys.modules)))
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    store = FrameStore.open(clips.parent / "pairs")
    assert store.truth is not None
    assert store.truth[0].boxes.tolist() == [[0.0, 0.0, 2.0, 2.0]]


def test_pairs_are_written_in_parts(clips, monkeypatch):
    """Constant memory however many there are; nothing is lost at the seams."""
    entries = [write_clip(clips, [view(2 * i) for i in range(frames)], name=str(frames)) for frames in (1, 2, 4, 3)]
    expected = run(clips, entries).pairs()
    assert len(expected) == 6
    monkeypatch.setattr(pairs, "_ROWS_AT_ONCE", 3)
    found = run(clips, entries).pairs()
    assert pq.ParquetFile(clips.parent / "pairs" / "pairs.parquet").num_row_groups > 1
    for one, other in zip(dataclasses.astuple(found), dataclasses.astuple(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_truth_no_flow_no_folders(clips):
    store = run(clips, [write_clip(clips, [view(0), view(2)])])
    assert store.truth is None
    assert store.optical_flow is None
    assert not store.clips[0].truth
    assert {path.name for path in (clips.parent / "pairs").iterdir()} == {
        "clips.json", "dropped.json", "frames-00000.npy", "pairs.parquet", "splits.json"
    }  # fmt: skip


def test_clips_with_and_without_truth_together(clips):
    labelled = write_clip(clips, [view(0), view(2)], name="a", masks=[{}, {1: box_mask(SIDE, SIDE, 0, 0, 4, 4)}])
    plain = write_clip(clips, [view(0), view(2)], name="b")
    store = run(clips, [labelled, plain])
    assert store.truth is not None
    assert {clip.source: clip.truth for clip in store.clips} == {"a": True, "b": False}
    row = next(clip.first_row for clip in store.clips if clip.truth)
    assert [len(store.truth[i]) for i in (row, row + 1)] == [0, 1]


def prepared(name: str, *, split: str | None = None) -> Any:
    times_us = np.array([0, 50_000])
    return pairs._Prepared(None, bytes([pairs.GOOD]), times_us, source_sha256=name, split=split)  # type: ignore[arg-type]


def test_clips_of_one_source_share_a_split_that_never_moves():
    many = [prepared(f"video {i % 100}") for i in range(300)]
    splits, all_train = pairs.choose_splits(many, 0.7, 0.15)
    assert not all_train
    assert splits[:100] == splits[100:200] == splits[200:]
    assert pairs.choose_splits(many[:7], 0.7, 0.15)[0] == splits[:7]
    counts = [splits[:100].count(name) for name in ("train", "val", "test")]
    assert np.abs(np.array(counts) - (70, 15, 15)).max() <= 10


def test_the_source_has_the_last_word_on_its_split():
    stated = [prepared(f"video {i}", split="val" if i else "train") for i in range(20)]
    assert pairs.choose_splits(stated, 0.7, 0.15) == (["train"] + ["val"] * 19, False)


def test_shares_of_nothing_and_all():
    videos = [prepared("stated", split="train"), *(prepared(f"video {i}") for i in range(30))]
    assert set(pairs.choose_splits(videos, 0.0, 1.0)[0][1:]) == {"val"}
    assert set(pairs.choose_splits(videos, 0.0, 0.0)[0][1:]) == {"test"}
    assert set(pairs.choose_splits(videos, 1.0, 0.0)[0]) == {"train"}


def test_everything_trains_where_nothing_would(clips, capsys):
    still = write_clip(clips, [view(0), view(0)], name="still", split="train")
    moving = write_clip(clips, [view(0), view(2)], name="moving", split="test")
    store = run(clips, [still, moving])
    assert {clip.split for clip in store.clips} == {"train"}
    assert json.loads((clips.parent / "pairs" / "splits.json").read_text()) == {
        still.clip_id: "train", moving.clip_id: "train"
    }  # fmt: skip
    assert "all clips are in it" in capsys.readouterr().out


def test_no_pair_left(clips):
    entries = [
        write_clip(clips, [view(0)] * 3, name="still"),
        write_clip(clips, [view(0), view(2)], name="slow", times_us=[0, 10**6]),
    ]
    with pytest.raises(NothingLeftError, match="rate 1, frozen 2") as caught:
        run(clips, entries)
    assert "\n" not in str(caught.value)
    assert not (clips.parent / "pairs").exists()


def test_only_single_frames(clips):
    with pytest.raises(NothingLeftError, match="no two frames"):
        run(clips, [write_clip(clips, [view(0)])])


def test_no_clips_at_all(clips):
    with pytest.raises(NothingLeftError, match="ingest"):
        run(clips, [])


def test_ingest_has_not_run(tmp_path):
    with pytest.raises(DataError, match="ingest"):
        pairs.run(Params(), tmp_path)


def spoil(entry: ClipEntry) -> ClipEntry:
    entry.path.write_bytes(entry.path.read_bytes()[:2000])
    return entry


def test_unreadable_clips_are_set_aside(clips, capsys):
    good = [write_clip(clips, [view(0), view(2)], name=name) for name in "ab"]
    bad = spoil(write_clip(clips, [view(0), view(2)], name="c"))
    store = run(clips, [*good, bad])
    assert len(store.clips) == 2
    (entry,) = read_dropped(clips)["unreadable"]
    assert entry["clip_id"] == bad.clip_id
    assert "1 clips set aside" in capsys.readouterr().out


def test_a_frame_damaged_in_the_middle(clips):
    """A clip fails after frames were written for it: nothing of it may stay in the store."""
    good = write_clip(clips, [view(0), view(2)], name="a")
    bad = write_clip(clips, [view(2 * i) for i in range(4)], name="b")
    data = bytearray(bad.path.read_bytes())
    at = data.rfind(b"\x89PNG")
    data[at + 60 : at + 90] = bytes(30)
    bad.path.write_bytes(bytes(data))
    store = run(clips, [good, bad])
    assert [clip.source for clip in store.clips] == ["a"]
    assert len(store) == 2
    assert not (clips.parent / "pairs" / ".parts").exists()


def test_too_many_unreadable(clips):
    good = write_clip(clips, [view(0), view(2)], name="a")
    bad = [spoil(write_clip(clips, [view(0), view(2)], name=name)) for name in "bc"]
    with pytest.raises(NothingLeftError, match="2 of 3 clips"):
        run(clips, [good, *bad])
    assert len(run(clips, [good, *bad], max_rejected_share=0.7).clips) == 1
    with pytest.raises(NothingLeftError, match="2 of 2 clips"):
        run(clips, bad, max_rejected_share=1.0)
    # The last good state stays.
    assert len(FrameStore.open(clips.parent / "pairs").clips) == 1


def test_an_archive_under_another_name(clips):
    good = write_clip(clips, [view(0), view(2)], name="a")
    other = dataclasses.replace(good, clip_id="0" * 16, path=clips / f"{'0' * 16}.zip")
    other.path.write_bytes(good.path.read_bytes())
    assert [clip.clip_id for clip in run(clips, [good, other]).clips] == [good.clip_id]


def test_rows_do_not_depend_on_who_is_ready_first(clips, monkeypatch):
    entries = [write_clip(clips, [view(0), view(2)], name=name) for name in "abc"]
    run(clips, entries)
    expected = sha256_tree([clips.parent / "pairs"])

    def last_first(function: Any, items: Any, workers: int, description: str, executor: None) -> Any:
        yield from [Outcome(i, item, value=function(item)) for i, item in reversed(list(enumerate(items)))]

    monkeypatch.setattr(pairs, "map_unordered", last_first)
    run(clips, entries)
    assert sha256_tree([clips.parent / "pairs"]) == expected


def test_work_and_result_travel_between_processes(clips, tmp_path):
    entry = write_clip(clips, [view(0), view(2)])
    work = pairs._Work(entry, tmp_path / "part", (SIDE, SIDE), LIMITS, 0.1)
    done = pairs._prepare(work)
    assert ForkingPickler.dumps((pairs._prepare, work, done))


def test_a_crash_of_ours_is_not_set_aside(clips, monkeypatch):
    def crash(work: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pairs, "_prepare", crash)
    with pytest.raises(ZeroDivisionError):
        run(clips, [write_clip(clips, [view(0), view(2)])])
    assert not (clips.parent / "pairs").exists()


def test_synthetic_video_loses_no_pair(clips):
    synthetic = SyntheticParams(videos=3, frames=6, height=SIDE, width=SIDE, radius=(6.0, 12.0))
    entries = [job.run(clips)[0] for job in open_synthetic(IngestParams(synthetic=synthetic))]
    store = run(clips, entries)
    assert len(store.pairs()) == 15
    assert {clip.split for clip in store.clips} == {"train", "val", "test"}
    assert store.truth is not None
    assert store.optical_flow is not None
    assert len(store.optical_flow.rows) == 15
