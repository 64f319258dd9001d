"""nuScenes and nuImages from their tables: clips of a scene and a camera, real jitter, gaps, parts not downloaded."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from miniature_nuscenes import START_US, Miniature, box_mask, make_nuimages, make_nuscenes, token

from tasks import ingest, pairs, params
from tasks.clips import ClipInfo, ClipReader, open_clips
from tasks.errors import MosisError, NothingLeftError, SourceError
from tasks.frames import FrameStore
from tasks.params import IngestParams
from tasks.sources.nuscenes import open_nuscenes

EVEN = [0, 50, 150, 250, 300, 400, 500, 550, 650, 750, 800, 900, 1000]
"""Milliseconds of the miniature's pictures."""


def run(workspace: Path, source: Path | str, **settings: Any) -> list[ClipInfo]:
    """Ingest with settings of `ingest.nuscenes`, and of `ingest` under that name. What each clip.json says."""
    shared = settings.pop("ingest", {})
    document = {"sources": [f"nuscenes:{source}"], "workers": 1, **shared, "nuscenes": settings}
    ingest.run(params.parse({"ingest": document}), workspace)
    infos = []
    for entry in open_clips(workspace / "data" / "clips"):
        with ClipReader(entry.path) as clip:
            infos.append(clip.info)
    return sorted(infos, key=lambda info: (info.source, info.timestamps_us))


def notes(workspace: Path) -> list[str]:
    return sorted({entry.note for entry in open_clips(workspace / "data" / "clips") if entry.note})


def rejected(workspace: Path) -> dict[str, str]:
    """Scene/camera -> reason."""
    lines = (workspace / "data/clips/rejected.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {"/".join(row["source"].split("/")[-2:]): row["reason"] for row in rows}


def milliseconds(info: ClipInfo) -> list[int]:
    return [time // 1000 for time in info.timestamps_us]


def test_key_frames_and_sweeps_of_each_scene_and_camera(workspace: Path, tmp_path: Path) -> None:
    make_nuscenes(tmp_path / "nu").write()
    infos = run(workspace, tmp_path / "nu", cameras="all")
    assert [info.source for info in infos] == [
        f"{tmp_path}/nu/v1.0-mini/{scene}/{camera}"
        for scene in ("scene-0061", "scene-0103")
        for camera in ("CAM_BACK", "CAM_FRONT")
    ]
    assert [info.camera for info in infos] == ["CAM_BACK", "CAM_FRONT"] * 2
    assert all(milliseconds(info) == EVEN for info in infos)
    assert [info.start_us - START_US for info in infos] == [8_000, 0, 60_008_000, 60_000_000]
    assert not any(info.truth or info.split for info in infos)
    assert notes(workspace) == []
    names = ("data/clips/" + info.clip_id for info in infos)
    assert len(set(names)) == 4


def test_pictures_keep_their_bytes_and_their_order(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu", scenes=["scene-0061"], cameras=["CAM_FRONT"])
    expected = [(tmp_path / "nu" / row["filename"]) for row in made.of("scene-0061", "CAM_FRONT")]
    made.tables["sample_data"].reverse()
    made.write()
    (info,) = run(workspace, tmp_path / "nu")
    with ClipReader(workspace / "data" / "clips" / f"{info.clip_id}.zip") as clip:
        assert [clip.frame_bytes(index) for index in range(13)] == [path.read_bytes() for path in expected]


def test_ingesting_twice_and_from_elsewhere_changes_nothing(workspace: Path, tmp_path: Path) -> None:
    make_nuscenes(tmp_path / "nu").write()
    first = run(workspace, tmp_path / "nu")
    contents = {path.name: path.read_bytes() for path in (workspace / "data/clips").iterdir()}
    run(workspace, tmp_path / "nu")
    assert contents == {path.name: path.read_bytes() for path in (workspace / "data/clips").iterdir()}
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "nu").rglob("*.*"):
        if path.is_file():
            memory.pipe(f"/nuscenes-e2e/{path.relative_to(tmp_path / 'nu')}", path.read_bytes())
    remote = run(workspace, "memory://nuscenes-e2e")
    assert [info.clip_id for info in remote] == [info.clip_id for info in first]
    assert remote[0].source == "memory://nuscenes-e2e/v1.0-mini/scene-0061/CAM_FRONT"


@pytest.mark.parametrize(
    "url", ["{0}/nu", "{0}/nu/", "file://{0}/nu", "zip://::{0}/nu.zip", "zip:///::file://{0}/nu.zip"]
)
def test_any_way_to_write_the_root(tmp_path: Path, url: str) -> None:
    make_nuscenes(tmp_path / "nu").write()
    shutil.make_archive(str(tmp_path / "nu"), "zip", tmp_path / "nu")
    job, _ = open_nuscenes(url.format(tmp_path), IngestParams())
    assert len(job.run(tmp_path)) == 1


def test_jobs_travel_to_other_processes(tmp_path: Path) -> None:
    make_nuscenes(tmp_path / "nu").write()
    for job in open_nuscenes(str(tmp_path / "nu"), IngestParams()):
        (entry,) = pickle.loads(pickle.dumps(job)).run(tmp_path)  # noqa: S301 - that is how they travel
        assert entry.frames == 13


def test_a_gap_ends_a_clip_and_is_shown(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_nuscenes(tmp_path / "nu", scenes=["scene-0061"])
    for row in made.of("scene-0061", "CAM_FRONT")[7:]:
        row["timestamp"] += 300_000
    made.write()
    first, second = run(workspace, tmp_path / "nu")
    assert milliseconds(first) == EVEN[:7]
    assert milliseconds(second) == [time + 300 for time in EVEN[7:]]
    assert second.start_us == START_US
    assert notes(workspace) == ["1 gaps over 125 ms, the longest 350 ms"]
    assert "1 gaps over 125 ms" in capsys.readouterr().out


def test_a_missing_file_is_counted_and_the_gap_that_it_leaves(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu", scenes=["scene-0061"]).write()
    (tmp_path / "nu" / made.of("scene-0061", "CAM_FRONT")[5]["filename"]).unlink()
    infos = run(workspace, tmp_path / "nu")
    assert [milliseconds(info) for info in infos] == [EVEN[:5], EVEN[6:]]
    (note,) = notes(workspace)
    assert "1 of 13 pictures left out" in note
    assert "1 gaps over 125 ms, the longest 200 ms" in note


def test_intervals_far_below_the_nominal_one_are_counted(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu", scenes=["scene-0061"])
    made.of("scene-0061", "CAM_FRONT")[1]["timestamp"] -= 20_000
    made.write()
    (info,) = run(workspace, tmp_path / "nu")
    assert milliseconds(info)[:3] == [0, 30, 150]
    assert notes(workspace) == ["1 of 12 intervals shorter than 42 ms, half the nominal one"]


def test_only_what_is_read_is_counted(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu", scenes=["scene-0061"])
    made.of("scene-0061", "CAM_FRONT")[-1]["timestamp"] -= 80_000
    made.write()
    (info,) = run(workspace, tmp_path / "nu", ingest={"max_seconds": 0.5})
    assert milliseconds(info) == EVEN[:6]
    assert notes(workspace) == []
    run(workspace, tmp_path / "nu")
    assert notes(workspace) == ["1 of 12 intervals shorter than 42 ms, half the nominal one"]


def test_the_gap_is_a_setting_and_makes_other_clips(workspace: Path, tmp_path: Path) -> None:
    make_nuscenes(tmp_path / "nu", scenes=["scene-0061"]).write()
    (before,) = run(workspace, tmp_path / "nu")
    (after,) = run(workspace, tmp_path / "nu", max_gap_ms=100)
    assert before.ingest["min_rate_hz"] == 8
    assert after.ingest["min_rate_hz"] == 10
    assert before.clip_id != after.clip_id
    with pytest.raises(NothingLeftError, match="without a gap"):
        run(workspace, tmp_path / "nu", max_gap_ms=40)


def test_other_times_make_another_clip(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu", scenes=["scene-0061"]).write()
    (before,) = run(workspace, tmp_path / "nu")
    made.of("scene-0061", "CAM_FRONT")[1]["timestamp"] += 1_000
    made.write(["sample_data"])
    (after,) = run(workspace, tmp_path / "nu")
    assert before.clip_id != after.clip_id


def test_the_pairs_stage_keeps_every_pair_of_accepted_jitter(workspace: Path, tmp_path: Path) -> None:
    make_nuscenes(tmp_path / "nu").write()
    run(workspace, tmp_path / "nu")
    settings = {"height": 64, "width": 64, "workers": 1, "frozen_threshold": 0, "cut_threshold": 1}
    pairs.run(params.parse({"pairs": settings}), workspace)
    dt_ms = np.rint(FrameStore.open(workspace / "data" / "pairs").pairs().dt_s * 1000).astype(int)
    assert sorted(dt_ms.tolist()) == [50] * 8 + [100] * 16


def test_a_lower_rate_stretches_what_counts_as_a_gap(workspace: Path, tmp_path: Path) -> None:
    make_nuscenes(tmp_path / "nu", scenes=["scene-0061"]).write()
    (info,) = run(workspace, tmp_path / "nu", ingest={"rate_hz": 6, "min_rate_hz": 6})
    assert milliseconds(info) == [0, 150, 300, 500, 650, 800, 1000]


def test_a_camera_that_is_slow_without_gaps_is_refused(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu", scenes=["scene-0061"])
    for index, row in enumerate(made.of("scene-0061", "CAM_FRONT")):
        row["timestamp"] = START_US + 120_000 * index
    made.write()
    with pytest.raises(NothingLeftError, match=r"8\.3 Hz is below 12 Hz"):
        run(workspace, tmp_path / "nu")
    (info,) = run(workspace, tmp_path / "nu", min_rate_hz=8)
    assert len(info.timestamps_us) == 13


def test_scenes_by_name(workspace: Path, tmp_path: Path) -> None:
    make_nuscenes(tmp_path / "nu").write()
    (info,) = run(workspace, tmp_path / "nu", scenes=["scene-0103"])
    assert info.source.endswith("/scene-0103/CAM_FRONT")
    with pytest.raises(SourceError, match=r"no scene scene-0104 in .*v1\.0-mini, did you mean scene-0103\?"):
        run(workspace, tmp_path / "nu", scenes=["scene-0104"])


@pytest.mark.parametrize("name", ["CAM_FORNT", "LIDAR_TOP"])
def test_a_camera_that_is_none(workspace: Path, tmp_path: Path, name: str) -> None:
    make_nuscenes(tmp_path / "nu").write()
    with pytest.raises(SourceError, match=rf"ingest\.nuscenes\.cameras: no camera {name} in .*"):
        run(workspace, tmp_path / "nu", cameras=[name])


def test_versions_are_found_or_chosen(workspace: Path, tmp_path: Path) -> None:
    make_nuscenes(tmp_path / "nu", scenes=["scene-0061"]).write()
    make_nuscenes(tmp_path / "nu", scenes=["scene-0103"], version="v1.0-trainval").write()
    with pytest.raises(SourceError, match=r"holds v1\.0-mini, v1\.0-trainval: choose one with ingest\.nuscenes\.vers"):
        run(workspace, tmp_path / "nu")
    (info,) = run(workspace, tmp_path / "nu", version="v1.0-trainval")
    assert info.source.endswith("v1.0-trainval/scene-0103/CAM_FRONT")
    with pytest.raises(SourceError, match=r"v1\.0-test.*not found"):
        run(workspace, tmp_path / "nu", version="v1.0-test")
    with pytest.raises(SourceError, match="not the name of a folder"):
        run(workspace, tmp_path / "nu", version="..")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no tables of nuScenes or nuImages"):
        run(workspace, tmp_path / "empty")


def test_parts_that_were_not_downloaded_are_no_failure(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_nuscenes(tmp_path / "nu", scenes=[f"scene-{n:04d}" for n in range(5)], cameras=["CAM_FRONT"]).write()
    for scene in ("scene-0000", "scene-0001", "scene-0002", "scene-0004"):
        for row in made.of(scene, "CAM_FRONT"):
            (tmp_path / "nu" / row["filename"]).unlink()
    (info,) = run(workspace, tmp_path / "nu")
    assert info.source.endswith("scene-0003/CAM_FRONT")
    assert len(rejected(workspace)) == 4
    assert "none of its 13 pictures is there" in rejected(workspace)["scene-0000/CAM_FRONT"]
    assert "4 set aside" in capsys.readouterr().out
    with pytest.raises(NothingLeftError, match="none of its 13 pictures is there"):
        run(workspace, tmp_path / "nu", scenes=["scene-0004"])


def test_an_absent_scene_does_not_hide_that_too_many_are_broken(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu", scenes=[f"scene-{n:04d}" for n in range(6)], cameras=["CAM_FRONT"]).write()
    for number in range(3):
        for row in made.of(f"scene-{number:04d}", "CAM_FRONT"):
            (tmp_path / "nu" / row["filename"]).unlink()
    for number in (3, 4):
        made.of(f"scene-{number:04d}", "CAM_FRONT")[0]["timestamp"] = 7
    made.write(["sample_data"])
    with pytest.raises(NothingLeftError, match=r"2 of 3 sources \(67%\)"):
        run(workspace, tmp_path / "nu")


def test_a_release_without_scenes(workspace: Path, tmp_path: Path) -> None:
    make_nuscenes(tmp_path / "nu", scenes=[]).write()
    with pytest.raises(SourceError, match=r"v1\.0-mini: no scene with pictures of CAM_FRONT"):
        run(workspace, tmp_path / "nu")


def accept(workspace: Path, made: Miniature, **settings: Any) -> list[ClipInfo]:
    return run(workspace, made.root, min_rate_hz=2, **settings)


def test_nuimages_is_refused_in_one_line_unless_its_rate_is_accepted(workspace: Path, tmp_path: Path) -> None:
    made = make_nuimages(tmp_path / "ni").write()
    with pytest.raises(SourceError, match=r"2 pictures a second.*ingest\.nuscenes\.min_rate_hz: 2"):
        run(workspace, made.root)
    infos = accept(workspace, made)
    assert [milliseconds(info) for info in infos] == [list(range(0, 3001, 500))] * 2
    assert all(info.ingest["min_rate_hz"] == pytest.approx(4 / 3) for info in infos)
    assert {info.source.split("/")[-2] for info in infos} == {token("sample", 0), token("sample", 1)}


def test_nuimages_masks_are_the_truth_of_key_frames_alone(workspace: Path, tmp_path: Path) -> None:
    made = make_nuimages(tmp_path / "ni")
    made.tables["object_ann"] = [row for row in made.tables["object_ann"] if row["token"] != token("object", 1, 0)]
    made.write()
    for info in accept(workspace, made):
        assert (info.truth, info.annotated, info.exhaustive) == (True, (3,), True)
        with ClipReader(workspace / "data" / "clips" / f"{info.clip_id}.zip") as clip:
            found = clip.truth(3)
            assert clip.truth(2) is None
        assert found is not None
        boxes = [(8, 10, 20, 22), (40, 4, 48, 30)]
        boxes = boxes if info.source.split("/")[-2] == token("sample", 0) else boxes[1:]
        assert found.masks.numpy().tolist() == [box_mask(box).tolist() for box in boxes]


def test_a_key_frame_without_objects_is_known_to_be_empty(workspace: Path, tmp_path: Path) -> None:
    made = make_nuimages(tmp_path / "ni")
    made.tables["object_ann"] = made.tables["object_ann"][:2]
    infos = accept(workspace, made.write())
    (empty,) = (info for info in infos if token("sample", 1) in info.source)
    assert empty.annotated == (3,)
    with ClipReader(workspace / "data" / "clips" / f"{empty.clip_id}.zip") as clip:
        found = clip.truth(3)
        assert found is not None
        assert len(found) == 0


def test_the_test_part_of_nuimages_has_empty_tables_and_no_truth(workspace: Path, tmp_path: Path) -> None:
    made = make_nuimages(tmp_path / "ni", version="v1.0-test")
    made.tables["object_ann"] = []
    assert not any(info.truth for info in accept(workspace, made.write()))


def test_an_object_without_a_mask_leaves_the_truth_incomplete(workspace: Path, tmp_path: Path) -> None:
    made = make_nuimages(tmp_path / "ni", samples=1)
    made.tables["object_ann"][0]["mask"] = None
    (info,) = accept(workspace, made.write())
    assert not info.exhaustive
    with ClipReader(workspace / "data" / "clips" / f"{info.clip_id}.zip") as clip:
        found = clip.truth(3)
        assert found is not None
        assert found.masks.numpy().tolist() == [box_mask((40, 4, 48, 30)).tolist()]


def test_other_masks_make_another_clip(workspace: Path, tmp_path: Path) -> None:
    made = make_nuimages(tmp_path / "ni", samples=1).write()
    (before,) = accept(workspace, made)
    made.tables["object_ann"].reverse()
    (after,) = accept(workspace, made.write(["object_ann"]))
    assert before.clip_id != after.clip_id


def test_settings_are_checked_by_name() -> None:
    with pytest.raises(MosisError, match=r"unknown key ingest\.nuscenes\.camera: did you mean cameras\?"):
        params.parse({"ingest": {"nuscenes": {"camera": ["CAM_FRONT"]}}})
    with pytest.raises(MosisError, match=r"ingest\.nuscenes\.cameras"):
        params.parse({"ingest": {"nuscenes": {"cameras": []}}})
