"""A DVC remote on S3: a real moto server, a proxy that fails, DVC itself."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from store_toy import KEY, SECRET, Store, serve_badly, serve_s3

from tasks import versioning
from tasks.errors import StorageError

PIPELINE = """\
stages:
  ingest:
    cmd: mkdir -p data/clips && head -c 300000 /dev/zero > data/clips/a && echo b > data/clips/b
    outs: [data/clips]
"""
CONTENTS = {"a": bytes(300_000), "b": b"b\n"}
LARGE = r"^GET /remote/dvc/files"


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with serve_s3() as url, serve_badly(url) as store:
        yield store


@pytest.fixture(scope="module")
def pushed(server: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace whose stage has run and whose outputs are pushed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield push(server, tmp_path_factory.mktemp("remote"), monkeypatch)


def push(server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    environment = {
        "HOME": str(tmp_path / "home"),
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": server.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.filesystem("s3").mkdir("remote")
    folder = tmp_path / "workspace"
    folder.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    versioning.init(folder)
    (folder / "dvc.yaml").write_text(PIPELINE)
    versioning.run_stage(folder, "ingest")
    versioning.run_dvc(folder, "remote", "add", "--default", "--force", "store", "s3://remote/dvc")
    versioning.push(folder)
    return folder


@pytest.fixture
def folder(server: Store, pushed: Path) -> Iterator[Path]:
    yield pushed
    server.faults.clear()


def lose(folder: Path) -> None:
    """As on another machine: neither cache nor outputs."""
    shutil.rmtree(folder / ".dvc" / "cache", ignore_errors=True)
    shutil.rmtree(folder / "data", ignore_errors=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "data/clips").iterdir()}


def test_what_is_pushed_to_s3_comes_back_identical(server: Store, folder: Path) -> None:
    assert server.count("PUT /remote/dvc/files/md5/") >= 3
    lose(folder)
    versioning.pull(folder)
    assert contents(folder) == CONTENTS
    assert versioning.changed_stages(folder) == set()
    for path in folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_download_cut_short_is_never_taken_for_the_whole(server: Store, folder: Path) -> None:
    lose(folder)
    server.fail(LARGE, "short", 1000)
    with pytest.raises(StorageError, match=r"dvc pull: .*: check the remote .* then run this again"):
        versioning.pull(folder)
    server.faults.clear()
    versioning.pull(folder)
    assert contents(folder) == CONTENTS


def test_a_remote_that_fails_is_one_line_without_secrets(server: Store, folder: Path) -> None:
    lose(folder)
    server.fail(LARGE, "503", 1000)
    with pytest.raises(StorageError, match=r"dvc pull: .*503.*: check the remote") as caught:
        versioning.pull(folder)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reachable", [False, True])
def test_a_push_that_fails_says_why_whatever_the_stores_library_raises(
    server: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, reachable: bool
) -> None:
    """One video's data to a store that nobody answers for, whose error is no OSError, and to one that refuses."""
    copied = Path(shutil.copytree(folder, tmp_path / "workspace"))
    (copied / "new").write_text("new")
    versioning.add(copied, "new")
    url = server.url if reachable else "http://127.0.0.1:9"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    versioning.run_dvc(copied, "remote", "modify", "store", "endpointurl", url)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.fail("PUT", "503", 1000)
    reason = "503|SlowDown|Service" if reachable else "EndpointConnectionError: Could not connect"
    with pytest.raises(StorageError, match=f"dvc push: .*({reason}).*: check the remote") as caught:
        versioning.push_target(copied, "new.dvc")
    assert SECRET not in str(caught.value)


def test_credentials_in_what_dvc_says_are_not_repeated() -> None:
    text = "failed to connect to s3 (key:se/cret@bucket/dvc) or 'https://user:secret@host/x' at 12:30"
    shown = "failed to connect to s3 (bucket/dvc) or 'host/x' at 12:30"
    assert versioning._hide_credentials(text) == shown
