"""YouTube-VIS as a source: layouts, true times, the rate decision, truth, selection, splits; on disk and in stores."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from miniature_youtube_vis import (
    HEIGHT,
    WIDTH,
    MiniVideo,
    draw_mask,
    make_document,
    write_all_frames,
    write_frames,
    write_release,
)
from pycocotools import mask as coco_mask

from tasks import ingest, pairs, params
from tasks.clips import ClipEntry, ClipReader, open_clips
from tasks.errors import MosisError, NothingLeftError, ParamsError
from tasks.formats.rle import mask_areas
from tasks.formats.ytvis import Track, Video, YtvisFile, read_ytvis, write_ytvis
from tasks.frames import FrameStore
from tasks.sources import open_source
from tasks.sources.youtube_vis.classes import draw_held_out
from tasks.sources.youtube_vis.release import read_release
from tasks.sources.youtube_vis.truth import read_truth

SIX_HZ = MiniVideo(60, range(0, 25, 5), hidden=(1, 4))
LATE = MiniVideo(63, (10, 15, 25, 30))


def settings(source: Path | str, **changes: Any) -> params.Params:
    own = {"min_rate_hz": 6, **changes}
    return params.parse(
        {
            "ingest": {"sources": [f"youtube_vis:{source}"], "workers": 1, "youtube_vis": own},
            "pairs": {"height": 64, "width": 64, "workers": 1},
        }
    )


def clips_of(workspace: Path, source: Path | str, **changes: Any) -> dict[int, ClipEntry]:
    """Clips by video id, after a whole ingest."""
    ingest.run(settings(source, **changes), workspace)
    entries = open_clips(workspace / "data" / "clips")
    return {int(entry.source.rpartition("#")[2]): entry for entry in entries}


def refusal(source: Path | str, **changes: Any) -> str:
    with pytest.raises(MosisError) as caught:
        open_source(f"youtube_vis:{source}", settings(source, **changes).ingest)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, change: Any) -> None:
    """Apply `change` to the JSON document in `path`."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def truth_of(entry: ClipEntry) -> list[dict[int, np.ndarray] | None]:
    with ClipReader(entry.path) as clip:
        found = [clip.truth(index) for index in range(len(clip))]
    return [
        dict(zip(one.track_ids.tolist(), one.masks.numpy(), strict=True))
        if one is not None and one.track_ids is not None
        else None
        for one in found
    ]


def check_truth(entry: ClipEntry, video: MiniVideo) -> None:
    """The clip has the miniature's masks in the frames that the annotation file lists."""
    assert entry.frames == entry.annotated_frames == len(video.numbers)
    for index, (number, found) in enumerate(zip(video.numbers, truth_of(entry), strict=True)):
        tracks = (2,) if index in video.hidden else (1, 2)
        assert found is not None
        assert set(found) == {2 * video.id + track for track in tracks}
        for track in tracks:
            np.testing.assert_array_equal(found[2 * video.id + track], draw_mask(track, number))


@pytest.mark.parametrize("year", [2019, 2021])
def test_both_layouts_from_the_root_from_the_file_and_from_a_store(tmp_path: Path, year: int) -> None:
    path = write_release(tmp_path / "release", [SIX_HZ, LATE], year=year)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "release"), f"/ytvis{year}", recursive=True)
    found = [
        clips_of(tmp_path / name, source)
        for name, source in [("a", tmp_path / "release"), ("b", path), ("c", f"memory://ytvis{year}")]
    ]
    clip_ids = [{number: entry.clip_id for number, entry in one.items()} for one in found]
    assert clip_ids[0] == clip_ids[1] == clip_ids[2]
    assert found[0][60].source == f"{path}#60"
    assert found[2][60].source == f"memory://ytvis{year}/{path.relative_to(tmp_path / 'release')}#60"
    check_truth(found[0][60], SIX_HZ)
    check_truth(found[2][63], LATE)


@pytest.mark.parametrize("place", ["beside", "JPEGImages"])
def test_a_file_of_another_name_has_its_frames_beside_it(tmp_path: Path, place: str) -> None:
    write_frames(tmp_path / place if place == "JPEGImages" else tmp_path, [SIX_HZ])
    (tmp_path / "mine.json").write_text(json.dumps(make_document([SIX_HZ])))
    check_truth(clips_of(tmp_path / "w", tmp_path / "mine.json")[60], SIX_HZ)


def test_times_come_from_the_frame_numbers(tmp_path: Path) -> None:
    write_release(tmp_path, [LATE, MiniVideo(64, range(0, 50, 10)), MiniVideo(65, range(7, 11))])
    entries = clips_of(tmp_path, tmp_path, min_rate_hz=3)
    with ClipReader(entries[63].path) as clip:
        assert clip.info.timestamps_us == (0, 166_667, 500_000, 666_667)
    assert {number: round(entry.rate_hz, 2) for number, entry in entries.items()} == {63: 6.0, 64: 3.0, 65: 30.0}
    half = clips_of(tmp_path, tmp_path, source_rate_hz=15, min_rate_hz=1)
    assert round(half[65].rate_hz, 2) == 15.0


def test_the_ordinary_release_is_too_slow_unless_accepted(tmp_path: Path) -> None:
    write_release(tmp_path, [SIX_HZ, LATE])
    message = refusal(tmp_path, min_rate_hz=None)
    assert "6 Hz (every 5th frame of 30 Hz video) is below 12 Hz" in message
    assert "ingest.youtube_vis.frames: all" in message
    assert "ingest.youtube_vis.min_rate_hz: 6" in message
    assert clips_of(tmp_path, tmp_path).keys() == {60, 63}


def test_slower_videos_than_accepted_are_set_aside(tmp_path: Path) -> None:
    write_release(tmp_path, [SIX_HZ, MiniVideo(64, range(0, 50, 10))])
    assert clips_of(tmp_path, tmp_path).keys() == {60}
    rejected = json.loads((tmp_path / "data" / "clips" / "rejected.jsonl").read_text())
    assert rejected["source"] == f"{tmp_path}/train.json#64"
    assert "3 Hz (every 10th frame of 30 Hz video) is below 6 Hz" in rejected["reason"]


def test_what_was_accepted_reaches_the_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_release(tmp_path, [SIX_HZ])
    clips_of(tmp_path, tmp_path)
    pairs.run(settings(tmp_path), tmp_path)
    store = FrameStore.open(tmp_path / "data" / "pairs")
    assert len(store.pairs()) == 4
    assert store.truth is not None
    assert [len(store.truth[row]) for row in range(5)] == [2, 1, 2, 2, 1]
    assert "1 clips down to 6 Hz, below pairs.min_rate_hz" in capsys.readouterr().out


@pytest.mark.parametrize("year", [2019, 2021])
def test_all_frames_with_truth_where_it_is_annotated(tmp_path: Path, year: int) -> None:
    video = MiniVideo(60, (3, 8, 18), hidden=(1,))
    write_release(tmp_path, [video], year=year)
    write_all_frames(tmp_path, [video], tail=2)
    (tmp_path / "train_all_frames" / "JPEGImages" / video.name / "cover.jpg").write_bytes(b"no frame")
    (entry,) = clips_of(tmp_path, tmp_path, frames="all", min_rate_hz=None).values()
    with ClipReader(entry.path) as clip:
        assert clip.info.timestamps_us == tuple(round(n * 1e6 / 30) for n in range(18))
        assert clip.info.annotated == (0, 5, 15)
        assert "min_rate_hz" not in clip.info.ingest
    found = truth_of(entry)
    assert found[5] is not None
    assert set(found[5]) == {122}
    np.testing.assert_array_equal(found[15][121], draw_mask(1, 18))  # type: ignore[index]
    assert entry.note is None


def test_all_frames_are_not_there(tmp_path: Path) -> None:
    write_release(tmp_path, [SIX_HZ, LATE])
    assert f"{tmp_path}/train_all_frames/JPEGImages: not found" in refusal(tmp_path, frames="all")
    write_all_frames(tmp_path, [LATE])
    assert clips_of(tmp_path, tmp_path, frames="all", min_rate_hz=None).keys() == {63}


def test_every_kind_of_mask_is_the_same_truth(tmp_path: Path) -> None:
    path = write_release(tmp_path, [SIX_HZ])

    def vary(document: dict[str, Any]) -> None:
        moving, still = document["annotations"]
        for index, plain in enumerate(moving["segmentations"]):
            if plain is not None:
                rle = coco_mask.frPyObjects(plain, HEIGHT, WIDTH)
                moving["segmentations"][index] = {"size": rle["size"], "counts": rle["counts"].decode()}
        upper, lower = ([80, y, 92, y, 92, y + 6, 80, y + 6] for y in (20, 26))  # two parts make the square
        still["segmentations"] = [[upper, lower]] * 5

    before = clips_of(tmp_path / "a", tmp_path)[60]
    edit(path, vary)
    after = clips_of(tmp_path / "b", tmp_path)[60]
    check_truth(after, SIX_HZ)
    assert after.clip_id == before.clip_id


def test_an_annotated_frame_may_be_empty(tmp_path: Path) -> None:
    path = write_release(tmp_path, [SIX_HZ])
    edit(path, lambda document: document["annotations"].pop())
    found = truth_of(clips_of(tmp_path, tmp_path)[60])
    assert [None if one is None else len(one) for one in found] == [1, 0, 1, 1, 0]


@pytest.mark.parametrize("annotations", ["null", "absent", "empty", "of another video"])
def test_without_annotations_there_is_no_truth(tmp_path: Path, annotations: str) -> None:
    blank = MiniVideo(5, range(0, 25, 5), category=None)
    path = write_release(
        tmp_path, [blank, SIX_HZ], split="valid", published=annotations == "of another video"
    )  # fmt: skip
    if annotations == "absent":
        edit(path, lambda document: document.pop("annotations"))
    if annotations == "empty":
        edit(path, lambda document: document.update(annotations=[]))
    entries = clips_of(tmp_path, tmp_path)
    assert (entries[5].truth, entries[5].split) == (False, None)
    expected = (True, "val") if annotations == "of another video" else (False, None)
    assert (entries[60].truth, entries[60].split) == expected


def test_train_leaves_its_split_to_the_pairs_stage_and_test_does_not(tmp_path: Path) -> None:
    write_release(tmp_path, [SIX_HZ])
    write_release(tmp_path, [LATE], split="test")
    assert {number: entry.split for number, entry in clips_of(tmp_path, tmp_path).items()} == {60: None, 63: "test"}
    assert clips_of(tmp_path, tmp_path, splits=["test"]).keys() == {63}
    assert "has neither valid/instances.json nor valid.json" in refusal(tmp_path, splits=["train", "valid"])


def test_videos_by_their_ids(tmp_path: Path) -> None:
    videos = [MiniVideo(number, range(0, 25, 5)) for number in (362, 1, 60, 63, 93, 2)]
    path = write_release(tmp_path, videos)
    thesis = [60, 63, 93, 362]
    assert sorted(clips_of(tmp_path, tmp_path, videos=thesis)) == thesis
    message = refusal(path, videos=[400, 3, 60])
    assert "has no video 400, 3 (ingest.youtube_vis.videos): its ids go from 1 to 362" in message
    assert clips_of(tmp_path, tmp_path, max_videos=2).keys() == {362, 1}
    write_release(tmp_path, [LATE], split="valid")
    assert "say with ingest.youtube_vis.splits" in refusal(tmp_path, videos=[60])
    assert clips_of(tmp_path, tmp_path, videos=[63], splits=["valid"]).keys() == {63}


def test_ten_videos_of_each_class_are_held_out() -> None:
    classes = {number: frozenset({number % 3 + 1}) for number in range(60)} | {99: frozenset(), 100: frozenset({4})}
    held_out = draw_held_out(classes, 0)
    assert Counter(number % 3 for number in held_out if number < 60) == {0: 10, 1: 10, 2: 10}
    assert 99 not in held_out
    assert 100 in held_out
    assert draw_held_out(dict(reversed(classes.items())), 0) == held_out
    assert draw_held_out(classes, 1) != held_out
    both = {number: frozenset({1, 2}) for number in range(1000)}
    assert 15 <= len(draw_held_out(both, 0)) <= 20  # each class draws for itself
    assert draw_held_out({}, 0) == frozenset()


def test_train_train_and_train_val(tmp_path: Path) -> None:
    videos = [MiniVideo(number, range(0, 10, 5), category=number % 2 + 1) for number in range(26)]
    write_release(tmp_path, videos)
    write_release(tmp_path, [LATE], split="valid", published=False)
    both = clips_of(tmp_path, tmp_path, split="both")
    assert Counter(entry.split for entry in both.values()) == {"train": 6, "val": 20}
    for name, split in (("train_train", "train"), ("train_val", "val")):
        one = clips_of(tmp_path, tmp_path, split=name)
        assert one.keys() == {number for number, entry in both.items() if entry.split == split}
        assert {entry.split for entry in one.values()} == {split}
    again = clips_of(tmp_path, tmp_path, split="train_val", split_seed=1)
    assert again.keys() != {number for number, entry in both.items() if entry.split == "val"}
    write_release(tmp_path / "few", videos[:4])
    assert "no video is left of it" in refusal(tmp_path / "few", split="train_train")
    assert "has no annotations to draw videos by" in refusal(tmp_path, split="both", splits=["valid"])


def test_class_agnostic_truth_is_exhaustive_only_on_demand(tmp_path: Path) -> None:
    path = write_release(tmp_path, [SIX_HZ])
    loose, strict = (clips_of(tmp_path, tmp_path, exhaustive=wanted)[60] for wanted in (False, True))
    assert (loose.exhaustive, strict.exhaustive) == (False, True)
    assert loose.clip_id != strict.clip_id
    edit(path, lambda document: document["annotations"][0].update(iscrowd=1))
    crowd = clips_of(tmp_path, tmp_path, exhaustive=True)[60]
    assert not crowd.exhaustive
    assert crowd.note is not None
    assert "1 of 2 tracks left out: annotation 121: is a crowd" in crowd.note.replace(f"{path}#60: ", "")
    assert [None if one is None else set(one) for one in truth_of(crowd)] == [{122}] * 5


def test_a_job_carries_its_own_video_and_no_frame_is_looked_at_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = [MiniVideo(number, range(0, 25, 5)) for number in range(40)]
    write_release(tmp_path / "release", videos)
    memory = fsspec.filesystem("memory")
    memory.pipe("/jobs/train.json", (tmp_path / "release" / "train.json").read_bytes())
    asked: list[str] = []
    for name in ("info", "ls", "find", "_open"):
        original = getattr(type(memory), name)

        def record(self: Any, path: str, *args: Any, original: Any = original, **options: Any) -> Any:
            asked.append(path)
            return original(self, path, *args, **options)

        monkeypatch.setattr(type(memory), name, record)
    jobs = open_source("youtube_vis:memory://jobs", settings("").ingest)
    assert len(jobs) == 40
    assert pickle.loads(pickle.dumps(jobs)) == jobs  # noqa: S301 - jobs travel to other processes
    assert not [path for path in asked if "JPEGImages" in path]
    assert len(asked) < 20
    assert max(len(pickle.dumps(job)) for job in jobs) < 4000  # the whole file has 60 kB
    assert (tmp_path / "release" / "train.json").stat().st_size > 40_000


def test_no_credential_is_in_what_a_job_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEASE_PASSWORD", "hunter2")
    memory = fsspec.filesystem("memory")
    memory.pipe("/user:hunter2@secret/train.json", json.dumps(make_document([SIX_HZ])).encode())
    (job,) = open_source("youtube_vis:simplecache::memory://user:${RELEASE_PASSWORD}@secret", settings("").ingest)
    assert job.source == "simplecache::memory://secret/train.json#60"
    assert "hunter2" not in repr(job)


def test_the_real_annotations_come_whole(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "ytvis_schema_sample" / "toy_saco_veval_sav_test_gt.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    (record,) = read_release(path, str(path), None).videos
    assert record.video is not None
    numbers = range(0, 584, 4)
    truth, note = read_truth(record.video, numbers, record.tracks, where="it", exhaustive=False)
    assert truth is not None
    assert note is None
    ids = {track_id for found in truth.tracks.values() for track_id, _ in found}
    assert len(ids) == 33
    assert sum(len(found) for found in truth.tracks.values()) == 4359 == 33 * 146 - 459
    areas = {track.id: track.areas for track in read_ytvis(path).tracks}
    for index, number in enumerate(numbers[:3]):
        masks = truth.masks(number, truth.size, tmp_path)
        assert masks is not None
        assert {i: m.sum() for i, m in masks.items()} == {i: a[index] for i, a in areas.items() if a[index] is not None}
    for index, number in enumerate(numbers):
        found = dict(truth.tracks[number])
        rles = [{"size": list(truth.size), "counts": counts} for counts in found.values()]
        assert mask_areas(rles).tolist() == [areas[track_id][index] for track_id in found]
    write_ytvis(tmp_path / "again.json", read_ytvis(path))
    (again,) = read_release(tmp_path / "again.json", "again", None).videos
    assert read_truth(record.video, numbers, again.tracks, where="it", exhaustive=False) == (truth, None)
    assert again.video == record.video


def test_our_own_exports_have_their_own_times(tmp_path: Path) -> None:
    """What tasks/export.py writes, beside frames taken out of the clips."""
    write_frames(tmp_path, [MiniVideo(0xC, (0, 1, 2))])
    names = [f"000000000c/{number:05d}.jpg" for number in range(3)]
    video = Video(1, names, HEIGHT, WIDTH, {"timestamps_us": [5, 41_672, 83_338]})
    write_ytvis(tmp_path / "ytvis.json", YtvisFile([video], [Track(1, 1, [None] * 3, [None] * 3, [None] * 3)]))
    entry = clips_of(tmp_path, tmp_path / "ytvis.json", min_rate_hz=None)[1]
    with ClipReader(entry.path) as clip:
        assert clip.info.timestamps_us == (0, 41_667, 83_333)
    edit(tmp_path / "ytvis.json", lambda document: document["videos"][0].update(timestamps_us=[0, 0, 1]))
    with pytest.raises(NothingLeftError, match="timestamps_us must be ascending"):
        clips_of(tmp_path, tmp_path / "ytvis.json")


@pytest.mark.parametrize(
    ("changes", "hint"),
    [({"video": [60]}, "did you mean videos"), ({"frames": "some"}, "frames"), ({"videos": []}, "videos"),
     ({"split": "val"}, "split"), ({"splits": ["dev"]}, "splits"), ({"source_rate_hz": 0}, "source_rate_hz")],
)  # fmt: skip
def test_settings_fail_by_name(changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(ParamsError, match=hint) as caught:
        settings("x", **changes)
    assert "ingest.youtube_vis" in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    assert "has neither train.json nor train/instances.json" in refusal(tmp_path)
    assert "cannot read" in refusal(tmp_path / "absent.json")
    write_release(tmp_path, [SIX_HZ], year=2019)
    write_release(tmp_path / "x", [SIX_HZ], year=2021)
    (tmp_path / "x" / "train" / "instances.json").rename(tmp_path / "train" / "instances.json")
    assert "name the one that is meant" in refusal(tmp_path)
