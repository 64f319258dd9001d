"""Outputs appear whole or not at all, also when their writer is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import BusyError, DataError, StorageError
from tasks.files import (
    atomic_folder,
    atomic_path,
    read_json,
    sha256_file,
    sha256_tree,
    sole_process,
    storage_errors,
    write_json,
)
from tests.conftest import ROOT


def test_a_file_appears_only_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for name in ("first", "second"):
        with atomic_folder(folder) as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(folder) == ["second"]
    with pytest.raises(RuntimeError), atomic_folder(folder) as temporary:  # noqa: PT012
        (temporary / "third").write_text("half")
        raise RuntimeError
    assert os.listdir(folder) == ["second"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_takes_the_place_of_the_old_one_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.files._exchange", lambda a, b: False)
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(tmp_path / "out") == ["second"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["atomic_path", "atomic_folder"])
def test_what_a_killed_writer_leaves_is_cleared_and_a_living_one_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out[1].txt"
    program = (
        f"import sys, time; from tasks.files import {kind}\n"
        f"with {kind}({str(target)!r}): print('inside', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with atomic_path(target) as temporary:
            temporary.write_text("mine")
        assert len(os.listdir(tmp_path)) == 2, "the living writer's temporary must stay"
        process.send_signal(signal.SIGKILL)
    assert len(os.listdir(tmp_path)) == 2
    with atomic_path(target) as temporary:
        temporary.write_text("again")
    assert os.listdir(tmp_path) == [target.name]


@pytest.mark.parametrize(
    ("number", "words"), [(28, "disk is full"), (13, "no permission"), (30, "read-only"), (122, "quota")]
)
def test_errors_of_the_disk_name_the_path_and_what_to_do(number: int, words: str) -> None:
    with pytest.raises(StorageError, match=rf"cannot write data/x: .*{words}.*:"), storage_errors("data/x"):
        raise OSError(number, "short")


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(FileNotFoundError), storage_errors("data/x"):
        raise FileNotFoundError(2, "not there")


def test_a_file_where_a_folder_must_be(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError, match="data"), atomic_path(tmp_path / "data" / "x.json"):
        pass
    with pytest.raises(StorageError, match="data"), atomic_folder(tmp_path / "data"):
        pass


def test_json_of_equal_values_is_equal_and_bounded(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": "é"})
    write_json(tmp_path / "b.json", {"a": "é", "b": [1, 2.5]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": "é", "b": [1, 2.5]}
    with pytest.raises(DataError, match="larger than 5 bytes"):
        read_json(tmp_path / "a.json", max_bytes=5)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "c.json", float("nan"))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[NaN]", "[1e999]", "\xff"])
def test_broken_json_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"a\.json") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_missing_json_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_json(tmp_path / "none.json")


def test_fingerprint_of_code_sees_content_and_names_and_no_caches(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.py").write_text("1")
    before = sha256_tree([folder])
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_text("x")
    (folder / ".tmp-12345678-a.py").write_text("x")
    assert sha256_tree([folder]) == before
    (folder / "sub" / "a.py").rename(folder / "sub" / "b.py")
    renamed = sha256_tree([folder])
    (folder / "sub" / "b.py").write_text("2")
    assert len({before, renamed, sha256_tree([folder])}) == 3
    with pytest.raises(DataError, match="not found"):
        sha256_tree([tmp_path / "none"])


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_lock_is_held_by_one_and_freed_however_that_ends(tmp_path: Path) -> None:
    path = tmp_path / "not there yet" / "lock"
    with sole_process(path, "wait for it"):
        with pytest.raises(BusyError, match="wait for it"), sole_process(path, "wait for it"):
            pass
        script = (
            "import sys; from pathlib import Path; from tasks.files import sole_process\n"
            "with sole_process(Path(sys.argv[1]), 'x'): pass"
        )
        other = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True)
        assert "BusyError: x" in other.stderr
    with pytest.raises(ZeroDivisionError), sole_process(path, "x"):
        raise ZeroDivisionError
    with sole_process(path, "x"):
        pass
