"""Weights + clips -> COCO scores where there is truth, label-free figures, curves, detections and pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from models.common.instances import Instances
from tasks import tracking
from tasks.clips import ClipEntry, ClipReader, open_clips
from tasks.errors import DataError, NothingLeftError
from tasks.evaluation_frames import Choice, choose_frames, read_splits
from tasks.evaluation_scores import TruthScores
from tasks.files import atomic_folder, atomic_path, write_json
from tasks.formats.fields import CATEGORY_ID
from tasks.formats.json_lists import JsonList
from tasks.formats.rle import RLE, encode_masks
from tasks.gallery import Gallery, WorstFrames, spread
from tasks.metrics.coco import Curve
from tasks.metrics.label_free import LabelFreeEvaluator
from tasks.metrics.matching import fit_frame
from tasks.metrics.table import describe_scores
from tasks.optical_flow import estimate_flow
from tasks.params import EvaluateParams, Params
from tasks.pictures import detection_panels, flow_panels
from tasks.predict import Predictor, predict_frames, shared_cores
from tasks.progress import Progress

Predict = Callable[[Sequence[np.ndarray], float | None], list[Instances]]

_FLOW_PICTURES = 4
_WORST_PICTURES = 6


def run(params: Params, workspace: Path) -> None:
    """Write outputs/evaluate. Raises MosisError where there is nothing to evaluate or no weights."""
    settings = params.evaluate
    train, folder = workspace / "outputs" / "train", workspace / "outputs" / "evaluate"
    clips = open_clips(workspace / "data" / "clips")
    splits = read_splits(workspace / "data" / "pairs" / "splits.json")
    choice = choose_frames(clips, splits, settings.split, settings.max_images)
    predictor = Predictor.load(
        train / "weights.safetensors", train / "params.resolved.yaml", device=params.train.device
    )
    with shared_cores():
        metrics = evaluate(predictor, choice, settings, folder)
    tracking.log_results(workspace, metrics, [folder / "metrics.json", folder / "curves.csv"], prefix="evaluate")
    print_scores(metrics)


def evaluate(predictor: Predict, choice: Choice, settings: EvaluateParams, folder: Path) -> dict[str, Any]:
    """Predict the chosen frames, score them, write all files into `folder`, each whole or not at all.

    Returns what metrics.json holds. Raises NothingLeftError where no clip could be read.
    """
    with JsonList(folder / "detections.json") as detections, atomic_folder(folder / "pictures") as pictures:
        scoring = Scoring(settings, choice, detections, Gallery(pictures))
        with Progress("evaluate", choice.images) as progress:
            for entry, indices in choice.frames:
                scoring.add_clip(predictor, entry, indices, progress)
        scoring.finish_pictures()
    write_json(folder / "pictures.json", scoring.gallery.entries)
    write_curves(folder / "curves.csv", scoring.scores.curves())
    metrics = scoring.summarise()
    write_json(folder / "metrics.json", metrics)
    return metrics


class Scoring:
    """What is gathered while frames go by; holds run lengths and a few small pictures, never the frames."""

    def __init__(self, settings: EvaluateParams, choice: Choice, detections: JsonList, gallery: Gallery) -> None:
        self.settings = settings
        self.choice = choice
        self.detections = detections
        self.gallery = gallery
        self.scores = TruthScores(settings.score_cut)
        self.label_free = LabelFreeEvaluator()
        self.worst = WorstFrames(_WORST_PICTURES)
        self.set_aside: list[dict[str, str]] = []
        self.images = 0
        flows = min(_FLOW_PICTURES, settings.pictures)
        # Nothing below the cut is used where nothing is scored.
        self.threshold = settings.score_floor if choice.has_truth else settings.score_cut
        self._shown = set(spread(choice.images, settings.pictures))
        self._shown_flows = set(spread(choice.images, flows))

    def add_clip(self, predictor: Predict, entry: ClipEntry, indices: list[int], progress: Progress) -> None:
        """One clip; a broken one is set aside, and what was read of it stays."""
        path = entry.path
        done = 0
        try:
            with ClipReader(path) as reader:
                if indices[-1] >= len(reader):
                    raise DataError(f"{path} has {len(reader)} frames, fewer than its manifest says: ingest it again")
                self.scores.begin_clip(entry, len(indices))
                previous = None
                for index, frame, found in predict_frames(
                    predictor,
                    reader,
                    indices,
                    batch_size=self.settings.batch_size,
                    score_threshold=self.threshold,
                ):
                    self._add_frame(reader, index, frame, found, follows=previous == index - 1)
                    previous, done = index, done + 1
                    progress.advance()
                self.scores.finish_clip()
        except DataError as error:
            self.set_aside.append({"clip_id": path.stem, "reason": str(error)})
            self.images += len(indices) - done  # so that the other clips' pictures stay where they were planned
            progress.advance(len(indices) - done)

    def _add_frame(self, reader: ClipReader, index: int, frame: np.ndarray, found: Instances, *, follows: bool) -> None:
        position, image_id = self.images, self.images + 1
        self.images += 1
        confident = found[found.scores >= self.settings.score_cut]
        self.label_free.process(frame, confident, follows=follows)
        truth = reader.truth(index) if self.choice.has_truth else None
        rles = encode_masks(found.masks)
        self._write_detections(image_id, reader.info.clip_id, index, found, rles)
        if truth is not None:
            truth_rles = encode_masks(truth.masks)
            self.scores.add_frame(image_id, frame, found, truth, rles, truth_rles, void=reader.void(index))
            # Best score first, so that the confident ones are the first of all.
            scores = confident.scores.tolist()
            fit = fit_frame(rles[: len(scores)], scores, truth_rles)
            self.worst.offer(fit, reader, index, lambda: detection_panels(frame, confident, truth))
        if position in self._shown:
            caption = "frame, detections" + ("" if truth is None else ", truth")
            self.gallery.add("detections", detection_panels(frame, confident, truth), caption, reader.info, index)
        if position in self._shown_flows:
            self._add_flow_picture(reader, index, frame)

    def _write_detections(self, image_id: int, clip_id: str, index: int, found: Instances, rles: list[RLE]) -> None:
        for rle, (x1, y1, x2, y2), score in zip(rles, found.boxes.tolist(), found.scores.tolist(), strict=True):
            self.detections.append(
                {
                    "image_id": image_id,
                    "category_id": CATEGORY_ID,
                    "segmentation": rle,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                    "clip_id": clip_id,
                    "frame": index,
                }
            )

    def _add_flow_picture(self, reader: ClipReader, index: int, frame: np.ndarray) -> None:
        index = min(index, len(reader) - 2)
        if index < 0:
            return
        frame = reader.frame(index)
        estimated, true = estimate_flow(frame, reader.frame(index + 1)), reader.flow(index)
        fields = [estimated] if true is None else [estimated, true]
        caption = "frame, estimated optical flow to the next" + ("" if true is None else ", true optical flow")
        self.gallery.add("optical_flow", flow_panels(frame, fields), caption, reader.info, index)

    def finish_pictures(self) -> None:
        """Write the worst frames, worst first."""
        if len(self.set_aside) == len(self.choice.frames):
            reasons = f": {self.set_aside[0]['reason']}" if self.set_aside else ""
            raise NothingLeftError(f"no clip could be evaluated{reasons}")
        for fit, info, index, picture in self.worst.frames():
            caption = f"F1 {fit.f1:.2f} at IoU .5; frame, detections, truth"
            self.gallery.add("worst", picture, caption, info, index)

    def summarise(self) -> dict[str, Any]:
        return {
            "split": self.choice.split,
            "note": self.choice.note,
            "score_cut": self.settings.score_cut,
            **self.scores.summarise(),
            "label_free": self.label_free.evaluate(),
            "set_aside": self.set_aside,
        }


def write_curves(path: Path, curves: Sequence[Curve]) -> None:
    """CSV with the columns curve (mask_50, mask_75, box_50, box_75), recall, precision."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("curve", "recall", "precision"))
        for curve in curves:
            name = f"{curve.kind}_{round(100 * curve.iou)}"
            rows = zip(curve.recall.tolist(), curve.precision.tolist(), strict=True)
            writer.writerows((name, f"{recall:.2f}", f"{precision:.6f}") for recall, precision in rows)


def print_scores(metrics: dict[str, Any]) -> None:
    """The figures for people, on standard output."""
    Console(highlight=False, soft_wrap=True).print(*describe_scores(metrics), sep="\n")
