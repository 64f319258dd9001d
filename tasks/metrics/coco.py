"""Class-agnostic COCO AP and AR of masks and boxes, equal to pycocotools', at the truth's own resolution.

Images are compared as they come; what is kept of each is its tables of IoU, no mask. Needs torch, numpy and pycocotools
alone, so that the training loop can use it on a bare machine; faster-coco-eval makes it faster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pycocotools import mask as coco_mask

from models.common.instances import Instances
from tasks.errors import DataError
from tasks.formats.rle import RLE, encode_masks, mask_areas
from tasks.metrics.coco_engine import (
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    RECALLS,
    Engine,
    Ranges,
    Result,
    Scores,
    Table,
    match,
    summarise,
)

Kind = Literal["mask", "box"]
KINDS: tuple[Kind, ...] = ("mask", "box")


@dataclass(frozen=True)
class Encoded:
    """Instances of one image whose masks are run lengths of the image's size.

    boxes: (N, 4) x1 y1 x2 y2 in pixels. scores: (N,). crowd: (N,) bool, for truth that stands for many objects: what
    lies in it is neither right nor wrong; None where there is none.
    """

    boxes: np.ndarray
    scores: np.ndarray
    rles: list[RLE]
    crowd: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rles)

    def ranked(self, most: int | None = None) -> Encoded:
        """By falling score, the best `most`; equal ones by masks and boxes: the order they came in is no matter."""
        crowd = np.zeros(len(self), bool) if self.crowd is None else self.crowd
        masks = [rle["counts"] for rle in self.rles]
        keys = list(zip((-self.scores).tolist(), masks, self.boxes.tolist(), crowd.tolist(), strict=True))
        order = sorted(range(len(keys)), key=keys.__getitem__)[:most]
        return Encoded(self.boxes[order], self.scores[order], [self.rles[i] for i in order], crowd[order])


@dataclass(frozen=True)
class Curve:
    """Precision at 101 evenly spaced recalls, 0 to 1, at one IoU threshold; all instances, 100 detections an image."""

    kind: Kind
    iou: float
    recall: np.ndarray
    precision: np.ndarray


class CocoEvaluator:
    """Collects images one by one and scores them together.

    `evaluate` and `curves` may be called at any time and as often as wanted. The order of images and of the instances
    in them changes nothing: where scores are equal, content decides.
    """

    def __init__(self, *, engine: Engine | None = None) -> None:
        self._engine = engine
        self.reset()

    def reset(self) -> None:
        self._images: dict[int, dict[Kind, Table]] = {}
        self._results: dict[tuple[Kind, float | None], Result] = {}

    @property
    def images(self) -> int:
        return len(self._images)

    @property
    def instances(self) -> int:
        """Of the truth, over all images."""
        return sum(len(tables["mask"].true_areas) for tables in self._images.values())

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

        Raises ValueError where the sizes differ or the image was given before, DataError for a box or score that is
        no number.
        """
        if predictions.size != truth.size:
            raise ValueError(f"predictions of size {predictions.size} cannot be scored on truth of size {truth.size}")
        self.process_encoded(
            image_id,
            _encode(predictions, prediction_rles),
            _encode(truth, truth_rles),
        )

    def process_encoded(self, image_id: int, predictions: Encoded, truth: Encoded) -> None:
        """`process` of masks that are run lengths from the start."""
        if image_id in self._images:
            raise ValueError(f"image {image_id} was given twice")
        for what, instances in (("detections", predictions), ("truth", truth)):
            if not (np.isfinite(instances.boxes).all() and np.isfinite(instances.scores).all()):
                raise DataError(f"image {image_id}: a box or score of the {what} is not a finite number: drop it")
        self._images[image_id] = _compare(predictions.ranked(MAX_DETECTIONS[-1]), truth.ranked())
        self._results.clear()

    def evaluate(self, *, score_cut: float | None = None) -> dict[Kind, Scores]:
        """{"mask": {...}, "box": {...}}; with a cut, of the detections that score at least so much."""
        return {kind: summarise(self._match(kind, score_cut)) for kind in KINDS}

    def curves(self, ious: tuple[float, ...] = (0.5, 0.75)) -> list[Curve]:
        """Precision over recall, masks first; empty where there is no truth."""
        found: list[Curve] = []
        for kind in KINDS:
            for iou in ious:
                row = int(np.argmin(np.abs(IOU_THRESHOLDS - iou)))
                precision = self._match(kind, None).precision[row, :, 0, -1]
                if (precision >= 0).all():
                    found.append(Curve(kind, iou, RECALLS, precision))
        return found

    def _match(self, kind: Kind, score_cut: float | None) -> Result:
        if (kind, score_cut) not in self._results:
            tables = [tables[kind].cut(score_cut) for tables in self._images.values()]
            self._results[kind, score_cut] = match(tables, Ranges(), engine=self._engine)
        return self._results[kind, score_cut]


def evaluate_coco(predictions: list[Instances], truth: list[Instances]) -> dict[Kind, Scores]:
    """The scores of images that all lie in memory: `CocoEvaluator` in one call."""
    evaluator = CocoEvaluator()
    for image_id, (found, expected) in enumerate(zip(predictions, truth, strict=True)):
        evaluator.process(image_id, found, expected)
    return evaluator.evaluate()


def _encode(instances: Instances, rles: list[RLE] | None) -> Encoded:
    rles = encode_masks(instances.masks) if rles is None else rles
    if len(rles) != len(instances):
        raise ValueError(f"{len(rles)} encoded masks for {len(instances)} instances")
    return Encoded(instances.boxes.double().cpu().numpy(), instances.scores.double().cpu().numpy(), rles)


def _compare(found: Encoded, truth: Encoded) -> dict[Kind, Table]:
    boxes, true_boxes = _to_xywh(found.boxes), _to_xywh(truth.boxes)
    crowd = np.zeros(len(truth), bool) if truth.crowd is None else truth.crowd
    # COCO's size bins go by the mask of the truth, but by what is scored, mask or box, of a detection.
    by_mask = Table(
        scores=found.scores,
        ious=_iou(found.rles, truth.rles, crowd),
        areas=mask_areas(found.rles),
        true_areas=mask_areas(truth.rles),
        crowd=crowd,
    )
    return {
        "mask": by_mask,
        "box": replace(by_mask, ious=_iou(boxes, true_boxes, crowd), areas=boxes[:, 2] * boxes[:, 3]),
    }


def _iou(found: list[RLE] | np.ndarray, truth: list[RLE] | np.ndarray, crowd: np.ndarray) -> np.ndarray:
    ious = coco_mask.iou(found, truth, crowd.tolist())
    return np.asarray(ious, dtype=np.float64).reshape(len(found), len(truth))


def _to_xywh(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) corners -> (N, 4) float64 corner and sides."""
    boxes = boxes.astype(np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
