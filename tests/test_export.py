"""Labels of real clip archives by a predictor that finds what is orange, and by a small untrained network."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from clip_toy import find_orange, make_clip, write_weights
from conftest import moving_square
from pycocotools.coco import COCO

from tasks import export
from tasks import params as parameters
from tasks.clip_labels import frame_name, parse_frame_name
from tasks.clips import ClipReader, write_manifest
from tasks.errors import DataError, NothingLeftError
from tasks.formats.coco import read_coco
from tasks.formats.ytvis import read_ytvis

SETTINGS = parameters.parse({"export": {"batch_size": 3, "score_threshold": 0.4}}).export
PROVENANCE = {"model_version": "0123456789ab", "thresholds": {"score": 0.4, "link_iou": 0.3}}


def blue(count: int) -> list[np.ndarray]:
    return [np.full((32, 32, 3), (20, 40, 160), np.uint8)] * count


def test_labels_of_every_frame_by_image_and_by_track(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path, "a", moving_square(5)), make_clip(tmp_path, "b", blue(2))]
    out = tmp_path / "labels"
    summary = export.export_labels(find_orange, clips, out, SETTINGS, PROVENANCE)
    assert {k: summary[k] for k in ("images", "annotations", "tracks", "set_aside")} == {
        "images": 7,
        "annotations": 5,
        "tracks": 1,
        "set_aside": [],
    }
    assert summary["clips"] == [
        {"clip_id": "a" * 16, "source": "file:///videos/a.mp4", "frames": 5, "annotations": 5, "tracks": 1},
        {"clip_id": "b" * 16, "source": "file:///videos/b.mp4", "frames": 2, "annotations": 0, "tracks": 0},
    ]
    assert json.loads((out / "summary.json").read_text()) == summary

    content = read_coco(out / "coco.json")
    assert [image.id for image in content.images] == [1, 2, 3, 4, 5, 6, 7]
    assert content.images[5].file_name == "b" * 16 + "/000000.jpg"
    for number, annotation in enumerate(content.annotations):
        assert dict(annotation.extra) == {
            "score": 0.9,
            "track_id": 1,
            "clip_id": "a" * 16,
            "source": "file:///videos/a.mp4",
            "timestamp_us": 41_667 * number,
            **PROVENANCE,
        }
        assert annotation.image_id == number + 1
        assert annotation.area == pytest.approx(256, abs=40)  # JPEG blurs the square's edge

    videos = read_ytvis(out / "ytvis.json")
    assert [len(video.file_names) for video in videos.videos] == [5, 2]
    (track,) = videos.tracks
    assert (track.id, track.video_id, track.extra["timestamps_us"][1], track.extra["score"]) == (1, 1, 41_667, 0.9)
    assert track.extra["model_version"] == PROVENANCE["model_version"]
    assert [rle is not None for rle in track.segmentations] == [True] * 5
    assert list(track.segmentations) == [annotation.segmentation for annotation in content.annotations]


def test_pycocotools_reads_the_masks_of_the_frames_that_the_file_names(tmp_path: Path) -> None:
    clip = make_clip(tmp_path, "a", moving_square(4))
    export.export_labels(find_orange, [clip], tmp_path / "labels", SETTINGS, PROVENANCE)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "labels" / "coco.json"))
    for image in coco.loadImgs(coco.getImgIds()):
        clip_id, frame = parse_frame_name(image["file_name"])
        with ClipReader(tmp_path / f"{clip_id}.zip") as reader:
            (expected,) = find_orange([reader.frame(frame)], None)
        (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert np.array_equal(coco.annToMask(annotation).astype(bool), expected.masks[0].numpy())


def test_short_tracks_stay_out_of_the_track_file_only(tmp_path: Path) -> None:
    frames = moving_square(2) + [np.full((48, 64, 3), (20, 40, 160), np.uint8)] * 4
    export.export_labels(find_orange, [make_clip(tmp_path, "a", frames)], tmp_path / "labels", SETTINGS, PROVENANCE)
    assert len(read_coco(tmp_path / "labels" / "coco.json").annotations) == 2
    assert read_ytvis(tmp_path / "labels" / "ytvis.json").tracks == []


def test_identities_are_unique_over_clips(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path, name, moving_square(4)) for name in "ab"]
    export.export_labels(find_orange, clips, tmp_path / "labels", SETTINGS, PROVENANCE)
    assert [track.id for track in read_ytvis(tmp_path / "labels" / "ytvis.json").tracks] == [1, 2]


def test_a_broken_clip_is_set_aside_and_leaves_nothing_in_the_files(tmp_path: Path) -> None:
    good, bad, empty = (make_clip(tmp_path, name, moving_square(6)) for name in "abc")
    data = bytearray(bad.path.read_bytes())
    place = data.rindex(b"frames/000004.jpg", 0, data.rindex(b"PK\x01\x02"))
    start = data.index(b"frames/000004.jpg")
    assert start < place
    data[start + 60 : start + 160] = bytes(100)  # the picture of frame 4: its checksum fails
    bad.path.write_bytes(data)
    empty.path.write_bytes(b"")
    summary = export.export_labels(find_orange, [good, bad, empty], tmp_path / "labels", SETTINGS, PROVENANCE)
    assert [clip["clip_id"] for clip in summary["clips"]] == ["a" * 16]
    assert [(one["clip_id"], one["source"]) for one in summary["set_aside"]] == [
        ("b" * 16, "file:///videos/b.mp4"),
        ("c" * 16, "file:///videos/c.mp4"),
    ]
    assert "frames/000004" in summary["set_aside"][0]["reason"]
    assert {a.extra["clip_id"] for a in read_coco(tmp_path / "labels" / "coco.json").annotations} == {"a" * 16}
    before = sorted(p.name for p in (tmp_path / "labels").rglob("*"))
    with pytest.raises(NothingLeftError, match="no clip could be labelled"):
        export.export_labels(find_orange, [bad, empty], tmp_path / "labels", SETTINGS, PROVENANCE)
    assert sorted(p.name for p in (tmp_path / "labels").rglob("*")) == before, "a failed export leaves the last one"


def test_pictures_show_the_masks(tmp_path: Path) -> None:
    import cv2

    clips = [make_clip(tmp_path, name, moving_square(4)) for name in "0123456789abcdef"[:14]]
    summary = export.export_labels(find_orange, clips, tmp_path / "labels", SETTINGS, PROVENANCE)
    assert len(summary["pictures"]) == 12
    first = summary["pictures"][0]
    assert set(first) == {"file", "kind", "caption", "clip_id", "frame"}
    assert (first["kind"], first["clip_id"]) == ("labels", "0" * 16)
    picture = cv2.imread(str(tmp_path / "labels" / first["file"]))
    assert 500 < picture.shape[1] <= 640


def test_frame_names() -> None:
    assert parse_frame_name(frame_name("a" * 16, 12)) == ("a" * 16, 12)
    for wrong in ("", "a", "/000001.jpg", "a/b.jpg", "a/-1.jpg", "a/²"):
        with pytest.raises(DataError):
            parse_frame_name(wrong)


def test_the_stage_with_an_untrained_network(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSIS_TRACKING", "off")
    write_weights(workspace)
    clips = workspace / "data" / "clips"
    write_manifest(clips, [make_clip(clips, "a", moving_square(3, 64, 64))])
    params = parameters.parse({"export": {"score_threshold": 0.0, "min_track_frames": 1}})
    export.run(params, workspace)
    content = read_coco(workspace / "outputs" / "labels" / "coco.json")
    assert len(content.annotations) > 0
    version = json.loads((workspace / "outputs" / "labels" / "summary.json").read_text())["model_version"]
    assert len(version) == 12
    assert content.annotations[0].extra["thresholds"] == {
        "score": 0.0,
        "link_iou": 0.3,
        "nms_iou": params.train.mosis.nms_iou,
        "mask_threshold": 0.2,
    }
    assert (workspace / "outputs" / "report" / "index.html").stat().st_size > 1000
