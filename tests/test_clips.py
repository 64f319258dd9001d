"""Clip archives: a round trip, equal bytes, and refusal of what does not fit."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import claim_png_size
from pycocotools import mask as coco_mask

from tasks import picture_codec
from tasks.clips import VOID, ClipReader, ClipWriter, archive, make_clip_id, open_clips, write_manifest
from tasks.errors import DataError

HEIGHT, WIDTH = 6, 8


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(count)]


def write_clip(folder: Path, count: int = 3, *, truth: bool = True, segment: int = 0) -> ClipWriter:
    """Track 7 covers rows 1-2, columns 2-4, and is away in frame 1; frame i moves (1.5, -2.25) px to the next."""
    clip_id = make_clip_id("content", {}, segment)
    with ClipWriter(folder, clip_id=clip_id, source="a.mp4", source_sha256="content", lossless=True) as writer:
        for index, picture in enumerate(pictures(count)):
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[1:3, 2:5] = index != 1
            flow = np.full((HEIGHT, WIDTH, 2), (1.5, -2.25), np.float32)
            flow[0, 0] = np.nan
            last = index == count - 1
            writer.add(picture, 40_000 * index, masks={7: mask} if truth else None, flow=None if last else flow)
    return writer


def test_frames_truth_and_flow_come_back(tmp_path: Path) -> None:
    writer = write_clip(tmp_path)
    with ClipReader(writer.entry.path) as clip:
        assert len(clip) == 3
        assert clip.info.timestamps_us == (0, 40_000, 80_000)
        assert clip.info.rate_hz == 25
        for got, expected in zip(clip.frames(), pictures(3), strict=True):
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(clip.frame(-1), pictures(3)[2])
        truth = clip.truth(0)
        assert truth is not None
        assert truth.track_ids is not None
        assert truth.boxes.tolist() == [[2, 1, 5, 3]]
        assert truth.track_ids.tolist() == [7]
        away = clip.truth(1)
        assert away is not None
        assert len(away) == 0
        assert away.size == (HEIGHT, WIDTH)
        assert away.track_ids is not None
        flow = clip.flow(0)
        assert flow is not None
        assert flow.dtype == np.float32
        assert flow[3, 4].tolist() == [1.5, -2.25]
        assert np.isnan(flow[0, 0]).all()
        assert clip.flow(2) is None
        with pytest.raises(IndexError):
            clip.frame(3)


def test_no_truth_is_not_the_same_as_an_empty_frame(tmp_path: Path) -> None:
    with ClipReader(write_clip(tmp_path, truth=False).entry.path) as clip:
        assert clip.truth(0) is None
        assert not clip.info.truth


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "a").entry.path
    second = write_clip(tmp_path / "b").entry.path
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_rle_is_what_pycocotools_writes_and_reads() -> None:
    rng = np.random.default_rng(1)
    for density in (0.0, 0.05, 0.5, 0.95, 1.0):
        mask = rng.random((37, 53)) < density
        rle = picture_codec.encode_rle(mask)
        np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)
        np.testing.assert_array_equal(picture_codec.decode_rle(rle, (37, 53), where="x"), mask)


def test_optical_flow_in_kitti_encoding_by_hand() -> None:
    flow = np.array([[[1.0, -0.5], [600.0, 0.0]]], np.float32)
    bgr = cv2.imdecode(np.frombuffer(picture_codec.encode_flow(flow), np.uint8), cv2.IMREAD_UNCHANGED)
    assert bgr[0, 0].tolist() == [1, 2**15 - 32, 2**15 + 64]
    assert bgr[0, 1, 0] == 0, "600 px is outside the encoding, so unknown"


def test_original_bytes_are_kept(tmp_path: Path) -> None:
    data, _ = picture_codec.encode_rgb(pictures(1)[0], jpeg_quality=80, where="x")
    with ClipWriter(tmp_path, clip_id="0" * 16, source="s", source_sha256="h") as writer:
        writer.add(data, 0)
        writer.add(data, 1000)
    with ClipReader(writer.entry.path) as clip:
        assert clip.frame_bytes(1) == data


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one size"), _writer(tmp_path) as writer:  # noqa: PT012
        writer.add(np.zeros((4, 4, 3), np.uint8), 0)
        writer.add(np.zeros((4, 5, 3), np.uint8), 1)
    with pytest.raises(DataError, match="increase"), _writer(tmp_path) as writer:  # noqa: PT012
        writer.add(np.zeros((4, 4, 3), np.uint8), 5)
        writer.add(np.zeros((4, 4, 3), np.uint8), 5)
    with pytest.raises(DataError, match="no frames"), _writer(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def _writer(folder: Path) -> ClipWriter:
    return ClipWriter(folder, clip_id="0" * 16, source="s", source_sha256="h")


def test_a_clip_may_be_named_at_its_end(tmp_path: Path) -> None:
    """As a sequence's are, whose content is known once the last picture is read."""
    named, later = tmp_path / "named", tmp_path / "later"
    frames = pictures(3)
    before = len(os.listdir("/proc/self/fd"))
    with (
        ClipWriter(named, clip_id="0" * 16, source="s", source_sha256="h") as first,
        ClipWriter(later, source="s") as second,
    ):
        for writer in (first, second):
            for index, frame in enumerate(frames):
                writer.add(frame, index, masks={3: np.ones((HEIGHT, WIDTH), bool)})
    assert len(os.listdir("/proc/self/fd")) == before, "a long video has any number of clips that wait for their name"
    assert not (later / f"{'0' * 16}.zip").exists()
    assert second.name("0" * 16, "h") == dataclasses.replace(first.entry, path=later / f"{'0' * 16}.zip")
    second.discard()
    assert os.listdir(later) == os.listdir(named)
    assert second.entry.path.read_bytes() == first.entry.path.read_bytes()


def test_void_of_some_frames(tmp_path: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2, 3] = True
    with ClipWriter(tmp_path, clip_id="0" * 16, source="s", source_sha256="h") as writer:
        for index, masks in enumerate([{1: mask, VOID: mask}, {VOID: np.zeros_like(mask)}, None, {}]):
            writer.add(pictures(1)[0], index, masks=masks)
    with ClipReader(writer.entry.path) as clip:
        void = clip.void(0)
        assert void is not None
        np.testing.assert_array_equal(picture_codec.decode_rle(void, (HEIGHT, WIDTH), where="v"), mask)
        assert [clip.void(index) for index in range(1, 4)] == [None] * 3
        assert clip.truth_masks(0)[1].tolist() == [1]
    with ClipReader(write_clip(tmp_path).entry.path) as clip:
        assert clip.void(0) is None


@pytest.mark.parametrize(
    ("void", "reason"),
    [([None], "does not fit 3 frames"), (5, "layout"), ([{"size": [6, 8], "counts": "01"}] * 3, "do not fill")],
)
def test_void_that_does_not_fit_is_refused(tmp_path: Path, void: Any, reason: str) -> None:
    path = write_clip(tmp_path).entry.path
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    entries["annotations.json"] = json.dumps({**json.loads(entries["annotations.json"]), "void": void}).encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, data in entries.items():
            new.writestr(name, data)
    with pytest.raises(DataError, match=reason), ClipReader(path) as clip:
        clip.void(0)


def test_a_clip_that_gets_no_name_leaves_nothing(tmp_path: Path) -> None:
    with ClipWriter(tmp_path, source="s") as writer:
        writer.add(pictures(1)[0], 0)
    writer.discard()
    with pytest.raises(DataError, match="no frames"), ClipWriter(tmp_path, source="s"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("limit", [None, 40])
def test_archives_have_the_bytes_that_zipfile_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    """limit: where 64 bits begin, so that they need no archive of 2 GiB."""
    contents = {f"frames/{index:06d}.jpg": bytes([index]) * index for index in range(40)}
    if limit is not None:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
        monkeypatch.setattr(archive, "_LIMIT", limit)
        contents = {name: data[:30] for name, data in contents.items()}
    with zipfile.ZipFile(tmp_path / "theirs.zip", "w") as theirs:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.create_system = 0o644 << 16, 3
            theirs.writestr(entry, data)
    ours = archive.StoredArchive(tmp_path / "ours.zip")
    for index, (name, data) in enumerate(contents.items()):
        ours.add(name, data, None if index % 2 else zlib.crc32(data))
        if index % 10 == 0:
            ours.leave()
    ours.finish()
    assert (tmp_path / "ours.zip").read_bytes() == (tmp_path / "theirs.zip").read_bytes()


def test_an_archive_of_more_entries_than_16_bits_count(tmp_path: Path) -> None:
    many = archive.StoredArchive(tmp_path / "many.zip")
    for index in range(2**16 + 1):
        many.add(str(index), b"", 0)
    many.finish()
    with zipfile.ZipFile(tmp_path / "many.zip") as read:
        assert len(read.namelist()) == 2**16 + 1


def test_manifest_round_trip(tmp_path: Path) -> None:
    entries = [write_clip(tmp_path, segment=segment).entry for segment in (0, 1)]
    write_manifest(tmp_path, reversed([*entries, entries[0]]))
    assert open_clips(tmp_path) == sorted(entries, key=lambda entry: entry.clip_id)
    assert entries[0].seconds == pytest.approx(0.12)
    entries[0].path.unlink()
    with pytest.raises(DataError, match="missing"):
        open_clips(tmp_path)


def test_manifest_empty_absent_and_hostile(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ingest"):
        open_clips(tmp_path)
    write_manifest(tmp_path, [])
    assert open_clips(tmp_path) == []
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a manifest"):
        open_clips(tmp_path)
    entry = write_clip(tmp_path / "elsewhere").entry
    rows = __import__("pandas").DataFrame([{**entry.__dict__, "path": "../elsewhere/" + entry.path.name}])
    rows.to_parquet(tmp_path / "manifest.parquet")
    with pytest.raises(DataError, match="not the name of a clip"):
        open_clips(tmp_path)


Change = Callable[[dict[str, Any], dict[str, bytes]], None]


def rewrite(path: Path, change: Change, compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive again, with clip.json and entries as `change` leaves them."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    info = json.loads(entries.pop("clip.json"))
    change(info, entries)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
        archive.writestr("clip.json", json.dumps(info))
    return path


def _set(**changes: Any) -> Change:
    return lambda info, entries: info.update(changes)


def _drop(name: str) -> Change:
    return lambda info, entries: info.pop(name)


def _nothing(info: dict[str, Any], entries: dict[str, bytes]) -> None:
    pass


def _drop_frame(info: dict[str, Any], entries: dict[str, bytes]) -> None:
    del entries["frames/000001.png"]


def _short_track(info: dict[str, Any], entries: dict[str, bytes]) -> None:
    entries["annotations.json"] = b'{"tracks": [{"track_id": 1, "rles": [null]}]}'


@pytest.mark.parametrize(
    "change",
    [
        _set(format=2),
        _set(width=10**6, height=10**6),
        _set(width=-8, height=-6),
        _set(width="8"),
        _set(timestamps_us=[]),
        _set(timestamps_us=[0, 0, 0]),
        _set(timestamps_us=[0, 1, 2**70]),
        _set(timestamps_us=[0, 1, 2, 3]),
        _set(timestamps_us="abc"),
        _set(clip_id="../../../../etc/x"),
        _set(split="secret"),
        _set(surprise=1),
        _drop("source"),
        _drop_frame,
        _short_track,
    ],
)
def test_archives_that_do_not_fit_themselves_are_refused_when_opened(tmp_path: Path, change: Change) -> None:
    path = rewrite(write_clip(tmp_path).entry.path, change)
    with pytest.raises(DataError) as caught:
        ClipReader(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_packed_entries_cannot_unpack_to_more_than_they_are(tmp_path: Path) -> None:
    path = rewrite(write_clip(tmp_path).entry.path, _nothing, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="packed"):
        ClipReader(path)


def test_frames_that_claim_another_size_are_refused_before_decoding(tmp_path: Path) -> None:
    def claim(info: dict[str, Any], entries: dict[str, bytes]) -> None:
        entries["frames/000001.png"] = claim_png_size(entries["frames/000001.png"], 60_000, 60_000)
        entries["frames/000002.png"] = b"no picture"

    with ClipReader(rewrite(write_clip(tmp_path).entry.path, claim)) as clip:
        assert clip.frame(0).shape == (HEIGHT, WIDTH, 3)
        with pytest.raises(DataError, match="frame 1: claims"):
            clip.frame(1)
        with pytest.raises(DataError, match="frame 2: not a picture"):
            clip.frame(2)


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [HEIGHT, WIDTH], "counts": "PPPPPPPPPPPPPPo"},
        {"size": [HEIGHT, WIDTH], "counts": ""},
        {"size": [HEIGHT, WIDTH], "counts": "\x00\x01"},
        {"size": [HEIGHT, WIDTH], "counts": "é"},
        {"size": [HEIGHT, WIDTH], "counts": 5},
        {"size": [10**9, 10**9], "counts": "0"},
        {"counts": "0"},
        "text",
    ],
)
def test_masks_that_do_not_fit_are_refused(tmp_path: Path, rle: Any) -> None:
    def replace(info: dict[str, Any], entries: dict[str, bytes]) -> None:
        entries["annotations.json"] = json.dumps({"tracks": [{"track_id": 1, "rles": [rle, None, None]}]}).encode()

    with ClipReader(rewrite(write_clip(tmp_path).entry.path, replace)) as clip:
        with pytest.raises(DataError, match="frame 0"):
            clip.truth(0)
        empty = clip.truth(1)
        assert empty is not None
        assert empty.masks.dtype == torch.bool


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + b"\xff" * 18, b"x" * 1000])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.zip"):
        ClipReader(tmp_path / "x.zip")
    with pytest.raises(DataError, match=r"none\.zip"):
        ClipReader(tmp_path / "none.zip")


def test_a_damaged_entry_is_told(tmp_path: Path) -> None:
    path = write_clip(tmp_path).entry.path
    data = bytearray(path.read_bytes())
    data[100] ^= 0xFF
    path.write_bytes(data)
    with ClipReader(path) as clip, pytest.raises(DataError, match="damaged"):
        clip.frame(0)
