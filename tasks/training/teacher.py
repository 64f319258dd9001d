"""A teacher: an earlier version of the model that adds to the motion labels what it is sure of, before a training.

Motion labels miss what stands still, and a missed object teaches that it is background. The teacher labels the train
split; tracks that it is sure of, that last and that move as one thing are added where no motion label lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from models.common.instances import Instances
from tasks.errors import DataError, ParamsError
from tasks.files import sha256_file
from tasks.frames import FrameStore
from tasks.labels import LabelStore
from tasks.linking import TrackLinker
from tasks.predict import TRAIN_AGAIN, Predictor
from tasks.quality import ClipQuality
from tasks.training.labelling import Labels
from tasks.training.self_training import add_missing

Predict = Callable[[Sequence[np.ndarray], float | None], list[Instances]]

WEIGHTS, SETTINGS = "weights.safetensors", "params.resolved.yaml"
_MAX_SETTINGS_BYTES = 2**20
_MAX_WEIGHTS_BYTES = 4 * 2**30
_LINK_IOU = 0.3
_BATCH = 16


@dataclass(frozen=True)
class Trust:
    """What a teacher's instance must reach to become a label.

    min_score: of the instance. The others: means over its track, so that a thing that stands still is believed for
    moving before or later, and a frame in which chance gave the background a gain is not (docs/adr/0008).
    """

    min_score: float
    min_photometric_gain: float
    min_temporal_iou: float


@dataclass(frozen=True)
class Teacher:
    """digest: hex SHA-256 over both files."""

    predict: Predict
    digest: str


def open_teacher(folder: str, workspace: Path, device: str) -> Teacher:
    """The model of workspace/FOLDER: weights.safetensors and the params.resolved.yaml of its training.

    Nothing is unpickled. Raises ParamsError, naming train.teacher, where there is no such model.
    """
    where = f"train.teacher: {folder[:200]!a}"
    relative = PurePosixPath(folder)
    if relative.is_absolute() or ".." in relative.parts or "\0" in folder:
        raise ParamsError(f"{where}: name a folder within the workspace, relative to it")
    weights, settings = workspace / relative / WEIGHTS, workspace / relative / SETTINGS
    for path, most in ((weights, _MAX_WEIGHTS_BYTES), (settings, _MAX_SETTINGS_BYTES)):
        try:
            fits = path.is_file() and path.stat().st_size <= most
        except OSError:
            fits = False
        if not fits:
            raise ParamsError(f"{where}: has no {path.name} of at most {most} bytes: name a trained model's folder")
    try:
        predict = Predictor.load(weights, settings, device=device)
        digests = f"{sha256_file(weights)} {sha256_file(settings)}"
    except (DataError, OSError) as error:
        fault = str(error).split(f": {TRAIN_AGAIN}")[0]  # which is for the model of this workspace
        raise ParamsError(f"{where}: not a model ({fault}): copy it there again, or set null") from None
    return Teacher(predict, hashlib.sha256(digests.encode()).hexdigest())


def add_taught(labels: Labels, teacher: Teacher, store: FrameStore, trust: Trust, folder: Path) -> Labels:
    """`labels` and what the teacher adds, kept in `folder`, whose name must change with all of these; made once."""
    if not folder.is_dir():
        LabelStore.write(folder, store.size, teach(teacher.predict, store, labels.store, trust))
    taught = LabelStore.open(folder)
    return replace(labels, store=taught, images=len(taught.labelled_rows()), added=taught.count - labels.store.count)


def teach(predict: Predict, store: FrameStore, labels: LabelStore, trust: Trust) -> Iterator[tuple[int, Instances]]:
    """(row, labels with additions) of every row of the train split that has any, in ascending order.

    An addition's confidence is the teacher's score. What lies on a label, or on a surer addition, is not added.
    """
    for clip in sorted(store.clips, key=lambda clip: clip.first_row):
        if clip.split == "train":
            found = find_trusted(predict, store.clip_frames(clip), trust)
            for offset in range(clip.frames):
                row = clip.first_row + offset
                merged = add_missing(labels[row], found[offset])
                if len(merged):
                    yield row, merged


def find_trusted(predict: Predict, frames: np.ndarray, trust: Trust) -> LabelStore:
    """What is found in the frames (T, H, W, 3) uint8 of one clip and can be trusted, by number of the frame."""
    gains: list[np.ndarray] = []
    overlaps: list[np.ndarray] = []

    def link() -> Iterator[tuple[int, Instances]]:
        linker, clip = TrackLinker(min_iou=_LINK_IOU), ClipQuality()
        for start in range(0, len(frames), _BATCH):
            part = [np.ascontiguousarray(frame) for frame in frames[start : start + _BATCH]]
            for offset, (frame, found) in enumerate(zip(part, predict(part, trust.min_score), strict=True)):
                found = Instances.from_masks(found.masks, found.scores)
                quality = clip.add(frame, found)
                gains.append(quality.photometric_gain)
                overlaps.append(quality.temporal_iou)
                yield start + offset, linker.link(frame, found)

    every = LabelStore.from_items((frames.shape[1], frames.shape[2]), link())
    kept = _trusted_tracks(every.track_ids, np.concatenate([*gains, []]), np.concatenate([*overlaps, []]), trust)
    chosen = np.isin(every.track_ids, kept)
    columns = (every.rows, every.packed, every.scores, every.track_ids)
    return LabelStore(every.size, *(column[chosen] for column in columns))


def _trusted_tracks(track_ids: np.ndarray, gains: np.ndarray, overlaps: np.ndarray, trust: Trust) -> list[int]:
    """Of which both are known in a frame at the least; one seen once is no track."""
    kept = []
    for track in np.unique(track_ids).tolist():
        gain, overlap = (values[track_ids == track] for values in (gains, overlaps))
        gain, overlap = gain[np.isfinite(gain)], overlap[np.isfinite(overlap)]
        known = len(gain) > 0 and len(overlap) > 0
        if known and gain.mean() >= trust.min_photometric_gain and overlap.mean() >= trust.min_temporal_iou:
            kept.append(track)
    return kept
