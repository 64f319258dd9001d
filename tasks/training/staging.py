"""Batches brought to the device that trains, and frames that stay there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from models.common.images import scale_bytes
from models.interface import Batch
from tasks.frames import FrameStore
from tasks.training.augment import Augmentation
from tasks.training.batches import RawBatch, RowBatch, assemble

_ROOM = 0.5
"""Of a GPU's free memory that frames may take: the step needs the rest."""
_CHUNK = 1024
"""Frames read at once."""
_MOVES = [
    (transpose, flip_x, flip_y) for transpose in (False, True) for flip_x in (False, True) for flip_y in (False, True)
]


class Stager:
    """Brings batches to the device: to a GPU ahead of time, in the thread that reads them and in a stream of its own,
    to a CPU in the main thread.
    """

    def __init__(self, device: torch.device, resident: ResidentFrames | None = None) -> None:
        self._device = device
        self._resident = resident
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def ahead(self, raw: RawBatch | RowBatch) -> RawBatch | RowBatch | Batch:
        if self._stream is None:
            return raw
        with torch.cuda.stream(self._stream):
            batch = self._bring(raw)
        self._stream.synchronize()
        for tensor in _tensors(batch):
            # Else the allocator may hand the memory to the next batch while a step still reads it.
            tensor.record_stream(torch.cuda.default_stream(self._device))
        return batch

    def finish(self, batch: RawBatch | RowBatch | Batch) -> Batch:
        return batch if isinstance(batch, Batch) else self._bring(batch)

    def _bring(self, batch: RawBatch | RowBatch) -> Batch:
        if isinstance(batch, RawBatch):
            return batch.to(self._device)
        assert self._resident is not None
        return self._resident.bring(batch)


class ResidentFrames:
    """The frames of a store's train split on a device, as bytes, and augmentation there: the same values, to the bit,
    as reading and augmenting them on the host, of which a batch then needs no more than row numbers and tables.
    """

    def __init__(self, store: FrameStore, device: torch.device) -> None:
        rows = _train_rows(store)
        self._places = np.full(len(store), -1, np.int64)
        self._places[rows] = np.arange(len(rows))
        self._frames = torch.empty((len(rows), *store.size, 3), dtype=torch.uint8, device=device)
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            self._frames[start : start + len(part)] = torch.from_numpy(store.gather(part)).to(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # batches are gathered in another stream
        self._moves = move_table(store.size).to(device)

    def bring(self, batch: RowBatch) -> Batch:
        frame_a = scale_bytes(self.gather(batch.row_a, batch.draws))
        frame_b = frame_a if batch.row_b is None else scale_bytes(self.gather(batch.row_b, batch.draws))
        return assemble(frame_a, frame_b, batch.dt_s, batch.labels, batch.optical_flow)

    def gather(self, rows: np.ndarray, draws: Sequence[Augmentation] | None) -> Tensor:
        """(B, H, W, 3) uint8 on the device: the frames of `rows` (B,), each augmented by its draw.

        Raises IndexError for a row that is not there.
        """
        places = self._places[rows]
        if (places < 0).any():
            raise IndexError(f"row {rows[places < 0][0]} is none of the resident frames")
        device = self._frames.device
        frames = self._frames[torch.from_numpy(places).to(device)]
        if not draws:
            return frames
        moves = [_MOVES.index((draw.transpose, draw.flip_x, draw.flip_y)) for draw in draws]
        channels = torch.tensor([draw.channels for draw in draws]).to(device)
        tables = torch.from_numpy(np.stack([draw.table for draw in draws])).to(device)
        # Where each output value comes from in its frame: the pixel, then the channel in it.
        origin = 3 * self._moves[torch.tensor(moves).to(device)][..., None] + channels[:, None]
        moved = frames.flatten(1).gather(1, origin.flatten(1))
        return tables.gather(1, moved.long()).view_as(frames)


def keep_frames(store: FrameStore, device: torch.device, *, wanted: bool | None) -> ResidentFrames | None:
    """The frames of the train split on the device; wanted: None where a GPU has room for them."""
    return ResidentFrames(store, device) if (fits(store, device) if wanted is None else wanted) else None


def fits(store: FrameStore, device: torch.device) -> bool:
    """Whether a GPU has room for the frames of the train split; on a CPU there is nothing to gain."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return len(_train_rows(store)) * store.size[0] * store.size[1] * 3 <= _ROOM * free


def move_table(size: tuple[int, int]) -> Tensor:
    """(8, H * W) int64: for each of _MOVES which input pixel each output pixel is.

    Frames that are not square keep their shape: there the transposed four are none, and 0 throughout.
    """
    pixels = np.arange(size[0] * size[1]).reshape(1, *size)
    table = np.zeros((len(_MOVES), size[0] * size[1]), np.int64)
    for row, (transpose, flip_x, flip_y) in enumerate(_MOVES):
        if not transpose or size[0] == size[1]:
            draw = Augmentation(transpose, flip_x, flip_y, (0, 1, 2), np.zeros(0, np.uint8))
            table[row] = draw.masks(pixels).reshape(-1)  # the moves without the colours
    return torch.from_numpy(table)


def _train_rows(store: FrameStore) -> np.ndarray:
    ranges = [np.arange(clip.first_row, clip.stop) for clip in store.clips if clip.split == "train"]
    return np.concatenate([np.zeros(0, np.int64), *ranges])


def _tensors(batch: Batch) -> Iterator[Tensor]:
    yield from (batch.frame_a, batch.frame_b, batch.dt)
    if batch.optical_flow is not None:
        yield batch.optical_flow
    for instances in batch.labels or ():
        yield from (instances.boxes, instances.scores, instances.masks)
