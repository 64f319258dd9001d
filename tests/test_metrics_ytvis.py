"""Track AP and AR against cases worked by hand and a slow implementation from whole volumes of pixels."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from tasks.errors import DataError
from tasks.formats.rle import encode_masks
from tasks.metrics.coco_engine import Engine
from tasks.metrics.tracks import MaskTrack
from tasks.metrics.ytvis import YtvisEvaluator, track_ious

SIZE = (12, 30)
KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"]
ENGINES = get_args(Engine)
Video = tuple[list[MaskTrack], list[MaskTrack]]


def track(columns: Sequence[tuple[int, int] | None], score: float = 1.0, size: tuple[int, int] = SIZE) -> MaskTrack:
    """Of each frame the columns from - to of the four top rows, or None."""
    rles = []
    for span in columns:
        mask = torch.zeros(1, *size, dtype=torch.bool)
        if span is not None:
            mask[0, :4, span[0] : span[1]] = True
        rles.append(None if span is None else encode_masks(mask)[0])
    return MaskTrack(rles, score)


def score(*videos: Video, engine: Engine | None = None, cut: float | None = None) -> dict[str, float | None]:
    evaluator = YtvisEvaluator(engine=engine)
    for number, (found, truth) in enumerate(videos):
        evaluator.process(number, SIZE, found, truth, frames=len((found or truth)[0].rles))
    return evaluator.evaluate(score_cut=cut)


def iou(one: MaskTrack, other: MaskTrack) -> float:
    return float(track_ious([one], [other], len(one.rles))[0, 0])


def test_iou_is_of_sums_over_all_frames() -> None:
    # 16 of 16 in the first frame, 8 of 24 in the second: 24 / 40, not the mean of 1 and 1/3.
    assert iou(track([(0, 4), (0, 4)]), track([(0, 4), (2, 6)])) == pytest.approx(24 / 40)


def test_frames_where_a_track_is_not_seen_count_what_the_other_has() -> None:
    assert iou(track([(0, 4), None]), track([(0, 4), (0, 4)])) == 0.5
    assert iou(track([None, (0, 4)]), track([(0, 4), (0, 4)])) == 0.5
    assert iou(track([(0, 4), None]), track([None, (0, 4)])) == 0
    assert iou(track([(0, 4), None, None]), track([(0, 4), None, (3, 3)])) == 1
    assert iou(track([None, None]), track([None, (3, 3)])) == 0


def test_hand_worked_ap_and_ar() -> None:
    truth = [track([(0, 4), (0, 4)]), track([(10, 14), (10, 14)])]
    right, half = track([(0, 4), (0, 4)], 0.8), track([(10, 14), None], 0.7)
    wrong = track([(20, 24), (20, 24)], 0.9)
    scores = score(([right], truth))
    assert list(scores) == KEYS
    assert scores["AP"] == scores["APs"] == pytest.approx(51 / 101)  # recall one half: 0, .01, ... .5
    assert (scores["APm"], scores["APl"], scores["AR1"]) == (None, None, 0.5)
    # `half` is an IoU of exactly .5: right at the first of ten thresholds.
    scores = score(([right, half], truth))
    assert scores["AP50"] == pytest.approx(1)
    assert scores["AR10"] == pytest.approx((1 + 9 * 0.5) / 10)
    assert scores["AR1"] == 0.5
    assert score(([wrong, right], truth))["AP50"] == pytest.approx(51 / 101 / 2)
    assert score(([wrong, right], truth), cut=0.85)["AP50"] == 0


def test_a_track_cut_in_two_is_not_found() -> None:
    truth = [track([(0, 4)] * 6)]
    parts = [track([(0, 4)] * 3 + [None] * 3, 0.9), track([None] * 3 + [(0, 4)] * 3, 0.8)]
    scores = score((parts, truth))
    assert (scores["AP50"], scores["AP75"]) == (pytest.approx(1), 0)
    parts = [track([(0, 4)] * 2 + [None] * 4, 0.9), track([None] * 2 + [(0, 4)] * 2 + [None] * 2, 0.8)]
    assert score((parts, truth))["AP50"] == 0


def test_sizes_go_by_the_mean_area_where_a_track_is_seen() -> None:
    size = (300, 300)

    def square(*sides: int | None) -> MaskTrack:
        masks = torch.zeros(len(sides), *size, dtype=torch.bool)
        for mask, side in zip(masks, sides, strict=True):
            mask[: side or 0, : side or 0] = True
        return MaskTrack([None if s is None else r for s, r in zip(sides, encode_masks(masks), strict=True)])

    for sides, bins in (
        ((127, None), ("APs",)),
        ((128, None), ("APs", "APm")),  # an edge is on both sides
        ((128, 0, None), ("APs", "APm")),
        ((200, 10), ("APm",)),
        ((256, 256), ("APm", "APl")),
        ((290, None), ("APl",)),
    ):
        evaluator = YtvisEvaluator()
        evaluator.process(1, size, [square(*sides)], [square(*sides)], frames=len(sides))
        scores = evaluator.evaluate()
        assert tuple(key for key in ("APs", "APm", "APl") if scores[key] is not None) == bins, sides


def test_empty_cases() -> None:
    one = track([(0, 4)])
    nothing = YtvisEvaluator()
    assert (nothing.evaluate(), nothing.tracks) == (dict.fromkeys(KEYS), 0)
    assert score(([one], [])) == dict.fromkeys(KEYS)
    missed = score(([], [one]))
    assert [missed[key] for key in ("AP", "AP50", "APs", "AR1", "AR10")] == [0] * 5
    # A track found in a video without any is wrong, and may rank first.
    assert score(([replace(one, score=0.5)], [one]), ([one], []))["AP50"] == pytest.approx(0.5)


def test_what_a_crowd_takes_is_neither_right_nor_wrong() -> None:
    one, other = track([(0, 4)]), track([(10, 14)])
    found = [replace(one, score=0.9), replace(one, score=0.8), replace(other, score=0.5)]
    assert score((found, [other]))["AP50"] == pytest.approx(1 / 3)
    assert score((found, [other, one]))["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert score((found, [other, replace(one, crowd=True)]))["AP50"] == pytest.approx(1)


def random_video(seed: int, *, levels: int | None = None) -> Video:
    rng = np.random.default_rng(seed)

    def spans(near: list[tuple[int, int] | None] | None = None) -> list[tuple[int, int] | None]:
        start, width = int(rng.integers(0, 20)), int(rng.integers(3, 9))
        made: list[tuple[int, int] | None] = []
        for index in range(4):
            span = near[index] if near else (start + index, start + index + width)
            shift = int(rng.integers(-1, 2))
            kept = span is not None and rng.random() < 0.8
            made.append((max(span[0] + shift, 0), span[1] + shift) if span is not None and kept else None)
        return made

    truth = [spans() for _ in range(3)]
    found = [spans(one) for one in truth for _ in range(2)] + [spans() for _ in range(2)]
    scores = rng.random(len(found)) if levels is None else rng.integers(1, levels + 1, len(found)) / levels
    return [track(one, float(s)) for one, s in zip(found, scores, strict=True)], [track(one) for one in truth]


def volume(one: MaskTrack) -> np.ndarray:
    """(T, H, W) bool."""
    return np.stack([np.zeros(SIZE, bool) if rle is None else coco_mask.decode(rle).astype(bool) for rle in one.rles])


def slow_scores(videos: Sequence[Video], threshold: float, most: int) -> tuple[float, float]:
    """AP and AR at one IoU by the definition: greedy by score, 101 recalls, interpolated precision."""
    ranked = []
    for number, (found, _) in enumerate(videos):
        best = sorted(range(len(found)), key=lambda i, found=found: -found[i].score)[:most]  # type: ignore[misc]
        ranked += [(found[i].score, number, i) for i in best]
    taken: set[tuple[int, int]] = set()
    hits = []
    for _, number, i in sorted(ranked, reverse=True):
        found, truth = videos[number]
        mine = volume(found[i])
        free = [j for j in range(len(truth)) if (number, j) not in taken]
        ious = {j: (mine & volume(truth[j])).sum() / (mine | volume(truth[j])).sum() for j in free}
        best_j = max(ious, key=ious.__getitem__, default=None)
        hits.append(best_j is not None and ious[best_j] >= threshold)
        if hits[-1]:
            taken.add((number, best_j))  # type: ignore[arg-type]
    positives = np.cumsum(hits)
    recall = positives / sum(len(truth) for _, truth in videos)
    precision = positives / np.arange(1, len(hits) + 1)
    ap = np.mean([max(precision[recall >= r - 1e-12], default=0) for r in np.linspace(0, 1, 101)])
    return float(ap), float(recall[-1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_a_slow_implementation(seed: int, engine: Engine) -> None:
    videos = [random_video(10 * seed + n) for n in range(3)]
    scores = score(*videos, engine=engine)
    thresholds = np.linspace(0.5, 0.95, 10)
    everything = np.array([slow_scores(videos, t, 100) for t in thresholds])
    assert scores["AP"] == pytest.approx(everything[:, 0].mean())
    assert (scores["AP50"], scores["AP75"]) == pytest.approx((everything[0, 0], everything[5, 0]))
    assert scores["AR10"] == scores["AR100"] == pytest.approx(everything[:, 1].mean())
    assert scores["AR1"] == pytest.approx(np.mean([slow_scores(videos, t, 1)[1] for t in thresholds]))


def test_a_published_result_is_reproduced(shared_data: Path) -> None:
    """The toy sample of SA-Co/VEval: truth, predictions, and what its own evaluation makes of them."""
    folder = shared_data / "ytvis_schema_sample"
    truth, found, published = (
        json.loads((folder / f"toy_saco_veval_sav_test_{name}.json").read_text(encoding="utf-8"))
        for name in ("gt", "pred", "eval_res")
    )
    [video] = truth["videos"]
    size = (video["height"], video["width"])

    def read(annotation: dict[str, Any]) -> MaskTrack:
        rles = [rle and {"size": list(size), "counts": rle["counts"]} for rle in annotation["segmentations"]]
        return MaskTrack(rles, annotation.get("score", 1.0))

    categories = {one["category_id"] for one in truth["annotations"]}
    precisions = []
    for category in categories:
        evaluator = YtvisEvaluator()
        both = ([read(one) for one in many if one["category_id"] == category] for many in (found, truth["annotations"]))
        evaluator.process(video["id"], size, *both, frames=video["length"])
        precisions.append(evaluator.evaluate()["AP"])
    assert len(categories) == 7
    assert np.mean(precisions) == pytest.approx(published["dataset_results"]["video_mask_mAP_50_95"], abs=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_order_of_videos_and_tracks_does_not_matter_even_with_tied_scores(engine: Engine) -> None:
    videos = [random_video(n, levels=2) for n in range(3)]
    scores = score(*videos, engine=engine)
    for order in itertools.permutations(videos):
        shuffled = [(found[::-1], truth[::-1]) for found, truth in order]
        assert score(*shuffled, engine=engine) == scores


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    evaluator = YtvisEvaluator()
    one = track([(0, 4)])
    for bad, message in (
        (track([(0, 4), None]), "2 frames"),
        (track([(0, 4)], size=(5, 6)), "6 x 5 is not 30 x 12"),
        (track([(0, 4)], float("nan")), "finite"),
    ):
        with pytest.raises(DataError, match=f"^video 7.*{message}"):
            evaluator.process(7, SIZE, [bad], [one], frames=1)
    evaluator.process(7, SIZE, [one], [one], frames=1)
    assert evaluator.tracks == 1
    with pytest.raises(ValueError, match="twice"):
        evaluator.process(7, SIZE, [], [], frames=1)
    evaluator.reset()
    assert evaluator.tracks == 0
