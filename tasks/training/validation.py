"""What a model predicts on a fixed choice of frames: AP where there is truth, label-free figures, sample pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.common.images import to_tensor
from models.common.instances import Instances
from models.interface import Segmenter
from tasks.frames import FrameStore
from tasks.labels import LabelStore
from tasks.metrics.coco import evaluate_coco
from tasks.pictures import detection_panels, write_jpeg
from tasks.training.collapse import CONFIDENT, PredictionStats, describe

SCORE_FLOOR = 0.02
BATCH = 16
PICTURES = 4
COLUMNS = ("iteration", "mask_AP50", "mask_AP", "box_AP", "instances_per_image", "coverage")


@dataclass(frozen=True)
class Validation:
    """Frames to look at again and again. known: what each should hold, None where nothing is known.

    split: which split they are from. has_truth: whether `known` is ground truth, so that AP means something.
    """

    rows: np.ndarray
    known: list[Instances] | None
    split: str
    has_truth: bool


def choose_frames(store: FrameStore, labels: LabelStore | None, *, most: int) -> Validation:
    """Up to `most` frames, evenly spaced over the val split, or the train split where there is no val split.

    Frames with ground truth if there are any, and only those. Else training labels stand in, for pictures alone.
    """
    split = "val" if any(clip.split == "val" for clip in store.clips) else "train"
    clips = [clip for clip in store.clips if clip.split == split]
    true_clips = [clip for clip in clips if clip.truth] if store.truth is not None else []
    true_rows = [clip.truth_rows() for clip in true_clips]
    rows = _spread(np.concatenate(true_rows or [np.arange(clip.first_row, clip.stop) for clip in clips]), most)
    source = store.truth if true_clips else labels if split == "train" else None
    known = None if source is None else [source[int(row)] for row in rows]
    return Validation(rows, known, split, bool(true_clips))


def validate(
    model: Segmenter, store: FrameStore, frames: Validation, device: torch.device, dtype: torch.dtype | None
) -> tuple[dict[str, float | None], PredictionStats, list[Instances]]:
    """(a row of COLUMNS without the iteration, statistics for the collapse check, predictions on the CPU)."""
    predictions: list[Instances] = []
    for start in range(0, len(frames.rows), BATCH):
        images = to_tensor(store.gather(frames.rows[start : start + BATCH]), device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            found = model.predict(images, score_threshold=SCORE_FLOOR)
        predictions += [Instances(i.boxes.float(), i.scores.float(), i.masks).to("cpu") for i in found]
    stats = describe(predictions)
    figures: dict[str, float | None] = {"mask_AP50": None, "mask_AP": None, "box_AP": None}
    if frames.has_truth and frames.known is not None:
        scores = evaluate_coco(predictions, frames.known)
        figures = {"mask_AP50": scores["mask"]["AP50"], "mask_AP": scores["mask"]["AP"], "box_AP": scores["box"]["AP"]}
    return {**figures, "instances_per_image": stats.instances_per_image, "coverage": stats.coverage}, stats, predictions


def write_picture(path: Path, store: FrameStore, frames: Validation, predictions: list[Instances]) -> None:
    """Up to PICTURES rows of frame | confident detections | truth or labels, as one JPEG."""
    panels = []
    for index in _spread(np.arange(len(frames.rows)), PICTURES):
        found = predictions[index]
        known = None if frames.known is None else frames.known[index]
        frame = store.frame(int(frames.rows[index]))
        panels.append(detection_panels(frame, found[found.scores >= CONFIDENT], known))
    if panels:
        write_jpeg(path, np.concatenate(panels))


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `values`, evenly spaced, in the middle of equal parts."""
    count = min(most, len(values))
    return values[((np.arange(count) + 0.5) * len(values) / max(count, 1)).astype(np.int64)]
