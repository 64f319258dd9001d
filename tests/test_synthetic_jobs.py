"""Generated video as clips: splits, archives, pictures for textures, and parameters that cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tasks.clips import ClipReader
from tasks.errors import ParamsError, SourceError
from tasks.params import IngestParams, SyntheticParams
from tasks.pool import map_unordered
from tasks.sources.synthetic import generate_video, open_synthetic
from tasks.sources.synthetic.jobs import assign_splits, encode_png


def small(**changes: Any) -> SyntheticParams:
    known: dict[str, Any] = {"frames": 8, "height": 64, "width": 64, "objects": (2, 2), "radius": (8.0, 12.0)}
    return SyntheticParams(**(known | changes))


def test_splits_of_the_thesis():
    splits = assign_splits(24, 0)
    assert [splits.count(name) for name in ("train", "val", "test")] == [17, 3, 4]
    assert splits == assign_splits(24, 0) != assign_splits(24, 1)


@pytest.mark.parametrize("videos", [1, 2, 3, 4, 5, 7, 20, 40])
def test_no_split_is_empty(videos):
    splits = assign_splits(videos, 0)
    assert len(splits) == videos
    assert "train" in splits
    assert videos < 3 or set(splits) == {"train", "val", "test"}


def run_jobs(folder: Path, params: IngestParams, workers: int) -> dict[str, bytes]:
    folder.mkdir()
    jobs = open_synthetic(params)
    for outcome in map_unordered(_run_job, [(job, folder) for job in jobs], workers, "test"):
        outcome.get()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _run_job(work: Any) -> Any:
    job, folder = work
    return job.run(folder)


def test_archives_are_the_same_with_any_number_of_workers(tmp_path):
    params = IngestParams(synthetic=small(videos=3, frames=3))
    alone, shared = run_jobs(tmp_path / "one", params, 1), run_jobs(tmp_path / "two", params, 2)
    assert len(alone) == 3
    assert alone == shared


def test_archive_holds_what_was_generated(tmp_path):
    params = IngestParams(synthetic=small(videos=1, frames=3))
    (job,) = open_synthetic(params)
    (entry,) = job.run(tmp_path)
    video = generate_video(params.synthetic, 0)
    assert video.flow_uv is not None
    with ClipReader(entry.path) as clip:
        assert clip.info.split == "train"
        assert list(clip.info.timestamps_us) == video.timestamps_us
        assert clip.flow(2) is None
        for t in range(3):
            np.testing.assert_array_equal(clip.frame(t), video.frames[t])
            truth = clip.truth(t)
            assert truth is not None
            assert truth.track_ids is not None
            np.testing.assert_array_equal(truth.masks.numpy(), video.masks[truth.track_ids.numpy(), t])
        stored = clip.flow(0)
        assert stored is not None
        np.testing.assert_allclose(stored, video.flow_uv[0], atol=1 / 128 + 1e-6)


def test_archive_without_objects_has_truth_of_nothing(tmp_path):
    (job,) = open_synthetic(IngestParams(synthetic=small(videos=1, frames=2, objects=(0, 0))))
    (entry,) = job.run(tmp_path)
    with ClipReader(entry.path) as clip:
        truth = clip.truth(0)
        assert truth is not None
        assert len(truth) == 0


def test_clip_ids_follow_what_shapes_the_pixels(tmp_path):
    def first_id(**changes: Any) -> str:
        job = open_synthetic(IngestParams(synthetic=small(frames=2, **changes)))[0]
        return dataclasses.replace(job, split="train").run(tmp_path)[0].clip_id

    assert first_id(videos=5) == first_id(videos=3)
    assert first_id(texture_contrast=1.0) == first_id() == "52d1fccf71aee74a"
    others = [{"seed": 1}, {"objects": (1, 1)}, {"lighting": 0.1}, {"camera_zoom": 0.1}]
    assert len({first_id(), *(first_id(**changes) for changes in others)}) == 5


def test_png_is_lossless():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    decoded = cv2.imdecode(np.frombuffer(encode_png(image), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decoded, image)


def write_picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (90, 120)) -> None:
    path.write_bytes(encode_png(np.full((*size, 3), colour, np.uint8)))


def test_pictures_become_background_and_textures(tmp_path):
    write_picture(tmp_path / "blue.png", (0, 0, 200))
    (tmp_path / "notes.txt").write_text("no picture")
    video = generate_video(small(pictures=str(tmp_path)), 0)
    # Distractors are lighter or darker; nothing else can change the colour.
    np.testing.assert_array_equal(video.frames[0][video.masks[:, 0].any(0)][:, 2] > 150, True)
    assert (video.frames[0] == (0, 0, 200)).all(-1).mean() > 0.3


@pytest.mark.parametrize("size", [(1, 1), (5, 400), (300, 300)])
def test_pictures_of_any_size(tmp_path, size):
    write_picture(tmp_path / "odd.png", (10, 20, 30), size)
    assert generate_video(small(pictures=str(tmp_path), frames=2), 0).frames.shape == (2, 64, 64, 3)


def test_picture_folders_that_cannot_be(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(SourceError, match=r"ingest\.synthetic\.pictures"):
            open_synthetic(IngestParams(synthetic=small(pictures=str(folder))))
    (tmp_path / "broken.jpg").write_text("this is text")
    (job, *_) = open_synthetic(IngestParams(synthetic=small(pictures=str(tmp_path))))
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match=r"broken\.jpg"):
        job.run(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_other_pictures_give_other_clips(tmp_path):
    digests = []
    for colour in ((1, 2, 3), (3, 2, 1)):
        write_picture(tmp_path / "a.png", colour)
        digests.append(open_synthetic(IngestParams(synthetic=small(pictures=str(tmp_path))))[0].pictures_sha256)
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"rate_hz": 5.0}, "rate_hz"), ({"radius": (9.0, 500.0)}, "radius"), ({"background_zoom": (1.0, 1e6)}, "zoom")],
)
def test_parameters_that_cannot_be(changes, key):
    with pytest.raises(ParamsError, match=key) as caught:
        open_synthetic(IngestParams(synthetic=small(**changes)))
    assert "\n" not in str(caught.value)
