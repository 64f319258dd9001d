"""COCO and YouTube-VIS files: round trips, other readers, real files, and files made to do harm."""

from __future__ import annotations

import contextlib
import io
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tasks.errors import DataError, MosisError, StorageError
from tasks.formats.coco import CocoAnnotation, CocoFile, CocoImage, read_coco, write_coco
from tasks.formats.json_lists import JsonList
from tasks.formats.rle import encode_masks, mask_areas, read_mask
from tasks.formats.ytvis import Track, Video, YtvisFile, read_ytvis, write_ytvis

EXTRA = {"score": 0.75, "clip_id": "0123456789abcdef", "source": "s3://bucket/ä.mp4", "timestamp_us": 41_667}


def corner(height: int = 4, width: int = 6) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[1:3, 2:5] = True
    return mask


def rle_of(mask: np.ndarray) -> dict[str, Any]:
    return encode_masks(torch.from_numpy(mask)[None])[0]


def coco_file() -> CocoFile:
    annotation = CocoAnnotation(7, 3, rle_of(corner()), [2.0, 1.0, 3.0, 2.0], 6.0, extra=EXTRA)
    images = [
        CocoImage(3, "0123456789abcdef/000000.jpg", 4, 6, {"timestamp_us": 41_667}),
        CocoImage(4, "b/1.jpg", 4, 6),
    ]
    return CocoFile(images, [annotation], {"categories": [{"id": 1, "name": "object"}], "info": {"year": 2026}})


def ytvis_file() -> YtvisFile:
    track = Track(
        id=2,
        video_id=1,
        segmentations=[None, rle_of(corner())],
        bboxes=[None, [2.0, 1.0, 3.0, 2.0]],
        areas=[None, 6.0],
        extra=EXTRA,
    )
    video = Video(1, ["c/000000.jpg", "c/000001.jpg"], 4, 6, {"clip_id": "c"})
    return YtvisFile([video, Video(2, [], 8, 8)], [track], {"categories": [{"id": 1, "name": "object"}]})


@pytest.mark.parametrize("size", [(5, 7), (1, 6), (6, 1), (1, 1)])
def test_masks_of_one_image_are_encoded_as_pycocotools_does(size: tuple[int, int]) -> None:
    masks = np.random.default_rng(0).random((3, *size)) > 0.5
    rles = encode_masks(torch.from_numpy(masks))
    for rle, mask in zip(rles, masks, strict=True):
        assert rle["size"] == list(size)
        assert isinstance(rle["counts"], str)
        assert np.array_equal(coco_mask.decode(rle), mask)
    assert mask_areas(rles).tolist() == masks.sum((1, 2)).tolist()
    assert encode_masks(torch.zeros(0, 5, 7, dtype=torch.bool)) == []
    assert mask_areas([]).shape == (0,)


def test_every_way_to_write_a_mask_reads_as_the_same_run_lengths() -> None:
    expected = rle_of(corner())
    plain = {
        "size": [4, 6],
        "counts": [9, 2, 2, 2, 2, 2, 5],
    }  # column by column: two columns and one pixel, then rows 1, 2
    polygon = [[2, 1, 5, 1, 5, 3, 2, 3]]
    for segmentation in (expected, plain, polygon):
        assert read_mask(segmentation, (4, 6), where="here") == expected
    assert coco_mask.decode(read_mask([], (4, 6), where="here")).sum() == 0


def test_coco_round_trip_and_pycocotools_agrees(tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    write_coco(path, coco_file())
    assert read_coco(path) == coco_file()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    assert np.array_equal(coco.annToMask(coco.loadAnns(7)[0]), corner())
    assert coco.loadAnns(7)[0]["source"] == EXTRA["source"]
    assert coco.getAnnIds(imgIds=[4]) == []
    assert [p.name for p in tmp_path.iterdir()] == ["coco.json"]


def test_ytvis_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "ytvis.json"
    write_ytvis(path, ytvis_file())
    assert read_ytvis(path) == ytvis_file()
    video, track = json.loads(path.read_text())["videos"][0], json.loads(path.read_text())["annotations"][0]
    assert video["length"] == len(video["file_names"]) == len(track["segmentations"]) == 2
    assert track["segmentations"][0] is track["bboxes"][0] is track["areas"][0] is None


def test_empty_files_are_values(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco.json", CocoFile([], []))
    write_ytvis(tmp_path / "ytvis.json", YtvisFile([], []))
    assert read_coco(tmp_path / "coco.json").annotations == []
    assert read_ytvis(tmp_path / "ytvis.json").tracks == []
    assert read_coco(tmp_path / "coco.json").header["categories"][0]["name"] == "object"
    with JsonList(tmp_path / "list.json"):
        pass
    assert json.loads((tmp_path / "list.json").read_text()) == []


def test_a_list_is_written_entry_by_entry(tmp_path: Path) -> None:
    with JsonList(tmp_path / "list.json") as entries:
        entries.append({"a": 1})
        entries.append([None])
    assert json.loads((tmp_path / "list.json").read_text()) == [{"a": 1}, [None]]


def test_real_youtube_vis_files_survive_a_round_trip(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "ytvis_schema_sample" / "toy_saco_veval_sav_test_gt.json"
    if not source.is_file():
        pytest.skip(f"{source} is absent")
    content = read_ytvis(source)
    write_ytvis(tmp_path / "again.json", content)
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(source.read_text())
    visible = [(m, a) for t in content.tracks for m, a in zip(t.segmentations, t.areas, strict=True) if m is not None]
    assert len(visible) == 4359
    assert mask_areas([m for m, _ in visible]).tolist() == [a for _, a in visible]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    write_coco(path, coco_file())
    before = path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_coco(path, CocoFile([CocoImage(1, "a.jpg", 4, 6, {"when": object()})], []))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["coco.json"]


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(StorageError, match="cannot write"):
            write_coco(tmp_path / "coco.json", coco_file())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def broken(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the document with one value changed; path as in `annotations.0.bbox`."""
    document = json.loads(json.dumps(document))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = document
    for part in parents:
        place = place[part]
    place[last] = value
    return document


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("images", None, "images must be a list"),
        ("annotations", [1], "annotations must be a list"),
        ("images.0.id", "3", "id must be"),
        ("images.1.id", 3, "id 3 stands twice"),
        ("images.0.file_name", "../../etc/passwd", "points outside"),
        ("images.0.file_name", "/etc/passwd", "points outside"),
        ("images.0.file_name", "C:/secrets", "points outside"),
        ("images.0.file_name", "a\\..\\b", "not a file name"),
        ("images.0.file_name", 5, "not a file name"),
        ("images.0.height", 0, "above 0"),
        ("images.0.height", 10**10, "megapixels"),
        ("images.0.width", True, "above 0"),
        ("images.0.width", 7, "do not fill"),
        ("annotations.0.image_id", 99, "image 99 is not in the file"),
        ("annotations.0.segmentation", None, "not a run-length"),
        ("annotations.0.segmentation.counts", "9202`0", "do not fill"),
        ("annotations.0.segmentation.counts", [24, -1, 1], "do not fill"),
        ("annotations.0.segmentation.counts", [2**40], "do not fill"),
        ("annotations.0.segmentation.size", [10**6, 10**6], "do not fill"),
        ("annotations.0.segmentation", [[1, 2, 3]], "polygon needs"),
        ("annotations.0.segmentation", [[0, 0, 1e9, 0, 1e9, 1e9]], "far outside"),
        ("annotations.0.segmentation", [[0, 0, "1", 0, 1, 1]], "numbers only"),
        ("annotations.0.bbox", [1, 2, 3], "a box is"),
        ("annotations.0.bbox", [1, 2, -3, 4], "negative size"),
        ("annotations.0.area", -1, "area must be"),
        ("annotations.0.category_id", None, "category_id must be"),
    ],
)
def test_hostile_coco_is_refused_in_one_line(tmp_path: Path, place: str, value: Any, message: str) -> None:
    path = tmp_path / "coco.json"
    write_coco(path, coco_file())
    path.write_text(json.dumps(broken(json.loads(path.read_text()), place, value)))
    with pytest.raises(DataError, match=message) as caught:
        read_coco(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("videos.0.length", 3, "length is 3"),
        ("videos.0.file_names", ["a", ".."], "points outside"),
        ("videos.0.file_names", None, "file_names must be"),
        ("videos.1.id", 1, "id 1 stands twice"),
        ("annotations.0.video_id", 9, "video 9 is not"),
        ("annotations.0.bboxes", [None], "each of 2 frames"),
        ("annotations.0.areas.0", 3.0, "null in the same frames"),
        ("annotations.0.segmentations.1.size", [6, 4], "do not fill"),
    ],
)
def test_hostile_ytvis_is_refused_in_one_line(tmp_path: Path, place: str, value: Any, message: str) -> None:
    path = tmp_path / "ytvis.json"
    write_ytvis(path, ytvis_file())
    path.write_text(json.dumps(broken(json.loads(path.read_text()), place, value)))
    with pytest.raises(DataError, match=message) as caught:
        read_ytvis(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"images": [], "annotations": [NaN]}', "[" * 100_000, "\x00"])
def test_what_is_no_such_file_at_all(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    for read in (read_coco, read_ytvis):
        with pytest.raises(MosisError):
            read(path)
    with pytest.raises(DataError, match="larger than"):
        read_coco(write_padded(path), max_bytes=100)
    with pytest.raises(DataError, match="cannot read"):
        read_coco(tmp_path / "absent.json")


def write_padded(path: Path) -> Path:
    path.write_text('{"images": [], "annotations": []' + " " * 200 + "}")
    return path


def test_videos_without_published_annotations(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    path.write_text(json.dumps({"videos": [{"id": 1, "width": 6, "height": 4, "file_names": []}], "annotations": None}))
    assert read_ytvis(path).tracks == []
