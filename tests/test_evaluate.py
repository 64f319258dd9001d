"""The evaluate stage on real clip archives: figures, files, pictures, and what it does without truth."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from clip_toy import find_orange, make_clip, write_weights
from conftest import moving_square

from models.common.instances import Instances
from tasks import evaluate
from tasks import params as parameters
from tasks.clips import VOID, ClipEntry, ClipWriter, write_manifest
from tasks.errors import DataError, NothingLeftError
from tasks.evaluation_frames import choose_frames, read_splits
from tasks.formats.rle import encode_masks
from tasks.gallery import short_source, spread
from tasks.metrics.matching import FrameFit, fit_frame
from tasks.metrics.table import further_scores

SETTINGS = parameters.parse({"evaluate": {"batch_size": 3, "pictures": 4}}).evaluate


def lossless_clip(folder: Path, name: str, count: int, split: str = "test") -> ClipEntry:
    """The moving square with truth, without JPEG's blur, so that a perfect detection is possible."""
    writer = ClipWriter(
        folder, clip_id=name * 16, source=f"/videos/{name}.mp4", source_sha256=name * 64, lossless=True, split=split
    )
    with writer:
        for index, frame in enumerate(moving_square(count)):
            flow = np.where((frame[..., :1] > 128), (2.0, 0.0), (0.0, 0.0)).astype(np.float32)
            writer.add(frame, 41_667 * index, masks={1: frame[..., 0] > 128}, flow=flow)
    return writer.entry


def test_perfect_detections_score_one_and_every_file_says_so(tmp_path: Path) -> None:
    clip = lossless_clip(tmp_path, "a", 8)
    choice = choose_frames([clip], {clip.clip_id: "test"}, "test", None)
    metrics = evaluate.evaluate(find_orange, choice, SETTINGS, tmp_path / "out")
    assert (metrics["split"], metrics["note"], metrics["images"], metrics["instances"]) == ("test", None, 8, 8)
    for kind in ("mask", "box", "mask_at_cut", "box_at_cut"):
        assert metrics[kind]["AP"] == pytest.approx(1)
        assert metrics[kind]["APl"] is None
    assert metrics["label_free"]["instances_per_frame"] == 1
    assert metrics["label_free"]["temporal_iou"] > 0.8
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics

    detections = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [d["image_id"] for d in detections] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {**detections[1], "segmentation": None} == {
        "image_id": 2,
        "category_id": 1,
        "segmentation": None,
        "bbox": [2, 16, 16, 16],
        "score": pytest.approx(0.9),
        "clip_id": "a" * 16,
        "frame": 1,
    }
    with open(tmp_path / "out" / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 101
    assert {row["curve"] for row in rows} == {"mask_50", "mask_75", "box_50", "box_75"}
    assert {float(row["precision"]) for row in rows} == {1.0}


def test_video_s_own_scores_where_the_truth_has_them(tmp_path: Path) -> None:
    clip = lossless_clip(tmp_path, "a", 8)
    choice = choose_frames([clip], {clip.clip_id: "test"}, "test", None)
    metrics = evaluate.evaluate(find_orange, choice, SETTINGS, tmp_path / "out")
    assert metrics["best_match"] is None  # every object is labelled
    assert {key: metrics["tracks"][key] for key in ("videos", "tracks", "AP", "AR10")} == {
        "videos": 1, "tracks": 1, "AP": pytest.approx(1), "AR10": pytest.approx(1),
    }  # fmt: skip
    for task in ("single", "unsupervised"):
        assert metrics["davis"][task]["J&F"]["mean"] == pytest.approx(1)
    assert metrics["davis"]["sequences"] == {clip.clip_id: {"source": clip.source, "J": 1, "F": 1}}
    shown = further_scores(metrics)
    assert shown["tracks, AP"] == pytest.approx(1)
    assert shown["objects, J&F"] == pytest.approx(1)


def test_what_is_found_in_void_costs_no_j_nor_f(tmp_path: Path) -> None:
    """The truth says nothing of the square's right half: what finds it all is as good as what finds the left half."""
    writer = ClipWriter(
        tmp_path, clip_id="b" * 16, source="b", source_sha256="b" * 64, lossless=True, split="test", exhaustive=False
    )
    with writer:
        for index, frame in enumerate(moving_square(6)):
            square = frame[..., 0] > 128
            right = square & (np.arange(square.shape[1]) >= np.flatnonzero(square.any(0))[8])
            writer.add(frame, 41_667 * index, masks={1: square & ~right, VOID: right})
    choice = choose_frames([writer.entry], {writer.entry.clip_id: "test"}, "test", None)
    metrics = evaluate.evaluate(find_orange, choice, SETTINGS, tmp_path / "out")
    for task in ("single", "unsupervised"):
        assert metrics["davis"][task]["J&F"]["mean"] == pytest.approx(1)
    assert metrics["instances"] == 6, "void is no object"
    assert metrics["mask"]["AP75"] == pytest.approx(0), "COCO's measure knows no void"


def test_a_track_that_is_lost_and_found_under_the_cut_costs_what_it_should(tmp_path: Path) -> None:
    clip = lossless_clip(tmp_path, "a", 8)
    choice = choose_frames([clip], {clip.clip_id: "test"}, "test", None)

    def find_unsure(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
        found = find_orange(frames, threshold)
        return [replace(f, scores=torch.where(f.boxes[:, 0] < 6, 0.1, 0.9)) for f in found]

    metrics = evaluate.evaluate(find_unsure, choice, SETTINGS, tmp_path / "out")
    # Columns 0, 2, 4 come at .1, below the cut: the foreground of frames 1 and 2 (the first does not count) is missing.
    assert metrics["davis"]["single"]["J"]["mean"] == pytest.approx(4 / 6)
    assert metrics["davis"]["unsupervised"]["J"]["mean"] == pytest.approx(1)
    assert metrics["tracks"]["AP"] == pytest.approx(1)


def test_no_scores_of_video_from_some_of_its_frames(tmp_path: Path) -> None:
    clip = lossless_clip(tmp_path, "a", 8)
    choice = choose_frames([clip], {clip.clip_id: "test"}, "test", 4)
    metrics = evaluate.evaluate(find_orange, choice, SETTINGS, tmp_path / "out")
    assert (metrics["images"], metrics["tracks"], metrics["davis"]) == (4, None, None)
    assert further_scores(metrics) == {}


def test_truth_of_some_objects_and_of_some_frames(tmp_path: Path) -> None:
    """An empty second object nobody labelled: best match forgives what is found of it, and the note says so."""
    writer = ClipWriter(
        tmp_path, clip_id="a" * 16, source="/a", source_sha256="a" * 64, lossless=True, exhaustive=False
    )
    with writer:
        for index, frame in enumerate(moving_square(6)):
            masks = {1: frame[..., 0] > 128} if index % 2 == 0 else None
            writer.add(frame, 41_667 * index, masks=masks)
    choice = choose_frames([writer.entry], {"a" * 16: "test"}, "test", None)

    def find_more(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
        found = find_orange(frames, threshold)
        both = [torch.cat((f.masks, ~f.masks)) for f in found]
        return [Instances.from_masks(masks, torch.tensor([0.9, 0.95])) for masks in both]

    metrics = evaluate.evaluate(find_more, choice, SETTINGS, tmp_path / "out")
    assert "not every object is labelled" in metrics["note"]
    assert (metrics["images"], metrics["instances"]) == (3, 3)
    assert metrics["best_match"]["best_iou"] == pytest.approx(1)
    assert metrics["best_match"]["AR1"] == 0  # the surest is the other one
    assert metrics["mask"]["AP"] < 0.6
    assert metrics["tracks"]["tracks"] == 1


def test_pictures_are_listed_small_and_of_each_kind(tmp_path: Path) -> None:
    clip = lossless_clip(tmp_path, "a", 8)
    choice = choose_frames([clip], {clip.clip_id: "test"}, "test", None)

    def find_late(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
        found = find_orange(frames, threshold)
        return [f if f.boxes[0, 0] >= 6 else f[:0] for f in found]

    evaluate.evaluate(find_late, choice, SETTINGS, tmp_path / "out")
    pictures = json.loads((tmp_path / "out" / "pictures.json").read_text())
    kinds = [picture["kind"] for picture in pictures]
    assert (kinds.count("detections"), kinds.count("optical_flow")) == (4, 4)
    # The square is missed in frames 0, 1 and 2; of each quarter of the clip the worst frame is shown once.
    assert [picture["frame"] for picture in pictures if picture["kind"] == "worst"] == [0, 2]
    assert sorted(p.name for p in (tmp_path / "out" / "pictures").iterdir()) == sorted(
        picture["file"].removeprefix("pictures/") for picture in pictures
    )
    for picture in pictures:
        assert picture["clip_id"] == "a" * 16
        assert picture["caption"].startswith("a.mp4, frame ")
        assert 500 < cv2.imread(str(tmp_path / "out" / picture["file"])).shape[1] <= 640


def test_without_truth_the_scores_are_null_and_neighbours_are_looked_at(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path, "a", moving_square(9)), make_clip(tmp_path, "b", moving_square(1))]
    choice = choose_frames(clips, {}, "test", None)
    assert not choice.has_truth
    thresholds = set()

    def find(frames: Sequence[np.ndarray], threshold: float | None) -> list[Instances]:
        thresholds.add(threshold)
        return find_orange(frames, threshold)

    metrics = evaluate.evaluate(find, choice, SETTINGS, tmp_path / "out")
    assert thresholds == {SETTINGS.score_cut}, "what is not scored need not be predicted"
    assert (metrics["images"], metrics["instances"]) == (0, 0)
    assert set(metrics["mask"].values()) == {None}
    assert metrics["label_free"]["instances_per_frame"] == 1
    assert "no clip has ground truth" in metrics["note"]
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 10
    assert (tmp_path / "out" / "curves.csv").read_text() == "curve,recall,precision\n"
    kinds = {picture["kind"] for picture in json.loads((tmp_path / "out" / "pictures.json").read_text())}
    assert kinds == {"detections", "optical_flow"}


def test_choice_of_frames(tmp_path: Path) -> None:
    a, b = (lossless_clip(tmp_path, name, 10) for name in "ab")
    c = make_clip(tmp_path, "c", moving_square(6))
    splits = {a.clip_id: "train", b.clip_id: "val", c.clip_id: "test"}
    choice = choose_frames([a, b, c], splits, "train", None)
    assert [(clip.clip_id[0], len(indices)) for clip, indices in choice.frames] == [("a", 10)]
    fallen_back = choose_frames([a, b, c], splits, "test", None)
    assert (fallen_back.split, [clip.clip_id[0] for clip, _ in fallen_back.frames]) == ("val", ["b"])
    assert "test split has no ground truth" in (fallen_back.note or "")
    thinned = choose_frames([a, b, c], splits, "all", 4)
    assert [(clip.clip_id[0], indices) for clip, indices in thinned.frames] == [("a", [2, 7]), ("b", [2, 7])]
    sampled = choose_frames([c], splits, "test", 2)
    assert [indices for _, indices in sampled.frames] == [[2, 3]]
    d = make_clip(tmp_path, "d", moving_square(6))
    kept_out = choose_frames([d, c], {**splits, d.clip_id: "train"}, "test", 4)
    assert {clip.clip_id[0] for clip, _ in kept_out.frames} == {"c"}
    trained_on = choose_frames([d], {d.clip_id: "train"}, "test", 4)
    assert (trained_on.split, [clip.clip_id[0] for clip, _ in trained_on.frames]) == ("all", ["d"])
    assert choose_frames([], {}, "test", None).images == 0


def test_spread_is_even_and_never_too_much() -> None:
    assert spread(10, 2) == [2, 7]
    assert spread(2, 5) == [0, 1]
    assert spread(0, 3) == spread(3, 0) == []


def test_a_broken_clip_is_set_aside(tmp_path: Path) -> None:
    good, bad = lossless_clip(tmp_path, "a", 6), lossless_clip(tmp_path, "b", 4)
    bad.path.write_bytes(b"PK")
    choice = choose_frames([good, bad], {good.clip_id: "test", bad.clip_id: "test"}, "test", None)
    metrics = evaluate.evaluate(find_orange, choice, SETTINGS, tmp_path / "out")
    assert metrics["images"] == 6
    assert [one["clip_id"] for one in metrics["set_aside"]] == ["b" * 16]
    behind = choose_frames([bad, good], {good.clip_id: "test", bad.clip_id: "test"}, "test", None)
    evaluate.evaluate(find_orange, behind, SETTINGS, tmp_path / "out")
    pictures = json.loads((tmp_path / "out" / "pictures.json").read_text())
    # Of the ten frames 1, 3, 6 and 8 were to be shown; the first four are the broken clip's.
    assert [picture["frame"] for picture in pictures if picture["kind"] == "detections"] == [2, 4]
    alone = choose_frames([bad], {bad.clip_id: "test"}, "test", None)
    with pytest.raises(NothingLeftError, match="not a readable clip archive"):
        evaluate.evaluate(find_orange, alone, SETTINGS, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics, "the last good results stay"


def test_a_clip_shorter_than_its_manifest_says(tmp_path: Path) -> None:
    clip = lossless_clip(tmp_path, "a", 4)
    choice = choose_frames([clip], {clip.clip_id: "test"}, "test", None)
    lossless_clip(tmp_path, "a", 2)
    with pytest.raises(NothingLeftError, match="fewer than its manifest says"):
        evaluate.evaluate(find_orange, choice, SETTINGS, tmp_path / "out")


def test_fit_of_a_frame_by_hand() -> None:
    masks = torch.zeros(3, 4, 8, dtype=torch.bool)
    masks[0, :2, :2] = True
    masks[1, :2, 4:6] = True
    masks[2, 2:, 6:] = True
    left, right, low = encode_masks(masks)
    assert fit_frame([], [], []) == (1, 0)
    assert fit_frame([left], [0.9], []) == (0, -0.9)
    assert fit_frame([], [], [left]) == (0, 0)
    assert fit_frame([left, low], [0.9, 0.6], [left, right]) == (0.5, -0.6)
    assert fit_frame([left, left], [0.9, 0.8], [left]) == (pytest.approx(2 / 3), -0.8)
    assert FrameFit(0.5, -0.9) < FrameFit(0.5, -0.2) < FrameFit(1, 0)


def test_splits_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    for text in ("[]", '{"a": "tset"}', '{"a": [1]}', "{"):
        path.write_text(text)
        with pytest.raises(DataError):
            read_splits(path)


def test_the_stage_with_an_untrained_network(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOSIS_TRACKING", "off")
    write_weights(workspace)
    clips = workspace / "data" / "clips"
    clip = lossless_clip(clips, "a", 4)
    write_manifest(clips, [clip])
    pairs = workspace / "data" / "pairs"
    pairs.mkdir()
    (pairs / "splits.json").write_text(json.dumps({clip.clip_id: "test"}))
    evaluate.run(parameters.parse({"evaluate": {"score_floor": 0.0}}), workspace)
    metrics = json.loads((workspace / "outputs" / "evaluate" / "metrics.json").read_text())
    assert metrics["images"] == 4
    assert 0 <= metrics["mask"]["AP50"] <= 1
    printed = capsys.readouterr().out
    assert "4 images of the test split" in printed
    assert "masks, score 0.4 or more" in printed


def test_a_video_is_called_by_the_part_of_its_source_that_says_something() -> None:
    assert short_source("s3://bucket/clips/a.mp4") == "a.mp4"
    assert short_source("/data/davis/dog/JPEGImages/") == "dog"
    assert short_source("frames") == "frames"
