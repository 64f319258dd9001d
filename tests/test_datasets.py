"""The thesis' views: shapes, ranges and what they say where there is no truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from models.common.instances import Instances
from tasks.datasets import BaseDataset, FlowSupervisedDataset, ImagePairDataset, YOLOSupervisedDataset
from tasks.errors import DataError
from tasks.frames import FrameStore

SIZE = (4, 6)
MASKS = torch.zeros(2, *SIZE, dtype=torch.bool)
MASKS[0, 1:3, 2:6] = True
MASKS[1, 0, 0] = True
TWO = Instances.from_masks(MASKS)
FLOW_UV = np.zeros((3, *SIZE, 2), np.float32)
FLOW_UV[..., 0], FLOW_UV[..., 1] = 1.5, -2.0


def frames(count: int, grey: int) -> np.ndarray:
    return np.arange(grey, grey + count, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(6, 2).repeat(3, 3)


@pytest.fixture
def store() -> FrameStore:
    return FrameStore.from_arrays(
        [frames(3, 51), frames(2, 102)],
        ["train", "test"],
        12.0,
        truth=[[TWO, Instances.empty(*SIZE), TWO], None],
        optical_flow=[FLOW_UV, None],
    )


def test_base_sample(store):
    dataset = BaseDataset(store)
    assert len(dataset) == 3  # the second clip has no truth
    sample = dataset[0]
    assert sample["image"].shape == (3, *SIZE)
    assert sample["image"].dtype == torch.float32
    assert torch.allclose(sample["image"], torch.tensor(51 / 255))
    assert torch.equal(sample["masks"], MASKS.float())
    assert sample["bboxes"].tolist() == [[2, 1, 6, 3], [0, 0, 1, 1]]


def test_base_sample_of_nothing(store):
    sample = BaseDataset(store)[1]
    assert sample["masks"].shape == (0, *SIZE)
    assert sample["bboxes"].shape == (0, 4)


def test_image_pairs(store):
    dataset = ImagePairDataset(store, "test")
    assert len(dataset) == 1
    before, after = dataset[0]
    assert torch.allclose(before, torch.tensor(102 / 255))
    assert torch.allclose(after, torch.tensor(103 / 255))
    assert len(ImagePairDataset(store)) == 3
    assert len(ImagePairDataset(store, "val")) == 0


def test_flow_supervised(store):
    dataset = FlowSupervisedDataset(store)
    assert len(dataset) == 2  # the second clip has no flow
    before, after, flow_uv = dataset[1]
    assert torch.allclose(before, torch.tensor(52 / 255))
    assert torch.allclose(after, torch.tensor(53 / 255))
    assert flow_uv.shape == (2, *SIZE)
    assert flow_uv.dtype == torch.float32
    assert (flow_uv[0] == 1.5).all()
    assert (flow_uv[1] == -2.0).all()
    assert len(FlowSupervisedDataset(store, "test")) == 0


def test_yolo_supervised(store):
    dataset = YOLOSupervisedDataset(store, "train")
    image, boxes = dataset[2]
    assert torch.allclose(image, torch.tensor(53 / 255))
    assert boxes.tolist() == [[2, 1, 6, 3], [0, 0, 1, 1]]
    assert dataset[1][1].shape == (0, 4)


def test_iteration_ends_and_batches(store):
    assert len(list(ImagePairDataset(store))) == 3
    assert len(list(BaseDataset(store))) == 3
    assert len(list(YOLOSupervisedDataset(store))) == 3
    before, _, flow_uv = next(iter(DataLoader(FlowSupervisedDataset(store), batch_size=2)))
    assert before.shape == (2, 3, *SIZE)
    assert flow_uv.shape == (2, 2, *SIZE)


def test_stores_without_truth_say_so():
    plain = FrameStore.from_arrays([frames(3, 0)], ["train"], 12.0)
    assert len(ImagePairDataset(plain)) == 2
    for view in (BaseDataset, YOLOSupervisedDataset):
        with pytest.raises(DataError, match="no ground truth"):
            view(plain)
    with pytest.raises(DataError, match="no true optical flow"):
        FlowSupervisedDataset(plain)
