"""Labels in a store: a real S3 server and a proxy that fails; whole or without summary.json, unchanged, no secret."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import fsspec
import pytest
from clip_toy import find_orange
from conftest import moving_square, write_video
from fsspec.implementations.local import LocalFileSystem
from store_toy import KEY, SECRET, Store, open_bucket, serve_s3

from flows.cli import main
from flows.model_commands import describe
from tasks.delivery import StoreFolder, label_to_store, open_target
from tasks.errors import ParamsError, SourceError, StorageError
from tasks.label import Labelled, label_sources
from tasks.model_store import LoadedModel
from tasks.params import ExportParams

BUCKET, URL = "labels", "s3://labels/walk"
MODEL = LoadedModel(find_orange, "toy/1", {"name": "toy", "version": "1"}, ExportParams(score_threshold=0.5), {})


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with serve_s3() as url:
        yield url


@pytest.fixture
def store(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    write_video(Path("a.mp4"), moving_square(5))
    with open_bucket(BUCKET, s3, monkeypatch, tmp_path) as store:
        yield store


def run(*sources: str, url: str = URL, model: LoadedModel = MODEL) -> Labelled:
    return label_to_store(sources or ["a.mp4"], model, StoreFolder(url))


def contents(url: str = URL) -> dict[str, bytes]:
    filesystem, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    return {name.removeprefix(f"{root}/"): filesystem.cat_file(name) for name in filesystem.find(root)}


def test_a_store_gets_what_a_folder_gets_with_the_summary_last(store: Store) -> None:
    local = label_sources(["a.mp4"], MODEL, Path("out"))
    sent = run()
    assert {**sent.summary, "code": 0} == {**local.summary, "code": 0}
    there = contents()
    here = {path.relative_to("out").as_posix(): path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert there.keys() == here.keys()
    assert there["coco.json"] == here["coco.json"]
    assert json.loads(there["summary.json"]) == sent.summary
    assert [one for one in store.requests if one.startswith("PUT")][-1].endswith("/summary.json")
    assert list(Path("temporary").iterdir()) == []
    assert describe(sent.summary, URL, unchanged=False)[-1] == (
        f"labels   {URL}/coco.json, {URL}/ytvis.json, {URL}/summary.json"
    )


@pytest.mark.parametrize(
    ("url", "said"), [("memory://x/y", "ends with this process"), ("foo://x", "foo is no kind of store")]
)
def test_a_store_that_keeps_nothing_or_is_none_is_refused_at_once(url: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        StoreFolder(url)


def test_the_same_again_changes_nothing_and_other_labels_replace_all(store: Store) -> None:
    first = run()
    before = contents()
    store.requests.clear()
    again = run()
    assert (again.unchanged, again.summary) == (True, first.summary)
    assert store.count("^PUT .*(json|jpg)") == 0
    assert contents() == before
    frame = moving_square(1)[0]
    Path("pictures").mkdir()
    cv2.imwrite("pictures/0.png", frame[..., ::-1])
    assert not run("pictures").unchanged
    assert "ytvis.json" not in contents(), "there is no video any more"
    assert json.loads(contents()["coco.json"])["images"][0]["file_name"] == "0.png"


def test_what_passes_is_tried_again(store: Store) -> None:
    for kind in ("503", "cut"):
        store.fail("^PUT /labels/walk/coco", kind)
    store.fail("^DELETE", "500")
    assert not run().unchanged
    assert store.hits == 2 + 1
    assert run().unchanged


def test_a_store_that_goes_on_failing_keeps_no_half_for_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSIS_STORE_ATTEMPTS", "2")
    run()
    store.fail("^PUT /labels/walk/ytvis", "503", times=9)
    changed = MODEL.with_score(0.6)
    with pytest.raises(StorageError, match=r"ytvis.json: the store failed, tried 2 times.*lie whole in") as raised:
        run(model=changed)
    assert "summary.json" not in contents(), "whoever finds a summary takes the labels for whole"
    saved = Path(str(raised.value).rpartition("lie whole in ")[2])
    assert json.loads((saved / "summary.json").read_text())["images"] == 5
    shutil.rmtree(saved.parent)
    store.faults.clear()
    assert not run(model=changed).unchanged
    assert run(model=changed).unchanged


def test_a_store_that_takes_nothing_is_known_before_the_work(store: Store) -> None:
    with pytest.raises(SourceError, match=r"s3://nobody/x.*not found: check the path or URL \(--out\)"):
        run(url="s3://nobody/x")
    store.fail("^PUT", "403", times=9)
    with pytest.raises(SourceError, match="access refused"):
        run("no such.mp4")


def test_work_that_fails_leaves_nothing_here(store: Store) -> None:
    with pytest.raises(SourceError, match=r"no such\.mp4"):
        run("no such.mp4")
    assert list(Path("temporary").iterdir()) == []


def test_a_store_that_keeps_less_than_it_was_given_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put_half(self: LocalFileSystem, source: str, target: str, **_: object) -> None:
        content = Path(source).read_bytes()
        Path(target).write_bytes(content[: len(content) // 2])

    monkeypatch.setenv("MOSIS_STORE_ATTEMPTS", "1")
    monkeypatch.setattr(LocalFileSystem, "put_file", put_half)
    (tmp_path / "a").write_bytes(b"12345678")
    with pytest.raises(StorageError, match="the connection failed, ConnectionError"):
        StoreFolder(f"file://{tmp_path}").send("b", tmp_path / "a")


def test_other_files_are_left_alone(store: Store) -> None:
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    filesystem.pipe("labels/walk/thesis.doc", b"x")
    with pytest.raises(ParamsError, match=r"holds 'thesis.doc', which is no label"):
        run()
    with pytest.raises(ParamsError, match="is a file"):
        run(url=f"{URL}/thesis.doc")
    for source in (f"{URL}/videos/a.mp4", "s3://labels/"):
        with pytest.raises(ParamsError, match="name another folder"):
            run(source, url=f"{URL}/videos" if source.endswith("mp4") else "s3://labels/empty")
    assert contents() == {"thesis.doc": b"x"}


def test_no_secret_is_shown(store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    store.fail("^PUT", "403", times=9)
    assert main(["label", "a.mp4", "--model", "outputs/train", "--out", f"s3://me:{SECRET}@labels/x"]) == 1
    with pytest.raises(SourceError) as raised:
        run()
    shown = capsys.readouterr().err + str(raised.value)
    assert "password or key" in shown
    assert KEY not in shown
    assert SECRET not in shown


def test_which_targets_are_folders(store: Store) -> None:
    assert open_target("out") == Path("out")
    assert open_target("file:///a/b") == Path("/a/b")
    assert isinstance(open_target("s3://labels/x"), StoreFolder)
    with pytest.raises(SourceError, match="names no folder"):
        open_target("")
