"""COCO's matching and its precision and recall, from tables of IoU: by faster-coco-eval, or by pycocotools without it.

Both are told the IoU, so that masks are compared once however often they are scored, and give the same numbers.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

MAX_DETECTIONS = (1, 10, 100)
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = ("all", "small", "medium", "large")
CATEGORY = 1
Engine = Literal["faster-coco-eval", "pycocotools"]

Scores = dict[str, float | None]
"""AP, AP50, ... AR100 of one kind, each in [0, 1], or None where there is nothing to score."""


@dataclass(frozen=True)
class Table:
    """Detections and truth of one image, or of one video.

    scores: (D,) falling, the best hundred at most. ious: (D, G) float64, against a crowd the share of the detection
    within it. areas: (D,) of the detections, true_areas: (G,), what `Ranges` sort by. crowd: (G,) bool, truth that
    forgives what is matched to it and need not be found.
    """

    scores: np.ndarray
    ious: np.ndarray
    areas: np.ndarray
    true_areas: np.ndarray
    crowd: np.ndarray

    def cut(self, score_cut: float | None) -> Table:
        """Without the detections below it. Matching goes by falling score: what is left is matched as before."""
        if score_cut is None:
            return self
        kept = int((self.scores >= score_cut).sum())
        return replace(self, scores=self.scores[:kept], ious=self.ious[:kept], areas=self.areas[:kept])

    def digest(self) -> bytes:
        """Of all numbers."""
        numbers = (self.scores, self.ious, self.areas, self.true_areas, self.crowd)
        content = b"".join(np.ascontiguousarray(one).tobytes() for one in numbers)
        return hashlib.blake2b(content + repr(self.ious.shape).encode(), digest_size=16).digest()


@dataclass(frozen=True)
class Ranges:
    """Areas below `medium` (and on the edge) are small, those from `large` on large; an edge counts on both sides."""

    medium: float = 32.0**2
    large: float = 96.0**2

    def bounds(self) -> list[list[float]]:
        """Least and greatest area, in the order of AREAS."""
        return [[0, 1e10], [0, self.medium], [self.medium, self.large], [self.large, 1e10]]


@dataclass(frozen=True)
class Result:
    """precision: (T, R, A, M) at IOU_THRESHOLDS, RECALLS, AREAS, MAX_DETECTIONS; recall: (T, A, M); -1: no truth."""

    precision: np.ndarray
    recall: np.ndarray


def match(tables: Sequence[Table], ranges: Ranges, *, engine: Engine | None = None) -> Result:
    """Greedy matching by falling score within each table, then precision and recall over all of them.

    Detections of equal score rank by the content of their tables, so that the order of these changes nothing. engine:
    None takes the fastest that is installed.
    """
    tables = sorted(tables, key=Table.digest)
    areas, counts = len(AREAS), len(MAX_DETECTIONS)
    if not any(len(table.true_areas) for table in tables):
        shape = (len(IOU_THRESHOLDS), len(RECALLS), areas, counts)
        return Result(np.full(shape, -1.0), np.full(shape[:1] + shape[2:], -1.0))
    coco, evaluation = _load(engine or installed_engine())
    truth = _annotate((table.true_areas, np.zeros(len(table.true_areas)), table.crowd) for table in tables)
    found = _annotate((table.areas, table.scores, np.zeros(len(table.areas), bool)) for table in tables)
    run = evaluation(_index(coco, truth, len(tables)), _index(coco, found, len(tables)), "bbox")
    run.tables = tables
    run.params.iouThrs, run.params.recThrs = IOU_THRESHOLDS, RECALLS
    run.params.maxDets = list(MAX_DETECTIONS)
    run.params.areaRng = ranges.bounds()
    with contextlib.redirect_stdout(io.StringIO()):
        run.evaluate()
        run.accumulate()
    shape = (len(IOU_THRESHOLDS), len(RECALLS), areas, counts)
    precision = np.asarray(run.eval["precision"], dtype=np.float64).reshape(shape)
    return Result(precision, np.asarray(run.eval["recall"], dtype=np.float64).reshape(shape[:1] + shape[2:]))


def summarise(result: Result) -> Scores:
    """AP and AR over all thresholds, AP at .5 and .75, AP by area, AR by how many detections are looked at."""
    at_50, at_75 = (int(np.argmin(np.abs(IOU_THRESHOLDS - iou))) for iou in (0.5, 0.75))
    everything, small, medium, large = range(len(AREAS))
    precision, recall = result.precision[..., -1], result.recall
    return {
        "AP": _mean(precision[..., everything]),
        "AP50": _mean(precision[at_50, ..., everything]),
        "AP75": _mean(precision[at_75, ..., everything]),
        "APs": _mean(precision[..., small]),
        "APm": _mean(precision[..., medium]),
        "APl": _mean(precision[..., large]),
        **{f"AR{most}": _mean(recall[:, everything, column]) for column, most in enumerate(MAX_DETECTIONS)},
    }


def _mean(values: np.ndarray) -> float | None:
    scored = values[values > -1]
    return float(scored.mean()) if scored.size else None


def installed_engine() -> Engine:
    """The fastest that is there."""
    with contextlib.suppress(ImportError):
        _load("faster-coco-eval")
        return "faster-coco-eval"
    return "pycocotools"


@functools.cache
def _load(engine: Engine) -> tuple[Any, Any]:
    """The classes of an index and of an evaluation that reads IoU from `tables`."""
    if engine == "faster-coco-eval":
        from faster_coco_eval import COCO
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster as COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    class Evaluation(COCOeval):
        tables: Sequence[Table] = ()

        def computeIoU(self, imgId: int, catId: int) -> Any:
            ious = self.tables[imgId - 1].ious
            return ious if ious.size else []

    return COCO, Evaluation


def _annotate(images: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """Areas, scores and crowd flags of each image as COCO's annotations.

    Numbered from 1: a match with annotation 0 is taken for no match.
    """
    annotations: list[dict[str, Any]] = []
    for image, (areas, scores, crowd) in enumerate(images, start=1):
        for area, score, flag in zip(areas.tolist(), scores.tolist(), crowd.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": CATEGORY,
                    "area": area,
                    "score": score,
                    "iscrowd": int(flag),
                }
            )
    return annotations


def _index(coco: Any, annotations: list[dict[str, Any]], images: int) -> Any:
    index = coco()
    index.dataset = {
        "images": [{"id": image} for image in range(1, images + 1)],
        "categories": [{"id": CATEGORY}],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index
