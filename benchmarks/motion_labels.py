"""How good the labels are that motion alone gives, against truth that the labeller never sees.

`python -m benchmarks.motion_labels`: generated video of seeds on which no setting was chosen (those were 100 to 102 and
200 to 202) and that no other table uses, and four DAVIS 2016 sequences where ../shared/data (or MOSIS_SHARED_DATA) has
them. DAVIS names one object a frame; others may move too, so its precision is a lower bound. Nothing is trained.
Runs with torch, numpy, cv2 and pycocotools.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.data import generator_settings
from benchmarks.harness import ROOT, Report, Row, add_output_options, format_table, start
from benchmarks.scores import iou_table
from models.common.instances import Instances
from models.motion_labels.config import MotionLabelsConfig
from models.motion_labels.labeller import label_clip
from tasks.metrics.coco import evaluate_coco
from tasks.sources.synthetic import generate_video

SEQUENCES = ("dog", "car-shadow", "goat", "blackswan")
SIZE = (128, 224)
START = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=12, help="generated videos")
    parser.add_argument("--frames", type=int, default=20, help=f"frames of each, from number {START} on")
    parser.add_argument("--seed", type=int, default=300, help="generator seed of the first four videos; then the next")
    parser.add_argument("--davis-frames", type=int, default=0, help="at most this many of each sequence; 0 takes all")
    add_output_options(parser)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    report = Report("motion_labels", options)
    done = {row["row"] for row in report.rows}
    if options.videos and "generated" not in done:
        report.add({"row": "generated", **score_generated(options.videos, options.frames, options.seed)})
    for name, clip in read_sequences(options.davis_frames):
        if name not in done:
            report.add({"row": name, **score_sequence(*clip)})
    report.finish(show(report.rows), threads=1)


def score_generated(videos: int, frames: int, seed: int) -> Row:
    """One row over `videos` generated videos."""
    labels: list[Instances] = []
    truth: list[Instances] = []
    seconds = 0.0
    for number in range(videos):
        clip, masks = generate(seed + number // 4, number % 4, frames)
        started = time.process_time()
        labels += label_clip(clip, MotionLabelsConfig())
        seconds += time.process_time() - started
        truth += [Instances.from_masks(torch.from_numpy(masks[:, t])) for t in range(len(clip))]
    scores = evaluate_coco(labels, truth)
    return {
        "videos": videos,
        "mask": scores["mask"],
        "box": scores["box"],
        **compare(labels, truth, seconds),
    }


def generate(seed: int, index: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) uint8 and masks (D, T, H, W) bool of the middle of one video of the thesis' generator."""
    video = generate_video(generator_settings(seed), index)
    window = slice(START, START + frames)
    return video.frames[window], video.masks[:, window]


def read_sequences(most: int) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Name, frames (T, H, W, 3) uint8 and masks (T, H, W) bool of the DAVIS sequences that are there."""
    folder = Path(os.environ.get("MOSIS_SHARED_DATA") or ROOT.parent / "shared" / "data") / "davis2016"
    for name in SEQUENCES:
        files = sorted((folder / name / "JPEGImages").glob("*.jpg"))[: most or None]
        if not files:
            print(f"{name}: not in {folder}, left out", file=sys.stderr)
            continue
        masks = [folder / name / "Annotations" / f"{file.stem}.png" for file in files]
        frames = np.stack([_shrink(_read(file, cv2.IMREAD_COLOR)[..., ::-1]) for file in files])
        yield name, (frames, np.stack([_shrink(_read(mask, cv2.IMREAD_GRAYSCALE)) > 127 for mask in masks]))


def _read(path: Path, mode: int) -> np.ndarray:
    image = cv2.imread(str(path), mode)
    if image is None:
        raise SystemExit(f"{path} cannot be read: is the folder complete?")
    return image


def _shrink(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA)


def score_sequence(frames: np.ndarray, masks: np.ndarray) -> Row:
    """One row of a sequence whose truth names a single object: no AP, other objects may move in it too."""
    started = time.process_time()
    labels = label_clip(frames, MotionLabelsConfig())
    seconds = time.process_time() - started
    truth = [Instances.from_masks(torch.from_numpy(mask[None])) for mask in masks]
    return {"videos": 1, **compare(labels, truth, seconds)}


def compare(labels: list[Instances], truth: list[Instances], seconds: float) -> Row:
    """Best-match IoU of true instances (mean, and share above .5), and how confidence follows a label's own IoU."""
    tables = [iou_table(found.masks, expected.masks) for found, expected in zip(labels, truth, strict=True)]
    best = np.concatenate([table.max(0, initial=0) for table in tables])
    own = np.concatenate([table.max(1, initial=0) for table in tables])
    confidence = np.concatenate([found.scores.numpy() for found in labels])
    known = len(own) > 1 and own.std() > 0 and confidence.std() > 0
    return {
        "frames": len(labels),
        "best_iou": float(best.mean()) if len(best) else None,
        "recall_50": float((best > 0.5).mean()) if len(best) else None,
        "precision_50": float((own > 0.5).mean()) if len(own) else None,
        "labels_per_frame": len(own) / len(labels),
        "confidence_iou_correlation": float(np.corrcoef(confidence, own)[0, 1]) if known else None,
        "ms_per_frame": 1000 * seconds / len(labels),
    }


def show(rows: list[Row]) -> str:
    columns = ("best_iou", "recall_50", "precision_50", "labels_per_frame", "confidence_iou_correlation",
               "ms_per_frame")  # fmt: skip
    lines = [
        [row["row"], row["frames"], *(row.get("mask", {}).get(key) for key in ("AP50", "AP75", "AP"))]
        + [row[key] for key in columns]
        for row in rows
    ]
    titles = [key.replace("_", " ") for key in columns]
    table = format_table(["clips", "frames", "AP50", "AP75", "AP", *titles], lines)
    real = [row["best_iou"] for row in rows if row["row"] != "generated" and row["best_iou"] is not None]
    return table + (f"\nmean best IoU over {len(real)} real sequences: {np.mean(real):.3f}" if real else "")


if __name__ == "__main__":
    start(main)
