"""Ingest from S3, for real: a moto server on loopback, and a proxy before it that fails as stores do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from conftest import moving_square, write_params, write_video
from PIL import Image
from store_toy import KEY, SECRET, Store, open_bucket, require_credentials, serve_s3

from tasks import ingest, params
from tasks.clips import ClipReader, open_clips
from tasks.errors import NothingLeftError, ParamsError, SourceError, StorageError, StoreError
from tasks.sources import stores
from tasks.sources.places import Place, hide_credentials, list_files, open_local

BUCKET = "bucket"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with serve_s3() as url:
        yield url


@pytest.fixture
def store(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    with open_bucket(BUCKET, s3, monkeypatch, tmp_path) as store:
        yield store


def put(key: str, content: bytes) -> str:
    fsspec.filesystem("s3", skip_instance_cache=True).pipe(f"{BUCKET}/{key}", content)
    return f"s3://{BUCKET}/{key}"


def fetch(url: str, folder: Path) -> bytes:
    with open_local(Place(url, url), folder) as path:
        return path.read_bytes()


def run(workspace: Path, *sources: Path | str, **changes: Any) -> None:
    document = {"ingest": {"sources": [str(source) for source in sources], "workers": 1, **changes}}
    ingest.run(params.parse(document), workspace)


CONTENT = np.random.default_rng(0).bytes(300_000)


def test_videos_and_pictures_are_ingested_as_from_the_disk(store: Store, workspace: Path) -> None:
    video = write_video(workspace / "a.mp4", moving_square(6))
    put("data/videos/a.mp4", video.read_bytes())
    put("data/videos/notes.txt", b"text")
    for index, frame in enumerate(moving_square(3)):
        path = workspace / "pictures" / f"{8 + index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(frame).save(path)
        put(f"data/sequence/{path.name}", path.read_bytes())
    run(workspace, f"s3://{BUCKET}/data", image_rate_hz=24)
    clips = {clip.source: clip for clip in open_clips(workspace / "data/clips")}
    assert set(clips) == {f"s3://{BUCKET}/data/videos/a.mp4", f"s3://{BUCKET}/data/sequence"}
    remote = {clip.clip_id for clip in clips.values()}
    with ClipReader(clips[f"s3://{BUCKET}/data/sequence"].path) as clip:
        assert [clip.frame_bytes(i) for i in range(3)] == [
            (workspace / "pictures" / f"{8 + i}.png").read_bytes() for i in range(3)
        ]
    run(workspace, video, workspace / "pictures", image_rate_hz=24)
    assert {clip.clip_id for clip in open_clips(workspace / "data/clips")} == remote


def test_two_processes_ingest_from_a_store(store: Store, workspace: Path) -> None:
    for index in range(2):
        video = write_video(workspace / f"{index}.mp4", moving_square(5 + index))
        put(f"videos/{index}.mp4", video.read_bytes())
    run(workspace, f"s3://{BUCKET}/videos", workers=2)
    assert sorted(clip.frames for clip in open_clips(workspace / "data/clips")) == [5, 6]


@pytest.mark.parametrize("kind", ["500", "503", "cut", "short", "flip", "drip", "hang"])
def test_what_passes_is_tried_again_and_the_file_is_whole(
    store: Store, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSIS_STORE_TIMEOUT", "1")
    url = put("a.bin", CONTENT)
    store.fail(r"^GET /bucket/a\.bin", kind, 2 if kind.isdigit() else 1)
    assert fetch(url, tmp_path) == CONTENT
    assert store.hits == (2 if kind.isdigit() else 1)
    assert list(tmp_path.iterdir()) == []


def test_a_listing_that_fails_is_tried_again_and_is_whole(store: Store) -> None:
    for name in ("a.mp4", "b.mp4"):
        put(f"videos/{name}", b"x")
    for kind in ("503", "cut"):
        store.fail(r"^GET /bucket/?\?list-type=2", kind)
        assert [place.shown for place in list_files(f"s3://{BUCKET}/videos")] == [
            f"s3://{BUCKET}/videos/a.mp4",
            f"s3://{BUCKET}/videos/b.mp4",
        ]
    assert store.hits == 2
    assert list_files(f"s3://{BUCKET}/videos/b.mp4")[0].suffix == ".mp4"


@pytest.mark.parametrize(
    ("kind", "reason"), [("503", "HTTP 503"), ("cut", "connection failed"), ("short", r"\d+ of 300000 bytes came")]
)
def test_a_store_that_goes_on_failing_ends_the_stage(
    store: Store, workspace: Path, kind: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the source alone: the rest would be taken for the whole, and DVC would never look again."""
    monkeypatch.setenv("MOSIS_STORE_ATTEMPTS", "3")
    put("videos/good.mp4", write_video(workspace / "good.mp4", moving_square(5)).read_bytes())
    put("videos/late.mp4", CONTENT)
    store.fail(r"^GET /bucket/videos/late\.mp4", kind, 1000)
    with pytest.raises(StoreError, match=rf"late\.mp4: the store failed, tried 3 times \(.*{reason}"):
        run(workspace, f"s3://{BUCKET}/videos")
    assert list((workspace / "data").iterdir()) == []
    store.faults.clear()
    with pytest.raises(NothingLeftError, match=r"late\.mp4: is not a video"):
        run(workspace, f"s3://{BUCKET}/videos", max_rejected_share=0.1)


def test_a_hang_ends_with_its_time(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSIS_STORE_ATTEMPTS", "2")
    monkeypatch.setenv("MOSIS_STORE_TIMEOUT", "1")
    url = put("a.bin", CONTENT)
    store.fail(r"a\.bin", "hang", 1000)
    with pytest.raises(StorageError, match="did not answer in time"):
        fetch(url, tmp_path)
    assert 1 <= store.hits <= 2  # on a starved machine a try may end before it has been asked
    store.faults.clear()
    store.fail(r"list-type=2", "hang", 1000)
    monkeypatch.setattr(stores, "_LISTING_TIMES", 1)
    with pytest.raises(StorageError, match="did not answer in time"):
        list_files(f"s3://{BUCKET}/videos")


def test_what_does_not_pass_fails_at_once(s3: str, store: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.bin: not found"):
        fetch(f"s3://{BUCKET}/nothing.bin", tmp_path)
    with pytest.raises(SourceError, match="not found"):
        list_files("s3://no-such-bucket/videos")
    url = put("a.bin", CONTENT)
    asked = len(store.requests)
    require_credentials(s3, on=True)
    try:
        with pytest.raises(SourceError, match="access refused: check its permissions and, for a store, the cred"):
            fetch(url, tmp_path)
        with pytest.raises(SourceError, match="access refused"):
            list_files(f"s3://{BUCKET}")
    finally:
        require_credentials(s3, on=False)
    assert len(store.requests) <= asked + 3, "a refusal is not asked again"


def test_no_credentials_at_all_are_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(SourceError, match="no credentials: set them in the environment"):
        list_files(f"s3://{BUCKET}/a.mp4")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_checksum_that_the_library_finds_wrong_is_tried_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_supported")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    url = put("a.bin", CONTENT)
    store.fail(r"^GET /bucket/a\.bin", "flip")
    assert fetch(url, tmp_path) == CONTENT
    assert store.hits == 1


def test_an_encrypted_store_whose_etags_are_no_md5_is_read(store: Store, tmp_path: Path) -> None:
    """Two downloads that agree outweigh an ETag; one that agrees with neither does not."""
    url = put("a.bin", CONTENT)
    store.fail(r"^GET /bucket/a\.bin", "flip", 1000)
    flipped = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    assert fetch(url, tmp_path) == flipped
    assert store.hits == 2


def test_no_secret_is_shown_or_kept(store: Store, workspace: Path) -> None:
    """The whole stage as a process, on good and bad sources: its streams and every file that it leaves."""
    put("videos/good.mp4", write_video(workspace / "good.mp4", moving_square(5)).read_bytes())
    put("videos/bad.mp4", b"no video")
    write_params(workspace, {"ingest": {"sources": [f"s3://{BUCKET}/videos"], "workers": 1}})
    done = stage(workspace)
    assert done.returncode == 0, done.stderr
    assert "videos/bad.mp4" in json.loads((workspace / "data/clips/rejected.jsonl").read_text())["source"]
    assert_no_secret(workspace, done)
    store.fail(r"videos/good", "503", 1000)
    done = stage(workspace, MOSIS_STORE_ATTEMPTS="2", MOSIS_TRACEBACK="1")
    assert done.returncode == StoreError.exit_code
    assert "mosis: ingest: s3://bucket/videos/good.mp4: the store failed, tried 2 times (HTTP 503)" in done.stderr
    assert_no_secret(workspace, done)


def stage(workspace: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks", "ingest"],
        cwd=workspace,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_no_secret(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    texts = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    texts |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name, text in texts.items():
        for secret in (SECRET, SECRET.split("/")[1], KEY, "hunter2"):
            assert secret.encode() not in text, name


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@127.0.0.1:1/a.mp4",
        f"s3://{KEY}:{SECRET}@bucket/a.mp4",
        "https://127.0.0.1:1/a.mp4?X-Amz-Signature=hunter2",
        f"zip://a.mp4::s3://{KEY}:{SECRET}@bucket/a.zip",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_shown(workspace: Path, url: str) -> None:
    """dvc.lock copies what params.yaml says, and git keeps it."""
    with pytest.raises(SourceError, match=r"holds a password or key.*write \$\{NAME\} in its place") as caught:
        list_files(url)
    for secret in (SECRET, SECRET.split("/")[1], KEY, "hunter2"):
        assert secret not in str(caught.value)
        assert secret not in hide_credentials(url)


def test_secrets_of_a_url_come_from_the_environment(
    store: Store, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over plain HTTP, as the proxy speaks it, too: a name in the URL, its value nowhere."""
    put("a.mp4", write_video(workspace / "a.mp4", moving_square(5)).read_bytes())
    host = store.url.removeprefix("http://")
    with pytest.raises(SourceError, match=r"\$\{TEST_PASSWORD\} is not set: set TEST_PASSWORD in the environment"):
        list_files(f"http://user:${{TEST_PASSWORD}}@{host}/bucket/a.mp4")
    monkeypatch.setenv("TEST_PASSWORD", "hunter2")
    source = f"http://user:${{TEST_PASSWORD}}@{host}/bucket/a.mp4"
    write_params(workspace, {"ingest": {"sources": [source], "workers": 1}})
    store.fail(r"^GET /bucket/a\.mp4", "cut")
    done = stage(workspace)
    assert done.returncode == 0, done.stderr
    (clip,) = open_clips(workspace / "data/clips")
    assert clip.source == f"http://{host}/bucket/a.mp4"
    assert_no_secret(workspace, done)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/folder@home/a.mp4", "s3://bucket/folder@home/a.mp4"),
        ("sftp://user@host/a.mp4", "sftp://host/a.mp4"),
        ("https://[::1]:80/a@b.mp4", "https://[::1]:80/a@b.mp4"),
        ("s3://key:se/cr@et@bucket/a.mp4?x#y", "s3://bucket/a.mp4"),
        ("s3://key:se/cret", "s3://key"),
        ("", ""),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert hide_credentials(url) == shown


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "many"])
def test_a_setting_that_is_no_number_is_named(value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOSIS_STORE_TIMEOUT", value)
    with pytest.raises(ParamsError, match="MOSIS_STORE_TIMEOUT"):
        list_files(str(tmp_path))


def test_an_empty_file_and_an_empty_folder(store: Store, tmp_path: Path) -> None:
    assert fetch(put("empty.bin", b""), tmp_path) == b""
    assert list_files(str(tmp_path)) == []
