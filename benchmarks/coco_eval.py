"""COCO evaluation against pycocotools doing the same: `python -m benchmarks.coco_eval`.

5,000 made-up images of 1 to 14 objects and 32 detections, as run lengths in memory; masks and boxes, AP and AR. The
two take turns in one process. `speedup_vs_pycocotools` is the ratio of their best rounds, `equal` whether every score
is the same to six digits. `process` is comparing image by image, `evaluate` the scores of all. Where faster-coco-eval
is not installed, matching is pycocotools' own; the row says which.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.harness import Report, add_output_options, format_table, start
from tasks.metrics.coco import CocoEvaluator, Encoded, Kind
from tasks.metrics.coco_engine import installed_engine

SIZE = (480, 640)
RADII = (8.0, 120.0)
"""Pixels: small, medium and large ones by COCO's areas."""
_CORNERS = 24
_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
"""In the order of COCOeval.stats."""
_IOU_TYPES: dict[Kind, str] = {"mask": "segm", "box": "bbox"}

Image = tuple[Encoded, Encoded]
Scores = dict[Kind, dict[str, float | None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=32, help="an image")
    parser.add_argument("--rounds", type=int, default=2, help="of each, by turns")
    parser.add_argument("--seed", type=int, default=10)
    add_output_options(parser)
    options = parser.parse_args()
    report = Report("coco_eval", options)
    images = make_images(options.images, options.detections, options.seed)
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(score_ours(images))
        theirs.append(score_pycocotools(images))
    process, evaluate, scores = min(ours, key=lambda one: one[0] + one[1])
    seconds, expected = min(theirs, key=lambda one: one[0])
    report.add(
        {
            "row": "scores",
            "engine": installed_engine(),
            "objects": sum(len(truth) for _, truth in images),
            "seconds": {"process": process, "evaluate": evaluate, "pycocotools": seconds},
            "speedup_vs_pycocotools": seconds / (process + evaluate),
            "equal": are_equal(scores, expected),
            "scores": scores,
        }
    )
    [row] = report.rows[-1:]
    facts = {key: row[key] for key in ("speedup_vs_pycocotools", "equal")}
    report.finish(show(row), threads=1, **facts)


def make_images(count: int, detections: int, seed: int) -> list[Image]:
    """Detections and truth of each image; most detections are an object seen badly, the rest lie anywhere."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        objects = _draw_places(rng, int(rng.integers(1, 15)))
        near = objects[rng.integers(0, len(objects), detections)]
        near = near * np.exp(rng.normal(0, [0.0, 0.0, 0.15], near.shape))
        near[:, :2] += rng.normal(0, 0.2, (detections, 2)) * near[:, 2:]
        found = np.where(rng.random((detections, 1)) < 0.7, near, _draw_places(rng, detections))
        images.append((_encode(found, rng.random(detections)), _encode(objects, np.ones(len(objects)))))
    return images


def _draw_places(rng: np.random.Generator, count: int) -> np.ndarray:
    """(N, 3) x, y and radius in pixels; centres lie in the image."""
    height, width = SIZE
    radii = np.geomspace(*RADII, 1000)[rng.integers(0, 1000, count)]
    return np.stack([rng.uniform(0, width, count), rng.uniform(0, height, count), radii], axis=1)


def _encode(places: np.ndarray, scores: np.ndarray) -> Encoded:
    """Discs with three bulges, cut off at the borders of the image."""
    height, width = SIZE
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    reach = places[:, 2:] * (1 + 0.2 * np.sin(3 * angles))
    x = np.clip(places[:, :1] + reach * np.cos(angles), 0, width)
    y = np.clip(places[:, 1:2] + reach * np.sin(angles), 0, height)
    polygons = np.stack([x, y], axis=-1).reshape(len(places), -1).tolist()
    rles = [{**rle, "counts": rle["counts"].decode("ascii")} for rle in coco_mask.frPyObjects(polygons, height, width)]
    boxes = np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1)
    return Encoded(boxes, scores, rles)


def score_ours(images: list[Image]) -> tuple[float, float, Scores]:
    """Seconds of comparing, seconds of scoring, and the scores."""
    started = time.perf_counter()
    evaluator = CocoEvaluator()
    for number, (found, truth) in enumerate(images):
        evaluator.process_encoded(number, found, truth)
    compared = time.perf_counter()
    scores = evaluator.evaluate()
    return compared - started, time.perf_counter() - compared, scores


def score_pycocotools(images: list[Image]) -> tuple[float, Scores]:
    """Seconds and scores; annotations are made outside the clock but indexed in it, as a reader of files would."""
    scores: Scores = {}
    seconds = 0.0
    for kind, iou_type in _IOU_TYPES.items():
        truth = _annotate([truth for _, truth in images], "mask")
        found = _annotate([found for found, _ in images], kind)
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            run = COCOeval(_index(truth, len(images)), _index(found, len(images)), iou_type)
            run.evaluate()
            run.accumulate()
            run.summarize()
        seconds += time.perf_counter() - started
        scores[kind] = {
            name: None if value < 0 else float(value) for name, value in zip(_NAMES, run.stats, strict=False)
        }
    return seconds, scores


def _annotate(images: list[Encoded], area: Kind) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for image, instances in enumerate(images, start=1):
        sides = instances.boxes[:, 2:] - instances.boxes[:, :2]
        boxes = np.concatenate([instances.boxes[:, :2], sides], axis=1)
        for rle, box, score in zip(instances.rles, boxes.tolist(), instances.scores.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "segmentation": rle,
                    "bbox": box,
                    "area": float(coco_mask.area(rle)) if area == "mask" else box[2] * box[3],
                    "score": score,
                    "iscrowd": 0,
                }
            )
    return annotations


def _index(annotations: list[dict[str, Any]], images: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "height": SIZE[0], "width": SIZE[1]} for number in range(1, images + 1)],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def are_equal(scores: Scores, expected: Scores) -> bool:
    """Whether all scores of both kinds are the same to six digits."""
    return all(
        (one := scores[kind][name]) == other or (one is not None and other is not None and abs(one - other) < 5e-7)
        for kind, values in expected.items()
        for name, other in values.items()
    )


def show(row: dict[str, Any]) -> str:
    seconds = row["seconds"]
    line = [row["engine"], *seconds.values(), row["speedup_vs_pycocotools"], str(row["equal"])]
    return format_table(["engine", *(f"{name} (s)" for name in seconds), "speedup", "equal"], [line])


if __name__ == "__main__":
    start(main)
