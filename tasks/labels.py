"""Instances per row of a frame store, as memory-mapped arrays in a folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import DataError
from tasks.files import atomic_folder, read_json, write_json
from tasks.npy import NpyWriter, open_npy

if TYPE_CHECKING:
    from models.common.instances import Instances

NO_TRACK = -1
"""What track_ids.npy holds where an instance has no identity."""
_MAX_SIDE = 65_536


@dataclass(frozen=True)
class LabelStore:
    """Labels of many frames, found by row. One entry per instance, entries sorted by row.

    size: (height, width) of every mask in pixels.
    rows: (N,) int64, the frame that each instance lies in, ascending.
    packed: (N, ceil(height * width / 8)) uint8, mask bits, row-major, as numpy.packbits writes them.
    scores: (N,) float32 in [0, 1].
    track_ids: (N,) int64, NO_TRACK where there is none.
    """

    size: tuple[int, int]
    rows: np.ndarray
    packed: np.ndarray
    scores: np.ndarray
    track_ids: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> LabelStore:
        """Open what `write` wrote. Raises DataError in one line if a file is missing, broken or unlike the others."""
        folder = Path(folder)
        size = _read_size(folder / "size.json")
        rows = np.array(open_npy(folder / "rows.npy", np.int64, ()))
        packed = open_npy(folder / "masks.npy", np.uint8, (_packed_bytes(size),))
        scores = np.array(open_npy(folder / "scores.npy", np.float32, ()))
        track_ids = np.array(open_npy(folder / "track_ids.npy", np.int64, ()))
        if not len(rows) == len(packed) == len(scores) == len(track_ids):
            raise DataError(f"{folder}: its arrays differ in length: run the stage that writes it again")
        if len(rows) and (rows[0] < 0 or (np.diff(rows) < 0).any()):
            raise DataError(f"{folder / 'rows.npy'} is not sorted: run the stage that writes it again")
        return cls(size, rows, packed, scores, track_ids)

    @classmethod
    def from_items(cls, size: tuple[int, int], items: Iterable[tuple[int, Instances]]) -> LabelStore:
        """The same in memory, from (row, instances) in ascending rows."""
        parts = [_pack_instances(row, instances, size) for row, instances in items]
        parts.append(_pack(0, np.zeros((0, *size), bool), np.zeros(0, np.float32), None))
        rows, packed, scores, track_ids = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        if (np.diff(rows) < 0).any():
            raise ValueError("labels must come in ascending rows")
        return cls(size, rows, packed, scores, track_ids)

    @staticmethod
    def write(folder: Path, size: tuple[int, int], items: Iterable[tuple[int, Instances]]) -> int:
        """Write (row, instances) in ascending rows as a whole folder or not at all; returns the number of instances.

        Boxes are not stored: they are the masks' extents when read. Raises ValueError for rows out of order or masks of
        another size, StorageError where the disk refuses.
        """
        with atomic_folder(Path(folder)) as temporary, LabelWriter(temporary, size) as writer:
            for row, instances in items:
                writer.add(row, instances)
            return writer.count

    @property
    def count(self) -> int:
        """Number of instances over all rows."""
        return len(self.rows)

    def labelled_rows(self) -> np.ndarray:
        """(R,) int64: each row that has any, once, ascending."""
        # np.unique would sort what is sorted: 24 s instead of .3 for the labels of 200 hours.
        return self.rows[np.diff(self.rows, prepend=-1) > 0]

    def __getitem__(self, row: int) -> Instances:
        """Instances of frame `row`, empty where there are none; boxes are mask extents."""
        # Here and not above: the pairs stage writes truth, and reads none, without torch.
        import torch

        from models.common.instances import Instances

        start, stop = np.searchsorted(self.rows, [row, row + 1])
        if start == stop:
            return Instances.empty(*self.size)
        height, width = self.size
        bits = np.unpackbits(self.packed[start:stop], axis=1, count=height * width)
        masks = torch.from_numpy(bits.reshape(-1, height, width)).bool()
        ids = self.track_ids[start:stop]
        track_ids = None if (ids == NO_TRACK).all() else torch.from_numpy(ids.copy())
        return Instances.from_masks(masks, torch.from_numpy(self.scores[start:stop].copy()), track_ids)


class LabelWriter:
    """Streams labels into a folder that exists, in constant memory; `LabelStore.write` is the atomic way in."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self._size = size
        self._last_row = -1
        self._files = (
            NpyWriter(folder / "rows.npy", np.int64, ()),
            NpyWriter(folder / "masks.npy", np.uint8, (_packed_bytes(size),)),
            NpyWriter(folder / "scores.npy", np.float32, ()),
            NpyWriter(folder / "track_ids.npy", np.int64, ()),
        )
        write_json(folder / "size.json", {"height": size[0], "width": size[1]})

    @property
    def count(self) -> int:
        return self._files[0].rows

    def add(self, row: int, instances: Instances) -> None:
        """Add the instances of frame `row`; rows must ascend."""
        self._append(_pack_instances(row, instances, self._size))

    def add_masks(self, row: int, masks: np.ndarray, track_ids: np.ndarray) -> None:
        """Add ground truth of frame `row`: masks (N, H, W) bool, none of them empty, track_ids (N,) int64."""
        if masks.shape[1:] != tuple(self._size):
            raise ValueError(f"row {row}: masks of {masks.shape[1:]} in a store of {tuple(self._size)} (height, width)")
        self._append(_pack(row, masks, np.ones(len(masks), np.float32), track_ids))

    def extend(self, store: LabelStore, *, first_row: int) -> None:
        """Add a whole store whose rows count from `first_row`."""
        self._append((store.rows + first_row, store.packed, store.scores, store.track_ids))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> LabelWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, columns: tuple[np.ndarray, ...]) -> None:
        rows = columns[0]
        if not len(rows):
            return
        if rows[0] < max(self._last_row, 0):
            raise ValueError(f"labels must come in ascending rows: {rows[0]} after {self._last_row}")
        self._last_row = int(rows[-1])
        for file, column in zip(self._files, columns, strict=True):
            file.append(column)


def _pack_instances(row: int, instances: Instances, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    if instances.size != tuple(size):
        raise ValueError(f"row {row}: masks of {instances.size} in a store of {tuple(size)} (height, width)")
    ids = instances.track_ids
    track_ids = None if ids is None else ids.cpu().numpy()
    return _pack(row, instances.masks.cpu().numpy(), instances.scores.cpu().numpy(), track_ids)


def _pack(row: int, masks: np.ndarray, scores: np.ndarray, track_ids: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """(rows, packed masks, scores, track ids) of one frame."""
    n, height, width = masks.shape
    packed = np.packbits(masks.reshape(n, height * width), axis=1)
    ids = np.full(n, NO_TRACK, np.int64) if track_ids is None else track_ids.astype(np.int64)
    return np.full(n, row, np.int64), packed, scores.astype(np.float32), ids


def _packed_bytes(size: tuple[int, int]) -> int:
    return (size[0] * size[1] + 7) // 8


def _read_size(path: Path) -> tuple[int, int]:
    value = read_json(path)
    sides = [value.get("height"), value.get("width")] if isinstance(value, dict) else [None]
    if not all(isinstance(side, int) and 0 < side <= _MAX_SIDE for side in sides):
        raise DataError(f"{path}: expected height and width in pixels: run the stage that writes it again")
    return sides[0], sides[1]  # type: ignore[return-value]
