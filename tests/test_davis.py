"""Folders of frames and masks: each layout from files to clips, every kind of mask picture, hostile input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import miniature_davis as mini
import numpy as np
import pytest
from conftest import claim_png_size
from PIL import Image

from tasks import ingest, params, picture_codec
from tasks.clips import VOID, ClipEntry, ClipReader, open_clips
from tasks.errors import DataError, MosisError, ParamsError, SourceError
from tasks.params import IngestParams
from tasks.sources import open_source
from tasks.sources.davis.truth import FolderTruth, MaskFile, Meaning
from tasks.sources.places import Place


def run(workspace: Path, url: Path | str, **settings: Any) -> dict[str, ClipEntry]:
    """Clips by the last part of their source's folder."""
    document = {"sources": [f"davis:{url}"], "workers": 1, "davis": settings, "max_rejected_share": 0.8}
    ingest.run(params.parse({"ingest": document}), workspace)
    return {Path(entry.source).name: entry for entry in open_clips(workspace / "data/clips")}


def rejected(workspace: Path) -> dict[str, str]:
    lines = (workspace / "data/clips/rejected.jsonl").read_text().splitlines()
    return {Path(row["source"]).name: row["reason"] for row in map(json.loads, lines)}


def truth(entry: ClipEntry, index: int) -> dict[int, np.ndarray] | None:
    with ClipReader(entry.path) as clip:
        found = clip.truth(index)
        if found is None:
            return None
        assert found.track_ids is not None
        return dict(zip(found.track_ids.tolist(), found.masks.numpy(), strict=True))


def expect(found: dict[int, np.ndarray] | None, masks: dict[int, np.ndarray]) -> None:
    assert found is not None
    assert sorted(found) == sorted(masks)
    for object_id, mask in masks.items():
        np.testing.assert_array_equal(found[object_id], mask)


def of_ids(index: int) -> dict[int, np.ndarray]:
    return {value: mini.labels(index) == value for value in (1, 2)}


def test_davis_2016(workspace: Path) -> None:
    mini.write_davis_2016(workspace / "in", ("480p", "1080p"))
    mini.write_lines(workspace / "in/ImageSets/1080p/train.txt", ["camel"])
    clips = run(workspace, workspace / "in")
    assert {name: clip.split for name, clip in clips.items()} == {"bear": "train", "camel": "val"}
    assert all(clip.frames == clip.annotated_frames == 4 and not clip.exhaustive for clip in clips.values())
    for index in range(4):
        expect(truth(clips["camel"], index), {255: mini.labels(index + 1) > 0})
    with ClipReader(clips["bear"].path) as clip:
        assert clip.info.timestamps_us == (0, 41667, 83333, 125000)
        assert clip.frame_bytes(2) == (workspace / "in/JPEGImages/480p/bear/00002.jpg").read_bytes()
        assert "min_rate_hz" not in clip.info.ingest
    assert rejected(workspace) == {}
    assert "/1080p/" in run(workspace, workspace / "in", resolution="1080p")["bear"].source


def test_davis_2017_and_its_splits(workspace: Path) -> None:
    root = mini.write_davis_2017(workspace / "in")
    clips = run(workspace, root)
    assert {name: clip.split for name, clip in clips.items()} == {"dogs-jump": "val", "lindy-hop": "train"}
    expect(truth(clips["lindy-hop"], 1), of_ids(2))
    before = clips["dogs-jump"].clip_id
    assert list(run(workspace, root, split="val")) == ["dogs-jump"]
    assert list(run(workspace, root, split="2016/val")) == ["lindy-hop"]
    assert run(workspace, root, split="test-dev")["lindy-hop"].split == "test"
    void = run(workspace, root, annotations="Annotations_unsupervised")["dogs-jump"]
    assert void.clip_id != before
    expect(truth(void, 0), of_ids(0))
    with ClipReader(void.path) as clip:
        rle = clip.void(3)
        assert rle is not None
        np.testing.assert_array_equal(
            picture_codec.decode_rle(rle, mini.SIZE, where="void"), mini.labels(0, void=True) == 255
        )
    merged = run(workspace, root, annotations="Annotations_unsupervised", merge=True)["dogs-jump"]
    with ClipReader(merged.path) as clip:
        assert clip.void(0) is not None
        assert list(truth(merged, 0) or ()) == [1]


def test_grey_pictures_have_no_void(tmp_path: Path) -> None:
    """0/255 is an object there."""
    for suffix, write in (
        ("palette", mini.write_palette),
        ("grey", lambda path, ids: mini.save(path, Image.fromarray(ids))),
    ):
        path = tmp_path / f"{suffix}.png"
        write(path, mini.labels(0, void=True))
        files = {0: (MaskFile(Place(str(path), str(path)), 1),)}
        found = FolderTruth(files, Meaning.IDS).masks(0, mini.SIZE, tmp_path)
        assert found is not None
        assert sorted(found) == ([VOID, 1, 2] if suffix == "palette" else [1, 2, 255])


def test_objects_that_move_jointly_are_one(workspace: Path) -> None:
    root = mini.write_davis_2017(workspace / "in")
    (workspace / "motion.json").write_text(json.dumps({"dogs-jump": [[2, 1]], "lindy-hop": [[2, 7]], "gone": []}))
    clips = run(workspace, root, motion_groups=str(workspace / "motion.json"))
    expect(truth(clips["dogs-jump"], 0), {1: mini.labels(0) > 0})
    expect(truth(clips["lindy-hop"], 0), of_ids(1))
    assert rejected(workspace) == {"motion.json": "names 1 sequences that are not there: gone"}
    merged = run(workspace, root, merge=True)
    expect(truth(merged["lindy-hop"], 0), {1: mini.labels(1) > 0})
    ids = {one["dogs-jump"].clip_id for one in (clips, merged, run(workspace, root))}
    assert len(ids) == 3


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": 1}', '{"a": [1]}', '{"a": [[]]}', '{"a": [[1, 2], [2]]}', '{"a": [["1"]]}']
)
def test_a_mapping_that_is_none(workspace: Path, text: str) -> None:
    (workspace / "motion.json").write_text(text)
    with pytest.raises(SourceError, match=r"motion\.json"):
        run(workspace, mini.write_davis_2017(workspace / "in"), motion_groups="motion.json")


def test_folders_of_one_sequence_each(workspace: Path) -> None:
    (entry,) = run(workspace, mini.write_flat(workspace / "in")).values()
    assert entry.source.endswith("goat/JPEGImages")
    expect(truth(entry, 3), {255: mini.labels(3) > 0})


def test_segtrack_has_a_folder_for_each_object(workspace: Path) -> None:
    root = mini.write_segtrack(workspace / "in")
    with pytest.raises(SourceError, match=r"segtrack_v2 carry no times.*ingest\.davis\.rate_hz"):
        run(workspace, root)
    clips = run(workspace, root, rate_hz=24.0)
    expect(truth(clips["bmx"], 2), {1: mini.labels(2) == 1, 2: mini.labels(2) > 0})  # they may overlap
    expect(truth(clips["frog"], 2), {1: mini.labels(3) == 2})
    expect(truth(run(workspace, root, rate_hz=24.0, merge=True)["bmx"], 2), {1: mini.labels(2) > 0})


def test_fbms_has_truth_of_some_frames_on_black_or_on_white(workspace: Path) -> None:
    clips = run(workspace, mini.write_fbms(workspace / "in"), rate_hz=25.0)
    assert {name: clip.split for name, clip in clips.items()} == {"cars1": "train", "camel01": "test"}
    assert [truth(clips["cars1"], index) is None for index in range(4)] == [False, True, True, False]
    assert clips["camel01"].annotated_frames == 2
    expect(truth(clips["cars1"], 3), {80: mini.labels(3) == 1, 160: mini.labels(3) == 2})
    expect(truth(clips["camel01"], 0), {255: mini.labels(1) == 1, 256 + 255: mini.labels(1) == 2})
    assert list(run(workspace, workspace / "in", rate_hz=25.0, split="test")) == ["camel01"]


def test_youtube_vos_is_6_hz_unless_all_frames_are_there(workspace: Path) -> None:
    root = mini.write_youtube_vos(workspace / "in")
    with pytest.raises(MosisError, match=r"6\.0 Hz is below 12 Hz"):
        run(workspace, root)
    clips = run(workspace, root, min_rate_hz=6.0)
    assert {name: clip.split for name, clip in clips.items()} == {"003234408d": "train", "00f88c4f0a": "val"}
    assert (clips["00f88c4f0a"].annotated_frames, clips["00f88c4f0a"].frames) == (1, 4)
    with ClipReader(clips["00f88c4f0a"].path) as clip:  # the bound that was accepted goes with the clip
        assert (clip.info.ingest["min_rate_hz"], clip.info.timestamps_us[1]) == (6.0, 166667)
    for index in range(16):
        mini.write_frame(root / f"train_all_frames/JPEGImages/003234408d/{index:05d}.jpg", index // 5)
    (entry,) = run(workspace, root, split="train").values()
    assert (entry.frames, entry.annotated_frames, round(entry.rate_hz)) == (16, 4, 30)
    expect(truth(entry, 5), of_ids(1))
    assert truth(entry, 6) is None


def test_a_list_chooses_and_names_what_is_absent(workspace: Path) -> None:
    root = mini.write_davis_2017(workspace / "in")
    (workspace / "m.txt").write_text("lindy-hop\n\n../../etc/passwd\nwalking\n")
    assert list(run(workspace, root, list="m.txt")) == ["lindy-hop"]
    assert rejected(workspace) == {"m.txt": "names 2 sequences that are not there: passwd, walking"}
    (workspace / "m.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(SourceError, match=r"m\.txt: not a list of names in UTF-8"):
        run(workspace, root, list="m.txt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequences": ["dog-jump"]}, r"no sequence dog-jump: did you mean dogs-jump\? \(ingest\.davis\.sequences\)"),
        ({"split": "test"}, r"no list of a split test: there are: 2016/val, 2017/train, .*ingest\.davis\.split"),
        ({"resolution": "1080p"}, r"which resolution\? There are: 480p"),
        ({"annotations": "Masks"}, r"which annotations\? There are: Annotations, Annotations_unsupervised"),
        ({"layout": "fbms"}, r"no frames at <trial>"),
        ({"list": "gone.txt"}, r"gone\.txt: not found"),
        ({"split": "val", "sequences": ["lindy-hop"]}, r"no sequence is left of 2"),
    ],
)
def test_names_that_are_not_there(workspace: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        run(workspace, mini.write_davis_2017(workspace / "in"), **settings)
    assert "\n" not in str(caught.value)


def test_sequences_by_name(workspace: Path) -> None:
    assert list(run(workspace, mini.write_davis_2017(workspace / "in"), sequences=["lindy-hop"])) == ["lindy-hop"]


def test_folders_that_fit_two_layouts(workspace: Path) -> None:
    for index in range(3):
        mini.write_frame(workspace / f"in/JPEGImages/a/{5 * index:05d}.jpg", index)
        mini.write_palette(workspace / f"in/Annotations/a/{5 * index:05d}.png", mini.labels(index))
    with pytest.raises(SourceError, match=r"plain or youtube_vos: say which \(ingest\.davis\.layout\)"):
        run(workspace, workspace / "in")
    assert round(run(workspace, workspace / "in", layout="plain", rate_hz=60.0)["a"].rate_hz) == 12
    with pytest.raises(MosisError, match="below 12 Hz"):
        run(workspace, workspace / "in", layout="youtube_vos")


def test_nothing_there(workspace: Path) -> None:
    (workspace / "in").mkdir()
    with pytest.raises(SourceError, match="no frames at JPEGImages/<resolution>/<sequence>/<file>"):
        run(workspace, workspace / "in")
    with pytest.raises(ParamsError, match=r"ingest\.davis\.rate_hz"):
        run(workspace, workspace / "in", rate_hz=1e-9)


@pytest.mark.parametrize(
    "write",
    [mini.write_davis_2016, mini.write_davis_2017, mini.write_flat, mini.write_segtrack, mini.write_fbms]
    + [mini.write_youtube_vos],
)
def test_any_store_gives_the_same_clips_twice(workspace: Path, write: Callable[[Path], Path]) -> None:
    root = write(workspace / "in")
    memory = fsspec.filesystem("memory")
    for path in root.rglob("*.*"):
        memory.pipe(f"/{write.__name__}/{path.relative_to(root)}", path.read_bytes())
    settings = {"rate_hz": 60.0}
    first = run(workspace, root, **settings)
    contents = {entry.path.name: entry.path.read_bytes() for entry in first.values()}
    run(workspace, root, **settings)
    assert {path.name: path.read_bytes() for path in (workspace / "data/clips").glob("*.zip")} == contents
    remote = run(workspace, f"memory://{write.__name__}", **settings)
    assert {entry.clip_id for entry in remote.values()} == {entry.clip_id for entry in first.values()}
    assert {entry.split for entry in remote.values()} == {entry.split for entry in first.values()}
    assert all(entry.annotated_frames for entry in remote.values())


def test_frames_without_a_mask_and_empty_masks(workspace: Path) -> None:
    root = mini.write_davis_2017(workspace / "in")
    folder = root / "Annotations/480p/dogs-jump"
    (folder / "00001.png").unlink()
    mini.write_palette(folder / "00002.png", np.zeros(mini.SIZE, np.uint8))
    entry = run(workspace, root)["dogs-jump"]
    assert truth(entry, 1) is None
    assert truth(entry, 2) == {}
    for path in folder.iterdir():
        path.unlink()
    assert not run(workspace, root)["dogs-jump"].truth


def test_masks_that_cannot_be_used_are_left_out_and_counted(workspace: Path) -> None:
    root = mini.write_davis_2017(workspace / "in")
    folder = root / "Annotations/480p/dogs-jump"
    good = (folder / "00000.png").read_bytes()
    (folder / "00000.png").write_bytes(claim_png_size(good, 60_000, 60_000))
    (folder / "00001.png").write_bytes(good[:-30])
    (folder / "00002.png").write_text("no picture")
    mini.write_palette(folder / "00003.png", np.zeros((12, 16), np.uint8))
    clips = run(workspace, root)
    assert (clips["dogs-jump"].truth, clips["lindy-hop"].annotated_frames) == (False, 4)
    assert clips["dogs-jump"].note is not None
    assert "truth of 4 of 4 pictures left out: 00000.png: claims" in clips["dogs-jump"].note


def test_files_that_are_wrong_in_the_dataset_are_set_aside(workspace: Path) -> None:
    root = mini.write_davis_2017(workspace / "in")
    (root / "ImageSets/2017/train.txt").write_bytes(b"\xff\xfe\x00")
    (root / "ImageSets/2017/val.txt").write_text("dogs-jump\nbike-packing\n")
    outside = workspace / "secret.png"
    (root / "Annotations/480p/dogs-jump/00000.png").rename(outside)
    (root / "Annotations/480p/dogs-jump/00000.png").symlink_to(outside)
    (root / "JPEGImages/480p/elsewhere").symlink_to(workspace)
    (root / "Annotations/480p/dogs-jump/00001.png").rename(root / "inside.png")
    (root / "Annotations/480p/dogs-jump/00001.png").symlink_to(root / "inside.png")
    clips = run(workspace, root)
    assert {name: clip.split for name, clip in clips.items()} == {"dogs-jump": "val", "lindy-hop": None}
    assert clips["dogs-jump"].annotated_frames == 3
    assert truth(clips["dogs-jump"], 0) is None
    reasons = rejected(workspace)
    assert reasons["train.txt"] == "not a list of names in UTF-8"
    assert reasons["in"].startswith("2 links lead out of the dataset")
    with pytest.raises(SourceError, match=r"train\.txt: not a list of names in UTF-8"):
        run(workspace, root, split="train")
    run(workspace, root, split="val")
    assert rejected(workspace)["val.txt"] == "names 1 sequences that are not there: bike-packing"


def test_a_root_that_is_a_link(workspace: Path) -> None:
    mini.write_davis_2016(workspace / "in")
    mask = workspace / "in/Annotations/480p/bear/00000.png"
    mask.rename(workspace / "in/inside.png")
    mask.symlink_to(workspace / "in/inside.png")
    (workspace / "link").symlink_to(workspace / "in")
    assert [one.annotated_frames for one in run(workspace, workspace / "link").values()] == [4, 4]
    assert rejected(workspace) == {}


@pytest.mark.parametrize("names", [("a1", "b1", "c1"), ("1", "2", "3" * 12)])
def test_numbers_that_do_not_count_frames(workspace: Path, names: tuple[str, ...]) -> None:
    for index, name in enumerate(names):
        mini.write_frame(workspace / f"in/goat/JPEGImages/{name}.jpg", index)
        mini.write_binary(workspace / f"in/goat/Annotations/{name}.png", mini.labels(index) > 0)
    (job,) = open_source(f"davis:{workspace / 'in'}", IngestParams())
    assert [picture.time_us for picture in job.pictures] == [0, 41667, 83333]  # type: ignore[attr-defined]


def encode(picture: Image.Image, path: Path) -> bytes:
    mini.save(path, picture)
    return path.read_bytes()


def test_kinds_of_mask_pictures(tmp_path: Path) -> None:
    ids = mini.labels(0, void=True)
    path = tmp_path / "mask.png"
    mini.write_palette(path, ids)
    decode = picture_codec.decode_labels
    np.testing.assert_array_equal(decode(path.read_bytes(), where="m"), ids)
    grey = Image.fromarray(ids)
    np.testing.assert_array_equal(decode(encode(grey, path), where="m"), ids)
    with_alpha = Image.merge("LA", (grey, Image.new("L", grey.size, 7)))
    np.testing.assert_array_equal(decode(encode(with_alpha, path), where="m"), ids)
    np.testing.assert_array_equal(decode(encode(with_alpha.convert("RGBA"), path), where="m"), ids)
    deep = ids.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(encode(Image.fromarray(deep), path), where="m"), deep)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(ids > 0), path), where="m"), ids > 0)
    mini.write_colours(path, ids, {1: (1, 2, 3), 2: (9, 9, 9)})
    colours = np.zeros(mini.SIZE, int)
    colours[ids == 1], colours[ids == 2] = 256 + 0x010203, 9
    np.testing.assert_array_equal(decode(path.read_bytes(), where="m"), colours)


def test_pictures_that_are_no_masks(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    photo = np.random.default_rng(0).integers(0, 255, (*mini.SIZE, 3), np.uint8)
    with pytest.raises(DataError, match="no mask of exact ids"):
        picture_codec.decode_labels(encode(Image.fromarray(photo), tmp_path / "mask.jpg"), where="m")
    import cv2

    cv2.imwrite(str(path), photo.astype(np.uint16))
    with pytest.raises(DataError, match="no mask of exact ids"):
        picture_codec.decode_labels(path.read_bytes(), where="m")
    with pytest.raises(DataError, match="is 32 x 24, its picture 24 x 32"):
        picture_codec.decode_labels(encode(Image.fromarray(photo), path), size=(32, 24), where="m")


def test_a_picture_of_too_many_ids(workspace: Path) -> None:
    root = mini.write_flat(workspace / "in")
    photo = np.random.default_rng(0).integers(0, 255, (*mini.SIZE, 3), np.uint8)
    mini.save(root / "goat/Annotations/00001.png", Image.fromarray(photo))
    (entry,) = run(workspace, root).values()
    assert entry.note is not None
    assert "different values: not a picture of objects' ids" in entry.note
    assert entry.annotated_frames == 3


def test_masks_of_one_picture_stay_within_memory(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.sources.davis.truth.MAX_MASK_PIXELS", mini.SIZE[0] * mini.SIZE[1])
    clips = run(workspace, mini.write_davis_2017(workspace / "in"))
    assert not clips["dogs-jump"].truth  # two objects
    assert all(one.truth for one in run(workspace, mini.write_flat(workspace / "one")).values())


def test_real_davis_2016(workspace: Path, shared_data: Path) -> None:
    root = shared_data / "davis2016"
    if not root.is_dir():
        pytest.skip(f"needs {root}")
    ingest.run(params.parse({"ingest": {"sources": [f"davis:{root}"], "max_seconds": 0.5, "workers": 1}}), workspace)
    clips = {Path(entry.source).parts[-2]: entry for entry in open_clips(workspace / "data/clips")}
    assert sorted(clips) == ["blackswan", "car-shadow", "dog", "goat"]
    for name, entry in clips.items():
        masks = sorted((root / name / "Annotations").iterdir())
        assert (entry.frames, entry.annotated_frames, entry.exhaustive) == (12, 12, False)
        for index in range(12):
            expect(truth(entry, index), {255: np.asarray(Image.open(masks[index])) > 0})
