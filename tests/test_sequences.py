"""Pictures with times and truth of their own as clips: gaps, truth of some frames only, what cannot be used."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest

from tasks.clips import ClipEntry, ClipReader, open_clips, write_manifest
from tasks.errors import DataError, SourceError
from tasks.evaluation_frames import choose_frames
from tasks.frames import FrameStore
from tasks.params import IngestParams, Params
from tasks.sources import loading
from tasks.sources.places import Place
from tasks.sources.sequences import SequenceJob, TimedPicture
from tasks.training.batches import truth_samples

SIZE = (24, 32)


@dataclass(frozen=True)
class Squares:
    """Object 7 is four pixels a side, at the column of its picture's number; `known` are the numbers with truth."""

    known: tuple[int, ...]
    broken: tuple[int, ...] = ()
    exhaustive: bool = True

    def digest(self) -> str:
        return repr(self)

    def masks(self, number: int, size: tuple[int, int], folder: Path) -> Mapping[int, np.ndarray] | None:
        if number in self.broken:
            raise DataError(f"mask {number} is broken")
        if number not in self.known:
            return None
        mask = np.zeros(size, bool)
        mask[4:8, number : number + 4] = True
        return {7: mask}


def write_pictures(folder: Path, count: int) -> list[Place]:
    folder.mkdir(parents=True)
    places = []
    for number in range(count):
        picture = np.full((*SIZE, 3), 40, np.uint8)
        picture[4:8, number : number + 4] = 200
        path = folder / f"{number:05d}.png"
        cv2.imwrite(str(path), picture)
        places.append(Place(str(path), str(path)))
    return places


def run(folder: Path, places: Sequence[Place], times_us: Sequence[int], **changes: Any) -> list[ClipEntry]:
    pictures = tuple(TimedPicture(t, place, n) for n, (t, place) in enumerate(zip(times_us, places, strict=True)))
    job = SequenceJob(
        "set/one", pictures, changes.pop("params", IngestParams()), changes.pop("rate_hz", 12.0), **changes
    )
    folder.mkdir(parents=True, exist_ok=True)
    return pickle.loads(pickle.dumps(job)).run(folder)  # noqa: S301 - jobs travel to other processes


def even(count: int) -> list[int]:
    return [83_333 * index for index in range(count)]


def test_truth_of_some_frames(tmp_path: Path) -> None:
    (entry,) = run(tmp_path / "clips", write_pictures(tmp_path / "in", 6), even(6), truth=Squares((0, 5)))
    assert (entry.truth, entry.annotated_frames, entry.frames) == (True, 2, 6)
    with ClipReader(entry.path) as clip:
        assert clip.info.annotated == (0, 5)
        known = [clip.truth(index) for index in range(6)]
        assert [found is not None for found in known] == [True, False, False, False, False, True]
        assert known[5] is not None
        assert known[5].boxes.tolist() == [[5, 4, 9, 8]]
        assert known[5].track_ids is not None
        assert known[5].track_ids.tolist() == [7]


def test_frames_without_truth_are_not_taken_for_empty_ones(tmp_path: Path) -> None:
    from tasks import pairs

    entries = run(
        tmp_path / "data" / "clips", write_pictures(tmp_path / "in", 6), even(6), truth=Squares((1, 4)), split="train"
    )
    write_manifest(tmp_path / "data" / "clips", entries)
    clips = open_clips(tmp_path / "data" / "clips")
    assert choose_frames(clips, {clips[0].clip_id: "test"}, "test", None).frames == [(clips[0], [1, 4])]
    assert choose_frames(clips, {clips[0].clip_id: "test"}, "test", 1).images == 1
    pairs.run(replace(Params(), pairs=replace(Params().pairs, height=64, width=64)), tmp_path)
    store = FrameStore.open(tmp_path / "data" / "pairs")
    assert truth_samples(store).row_a.tolist() == [1, 4]
    assert store.truth is not None
    assert store.truth.rows.tolist() == [1, 4]


def test_a_gap_ends_a_clip_and_a_lone_frame_goes(tmp_path: Path) -> None:
    places = write_pictures(tmp_path / "in", 7)
    times = [0, 50_000, 150_000, 600_000, 1_200_000, 1_250_000, 1_350_000]
    first, second = run(tmp_path / "clips", places, times, max_gap_us=200_000, start_us=5, camera="CAM_FRONT")
    with ClipReader(first.path) as clip:
        assert clip.info.timestamps_us == (0, 50_000, 150_000)
        assert (clip.info.start_us, clip.info.camera) == (5, "CAM_FRONT")
    with ClipReader(second.path) as clip:
        assert clip.info.timestamps_us == (1_200_000, 1_250_000, 1_350_000)


def test_only_gaps(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="without a gap"):
        run(tmp_path / "clips", write_pictures(tmp_path / "in", 3), [0, 10**6, 2 * 10**6], max_gap_us=100_000)


def test_the_rate_is_the_source_s_own_decision(tmp_path: Path) -> None:
    places = write_pictures(tmp_path / "in", 3)
    with pytest.raises(SourceError, match=r"6\.0 Hz is below 12 Hz"):
        run(tmp_path / "a", places, [0, 166_667, 333_333], rate_hz=6.0)
    (entry,) = run(tmp_path / "b", places, [0, 166_667, 333_333], rate_hz=6.0, min_rate_hz=6.0)
    assert entry.frames == 3


def test_missing_pictures_and_broken_truth_are_left_out_and_counted(tmp_path: Path) -> None:
    places = write_pictures(tmp_path / "in", 6)
    Path(places[2].url).unlink()
    (entry,) = run(tmp_path / "clips", places, even(6), truth=Squares((0, 1, 3, 4, 5), broken=(4,), exhaustive=False))
    assert entry.frames == 5
    assert not entry.exhaustive
    assert entry.note is not None
    assert "1 of 6 pictures left out" in entry.note
    assert "truth of 1 of 5 pictures left out: mask 4 is broken" in entry.note
    with ClipReader(entry.path) as clip:
        assert clip.info.annotated == (0, 1, 2, 4)  # picture 5 is frame 4 now


def test_other_truth_makes_another_clip_and_other_names_the_same(tmp_path: Path) -> None:
    places = write_pictures(tmp_path / "in", 3)
    (tmp_path / "in").rename(tmp_path / "renamed")
    renamed = [Place(place.shown, place.url.replace("/in/", "/renamed/")) for place in places]
    with_truth, without = (
        run(tmp_path / n, renamed, even(3), truth=t)[0] for n, t in (("a", Squares((0,))), ("b", None))
    )
    (again,) = run(tmp_path / "c", write_pictures(tmp_path / "in", 3), even(3))
    assert with_truth.clip_id != without.clip_id == again.clip_id


def test_remote_pictures_are_fetched_once(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    local = write_pictures(tmp_path / "in", 4)
    remote = []
    for place in local:
        memory.pipe(f"/seq/{Path(place.url).name}", Path(place.url).read_bytes())
        remote.append(Place(place.shown, f"memory://seq/{Path(place.url).name}"))
    opened: list[str] = []
    original = type(memory).open

    def counting(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        opened.append(path)
        return original(self, path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "open", counting)
        (entry,) = run(tmp_path / "clips", remote, even(4))
    assert len(opened) == 4
    assert (entry.clip_id,) == tuple(one.clip_id for one in run(tmp_path / "again", local, even(4)))
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == [entry.path.name]


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no frame"):
        run(tmp_path / "clips", [], [])


def test_what_is_too_large_to_wait_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = write_pictures(tmp_path / "in", 6)
    (ahead,) = run(tmp_path / "ahead", places, even(6))
    monkeypatch.setattr(loading, "_MAX_AHEAD_BYTES", 0)
    (again,) = run(tmp_path / "again", places, even(6))
    assert again.path.read_bytes() == ahead.path.read_bytes()
    monkeypatch.setattr(loading, "MAX_PICTURE_BYTES", 10)
    with pytest.raises(SourceError, match="larger than 0 MiB"):
        run(tmp_path / "none", places, even(6))


def test_the_checksum_goes_over_pictures_that_the_rate_leaves_out(tmp_path: Path) -> None:
    places = write_pictures(tmp_path / "in", 6)
    params = replace(IngestParams(), rate_hz=12.0)
    one, two = ({"params": params, "rate_hz": 24.0} for _ in range(2))
    times = [41_667 * index for index in range(6)]
    (before,) = run(tmp_path / "a", places, times, **one)
    assert before.frames < 6
    with ClipReader(before.path) as clip:
        left_out = next(n for n in range(6) if times[n] not in clip.info.timestamps_us)
    cv2.imwrite(places[left_out].url, np.zeros((*SIZE, 3), np.uint8))
    (after,) = run(tmp_path / "b", places, times, **two)
    assert after.clip_id != before.clip_id


def test_pictures_wait_within_bounds_and_go_once_they_are_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_MAX_KEPT_BYTES", 10)
    kept = loading.KeptPictures()
    for number in range(4):
        kept.put(number, loading.Loaded(Path(str(number)), b"", bytes(4), number))
    assert kept.take(1, "1") == (bytes(4), 1)
    assert kept.take(2, "2") is None, "there was no room for it"
    for number in (4, 5):
        kept.put(number, loading.Loaded(Path(str(number)), b"", bytes(5), number))
    assert kept.take(5, "5") == (bytes(5), 5), "what was before it has gone and made room"
    assert kept.take(5, "5") is None
    assert loading.KeptPictures().take(0, "0") is None


def test_a_sequence_that_fails_late_leaves_no_clip(tmp_path: Path) -> None:
    places = write_pictures(tmp_path / "in", 30)
    cv2.imwrite(places[29].url, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(SourceError, match="have one size"):
        run(tmp_path / "clips", places, even(30), params=replace(IngestParams(), clip_seconds=0.5))
    assert list((tmp_path / "clips").iterdir()) == []
