"""COCO scores against pycocotools itself, by both engines: crowded, empty, tied, on the edges of areas."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks import coco_eval
from models.common.instances import Instances
from tasks.errors import DataError
from tasks.formats.rle import encode_masks
from tasks.metrics.coco import KINDS, CocoEvaluator, Encoded, Kind
from tasks.metrics.coco_engine import Engine, Scores

SIZE = (160, 200)
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")
ENGINES = get_args(Engine)
Image = tuple[Encoded, Encoded]


def rectangles(boxes: Sequence[Sequence[int]], scores: Sequence[float] | None = None) -> Encoded:
    """Full rectangles x1 y1 x2 y2."""
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    confidence = np.ones(len(boxes)) if scores is None else np.array(scores, dtype=np.float64)
    return Encoded(np.array(boxes, dtype=np.float64).reshape(-1, 4), confidence, encode_masks(masks))


def random_images(seed: int, count: int = 8, *, levels: int | None = None, crowded: int = 6) -> list[Image]:
    """Images with up to `crowded` objects and three times as many detections; every third without one or the other.

    levels: how many different scores there are, None for as many as detections.
    """
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        truth = random_boxes(rng, 0 if number % 3 == 1 else int(rng.integers(1, crowded)))
        near = [jitter(rng, box) for box in truth for _ in range(2)]
        found = [] if number % 6 == 2 else near + random_boxes(rng, crowded)
        scores = rng.random(len(found)) if levels is None else rng.integers(1, levels + 1, len(found)) / levels
        crowd = rng.random(len(truth)) < 0.2
        images.append((rectangles(found, scores.tolist()), replace(rectangles(truth), crowd=crowd)))
    return images


def random_boxes(rng: np.random.Generator, count: int) -> list[list[int]]:
    """Among them some of exactly 32 x 32 and 96 x 96 pixels."""
    boxes = []
    for _ in range(count):
        side = int(rng.choice([6, 20, 32, 50, 96, 120]))
        other = side if rng.random() < 0.5 else int(rng.integers(5, 130))
        x, y = int(rng.integers(0, SIZE[1] - 5)), int(rng.integers(0, SIZE[0] - 5))
        boxes.append([x, y, min(x + side, SIZE[1]), min(y + other, SIZE[0])])
    return boxes


def jitter(rng: np.random.Generator, box: Sequence[int]) -> list[int]:
    x1, y1, x2, y2 = (int(side + rng.integers(-3, 4)) for side in box)
    x1, y1 = max(x1, 0), max(y1, 0)
    return [x1, y1, min(max(x2, x1 + 1), SIZE[1]), min(max(y2, y1 + 1), SIZE[0])]


def score(images: Sequence[Image], engine: Engine | None = None, **options: Any) -> dict[Kind, Scores]:
    evaluator = CocoEvaluator(engine=engine)
    for number, image in enumerate(images):
        evaluator.process_encoded(number, *image)
    return evaluator.evaluate(**options)


def reference(images: Sequence[Image], kind: Kind) -> Scores:
    """pycocotools from its own masks and boxes."""
    truth = [annotate(number, one, "mask") for number, (_, one) in enumerate(images, start=1)]
    found = [annotate(number, one, kind) for number, (one, _) in enumerate(images, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(index(truth), index(found), {"mask": "segm", "box": "bbox"}[kind])
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: None if value < 0 else value for name, value in zip(NAMES, run.stats, strict=False)}


def annotate(image: int, instances: Encoded, area: Kind) -> list[dict[str, Any]]:
    annotations = []
    for i, rle in enumerate(instances.rles):
        x1, y1, x2, y2 = instances.boxes[i].tolist()
        annotations.append(
            {
                "image_id": image,
                "category_id": 1,
                "segmentation": rle,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(coco_mask.area(rle)) if area == "mask" else (x2 - x1) * (y2 - y1),
                "score": float(instances.scores[i]),
                "iscrowd": 0 if instances.crowd is None else int(instances.crowd[i]),
            }
        )
    return annotations


def index(images: list[list[dict[str, Any]]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "height": SIZE[0], "width": SIZE[1]} for number in range(1, len(images) + 1)],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{**one, "id": number} for number, one in enumerate(itertools.chain(*images), start=1)],
    }
    coco.createIndex()
    return coco


def assert_equal(scores: Scores, expected: Scores) -> None:
    assert list(scores) == list(NAMES)
    for name in NAMES:
        assert scores[name] == (None if expected[name] is None else pytest.approx(expected[name], abs=1e-9)), name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_pycocotools(seed: int, engine: Engine) -> None:
    images = random_images(seed)
    scores = score(images, engine)
    for kind in KINDS:
        assert_equal(scores[kind], reference(images, kind))


@pytest.mark.parametrize("engine", ENGINES)
def test_more_than_a_hundred_detections_in_an_image(engine: Engine) -> None:
    images = random_images(3, 2, crowded=150)
    assert max(len(found) for found, _ in images) > 255  # pycocotools counts some lists in a byte
    for kind, scores in score(images, engine).items():
        assert_equal(scores, reference(images, kind))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cut_is_as_if_the_rest_had_not_been_detected(engine: Engine) -> None:
    images = random_images(7)
    kept = [(choose(found, np.flatnonzero(found.scores >= 0.4)), truth) for found, truth in images]
    for kind, scores in score(images, engine, score_cut=0.4).items():
        assert_equal(scores, reference(kept, kind))


def choose(instances: Encoded, rows: Sequence[int] | np.ndarray) -> Encoded:
    rows = np.asarray(rows, dtype=int)
    crowd = None if instances.crowd is None else instances.crowd[rows]
    return Encoded(instances.boxes[rows], instances.scores[rows], [instances.rles[i] for i in rows], crowd)


@pytest.mark.parametrize("engine", ENGINES)
def test_tied_scores_rank_in_an_order_that_pycocotools_may_be_given(engine: Engine) -> None:
    # Three images whose detections all score the same, one right and one wrong: AP depends on which comes first.
    here, there = [20, 20, 60, 60], [100, 100, 140, 150]
    images = [
        (rectangles([here], [0.5]), rectangles([here])),
        (rectangles([there, [0, 0, 5, 9]], [0.5, 0.5]), rectangles([here, there])),
        (rectangles([[1, 1, 30, 9]], [0.5]), rectangles([])),
    ]
    possible = [
        reference([(choose(f, f_order), t) for f, t in order for f_order in [range(len(f))[::step]]], "mask")
        for order in itertools.permutations(images)
        for step in (1, -1)
    ]
    assert len({p["AP50"] for p in possible}) > 1
    assert any(score(images, engine)["mask"] == pytest.approx(p) for p in possible)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(4))
def test_no_order_changes_a_score_even_where_scores_are_tied(seed: int, engine: Engine) -> None:
    images = random_images(seed, levels=2)
    scores = score(images, engine)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        shuffled = [tuple(choose(one, rng.permutation(len(one))) for one in images[i]) for i in rng.permutation(8)]
        assert score(shuffled, engine) == scores  # type: ignore[arg-type]


def test_masks_decide_between_equal_scores_and_boxes() -> None:
    truth = rectangles([[0, 0, 40, 40]])
    pair = rectangles([[0, 0, 40, 40], [0, 0, 40, 9]], [0.5, 0.5])
    pair = replace(pair, boxes=pair.boxes[[0, 0]])
    assert score([(pair, truth)]) == score([(choose(pair, [1, 0]), truth)])


def test_an_image_added_after_scoring_counts() -> None:
    one, wrong = rectangles([[0, 0, 40, 40]], [0.5]), rectangles([[90, 90, 99, 99]], [0.5])
    evaluator = CocoEvaluator()
    evaluator.process_encoded(1, one, one)
    assert evaluator.evaluate()["mask"]["AR10"] == 1
    evaluator.process_encoded(2, wrong, one)
    assert evaluator.evaluate()["mask"]["AR10"] == 0.5


def test_areas_on_an_edge_belong_to_both_sides() -> None:
    small, large = rectangles([[0, 0, 32, 32]]), rectangles([[0, 0, 96, 96]])
    mask = score([(small, small)])["mask"]
    assert (mask["APs"], mask["APm"], mask["APl"]) == (1, 1, None)
    mask = score([(large, large)])["mask"]
    assert (mask["APs"], mask["APm"], mask["APl"]) == (None, 1, 1)


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong() -> None:
    truth = rectangles([[0, 0, 40, 40], [100, 100, 140, 140]])
    found = rectangles([[0, 0, 40, 40], [100, 100, 120, 120], [120, 120, 140, 140]], [0.5, 0.9, 0.8])
    assert score([(found, truth)])["mask"]["AP50"] < 0.4  # type: ignore[operator]
    crowd = replace(truth, crowd=np.array([False, True]))
    assert score([(found, crowd)])["mask"]["AP50"] == pytest.approx(1)
    only_crowd = choose(crowd, [1])
    assert set(score([(found, only_crowd)])["mask"].values()) == {None}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_box_or_score_that_is_no_number_is_refused_in_one_line(value: float) -> None:
    good = rectangles([[0, 0, 5, 5]])
    bad_box = replace(good, boxes=np.array([[0, 0, value, 5]]))
    bad_score = replace(good, scores=np.array([value]))
    evaluator = CocoEvaluator()
    for found, truth in ((bad_box, good), (good, bad_box), (bad_score, good)):
        with pytest.raises(DataError, match=r"^image 3: .*not a finite number") as caught:
            evaluator.process_encoded(3, found, truth)
        assert "\n" not in str(caught.value)
    assert evaluator.images == 0


def test_masks_of_another_number_are_refused() -> None:
    one, none = Instances.from_masks(torch.ones(1, *SIZE, dtype=torch.bool)), Instances.empty(*SIZE)
    with pytest.raises(ValueError, match="encoded masks"):
        CocoEvaluator().process(0, one, none, prediction_rles=[])


def test_it_works_without_faster_coco_eval() -> None:
    code = """
import sys
sys.modules["faster_coco_eval"] = None
import numpy as np
from tasks.metrics.coco_engine import Ranges, Table, installed_engine, match, summarise
assert installed_engine() == "pycocotools"
one = np.ones(1)
table = Table(scores=one, ious=np.array([[0.6]]), areas=9 * one, true_areas=9 * one, crowd=np.zeros(1, bool))
assert abs(summarise(match([table], Ranges()))["AP"] - 0.3) < 1e-9
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_the_benchmark_measures_both_and_finds_them_equal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["coco_eval.py", "--images", "6", "--rounds", "1", "--no-save"])
    coco_eval.main()
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["equal"] is True
    seconds = document["rows"][0]["seconds"]
    ratio = seconds["pycocotools"] / (seconds["process"] + seconds["evaluate"])
    assert document["speedup_vs_pycocotools"] == pytest.approx(ratio)
    scores = document["rows"][0]["scores"]
    assert coco_eval.are_equal(scores, scores)
    for changed in (None, scores["mask"]["AP"] + 1e-6):
        assert not coco_eval.are_equal(scores, {**scores, "mask": {**scores["mask"], "AP": changed}})
