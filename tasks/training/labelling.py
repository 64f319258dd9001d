"""Labels of the train split: the labeller over its clips, kept so that a killed training need not repeat it."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.motion_labels.config import MotionLabelsConfig
from models.motion_labels.labeller import label_clip
from tasks.errors import DataError, MosisError, NothingLeftError, StorageError
from tasks.files import atomic_folder, read_json, write_json
from tasks.frames import FrameStore, StoredClip, open_clip
from tasks.labels import LabelStore, LabelWriter
from tasks.pool import WorkerDied, map_unordered


@dataclass(frozen=True)
class Labels:
    """images: frames with at least one label. seconds: what making them took, whenever that was. added: by a teacher,
    `tasks.training.teacher`. failed: clips without labels since the labeller failed on them, clip_id and reason.
    """

    store: LabelStore
    images: int
    seconds: float
    reused: bool
    added: int = 0
    failed: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class _Job:
    """One clip of the frame store in `pairs`, whose frames are of `size`, to be labelled into `folder`."""

    pairs: Path
    clip: StoredClip
    size: tuple[int, int]
    config: MotionLabelsConfig
    folder: Path


def label_train_clips(
    pairs: Path,
    store: FrameStore,
    config: MotionLabelsConfig,
    folder: Path,
    *,
    workers: int,
    executor: Executor | None = None,
) -> Labels:
    """Labels of every train clip as a LabelStore in `folder`, whose name must change with data, settings and code.

    Finished clips are kept beside it until all are done, so a run that was killed goes on where it was. A clip on
    which the labeller fails is left out, named and recorded. Raises NothingLeftError where nothing moves, or every clip
    failed, MosisError where memory did not suffice for a clip: that is no property of the clip, and labels without it
    would stand for those of the data.
    """
    if not folder.is_dir():
        clips = [clip for clip in store.clips if clip.split == "train"]
        _make(pairs, clips, store.size, config, folder, workers, executor)
        reused = False
    else:
        reused = True
    labels = LabelStore.open(folder)
    if not labels.count:
        raise NothingLeftError(
            f"the labeller found nothing that moves on its own in {pairs}: use clips in which things move against "
            "their background, or lower train.motion_labels.min_area or min_speed"
        )
    made = read_json(folder / "made.json")
    return Labels(labels, len(labels.labelled_rows()), float(made["seconds"]), reused, failed=made.get("failed", []))


def _make(
    pairs: Path,
    clips: list[StoredClip],
    size: tuple[int, int],
    config: MotionLabelsConfig,
    folder: Path,
    workers: int,
    executor: Executor | None,
) -> None:
    started = time.perf_counter()
    parts = folder.with_name(f"{folder.name}.parts")
    todo = [
        _Job(pairs, clip, size, config, parts / clip.clip_id) for clip in clips if not (parts / clip.clip_id).is_dir()
    ]
    failed: list[dict[str, str]] = []
    died: list[str] = []
    for outcome in map_unordered(_label, todo, workers, "label clips", executor=executor):
        if isinstance(outcome.error, StorageError):
            raise outcome.error
        if outcome.error is not None:
            clip, reason = outcome.item.clip, " ".join(str(outcome.error).split()) or type(outcome.error).__name__
            print(f"labels: left out {clip.source}: {reason}", file=sys.stderr, flush=True)
            failed.append({"clip_id": clip.clip_id, "reason": reason})
            if isinstance(outcome.error, WorkerDied | MemoryError):
                died.append(clip.clip_id)
    if died:
        raise MosisError(
            f"labels: {len(died)} clips ended their process, most likely for want of memory ({', '.join(died[:5])}): "
            "run again, what is labelled is kept; should it happen again, lower train.workers or take them out"
        )
    if clips and len(failed) == len(clips):
        raise NothingLeftError(f"no clip could be labelled, first {failed[0]['clip_id']}: {failed[0]['reason']}")
    with atomic_folder(folder) as temporary:
        with LabelWriter(temporary, size) as writer:
            for clip in sorted(clips, key=lambda clip: clip.first_row):
                if (parts / clip.clip_id).is_dir():
                    writer.extend(LabelStore.open(parts / clip.clip_id), first_row=clip.first_row)
        seconds = round(time.perf_counter() - started, 1)
        write_json(temporary / "made.json", {"seconds": seconds, "failed": failed})
    shutil.rmtree(parts, ignore_errors=True)


def _label(job: _Job) -> int:
    """Number of instances found; runs in a process of its own."""
    frames = open_clip(job.pairs, job.clip, job.size)
    found = label_clip(np.ascontiguousarray(frames), job.config)
    if len(found) != job.clip.frames:
        raise DataError(f"the labeller gave {len(found)} results for {job.clip.frames} frames")
    return LabelStore.write(job.folder, job.size, enumerate(found))
