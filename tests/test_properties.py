"""What must hold of any masks, label files, clips, times and JSON, whatever is in them."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco_mask

from tasks.clips import ClipEntry, ClipReader, ClipWriter, make_clip_id, open_clips, write_manifest
from tasks.errors import DataError
from tasks.formats import json_stream
from tasks.formats.coco import CocoAnnotation, CocoFile, CocoImage, read_coco, write_coco
from tasks.formats.fields import CATEGORIES
from tasks.formats.rle import encode_masks, mask_areas, read_mask
from tasks.formats.ytvis import Track, Video, YtvisFile, read_ytvis, write_ytvis
from tasks.picture_codec import decode_rle, encode_rle
from tasks.sources.segments import number_segments

quick = settings(max_examples=25, deadline=None)
MASKS = npst.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))
"""Empty, full and of one pixel among them."""
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
SIZE = (6, 8)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def runs_of(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, zeros first, counted one by one."""
    counts, last = [0], False
    for value in mask.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


@quick
@given(mask=MASKS)
def test_every_way_to_write_a_mask_reads_as_it(mask: np.ndarray) -> None:
    size = mask.shape
    rle = encode_rle(mask)
    assert encode_masks(torch.from_numpy(mask)[None]) == [rle]
    for written in (rle, {"size": list(size), "counts": runs_of(mask)}):
        found = read_mask(written, size, where="here")
        assert found == rle
        np.testing.assert_array_equal(decode_rle(found, size, where="here"), mask)
    assert mask_areas([rle]).tolist() == [mask.sum()]
    with pytest.raises(DataError, match="do not fill"):
        decode_rle(rle, (size[0] + 1, size[1]), where="here")


@quick
@given(data=st.data(), size=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_rectangles_as_polygons_are_their_pixels(data: st.DataObject, size: tuple[int, int]) -> None:
    top, bottom = sorted(data.draw(st.lists(st.integers(0, size[0]), min_size=2, max_size=2, unique=True)))
    left, right = sorted(data.draw(st.lists(st.integers(0, size[1]), min_size=2, max_size=2, unique=True)))
    expected = np.zeros(size, bool)
    expected[top:bottom, left:right] = True
    polygon = [left, top, right, top, right, bottom, left, bottom]
    found = read_mask([polygon], size, where="here")
    np.testing.assert_array_equal(decode_rle(found, size, where="here"), expected)


@quick
@given(masks=npst.arrays(bool, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9))))
def test_overlaps_of_run_lengths_are_those_of_pixels(masks: np.ndarray) -> None:
    one, other = encode_masks(torch.from_numpy(masks))
    union = (masks[0] | masks[1]).sum()
    expected = (masks[0] & masks[1]).sum() / union if union else 0.0
    assert coco_mask.iou([one], [other], [0])[0, 0] == pytest.approx(expected)


def fits_names(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and "\0" not in name and "\\" not in name and name[0] != "/" and ".." not in parts


NAMES = st.one_of(
    st.sampled_from(["ä/0.jpg", 'a"b.jpg', "a'b", "a\nb.png", "\u2028", "${HOME}", "ab::b", "%00", " ", "a/b/c.jpg"]),
    TEXT.filter(lambda name: fits_names(name) and name[1:2] != ":"),
)
EXTRA = st.dictionaries(st.sampled_from(["score", "source", "ä", "\n"]), TEXT | st.floats(0, 1), max_size=2)
FRAME = st.none() | npst.arrays(bool, SIZE)
BOX = st.lists(st.floats(0, 100), min_size=4, max_size=4)


@quick
@given(
    data=st.data(), names=st.lists(NAMES, max_size=4), header=st.dictionaries(TEXT, TEXT | st.integers(), max_size=2)
)
def test_a_coco_file_reads_as_it_was_written(folder: Path, data: st.DataObject, names: list[str], header: Any) -> None:
    assume(not {"images", "annotations", "categories"} & set(header))
    images = [CocoImage(number, name, *SIZE, data.draw(EXTRA)) for number, name in enumerate(names)]
    annotations = []
    for number in range(data.draw(st.integers(0, 3)) if names else 0):
        mask = data.draw(npst.arrays(bool, SIZE))
        image, crowd = data.draw(st.integers(0, len(names) - 1)), data.draw(st.integers(0, 1))
        area = float(mask.sum())
        annotation = CocoAnnotation(number, image, encode_rle(mask), data.draw(BOX), area, 1, crowd, data.draw(EXTRA))
        annotations.append(annotation)
    write_coco(folder / "coco.json", CocoFile(images, annotations, header))
    assert read_coco(folder / "coco.json") == CocoFile(images, annotations, {"categories": CATEGORIES, **header})


@quick
@given(data=st.data(), videos=st.lists(st.lists(NAMES, max_size=3), max_size=3))
def test_a_youtube_vis_file_reads_as_it_was_written(folder: Path, data: st.DataObject, videos: list[list[str]]) -> None:
    entries = [Video(number, names, *SIZE, data.draw(EXTRA)) for number, names in enumerate(videos)]
    tracks = []
    for number in range(data.draw(st.integers(0, 3)) if videos else 0):
        video = data.draw(st.integers(0, len(videos) - 1))
        masks = [data.draw(FRAME) for _ in videos[video]]
        rles = [None if mask is None else encode_rle(mask) for mask in masks]
        boxes = [None if mask is None else data.draw(BOX) for mask in masks]
        areas = [None if mask is None else float(mask.sum()) for mask in masks]
        tracks.append(Track(number, video, rles, boxes, areas, extra=data.draw(EXTRA)))
    write_ytvis(folder / "ytvis.json", YtvisFile(entries, tracks))
    assert read_ytvis(folder / "ytvis.json") == YtvisFile(entries, tracks, {"categories": CATEGORIES})


@quick
@given(
    source=TEXT,
    steps=st.lists(st.integers(1, 10**7), min_size=1, max_size=4),
    truth=st.lists(st.none() | st.dictionaries(st.integers(0, 2**40), npst.arrays(bool, SIZE), max_size=2), min_size=4),
    split=st.sampled_from([None, "train", "val", "test"]),
)
def test_a_clip_reads_as_it_was_written(
    folder: Path, source: str, steps: list[int], truth: list[dict[int, np.ndarray] | None], split: str | None
) -> None:
    times = list(itertools.accumulate(steps))
    truth = truth[: len(times)]
    frames = np.random.default_rng(steps[0]).integers(0, 256, (len(times), *SIZE, 3), np.uint8)
    known = {"clip_id": "0123456789abcdef", "source": source, "source_sha256": "a", "split": split}
    with ClipWriter(folder, **known, lossless=True) as writer:
        for frame, time_us, masks in zip(frames, times, truth, strict=True):
            writer.add(frame, time_us, masks=masks)
    with ClipReader(writer.entry.path) as clip:
        assert (clip.info.source, clip.info.split, clip.info.timestamps_us) == (source, split, tuple(times))
        for index, masks in enumerate(truth):
            np.testing.assert_array_equal(clip.frame(index), frames[index])
            found = clip.truth(index)
            if masks is None or found is None:
                assert masks is found is None
                continue
            shown = {number: mask for number, mask in sorted(masks.items()) if mask.any()}
            assert found.track_ids is not None
            assert found.track_ids.tolist() == list(shown)
            assert all(np.array_equal(a, b) for a, b in zip(found.masks.numpy(), shown.values(), strict=True))
    write_manifest(folder, [writer.entry])
    assert open_clips(folder) == [writer.entry]


@quick
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 6), TEXT, st.integers(1, 10**6), st.floats(0, 1e6), st.none() | TEXT, st.booleans())
    )
)
def test_a_manifest_is_sorted_and_names_a_clip_once(folder: Path, rows: list[Any]) -> None:
    entries = []
    for number, source, frames, rate_hz, note, truth in rows:
        clip_id = make_clip_id(str(number), {}, 0)
        path = folder / f"{clip_id}.zip"
        path.touch()
        entry = ClipEntry(clip_id, path, source, frames, 8, 6, rate_hz, None, truth, 1.5, note, frames, truth)
        entries.append(entry)
    write_manifest(folder, entries)
    assert pq.read_table(folder / "manifest.parquet")["clip_id"].to_pylist() == sorted({one.clip_id for one in entries})
    last = {entry.clip_id: entry for entry in entries}
    assert open_clips(folder) == [last[clip_id] for clip_id in sorted(last)]


@dataclass(frozen=True)
class Frame:
    time_us: int


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.integers(1, 100), max_size=30),
    clip_us=st.integers(1, 200),
    max_gap_us=st.none() | st.integers(1, 100),
)
def test_segments_hold_every_frame_once_and_are_no_longer_than_allowed(
    steps: list[int], clip_us: int, max_gap_us: int | None
) -> None:
    frames = [Frame(time) for time in itertools.accumulate(steps)]
    numbered = list(number_segments(frames, clip_us, max_gap_us))
    kept = [frame for _, frame in numbered]
    gaps = [max_gap_us is not None and step > max_gap_us for step in steps[1:]]
    lone = [before and after for before, after in itertools.pairwise([True, *gaps, True])] if frames else []
    if max_gap_us is None and len(frames) == 1:
        lone = [False]  # a video of one frame is for the caller to refuse
    assert kept == [frame for frame, is_lone in zip(frames, lone, strict=True) if not is_lone]
    groups = [[frame for _, frame in group] for _, group in itertools.groupby(numbered, key=lambda pair: pair[0])]
    assert [number for number, _ in itertools.groupby(numbered, key=lambda pair: pair[0])] == list(range(len(groups)))
    for group in groups:
        assert len(group) >= 2 or len(frames) == 1
        times = [frame.time_us for frame in group]
        # The first frame at clip_us or later begins the next; only the last of a line may join the one before it.
        assert len(times) <= 2 or times[-2] - times[0] < clip_us or len(times) == 3
        if max_gap_us is not None:
            assert all(after - before <= max_gap_us for before, after in itertools.pairwise(times))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@quick
@given(values=st.lists(VALUES, max_size=5), block=st.integers(1, 40), indent=st.none() | st.integers(0, 2))
def test_a_list_is_read_as_json_reads_it_wherever_its_blocks_end(
    folder: Path, values: list[Any], block: int, indent: int | None
) -> None:
    """Objects have their own test in test_json_stream.py."""
    (folder / "list.json").write_text(json.dumps(values, indent=indent, ensure_ascii=bool(block % 2)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_BLOCK", block)
        found = list(json_stream.read_values(folder / "list.json", where="list", max_bytes=10**6))
    assert found == values
