"""Labels of videos and pictures by a predictor that finds what is orange: whole, set aside, unchanged, no file lost."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
from clip_toy import find_orange, make_clip
from conftest import moving_square, write_video

from flows.cli import build_parser
from tasks import label
from tasks.clips import ClipEntry
from tasks.errors import NothingLeftError, ParamsError, SourceError
from tasks.formats.coco import read_coco
from tasks.formats.ytvis import read_ytvis
from tasks.label import Labelled, label_clips
from tasks.label_inputs import list_inputs
from tasks.label_writing import _batches
from tasks.model_store import LoadedModel
from tasks.params import ExportParams

LINEAGE = {"name": "toy", "version": "3", "alias": "champion", "weights_sha256": "ab"}
SETTINGS = ExportParams(score_threshold=0.5, batch_size=2)
MODEL = LoadedModel(find_orange, "toy/3", LINEAGE, SETTINGS, {"nms_iou": 0.6, "other": 1})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*sources: str, model: LoadedModel = MODEL, out: str = "out", image_rate_hz: float | None = None) -> Labelled:
    return label.label_sources(sources, model, Path(out), image_rate_hz=image_rate_hz)


def write_pictures(folder: str, frames: list[np.ndarray]) -> None:
    Path(folder).mkdir(parents=True)
    for index, frame in enumerate(frames):
        cv2.imwrite(f"{folder}/{index}.png", frame[..., ::-1])


def snapshot(folder: str = "out") -> dict[str, tuple[int, bytes]]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_videos_and_pictures_with_their_lineage() -> None:
    write_video(Path("a.mp4"), moving_square(5))
    write_pictures("pics/deep", [*moving_square(1, 40, 60), *moving_square(2, 30, 90)])
    summary = run("a.mp4", "pics").summary
    assert json.loads(Path("out/summary.json").read_text()) == summary
    assert (summary["images"], summary["annotations"], summary["tracks"], summary["set_aside"]) == (8, 8, 1, [])
    assert summary["model"] == LINEAGE
    assert summary["model_version"] == "toy/3"
    assert summary["thresholds"] == {"score": 0.5, "link_iou": 0.3, "nms_iou": 0.6}
    assert summary["label_free"]["instances_per_frame"] == 1
    assert summary["label_free"]["temporal_iou"] > 0.8  # of the video alone: no picture follows another
    assert summary["code"]["mosis"]
    kinds = [(entry["kind"], entry["source"]) for entry in summary["inputs"]]
    assert kinds == [("video", "a.mp4"), *(("picture", f"pics/deep/{i}.png") for i in range(3))]
    assert all(len(entry["sha256"]) == 64 for entry in summary["inputs"])

    coco = read_coco(Path("out/coco.json"))
    assert [image.file_name for image in coco.images][5:] == ["pics/deep/0.png", "pics/deep/1.png", "pics/deep/2.png"]
    assert [(image.height, image.width) for image in coco.images][4:7] == [(48, 64), (40, 60), (30, 90)]
    (found,) = [one for one in coco.annotations if one.image_id == 7]
    assert (found.bbox, found.area) == ([0.0, 16.0, 16.0, 14.0], 224)  # the square, cut off by the picture's edge
    provenance = {"model_version": "toy/3", "thresholds": summary["thresholds"]}
    assert dict(found.extra) == {"source": "pics/deep/1.png", "score": 0.9, **provenance}
    videos = read_ytvis(Path("out/ytvis.json"))
    assert [len(video.file_names) for video in videos.videos] == [5]
    assert len(videos.tracks) == 1
    assert len(summary["pictures"]) == 4
    assert all((Path("out") / entry["file"]).is_file() for entry in summary["pictures"])
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "coco.json",
        "pictures",
        "summary.json",
        "ytvis.json",
    ]


def test_pictures_alone_have_no_track_file_and_an_empty_one_is_an_image() -> None:
    write_pictures("pics", [np.full((20, 30, 3), 9, np.uint8)])
    summary = run("pics").summary
    assert (summary["images"], summary["annotations"], summary["tracks"]) == (1, 0, 0)
    assert not Path("out/ytvis.json").exists()
    coco = read_coco(Path("out/coco.json"))
    assert ([image.file_name for image in coco.images], coco.annotations) == (["0.png"], [])


def test_a_stated_rate_makes_a_folder_of_pictures_a_video() -> None:
    write_pictures("pics", moving_square(4))
    summary = run("pics", image_rate_hz=4.0).summary  # slow: no rate is refused, nothing is learnt from it
    assert (summary["images"], summary["tracks"]) == (4, 1)
    assert [entry["kind"] for entry in summary["inputs"]] == ["sequence"]
    assert [image.extra["timestamp_us"] for image in read_coco(Path("out/coco.json")).images][1] == 250_000
    assert run("pics", image_rate_hz=4.0).unchanged


def test_the_same_again_changes_nothing_and_anything_else_is_done_anew() -> None:
    write_video(Path("a.mp4"), moving_square(4))
    write_pictures("pics", moving_square(2))
    Path("pics/bad.jpg").write_bytes(b"no picture")
    Path("bad.mp4").write_bytes(b"no video")
    sources = ("a.mp4", "bad.mp4", "pics")
    assert not run(*sources).unchanged
    before = snapshot()
    again = run(*sources)
    assert again.unchanged
    assert snapshot() == before
    assert again.summary["images"] == 6
    # The alias by which the same version was asked for is no other model.
    by_number = LoadedModel(find_orange, "toy/3", {**LINEAGE, "alias": None}, SETTINGS, MODEL.method)
    assert run(*sources, model=by_number).unchanged
    assert not run(*sources, model=MODEL.with_score(0.95)).unchanged
    assert run(*sources, model=MODEL.with_score(0.95)).summary["annotations"] == 0
    assert not run(*sources).unchanged
    other = LoadedModel(find_orange, "toy/4", {**LINEAGE, "version": "4"}, SETTINGS, MODEL.method)
    assert not run(*sources, model=other).unchanged
    for path, content in (("bad.mp4", b"other"), ("pics/1.png", Path("pics/0.png").read_bytes())):
        Path(path).write_bytes(content)
        assert not run(*sources, model=other).unchanged
        assert run(*sources, model=other).unchanged
    write_video(Path("a.mp4"), moving_square(5))
    assert run(*sources, model=other).summary["images"] == 7
    Path("pics/2.png").write_bytes(Path("pics/0.png").read_bytes())
    assert run(*sources, model=other).summary["images"] == 8
    Path("out/summary.json").write_text("{")
    assert not run(*sources, model=other).unchanged


def test_broken_inputs_among_many_are_set_aside() -> None:
    write_video(Path("a.mp4"), moving_square(4))
    Path("b.mp4").write_bytes(b"no video at all")
    write_pictures("pics", moving_square(1))
    whole = cv2.imencode(".jpg", moving_square(1, 96, 128)[0])[1].tobytes()  # OpenCV would paint the rest of it in grey
    Path("pics/cut.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    summary = run("b.mp4", "a.mp4", "pics").summary
    assert [one["source"] for one in summary["set_aside"]] == ["b.mp4", "pics/cut.jpg"]
    assert all(one["reason"] and "\n" not in one["reason"] for one in summary["set_aside"])
    assert summary["images"] == 5
    assert len(read_coco(Path("out/coco.json")).images) == 5


def test_where_nothing_can_be_labelled_nothing_appears_and_older_labels_stay() -> None:
    Path("b.mp4").write_bytes(b"no video at all")
    with pytest.raises(NothingLeftError, match="nothing could be labelled: "):
        run("b.mp4")
    assert sorted(path.name for path in Path().iterdir()) == ["b.mp4"]
    write_video(Path("a.mp4"), moving_square(3))
    run("a.mp4")
    before = snapshot()
    with pytest.raises(NothingLeftError):
        run("b.mp4")
    assert snapshot() == before


def test_a_source_that_is_not_there_is_said_at_once() -> None:
    Path("empty").mkdir()
    for source in ("nowhere.mp4", "empty"):
        with pytest.raises(SourceError, match=source):
            run(source)
    assert not Path("out").exists()


def test_the_same_video_under_two_names_is_labelled_once() -> None:
    write_video(Path("a.mp4"), moving_square(3))
    shutil.copy("a.mp4", "b.mp4")
    summary = run("a.mp4", "b.mp4", "a.mp4").summary
    assert (summary["images"], len(summary["clips"])) == (3, 1)
    assert [entry.get("same_as") for entry in summary["inputs"]] == [None, "a.mp4"]


def test_no_file_of_others_is_replaced_or_labelled_the_next_time() -> None:
    write_pictures("pics", moving_square(1))
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years of work")
    Path("file").write_text("")
    for out, words in (("mine", r"thesis\.tex"), ("file", "is a file"), ("pics/out", "lies in the other")):
        with pytest.raises(ParamsError, match=words):
            run("pics", out=out)
    Path("out").mkdir()
    shutil.copytree("pics", "out/pictures")
    with pytest.raises(ParamsError, match="lies in the other"):
        run("out/pictures/0.png")
    assert Path("mine/thesis.tex").read_text() == "years of work"
    assert Path("out/pictures/0.png").is_file()


def test_urls_and_names_that_would_break_a_line() -> None:
    with fsspec.open("memory://bucket/a.png", "wb") as file:
        file.write(cv2.imencode(".png", moving_square(1)[0][..., ::-1])[1].tobytes())
    name = "; rm -rf ~\n.png"
    write_pictures("pics", moving_square(1))
    os.rename("pics/0.png", f"pics/{name}")
    broken = os.fsdecode(b"pics/\xff.png")
    shutil.copy(f"pics/{name}", broken)
    summary = run("memory://bucket/a.png", "pics").summary
    assert summary["annotations"] == 3
    names = [image.file_name for image in read_coco(Path("out/coco.json")).images]
    assert names == ["a.png", "pics/; rm -rf ~_n.png", "pics/_udcff.png"]
    assert run("memory://bucket/a.png", "pics").unchanged


def test_file_names_are_unique_and_stay_below_a_folder(tmp_path: Path) -> None:
    for folder in ("x/pics", "y/pics"):
        write_pictures(folder, moving_square(1))
    inputs = list_inputs(["x/pics", str(tmp_path / "y/pics"), "x/pics/0.png", "y/pics/0.png"], None)
    assert [picture.name for picture in inputs.pictures] == ["pics/0.png", "2/pics/0.png", "0.png"]


def test_clips_that_lie_ready(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path, "a", moving_square(4)), make_clip(tmp_path, "b", moving_square(3))]
    summary = label_clips(clips, MODEL, Path("out"), request={"video_id": "a"})
    assert (summary["images"], summary["tracks"], summary["request"]) == (7, 2, {"video_id": "a"})
    assert label_clips([], MODEL, Path("none"))["label_free"]["mean_score"] is None
    for clip in clips:
        clip.path.write_bytes(b"")
    with pytest.raises(NothingLeftError, match="no clip could be labelled"):
        label_clips(clips, MODEL, Path("other"))
    assert not Path("other").exists()


def test_a_clip_that_breaks_in_the_middle_of_a_video_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.sources.video import VideoJob

    write_video(Path("a.mp4"), moving_square(3))
    ingest = VideoJob.run

    def damage(job: VideoJob, folder: Path) -> list[ClipEntry]:
        (entry,) = ingest(job, folder)
        data = bytearray(entry.path.read_bytes())
        place = data.index(b"frames/000002.jpg")
        data[place + 60 : place + 160] = bytes(100)
        entry.path.write_bytes(data)
        return [entry, make_clip(folder, "c", moving_square(2))]

    monkeypatch.setattr(VideoJob, "run", damage)
    summary = run("a.mp4").summary
    assert [len(summary[name]) for name in ("clips", "set_aside", "inputs")] == [1, 1, 1]
    assert "frames/000002" in summary["set_aside"][0]["reason"]


def test_large_pictures_go_through_one_by_one() -> None:
    sizes = [(2, 3), (2, 3), (2, 3), (3000, 3000), (2, 2), (2, 2)]
    read: Any = iter([(number, np.broadcast_to(np.uint8(0), (*size, 3))) for number, size in enumerate(sizes)])
    assert [[number for number, _ in batch] for batch in _batches(read, 2)] == [[0, 1], [2], [3], [4, 5]]
    assert list(_batches(iter([]), 2)) == []


def test_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    options = build_parser().parse_args(["label", "a.mp4", "--out", "x", "--score", "0.3", "--image-rate", "24"])
    assert (options.model, options.score, options.image_rate) == ("models:/mosis@champion", 0.3, 24.0)
    serving = build_parser().parse_args(["serve"])
    assert (serving.host, serving.port, serving.max_request_mib) == ("127.0.0.1", 5001, 40)
    wrong = (["--score", "1.1"], ["--score", "nan"], ["--image-rate", "0"], ["--image-rate", "x"])
    for arguments in ([*base, *tail] for base in (["label", "a", "--out", "x"],) for tail in wrong):
        with pytest.raises(SystemExit):
            build_parser().parse_args(arguments)
    for arguments in (["label", "a"], ["label", "--out", "x"], ["serve", "--port", "0"], ["serve", "--port", "70000"]):
        with pytest.raises(SystemExit):
            build_parser().parse_args(arguments)
    assert isinstance(options, argparse.Namespace)
    capsys.readouterr()
