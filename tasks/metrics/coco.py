"""Class-agnostic COCO AP and AR of masks and boxes, by pycocotools, from memory and at the truth's own resolution.

Needs torch, numpy and pycocotools alone, so that the training loop can use it on a bare machine.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from models.common.instances import Instances
from tasks.formats.rle import RLE, encode_masks, mask_areas

Kind = Literal["mask", "box"]
Scores = dict[str, float | None]
"""AP, AP50, ... AR100 of one kind, each in [0, 1], or None where there is nothing to score."""

_IOU_TYPES: dict[Kind, str] = {"mask": "segm", "box": "bbox"}
_CATEGORY = 1
_MAX_DETECTIONS = (1, 10, 100)
_AREAS = ("all", "small", "medium", "large")
"""In the order of pycocotools: small below 32^2 pixels of the truth, large above 96^2."""


@dataclass(frozen=True)
class Curve:
    """Precision at 101 evenly spaced recalls, 0 to 1, at one IoU threshold; all instances, 100 detections an image."""

    kind: Kind
    iou: float
    recall: np.ndarray
    precision: np.ndarray


class CocoEvaluator:
    """Collects images one by one (masks are kept as run lengths) and scores them together.

    `evaluate` and `curves` may be called at any time and as often as wanted.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sizes: dict[int, tuple[int, int]] = {}
        self._truth: list[dict[str, Any]] = []
        self._detections: list[dict[str, Any]] = []

    @property
    def images(self) -> int:
        return len(self._sizes)

    @property
    def instances(self) -> int:
        """Of the truth, over all images."""
        return len(self._truth)

    def process(
        self,
        image_id: int,
        predictions: Instances,
        truth: Instances,
        *,
        prediction_rles: list[RLE] | None = None,
        truth_rles: list[RLE] | None = None,
    ) -> None:
        """Add one image; both must be in the same pixels. Masks that the caller has encoded already are taken so.

        Raises ValueError where the sizes differ or the image was given before.
        """
        if predictions.size != truth.size:
            raise ValueError(f"predictions of size {predictions.size} cannot be scored on truth of size {truth.size}")
        if image_id in self._sizes:
            raise ValueError(f"image {image_id} was given twice")
        self._sizes[image_id] = truth.size
        truth_rles = encode_masks(truth.masks) if truth_rles is None else truth_rles
        self._truth += _to_annotations(image_id, truth, truth_rles)
        rles = encode_masks(predictions.masks) if prediction_rles is None else prediction_rles
        self._detections += _to_annotations(image_id, predictions, rles)

    def evaluate(self, *, score_cut: float | None = None) -> dict[Kind, Scores]:
        """{"mask": {...}, "box": {...}}; with a cut, of the detections that score at least so much."""
        return {kind: _summarise(self._run(kind, score_cut)) for kind in _IOU_TYPES}

    def curves(self, ious: tuple[float, ...] = (0.5, 0.75)) -> list[Curve]:
        """Precision over recall, masks first; empty where there is no truth."""
        found: list[Curve] = []
        for kind in _IOU_TYPES:
            run = self._run(kind, None)
            for iou in ious:
                row = int(np.argmin(np.abs(run.params.iouThrs - iou)))
                precision = run.eval["precision"][row, :, 0, 0, -1]
                if (precision >= 0).all():
                    found.append(Curve(kind, iou, np.array(run.params.recThrs), precision))
        return found

    def _run(self, kind: Kind, score_cut: float | None) -> COCOeval:
        detections = [d for d in self._detections if score_cut is None or d["score"] >= score_cut]
        with contextlib.redirect_stdout(io.StringIO()):
            run = COCOeval(
                # COCO's size bins go by the mask of the truth, but by what is scored, mask or box, of a detection.
                self._to_coco(self._truth, area="mask_area"),
                self._to_coco(detections, area=f"{kind}_area"),
                _IOU_TYPES[kind],
            )
            run.params.maxDets = list(_MAX_DETECTIONS)
            run.evaluate()
            run.accumulate()
        return run

    def _to_coco(self, annotations: list[dict[str, Any]], *, area: str) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": h, "width": w} for i, (h, w) in self._sizes.items()],
            "categories": [{"id": _CATEGORY, "name": "object"}],
            # Numbered from 1: COCOeval takes a match with annotation 0 for no match. Copies, because it writes in them.
            "annotations": [
                {**annotation, "id": number, "area": annotation[area]}
                for number, annotation in enumerate(annotations, start=1)
            ],
        }
        coco.createIndex()
        return coco


def evaluate_coco(predictions: list[Instances], truth: list[Instances]) -> dict[Kind, Scores]:
    """The scores of images that all lie in memory: `CocoEvaluator` in one call."""
    evaluator = CocoEvaluator()
    for image_id, (found, expected) in enumerate(zip(predictions, truth, strict=True)):
        evaluator.process(image_id, found, expected)
    return evaluator.evaluate()


def _to_annotations(image_id: int, instances: Instances, rles: list[RLE]) -> list[dict[str, Any]]:
    boxes = instances.boxes.double().cpu().numpy()
    sides = boxes[:, 2:] - boxes[:, :2]
    return [
        {
            "image_id": image_id,
            "category_id": _CATEGORY,
            "segmentation": rle,
            "bbox": [*corner.tolist(), *side.tolist()],
            "score": float(score),
            "iscrowd": 0,
            "mask_area": float(area),
            "box_area": float(side.prod()),
        }
        for rle, corner, side, score, area in zip(
            rles, boxes[:, :2], sides, instances.scores.tolist(), mask_areas(rles), strict=True
        )
    ]


def _summarise(run: COCOeval) -> Scores:
    precision, recall = run.eval["precision"], run.eval["recall"]  # (T, R, 1, A, M), (T, 1, A, M)
    at_50, at_75 = (int(np.argmin(np.abs(run.params.iouThrs - iou))) for iou in (0.5, 0.75))
    small, medium, large = (_AREAS.index(name) for name in ("small", "medium", "large"))
    return {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[at_50, ..., 0, -1]),
        "AP75": _mean(precision[at_75, ..., 0, -1]),
        "APs": _mean(precision[..., small, -1]),
        "APm": _mean(precision[..., medium, -1]),
        "APl": _mean(precision[..., large, -1]),
        **{f"AR{most}": _mean(recall[..., 0, column]) for column, most in enumerate(_MAX_DETECTIONS)},
    }


def _mean(values: np.ndarray) -> float | None:
    """pycocotools marks what it could not score with -1."""
    scored = values[values > -1]
    return float(scored.mean()) if scored.size else None
