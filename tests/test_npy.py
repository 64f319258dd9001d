"""Arrays on disk that grow and join, and hold no pickles."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.npy import NpyWriter, open_npy


def test_npy_grows_and_numpy_reads_it(tmp_path):
    with NpyWriter(tmp_path / "a.npy", np.int64, (2,)) as file:
        for count in (0, 3, 100):
            file.append(np.arange(count * 2).reshape(count, 2))
    expected = np.concatenate([np.arange(6).reshape(3, 2), np.arange(200).reshape(100, 2)])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
    np.testing.assert_array_equal(open_npy(tmp_path / "a.npy", np.int64, (2,)), expected)
    with pytest.raises(DataError, match="was expected"):
        open_npy(tmp_path / "a.npy", np.int32, (2,))


def refuse(*_: object) -> int:
    raise OSError(errno.EXDEV, "across disks")


@pytest.mark.parametrize("in_kernel", [True, False])
def test_npy_files_are_joined(tmp_path, monkeypatch, in_kernel):
    if not in_kernel:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    rows = np.arange(600_000, dtype=np.int64).reshape(-1, 2)
    for name, part in (("a", rows[:200_000]), ("none", rows[:0]), ("b", rows[200_000:])):
        np.save(tmp_path / f"{name}.npy", part)
    with NpyWriter(tmp_path / "whole.npy", np.int64, (2,)) as file:
        for name in ("a", "none", "b"):
            file.extend(tmp_path / f"{name}.npy")
        file.append(rows[:1])
    np.testing.assert_array_equal(np.load(tmp_path / "whole.npy"), np.concatenate([rows, rows[:1]]))
    with NpyWriter(tmp_path / "other.npy", np.int32, (2,)) as file, pytest.raises(DataError, match="was expected"):
        file.extend(tmp_path / "a.npy")


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_never_opened(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (0,)})
        file.write(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(DataError):
        open_npy(tmp_path / "a.npy", np.int64, ())
    assert not (tmp_path / "sprung").exists()
