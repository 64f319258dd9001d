"""Stage 2: clip archives -> frames at training size and the pairs among them, in data/pairs."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from models.common.images import resize_frame
from tasks.clips import ClipEntry, ClipInfo, ClipReader, open_clips
from tasks.cluster import open_executor
from tasks.errors import DataError, NothingLeftError, SourceError
from tasks.files import atomic_folder, storage_errors, write_json
from tasks.frame_writer import ClipPreparer, FrameWriter, PreparedClip
from tasks.frames import SPLITS, StoredClip
from tasks.pair_checks import REASONS, PairJudge, PairLimits, SeenFrame
from tasks.params import PairsParams, Params
from tasks.pool import Outcome, WorkerDied, map_unordered

_REASONS_SHOWN = 3
_FASTEST_HZ = 1e6
_ROWS_AT_ONCE = 2**18
_FRAMES_AT_ONCE = 16
"""Decoded, then compared: each turn of the one drives the other out of the processor's caches."""
GOOD = 0


@dataclass(frozen=True)
class _Work:
    """One clip to prepare, in a folder of its own. rate_tolerance: as in PairsParams, for a bound of the clip's own."""

    entry: ClipEntry
    folder: Path
    size: tuple[int, int]
    limits: PairLimits
    rate_tolerance: float


@dataclass(frozen=True)
class _Prepared:
    """What is kept of a clip until all are read; 9 bytes a frame, so that days of video fit.

    faults: per consecutive pair of frames GOOD, or where in REASONS it stands why the pair is dropped, counted from 1.
    times_us: (T,) int64. source_sha256, split: as clip.json says. accepted_hz: the clip's own bound where it is below
    pairs.min_rate_hz.
    """

    clip: PreparedClip
    faults: bytes
    times_us: np.ndarray
    source_sha256: str
    split: str | None
    accepted_hz: float | None = None


def run(params: Params, workspace: Path) -> None:
    """Read workspace/data/clips, write workspace/data/pairs, which appears whole or not at all.

    Raises NothingLeftError where no pair remains or too many clips cannot be read.
    """
    pairs = params.pairs
    entries = open_clips(workspace / "data" / "clips")
    if not entries:
        raise NothingLeftError("data/clips holds no clips: run the ingest stage on some video first")
    with atomic_folder(workspace / "data" / "pairs") as folder:
        shape = _shape(pairs)
        works = [_Work(entry, folder / ".parts" / entry.clip_id, *shape) for entry in entries]
        with FrameWriter(folder, works[0].size) as writer:
            with open_executor(params.compute) as executor:
                prepared, unreadable = _gather(works, writer, pairs.workers, executor)
            _check_left(prepared, unreadable, len(entries), pairs.max_rejected_share)
            splits, all_train = choose_splits(prepared, pairs.train_share, pairs.val_share)
            clips = writer.finish(splits)
        shutil.rmtree(folder / ".parts")
        counts = _write_pairs(folder, clips, prepared)
        _write_dropped(folder, prepared, unreadable)
    print(_summarise(clips, counts, prepared, unreadable, all_train=all_train))


def choose_splits(prepared: list[_Prepared], train_share: float, val_share: float) -> tuple[list[str], bool]:
    """Split of each clip, and whether all had to become train because no pair fell there.

    A split that the source states stands; else the hash of the source decides, so that all clips of one video share it
    and new video moves none.
    """
    splits = [one.split or _split_by_hash(one.source_sha256, train_share, val_share) for one in prepared]
    trains = any(split == "train" and GOOD in one.faults for split, one in zip(splits, prepared, strict=True))
    return (splits, False) if trains else (["train"] * len(splits), True)


def _split_by_hash(source_sha256: str, train_share: float, val_share: float) -> str:
    place = int.from_bytes(hashlib.sha256(f"split {source_sha256}".encode()).digest()[:6], "big") / 2**48
    return "train" if place < train_share else "val" if place < train_share + val_share else "test"


def _shape(pairs: PairsParams) -> tuple[tuple[int, int], PairLimits, float]:
    longest_dt_s = (1 + pairs.rate_tolerance) / pairs.min_rate_hz
    limits = PairLimits(longest_dt_s, pairs.cut_threshold, pairs.frozen_threshold, pairs.max_motion_px)
    return (pairs.height, pairs.width), limits, pairs.rate_tolerance


def _accept(info: ClipInfo, work: _Work) -> tuple[PairLimits, float | None]:
    """The limits for one clip: a lower rate that was accepted when it was ingested holds here, too."""
    own_hz: Any = info.ingest.get("min_rate_hz") if isinstance(info.ingest, Mapping) else None
    if type(own_hz) not in (int, float) or not 0 < own_hz < _FASTEST_HZ:
        return work.limits, None
    longest_dt_s = (1 + work.rate_tolerance) / own_hz
    if longest_dt_s <= work.limits.longest_dt_s:
        return work.limits, None
    return replace(work.limits, longest_dt_s=longest_dt_s), own_hz


def _gather(
    works: list[_Work], writer: FrameWriter, workers: int, executor: Executor | None
) -> tuple[list[_Prepared], dict[str, str]]:
    """Append clips to the store in the order of `works`, whichever is ready first: rows do not depend on workers."""
    waiting: dict[int, Outcome[_Work, _Prepared]] = {}
    prepared: list[_Prepared] = []
    unreadable: dict[str, str] = {}
    following = 0
    for outcome in map_unordered(_prepare, works, workers, "pairs", executor=executor):
        waiting[outcome.index] = outcome
        while (done := waiting.pop(following, None)) is not None:
            following += 1
            if isinstance(done.error, DataError | SourceError | WorkerDied):
                unreadable[done.item.entry.clip_id] = " ".join(str(done.error).split())
            else:
                prepared.append(done.get())
                writer.add(prepared[-1].clip)
            shutil.rmtree(done.item.folder, ignore_errors=True)
    return prepared, unreadable


def _prepare(work: _Work) -> _Prepared:
    """Decode one clip, a frame at a time, into `work.folder`."""
    shutil.rmtree(work.folder, ignore_errors=True)  # of a process that was killed at the same clip
    with (
        storage_errors(work.folder),
        ClipReader(work.entry.path) as reader,
        ClipPreparer(work.folder, work.size, truth=reader.info.truth) as preparer,
    ):
        info = reader.info
        if info.clip_id != work.entry.clip_id:
            raise DataError(f"{work.entry.path}: is clip {info.clip_id} by its own account: ingest the source again")
        limits, accepted_hz = _accept(info, work)
        found = _add_frames(reader, preparer, work.size, limits)
        faults = bytes(GOOD if fault is None else 1 + REASONS.index(fault) for fault in found)
        clip = PreparedClip(work.folder, info.clip_id, info.source, info.truth, preparer.has_flow, info.annotated)
        times_us = np.array(info.timestamps_us, np.int64)
        return _Prepared(clip, faults, times_us, info.source_sha256, info.split, accepted_hz)


def _add_frames(
    reader: ClipReader, preparer: ClipPreparer, size: tuple[int, int], limits: PairLimits
) -> Iterator[str | None]:
    """Store every frame; yield the fault of each consecutive pair."""
    judge = PairJudge(limits)
    times = reader.info.timestamps_us
    before: SeenFrame | None = None
    frames = enumerate(reader.frames())
    while some := [(index, resize_frame(frame, size)) for index, frame in itertools.islice(frames, _FRAMES_AT_ONCE)]:
        for index, image in some:
            preparer.add_frame(image)
            _add_truth(reader, preparer, index, size)
        for index, seen in [(index, SeenFrame.look_at(image)) for index, image in some]:
            if before is not None:
                yield judge.find_fault(before, seen, (times[index] - times[index - 1]) / 1e6)
            before = seen


def _add_truth(reader: ClipReader, preparer: ClipPreparer, index: int, size: tuple[int, int]) -> None:
    truth = reader.truth_masks(index)
    if truth is not None and preparer.labels is not None:
        preparer.labels.add_masks(index, *resize_truth(*truth, size))
    flow_uv = reader.flow(index) if index + 1 < len(reader) else None
    if flow_uv is not None:
        preparer.add_flow(index, resize_flow(flow_uv, size))


def resize_truth(masks: np.ndarray, track_ids: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Ground truth (N, H, W) bool, (N,) at `size`: a pixel belongs to a mask that covers at least half of it; masks
    that vanish go.
    """
    if masks.shape[1:] != size:
        resized = [_resize(mask.astype(np.float32), size) >= 0.5 for mask in masks]
        masks = np.stack(resized) if resized else np.zeros((0, *size), bool)
    kept = masks.any((1, 2))
    return masks[kept], track_ids[kept]


def resize_flow(flow_uv: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 2) float32 pixels -> (*size, 2), vectors scaled with the picture; NaN where less than half is known."""
    if flow_uv.shape[:2] == size:
        return flow_uv
    known = ~np.isnan(flow_uv).any(-1)
    share = _resize(known.astype(np.float32), size)[..., None]
    total = _resize(np.where(known[..., None], flow_uv, 0).astype(np.float32), size)
    scale = np.array([size[1] / flow_uv.shape[1], size[0] / flow_uv.shape[0]], np.float32)
    return np.where(share >= 0.5, total / np.maximum(share, 1e-6) * scale, np.nan).astype(np.float32)


def _resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = size[0] <= picture.shape[0] and size[1] <= picture.shape[1]
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _check_left(prepared: list[_Prepared], unreadable: dict[str, str], total: int, max_share: float) -> None:
    if unreadable and (not prepared or len(unreadable) / total > max_share):
        raise NothingLeftError(
            f"{len(unreadable)} of {total} clips cannot be read, pairs.max_rejected_share allows {max_share:.0%}: "
            f"{_list_reasons(unreadable)}"
        )
    if not any(GOOD in one.faults for one in prepared):
        dropped = _count_dropped(prepared)
        counts = (
            ", ".join(f"{reason} {count}" for reason, count in dropped.items() if count) or "no two frames in a clip"
        )
        raise NothingLeftError(
            f"no pair of frames is left of {total} clips, dropped: {counts}: give video in which things move, "
            "or relax the limits of `pairs` in params.yaml"
        )


def _write_pairs(folder: Path, clips: list[StoredClip], prepared: list[_Prepared]) -> Counter[str]:
    """pairs.parquet, in ascending rows; returns the number of pairs per split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        "clip_id": pa.string(),
        "row_a": pa.int64(),
        "row_b": pa.int64(),
        "dt_s": pa.float64(),
        "split": pa.string(),
    }
    schema = pa.schema(kinds)
    counts: Counter[str] = Counter()
    waiting: list[Any] = []
    with pq.ParquetWriter(folder / "pairs.parquet", schema) as writer:
        for clip, one in zip(clips, prepared, strict=True):
            good = np.flatnonzero(np.frombuffer(one.faults, np.uint8) == GOOD)
            row_a = clip.first_row + good
            columns = {
                "clip_id": pa.repeat(pa.scalar(clip.clip_id, pa.string()), len(good)),
                "row_a": row_a,
                "row_b": row_a + 1,
                "dt_s": np.diff(one.times_us)[good] / 1e6,
                "split": pa.repeat(pa.scalar(clip.split, pa.string()), len(good)),
            }
            waiting.append(pa.table(columns, schema=schema))
            counts[clip.split] += len(good)
            if sum(map(len, waiting)) >= _ROWS_AT_ONCE:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        writer.write_table(pa.concat_tables([schema.empty_table(), *waiting]))
    return counts


def _write_dropped(folder: Path, prepared: list[_Prepared], unreadable: dict[str, str]) -> None:
    per_clip = {one.clip.clip_id: _count_dropped([one]) for one in prepared}
    document = {
        "total": _count_dropped(prepared),
        "clips": {
            clip_id: {reason: count for reason, count in counts.items() if count}
            for clip_id, counts in per_clip.items()
            if any(counts.values())
        },
        "unreadable": [{"clip_id": clip_id, "reason": reason} for clip_id, reason in unreadable.items()],
    }
    write_json(folder / "dropped.json", document)


def _count_dropped(prepared: list[_Prepared]) -> dict[str, int]:
    return {reason: sum(one.faults.count(place) for one in prepared) for place, reason in enumerate(REASONS, GOOD + 1)}


def _list_reasons(unreadable: dict[str, str]) -> str:
    shown = "; ".join(list(unreadable.values())[:_REASONS_SHOWN])
    more = len(unreadable) - _REASONS_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown


def _summarise(
    clips: list[StoredClip],
    counts: Counter[str],
    prepared: list[_Prepared],
    unreadable: dict[str, str],
    *,
    all_train: bool,
) -> str:
    in_split = Counter(clip.split for clip in clips)
    parts = ", ".join(f"{split} {counts[split]} from {in_split[split]} clips" for split in SPLITS)
    text = f"pairs: {counts.total()} pairs ({parts})"
    dropped = {reason: count for reason, count in _count_dropped(prepared).items() if count}
    if dropped:
        text += f"; {sum(dropped.values())} dropped: " + ", ".join(f"{r} {n}" for r, n in dropped.items())
    if unreadable:
        text += f"; {len(unreadable)} clips set aside: {_list_reasons(unreadable)} (all in data/pairs/dropped.json)"
    slow = [one.accepted_hz for one in prepared if one.accepted_hz is not None]
    if slow:
        text += f"; {len(slow)} clips down to {min(slow):g} Hz, below pairs.min_rate_hz, as accepted when ingested"
    if all_train:
        text += "; no pair fell into the train split, so all clips are in it: scores on them say little about new video"
    return text
