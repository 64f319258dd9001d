"""Tables of nuScenes and nuImages that are broken or made to do harm: a scene goes, a table fails, both in one line."""

from __future__ import annotations

import base64
import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature_nuscenes import SIZE, START_US, Miniature, Table, encode_mask, make_nuimages, make_nuscenes, token
from test_nuscenes import notes, rejected, run

from tasks.clips import ClipReader, open_clips
from tasks.errors import DataError, MosisError, NothingLeftError, SourceError
from tasks.params import IngestParams
from tasks.sources.nuscenes import open_nuscenes
from tasks.sources.nuscenes.masks import KeyFrameMasks, decode_mask

Change = Callable[[Table], Any]
"""Of the 13 records of scene-0061's CAM_FRONT."""


def only_the_first_scene_goes(workspace: Path, root: Path, reason: str) -> None:
    (info,) = run(workspace, root)
    assert info.source.endswith("scene-0103/CAM_FRONT")
    ((source, found),) = rejected(workspace).items()
    assert source == "scene-0061/CAM_FRONT"
    assert reason in found
    assert "\n" not in found


def put(index: int, **fields: Any) -> Change:
    return lambda rows: rows[index].update(fields)


def link(index: int, **fields: int) -> Change:
    """Point prev or next of a record to another."""
    return lambda rows: rows[index].update({key: rows[other]["token"] for key, other in fields.items()})


def make_ring(rows: Table) -> None:
    """The last five go in a circle, and the others end before them."""
    rows[7]["next"] = ""
    rows[8]["prev"], rows[12]["next"] = rows[12]["token"], rows[8]["token"]


def make_full_ring(rows: Table) -> None:
    rows[0]["prev"], rows[12]["next"] = rows[12]["token"], rows[0]["token"]


def cut_in_two(rows: Table) -> None:
    rows[5]["next"] = rows[6]["prev"] = ""


def scale_times(factor: float, kind: type) -> Change:
    def change(rows: Table) -> None:
        for row in rows:
            row["timestamp"] = kind(row["timestamp"] * factor)

    return change


BROKEN_SCENES: dict[str, tuple[Change, str]] = {
    "twice": (lambda rows: rows[3].update(token=rows[2]["token"]), "stands twice in sample_data"),
    "dangling next": (put(4, next="f00"), "next f00 is no picture of this camera and scene"),
    "dangling prev": (put(4, prev="f00"), "prev f00 is no picture of this camera and scene"),
    "dangling last": (put(12, next="f00"), "next f00 is no picture of this camera and scene"),
    "dangling sensor": (put(4, calibrated_sensor_token="f00"), "its calibrated_sensor f00 is in no table"),
    "another camera's": (
        lambda rows: rows[12].update(next=token("data", "scene-0061", "CAM_BACK", 0)),
        "is no picture of this camera and scene",
    ),
    "next disagrees": (link(4, next=7), "has another prev"),
    "prev disagrees": (link(4, prev=2), "has another prev"),
    "prev without next": (put(4, next=""), "has another next"),
    "ring": (make_ring, "of 5 of its pictures go in a circle"),
    "full ring": (make_full_ring, "of 13 of its pictures go in a circle"),
    "itself": (link(12, next=12), "has another prev"),
    "two lines": (cut_in_two, "linked in 2 lines"),
    "order": (put(4, timestamp=START_US), "out of order"),
    "same time": (lambda rows: rows[4].update(timestamp=rows[3]["timestamp"]), "out of order"),
    "seconds": (scale_times(1e-6, int), "which looks like seconds: must be whole microseconds"),
    "float seconds": (scale_times(1e-6, float), "which looks like seconds: must be whole microseconds"),
    "milliseconds": (scale_times(1e-3, int), "which looks like milliseconds"),
    "nanoseconds": (scale_times(1000, int), "which looks like nanoseconds"),
    "float nanoseconds": (scale_times(1000, float), "which looks like nanoseconds"),
    "float microseconds": (scale_times(1, float), "must be whole microseconds"),
    "time of text": (put(3, timestamp="1532402927612460"), "must be whole microseconds"),
    "no time": (put(3, timestamp=None), "must be whole microseconds"),
    "negative time": (put(3, timestamp=-START_US), "must be whole microseconds"),
    "NaN": (put(3, timestamp=float("nan")), "timestamp NaN: must be whole microseconds"),
    "infinite": (put(3, timestamp=float("inf")), "timestamp Infinity: must be whole microseconds"),
    "huge integer": (put(3, timestamp=10**400), "must be whole microseconds"),
    "parent folder": (put(3, filename="samples/../../etc/passwd"), "does not name a file below the root"),
    "absolute": (put(3, filename="/etc/passwd"), "does not name a file below the root"),
    "URL": (put(3, filename="https://example.org/a.jpg"), "does not name a file below the root"),
    "chained URL": (put(3, filename="samples/a.jpg::file:///etc/passwd"), "does not name a file below the root"),
    "variable": (put(3, filename="samples/${AWS_SECRET_ACCESS_KEY}.jpg"), "does not name a file below the root"),
    "encoded": (put(3, filename="samples/%2e%2e/a.jpg"), "does not name a file below the root"),
    "backslash": (put(3, filename="..\\..\\a.jpg"), "does not name a file below the root"),
    "line break": (put(3, filename="samples/a\n.jpg"), r"filename samples/a\n.jpg does not name"),
    "no name": (put(3, filename=""), "does not name a file below the root"),
    "no text": (put(3, filename=7), "does not name a file below the root"),
    "long name": (put(3, filename="a" * 5000), "does not name a file below the root"),
    "huge": (put(3, width=10**9, height=10**9), "claims 1000000000 x 1000000000 pixels: refused"),
    "flat": (put(3, width=10**15, height=1), "pixels: refused"),
    "NaN width": (put(3, width=float("nan")), "claims NaN x 36 pixels"),
    "no height": (put(3, height=0), "pixels: refused"),
    "key frame": (put(3, is_key_frame="yes"), "is_key_frame must be true or false"),
    "links of numbers": (put(3, prev=1, next=2), "prev and next must be tokens"),
}


@pytest.mark.parametrize("name", list(BROKEN_SCENES))
def test_a_broken_scene_is_set_aside_and_the_rest_goes_on(workspace: Path, tmp_path: Path, name: str) -> None:
    change, reason = BROKEN_SCENES[name]
    made = make_nuscenes(tmp_path / "nu")
    change(made.of("scene-0061", "CAM_FRONT"))
    made.write()
    only_the_first_scene_goes(workspace, tmp_path / "nu", reason)


def test_a_scene_without_pictures_of_the_camera(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu")
    gone = {row["token"] for row in made.of("scene-0061", "CAM_FRONT")}
    made.tables["sample_data"] = [row for row in made.tables["sample_data"] if row["token"] not in gone]
    made.write()
    only_the_first_scene_goes(workspace, tmp_path / "nu", "no picture of CAM_FRONT in this scene")


def test_other_cameras_of_a_broken_scene_go_on(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu")
    put(4, next="f00")(made.of("scene-0061", "CAM_FRONT"))
    made.write()
    infos = run(workspace, tmp_path / "nu", cameras="all")
    assert len(infos) == 3
    assert list(rejected(workspace)) == ["scene-0061/CAM_FRONT"]


@pytest.mark.parametrize("key", ["first_sample_token", "last_sample_token"])
def test_a_scene_whose_ends_are_not_its_own(workspace: Path, tmp_path: Path, key: str) -> None:
    made = make_nuscenes(tmp_path / "nu")
    made.tables["scene"][0][key] = token("sample", "scene-0103", 0)
    made.write()
    only_the_first_scene_goes(workspace, tmp_path / "nu", "is none of its samples")


def test_a_sample_that_stands_twice(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu")
    made.tables["sample"].append(made.tables["sample"][1])
    made.write()
    only_the_first_scene_goes(workspace, tmp_path / "nu", "stands twice")


def test_records_of_no_scene_are_named(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu")
    rows = made.of("scene-0061", "CAM_FRONT")
    rows[11]["sample_token"] = rows[12]["sample_token"] = "f00"
    made.write()
    (info,) = run(workspace, tmp_path / "nu", ingest={"max_rejected_share": 0.7})
    assert info.source.endswith("scene-0103/CAM_FRONT")
    reasons = rejected(workspace)
    assert "its sample f00 is in no table (and 1 more such records)" in reasons["v1.0-mini/sample_data.json"]
    assert "is no picture of this camera and scene" in reasons["scene-0061/CAM_FRONT"]


def test_samples_of_no_scene_are_named(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu")
    made.tables["sample"].append(made.tables["sample"][0] | {"token": "5ea", "scene_token": "f00"})
    made.write()
    assert len(run(workspace, tmp_path / "nu")) == 2
    assert rejected(workspace) == {"v1.0-mini/sample_data.json": "sample 5ea: its scene f00 is in no table"}


def test_a_link_out_of_the_root_is_refused_and_one_inside_is_not(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu").write()
    (tmp_path / "nu" / "samples").rename(tmp_path / "nu" / "elsewhere")
    (tmp_path / "nu" / "samples").symlink_to("elsewhere")
    (tmp_path / "linked").symlink_to("nu")
    assert len(run(workspace, tmp_path / "linked")) == 2
    picture = tmp_path / "nu" / made.of("scene-0061", "CAM_FRONT")[1]["filename"]
    picture.rename(tmp_path / "secret.jpg")
    picture.symlink_to(tmp_path / "secret.jpg")
    only_the_first_scene_goes(workspace, tmp_path / "nu", "a link that leads out of the data's folder: refused")


TABLES = {
    "not JSON": (b"version https://git-lfs.github.com/spec/v1\n", "is not valid JSON of this kind"),
    "empty": (b"", "a list, [...], is expected"),
    "cut short": (None, "is not valid JSON of this kind"),
    "an object": (b"{}", "a list, [...], is expected"),
    "numbers": (b"[1, 2]", "record 0 is no object"),
    "wrong schema": (b'[{"id": 1}]', "record 0 has no token: not a table of nuScenes"),
    "token of number": (b'[{"token": 1}]', "record 0 has no token"),
    "no UTF-8": (b'[{"token": "\xff"}]', "no UTF-8"),
    "deep": (b'[{"token": ' + b"[" * 200_000, "is not valid JSON of this kind"),
    "endless record": (b'[{"token": "' + b"a" * 3 * 2**20, "is not valid JSON of this kind"),
    "more": (b"[] []", "more follows after its end"),
}


@pytest.mark.parametrize("table", ["sensor", "calibrated_sensor", "scene", "sample", "sample_data"])
@pytest.mark.parametrize("name", list(TABLES))
def test_a_broken_table_fails_in_one_line(workspace: Path, tmp_path: Path, table: str, name: str) -> None:
    content, reason = TABLES[name]
    make_nuscenes(tmp_path / "nu").write()
    path = tmp_path / "nu" / "v1.0-mini" / f"{table}.json"
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(MosisError) as caught:
        run(workspace, tmp_path / "nu")
    assert reason in str(caught.value)
    assert f"v1.0-mini/{table}.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (workspace / "data").exists()


@pytest.mark.parametrize("table", ["sensor", "calibrated_sensor", "scene"])
def test_small_tables_with_a_token_twice_are_refused(workspace: Path, tmp_path: Path, table: str) -> None:
    made = make_nuscenes(tmp_path / "nu")
    made.tables[table].append(made.tables[table][0] | {"name": "another"})
    made.write()
    with pytest.raises(DataError, match=rf"v1\.0-mini/{table}\.json: the token .* stands twice"):
        run(workspace, tmp_path / "nu")


def test_two_scenes_of_one_name_are_refused(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu")
    made.tables["scene"][1]["name"] = "scene-0061"
    made.write()
    with pytest.raises(DataError, match="the name scene-0061 stands twice"):
        run(workspace, tmp_path / "nu")


def test_a_sensor_that_no_table_knows_takes_its_scenes_along(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu")
    made.tables["calibrated_sensor"][0]["sensor_token"] = "f00"
    made.write()
    with pytest.raises(NothingLeftError, match="is in no table"):
        run(workspace, tmp_path / "nu")


def test_a_missing_table_is_named(workspace: Path, tmp_path: Path) -> None:
    make_nuscenes(tmp_path / "nu").write()
    (tmp_path / "nu" / "v1.0-mini" / "sample.json").unlink()
    with pytest.raises(SourceError, match=r"v1\.0-mini/sample\.json: not found"):
        run(workspace, tmp_path / "nu")


def test_a_name_cannot_break_a_line(workspace: Path, tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu", scenes=["a\nb", "c\ud800"])
    put(3, filename="/etc")(made.of("a\nb", "CAM_FRONT"))
    made.write()
    (info,) = run(workspace, tmp_path / "nu")
    assert info.source.endswith(r"/c\ud800/CAM_FRONT")
    assert list(rejected(workspace)) == [r"a\nb/CAM_FRONT"]


def b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


FRAME = np.zeros(SIZE, bool)
MASKS: dict[str, tuple[Any, str]] = {
    "size": (encode_mask(np.ones((36, 63), bool)), "do not fill 64 x 36"),
    "claimed size": (encode_mask(FRAME) | {"size": [10**9, 10**9]}, "do not fill 64 x 36"),
    "NaN size": (encode_mask(FRAME) | {"size": [float("nan"), 64]}, "not a run-length encoded mask"),
    "no size": ({"counts": encode_mask(FRAME)["counts"]}, "not a run-length encoded mask"),
    "not base64": (encode_mask(FRAME) | {"counts": "PP\\1"}, "are not base64 of run lengths"),
    "almost base64": (encode_mask(FRAME) | {"counts": "*" + encode_mask(FRAME)["counts"]}, "are not base64 of run"),
    "not ASCII": (encode_mask(FRAME) | {"counts": "ü"}, "are not base64 of run lengths"),
    "bytes": (encode_mask(FRAME) | {"counts": b64(b"\xff\xfe")}, "are not base64 of run lengths"),
    "runs too long": (encode_mask(FRAME) | {"counts": b64(b"oooooooooooooooo0")}, "do not fill 64 x 36"),
    "list": ([[1, 2, 3, 4, 5, 6]], "is not a mask"),
    "text": ("mask", "is not a mask"),
    "empty": ({}, "is not a mask"),
}


@pytest.mark.parametrize("name", list(MASKS))
def test_a_broken_mask_costs_the_truth_of_its_frame(workspace: Path, tmp_path: Path, name: str) -> None:
    mask, reason = MASKS[name]
    made = make_nuimages(tmp_path / "ni")
    made.tables["object_ann"][0]["mask"] = mask
    made.write()
    infos = run(workspace, tmp_path / "ni", min_rate_hz=2)
    assert sorted(info.truth for info in infos) == [False, True]
    (note,) = notes(workspace)
    assert note.startswith("truth of 1 of 7 pictures left out: object_ann")
    assert reason in note


def test_a_mask_reads_as_it_was_written() -> None:
    mask = np.random.default_rng(0).random(SIZE) > 0.5
    assert np.array_equal(decode_mask(encode_mask(mask), SIZE), mask)


def test_masks_of_pictures_that_are_no_key_frames(workspace: Path, tmp_path: Path) -> None:
    made = make_nuimages(tmp_path / "ni")
    made.tables["object_ann"][0]["sample_data_token"] = token("data", 0, 2)
    made.write()
    (info,) = run(workspace, tmp_path / "ni", min_rate_hz=2)
    assert token("sample", 1) in info.source
    assert "belongs to a picture that is no key frame" in next(iter(rejected(workspace).values()))


def test_more_masks_in_a_picture_than_there_can_be(workspace: Path, tmp_path: Path) -> None:
    made = make_nuimages(tmp_path / "ni")
    made.tables["object_ann"] += made.tables["object_ann"][:1] * 3000
    made.write()
    assert len(run(workspace, tmp_path / "ni", min_rate_hz=2)) == 1
    assert "more than 2000 objects in a picture" in next(iter(rejected(workspace).values()))


def test_masks_that_memory_could_not_hold_are_not_decoded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2000 masks of 8000 x 8000: too many to decode"):
        KeyFrameMasks({0: (None,) * 2000}).masks(0, (8000, 8000), tmp_path)


def test_nuimages_samples_of_one_token_are_refused(workspace: Path, tmp_path: Path) -> None:
    made = make_nuimages(tmp_path / "ni")
    made.tables["sample"].append(made.tables["sample"][0])
    made.write()
    with pytest.raises(DataError, match=r"sample\.json: the token .* stands twice"):
        run(workspace, tmp_path / "ni", min_rate_hz=2)


@pytest.mark.parametrize("make", [make_nuscenes, make_nuimages])
def test_tables_with_bytes_flipped_are_read_or_refused(tmp_path: Path, make: Callable[[Path], Miniature]) -> None:
    """No other error than ours, whatever stands in the tables."""
    made = make(tmp_path / "in").write()
    params = IngestParams(min_rate_hz=2)
    rng = random.Random(0)
    (tmp_path / "out").mkdir()
    originals = {path: path.read_bytes() for path in (tmp_path / "in" / "v1.0-mini").iterdir()}
    read = 0
    for _ in range(150):
        path = rng.choice([path for path in originals if path.stem in ("scene", "sample", "sample_data", "object_ann")])
        data = bytearray(originals[path])
        for _ in range(rng.choice((1, 1, 5))):
            data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), *b'"0[]{},'))
        path.write_bytes(bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data))
        with contextlib.suppress(MosisError):
            for job in open_nuscenes(str(made.root), params):
                with contextlib.suppress(MosisError):
                    read += len(job.run(tmp_path / "out"))
        path.write_bytes(originals[path])
    assert read > 50


def test_the_truth_of_what_is_kept_is_right_beside_what_is_broken(workspace: Path, tmp_path: Path) -> None:
    made = make_nuimages(tmp_path / "ni", samples=3)
    made.tables["object_ann"][0]["mask"] = "mask"
    made.write()
    run(workspace, tmp_path / "ni", min_rate_hz=2)
    counts = []
    for entry in open_clips(workspace / "data" / "clips"):
        with ClipReader(entry.path) as clip:
            found = clip.truth(3)
            counts.append(None if found is None else len(found))
    assert sorted(counts, key=str) == [2, 2, None]


def test_the_miniature_has_the_tables_of_the_release(tmp_path: Path) -> None:
    made = make_nuscenes(tmp_path / "nu").write()
    names = "category attribute visibility instance sensor calibrated_sensor ego_pose log scene sample sample_data"
    assert set(made.tables) == {*names.split(), "sample_annotation", "map"}
    for name, table in made.tables.items():
        assert json.loads((tmp_path / "nu" / "v1.0-mini" / f"{name}.json").read_text()) == table
        assert table
