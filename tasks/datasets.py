"""The thesis' three views of the data (section 3.9), as torch Datasets over a FrameStore.

The base sample is `image` (3, H, W) float32 in [0, 1], `masks` (D, H, W) float32 in {0, 1} and `bboxes` (D, 4)
float32 x1 y1 x2 y2 in pixels, D the number of instances, which may be 0. Training uses the store itself, in batches;
these views are for experiments, benchmarks and whoever knows the thesis.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from models.common.images import to_tensor
from tasks.errors import DataError
from tasks.frames import FlowStore, FrameStore, Pairs
from tasks.labels import LabelStore

Sample = dict[str, Tensor]


class BaseDataset(Dataset[Sample]):
    """Every frame that has ground truth: {"image", "masks", "bboxes"}. Raises DataError if the store has no truth."""

    def __init__(self, store: FrameStore, split: str | None = None) -> None:
        self._store = store
        self._truth = _need_truth(store)
        self.rows = _truth_rows(store, split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        instances = self._truth[row]
        return {
            "image": _image(self._store, row),
            "masks": instances.masks.float(),
            "bboxes": instances.boxes,
        }


class ImagePairDataset(Dataset[tuple[Tensor, Tensor]]):
    """(I_t, I_t+1), each (3, H, W) float32 in [0, 1]: for self-supervised training. Needs no truth."""

    def __init__(self, store: FrameStore, split: str | None = None) -> None:
        self._store = store
        self.pairs = store.pairs(split)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row_a, row_b = int(self.pairs.row_a[index]), int(self.pairs.row_b[index])
        return _image(self._store, row_a), _image(self._store, row_b)


class FlowSupervisedDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """(I_t, I_t+1, F*_t): the pair and its true optical flow (2, H, W) float32, x then y, pixels, NaN where unknown.

    Holds the pairs whose flow is stored. Raises DataError if the store has no flow.
    """

    def __init__(self, store: FrameStore, split: str | None = None) -> None:
        self._store = store
        self._flow = _need_flow(store)
        pairs = store.pairs(split)
        self.pairs: Pairs = pairs[np.isin(pairs.row_a, self._flow.rows)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        row_a, row_b = int(self.pairs.row_a[index]), int(self.pairs.row_b[index])
        flow_uv = self._flow[row_a]
        assert flow_uv is not None
        field = torch.from_numpy(flow_uv.transpose(2, 0, 1).copy())  # (H, W, 2) -> (2, H, W)
        return _image(self._store, row_a), _image(self._store, row_b), field


class YOLOSupervisedDataset(Dataset[tuple[Tensor, Tensor]]):
    """(I_t, boxes_t): an image and its true boxes (D, 4) x1 y1 x2 y2, pixels. Raises DataError without truth."""

    def __init__(self, store: FrameStore, split: str | None = None) -> None:
        self._base = BaseDataset(store, split)

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self._base[index]
        return sample["image"], sample["bboxes"]


def _image(store: FrameStore, row: int) -> Tensor:
    return to_tensor(store.frame(row)[None])[0]


def _truth_rows(store: FrameStore, split: str | None) -> np.ndarray:
    clips = [clip for clip in store.clips if split in (None, clip.split)]
    return np.concatenate([np.zeros(0, np.int64), *(clip.truth_rows() for clip in clips)])


def _need_truth(store: FrameStore) -> LabelStore:
    if store.truth is None:
        raise DataError("these frames have no ground truth: use ImagePairDataset, or data with labels")
    return store.truth


def _need_flow(store: FrameStore) -> FlowStore:
    if store.optical_flow is None:
        raise DataError(
            "these frames have no true optical flow: use ImagePairDataset, or synthetic video with dense_flow: true"
        )
    return store.optical_flow
