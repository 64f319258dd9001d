"""YouTube-VIS files made by accident or to do harm: a broken record goes alone and says why, a file in one line."""

from __future__ import annotations

import json
import os
import pickle
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from miniature_youtube_vis import HEIGHT, WIDTH, MiniVideo, make_document, write_all_frames, write_release
from test_youtube_vis import clips_of, edit, refusal, settings, truth_of

from tasks.errors import MosisError, NothingLeftError
from tasks.sources import open_source
from tasks.sources.youtube_vis import release, truth

GOOD, BAD = MiniVideo(60, range(0, 25, 5)), MiniVideo(63, range(0, 25, 5))


def names_of(document: dict[str, Any]) -> list[str]:
    """File names of the bad video, to be changed in place."""
    names: list[str] = document["videos"][1]["file_names"]
    return names


def rename(name: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        names_of(document)[2] = name

    return change


def set_video(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["videos"][1].update(values)


def reasons(workspace: Path) -> list[dict[str, str]]:
    lines = (workspace / "data" / "clips" / "rejected.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "content",
    [b"", b"no JSON", b"[]", b"{}", b'{"videos": []}', b'{"videos": {"id": 1}}', b'{"videos": null, "annotations": []}']
    + [b'{"videos": [{"id": 1}], "annotations": {}}', b'{"images": [{"id": 1}], "annotations": []}', b"\x1f\x8b"]
    + [json.dumps(make_document([GOOD, BAD])).encode()[:-100]],
)  # fmt: skip
def test_a_broken_file_fails_as_a_whole(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.json").write_bytes(content)
    assert f"{tmp_path}/train.json" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (rename("../../../etc/00010.jpg"), "points outside the data's folder"),
        (rename("/etc/00010.jpg"), "points outside the data's folder"),
        (rename("C:/00010.jpg"), "points outside the data's folder"),
        (rename("x/00010.jpg::file:///etc/passwd"), "is not a file name of a frame"),
        (rename("${HOME}/00010.jpg"), "is not a file name of a frame"),
        (rename("x\n/00010.jpg"), "is not a file name of a frame"),
        (rename("\ud800/00010.jpg"), "is not a file name of a frame"),
        (rename("x/frame.jpg"), "is no frame number"),
        (rename("x/99999999999999999999.jpg"), "is no frame number"),
        (rename("x/00005.jpg"), "frame numbers do not ascend"),
        (lambda document: names_of(document).pop(), "length is 5, but it has 4 file_names"),
        (lambda document: names_of(document).append(7), "length is 5, but it has 6 file_names"),
        (set_video(file_names=["x/00000.jpg"], length=1), "has one frame"),
        (set_video(file_names=[], length=0), "has no frame"),
        (set_video(file_names=None), "file_names must be a list"),
        (set_video(width=60_000, height=60_000), "claims 60000 x 60000"),
        (set_video(width="96"), "height and width must be whole numbers"),
        (set_video(height=float("nan")), "height and width must be whole numbers"),
        (set_video(timestamps_us=[0, 1, 2, 3, -5]), "timestamps_us must be ascending"),
        (lambda document: document["videos"].append(document["videos"][1]), "id 63 stands twice among the videos"),
    ],
)
def test_a_broken_video_is_set_aside_alone(tmp_path: Path, change: Callable[[Any], Any], reason: str) -> None:
    edit(write_release(tmp_path, [GOOD, BAD]), change)
    assert clips_of(tmp_path, tmp_path).keys() == {60}
    (rejected,) = reasons(tmp_path)
    assert rejected["source"] == f"{tmp_path}/train.json#63"
    assert reason in rejected["reason"]
    assert not rejected["reason"].startswith(str(tmp_path))


def set_track(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["annotations"][0].update(values)


def set_mask(mask: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["annotations"][0]["segmentations"].__setitem__(2, mask)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_mask({"size": [HEIGHT, WIDTH + 1], "counts": [HEIGHT * (WIDTH + 1)]}), "do not fill 96 x 48"),
        (set_mask({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 1]}), "do not fill 96 x 48"),
        (set_mask({"size": [HEIGHT, WIDTH], "counts": [-5, HEIGHT * WIDTH + 5]}), "do not fill 96 x 48"),
        (set_mask({"size": [HEIGHT, WIDTH], "counts": "zzz"}), "do not fill 96 x 48"),
        (set_mask({"size": [60_000, 60_000], "counts": [3_600_000_000]}), "do not fill 96 x 48"),
        (set_mask([[0, 0, float("nan"), 4, 4, 4]]), "may hold numbers only"),
        (set_mask([[0, 0, 1e9, 4, 4, 4]]), "far outside"),
        (set_mask([[0, 0, 4, 4]]), "three points"),
        (set_mask(7), "not a run-length encoded mask"),
        (set_mask(None), "must be null in the same frames"),
        (set_track(bboxes=[[0, 0, float("nan"), 1]] * 5), "a box is"),
        (set_track(areas=[float("inf")] * 5), "area must be a number"),
        (set_track(segmentations=[None]), "with an entry for each of 5 frames"),
        (set_track(segmentations=None), "with an entry for each of 5 frames"),
        (set_track(id=122), "its id stands twice"),
        (set_track(id=-1), "id must be a whole number"),
        (set_track(category_id=None), "category_id must be a whole number"),
    ],
)
def test_a_broken_track_is_left_out_alone(tmp_path: Path, change: Callable[[Any], Any], reason: str) -> None:
    edit(write_release(tmp_path, [GOOD]), change)
    entry = clips_of(tmp_path, tmp_path, exhaustive=True)[60]
    assert [None if found is None else set(found) for found in truth_of(entry)] == [{122}] * 5
    assert entry.note is not None
    assert "1 of 2 tracks left out" in entry.note
    assert reason in entry.note
    assert not entry.exhaustive


def test_a_video_without_any_good_track_has_no_truth(tmp_path: Path) -> None:
    edit(write_release(tmp_path, [GOOD]), lambda document: [a.update(areas=[]) for a in document["annotations"]])
    entry = clips_of(tmp_path, tmp_path)[60]
    assert not entry.truth
    assert entry.note is not None
    assert "2 of 2 tracks left out" in entry.note


def test_records_of_no_video_are_counted_once(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["videos"] += [7, {"id": "a"}, {}]
        document["annotations"] += [None, {"video_id": 99, "id": 1}, {"video_id": 99, "id": 2}, {"video_id": 1.5}]

    edit(write_release(tmp_path, [GOOD, BAD]), change)
    assert clips_of(tmp_path, tmp_path).keys() == {60, 63}
    (rejected,) = reasons(tmp_path)
    assert rejected["source"] == f"{tmp_path}/train.json"
    assert "3 entries of videos cannot be used: no object" in rejected["reason"]
    assert "4 annotations cannot be used" in rejected["reason"]


@pytest.mark.parametrize("frames", ["ordinary", "all"])
def test_links_may_not_lead_out_of_the_frames(tmp_path: Path, frames: str) -> None:
    """A root or a folder of frames that is itself a link is how people keep data on another disk."""
    real = tmp_path / "disk"
    write_release(real, [GOOD, BAD])
    write_all_frames(real, [GOOD, BAD])
    secret = tmp_path / "00010.jpg"
    images = real / ("train" if frames == "ordinary" else "train_all_frames") / "JPEGImages"
    (images / GOOD.name / "00010.jpg").replace(secret)
    (images / GOOD.name / "00010.jpg").symlink_to(secret)
    images.rename(tmp_path / "moved")
    images.symlink_to(tmp_path / "moved")
    (tmp_path / "link").symlink_to(real)
    assert clips_of(tmp_path, tmp_path / "link", frames=frames).keys() == {63}
    assert "a link that leads out of" in reasons(tmp_path)[0]["reason"]


def test_frames_of_another_size_have_no_truth(tmp_path: Path) -> None:
    path = write_release(tmp_path, [GOOD])
    edit(path, lambda document: document["videos"][0].update(height=4, width=4))
    edit(path, lambda document: document["annotations"].pop())
    square = {"size": [4, 4], "counts": [5, 2, 9]}
    edit(path, lambda document: document["annotations"][0].update(segmentations=[square] * 5))
    entry = clips_of(tmp_path, tmp_path)[60]
    assert not entry.truth
    assert entry.note is not None
    assert "truth of 5 of 5 pictures left out: frame 0 is 96 x 48, its annotations are of 4 x 4" in entry.note


def test_missing_frames(tmp_path: Path) -> None:
    write_release(tmp_path, [GOOD, BAD])
    folder = tmp_path / "train" / "JPEGImages"
    (folder / GOOD.name / "00010.jpg").unlink()
    for number in (0, 5, 10):
        (folder / BAD.name / f"{number:05d}.jpg").unlink()
    entry = clips_of(tmp_path, tmp_path)[60]
    assert entry.frames == entry.annotated_frames == 4
    assert entry.note is not None
    assert "1 of 5 pictures left out" in entry.note
    assert "3 of 5 pictures cannot be used" in reasons(tmp_path)[0]["reason"]


def test_bounds_on_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_release(tmp_path, [GOOD])
    monkeypatch.setattr(truth, "MAX_DECODED", HEIGHT * WIDTH)
    note = clips_of(tmp_path, tmp_path)[60].note
    assert note is not None
    assert "truth of 5 of 5 pictures left out: frame 0 has 2 masks of 96 x 48: too many to hold" in note
    monkeypatch.setattr(truth, "MAX_COUNTS", 10)
    with pytest.raises(NothingLeftError, match="MiB of masks: refused"):
        clips_of(tmp_path, tmp_path)
    monkeypatch.setattr(release, "MAX_TRACKS", 1)
    with pytest.raises(NothingLeftError, match="has 2 annotations, more than 1: refused"):
        clips_of(tmp_path, tmp_path)
    for name in ("MAX_VIDEOS", "MAX_NAMES"):
        with monkeypatch.context() as bound:
            bound.setattr(release, name, 0)
            assert "cut it in parts" in refusal(tmp_path)


def test_very_many_tiny_annotations_take_little_memory(tmp_path: Path) -> None:
    document = make_document([GOOD, BAD])
    mask = [[1, 1, 3, 1, 3, 3]]  # as run lengths it would be longer
    tiny = {"video_id": 60, "category_id": 1, "segmentations": [[mask]] * 5, "bboxes": [None] * 5, "areas": [None] * 5}
    document["annotations"] = [{"id": number, **tiny} for number in range(9000)]
    text = json.dumps(document)
    (tmp_path / "train.json").write_text(text)
    del document
    tracemalloc.start()
    jobs = open_source(f"youtube_vis:{tmp_path}", settings(tmp_path).ingest)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert len(pickle.dumps(jobs)) < len(text) / 10


def test_spoiled_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """Bytes flipped, removed, doubled and cut: nothing but our own errors comes out of listing and running."""
    write_release(tmp_path, [GOOD, BAD])
    data = (tmp_path / "train.json").read_bytes()
    chance = random.Random(0)
    params = settings(tmp_path).ingest
    read = refused = 0
    for turn in range(120):
        (tmp_path / "train.json").write_bytes(spoil(data, chance))
        folder = tmp_path / str(turn)
        folder.mkdir()
        try:
            for job in open_source(f"youtube_vis:{tmp_path}", params):
                job.run(folder)
            read += 1
        except MosisError as error:
            refused += "\n" not in str(error)
        assert not [name for name in os.listdir(folder) if not name.endswith(".zip")]
    assert read + refused == 120
    assert min(read, refused) > 5


def spoil(data: bytes, chance: random.Random) -> bytes:
    spoiled = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(spoiled))
        kind = chance.randrange(5)
        if kind == 0:
            spoiled[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            spoiled[at : at + 1] = chance.choice((b"9", b"-", b"null", b"NaN", b"[]", b"{}", b"1e400", b'"', b","))
        elif kind == 2:
            del spoiled[at : at + chance.randint(1, 20)]
        elif kind == 3:
            spoiled[at:at] = spoiled[at : at + chance.randint(1, 200)]
        elif chance.random() < 0.2:
            del spoiled[at:]
    return bytes(spoiled) or b" "
