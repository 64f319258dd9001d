"""Plain .npy files: written row by row in constant memory, opened memory-mapped and checked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from tasks.errors import DataError
from tasks.files import check_scarce

_COPY_BYTES, _COPIED_AT_ONCE = 2**20, 2**26


class NpyWriter:
    """Appends rows to a .npy file whose length is not known beforehand.

    numpy pads the header so that the leading axis can grow in place, so the header is rewritten at the end and the
    rows stay where they are. Nothing is synced: files are parts of a folder that `atomic_folder` syncs as a whole.
    """

    def __init__(self, path: Path, dtype: DTypeLike, row_shape: tuple[int, ...]) -> None:
        self.rows = 0
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._file = path.open("wb")
        self._write_header()
        self._data_start = self._file.tell()

    def append(self, rows: np.ndarray) -> None:
        """Add `rows`: (N, *row_shape)."""
        if rows.shape[1:] != self._row_shape:
            raise ValueError(f"rows of shape {rows.shape[1:]} do not fit a file of {self._row_shape}")
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self.rows += len(rows)

    def extend(self, path: Path) -> None:
        """Add all rows of another such file. Raises DataError where it is broken or its rows are others."""
        self.rows += len(open_npy(path, self._dtype, self._row_shape))
        with path.open("rb", buffering=0) as file:
            _read_shape(file)
            self._file.flush()
            _copy_rest(file, self._file)

    def close(self) -> None:
        if self._file.closed:
            return
        with self._file:
            self._file.seek(0)
            self._write_header()
            assert self._file.tell() == self._data_start, "the .npy header changed its length"

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows, *self._row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def open_npy(path: Path, dtype: DTypeLike, row_shape: tuple[int, ...]) -> np.ndarray:
    """Memory-mapped, read-only (N, *row_shape) array of exactly `dtype`. DataError if it is anything else.

    Holds a file descriptor while it lives. Raises StorageError where there is none left, or no memory.
    """
    try:
        # Mapping an array of no bytes is refused by some systems, so the header is read first.
        array: np.ndarray = np.load(path, mmap_mode="r" if _holds_rows(path) else None, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run the stage that writes it again") from None
    except (ValueError, EOFError, OSError) as error:
        check_scarce(path, error)
        raise DataError(f"{path} is broken ({_one_line(error)}): run the stage that writes it again") from None
    if array.dtype != np.dtype(dtype) or array.ndim != 1 + len(row_shape) or array.shape[1:] != row_shape:
        raise DataError(
            f"{path} holds {array.dtype} {array.shape} where {np.dtype(dtype)} (N, {', '.join(map(str, row_shape))}) "
            "was expected: run the stage that writes it again"
        )
    return array


def _copy_rest(source: BinaryIO, target: BinaryIO) -> None:
    """In the kernel where it can; neither file has anything in a buffer."""
    try:
        while os.copy_file_range(source.fileno(), target.fileno(), _COPIED_AT_ONCE):
            pass
    except (AttributeError, OSError):  # not Linux, or disks that cannot; both files stand where it stopped
        shutil.copyfileobj(source, target, _COPY_BYTES)


def _holds_rows(path: Path) -> bool:
    with path.open("rb") as file:
        return int(np.prod(_read_shape(file), dtype=object)) > 0


def _read_shape(file: BinaryIO) -> tuple[int, ...]:
    """From the header; leaves `file` where the rows begin."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not a .npy file of version 1.0")
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
    return tuple(shape)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
