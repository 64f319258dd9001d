"""The training step as a GPU would be asked for it, without one: tensors that have a device and a size and no content.

An operation on tensors of two devices fails on them as it does on a GPU, and one whose result's size depends on what a
tensor holds, for which the host would have to wait in every step, fails, too.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import models
from benchmarks.training import build_config
from models.common.boxes import clip_boxes
from models.common.instances import Instances
from models.interface import Batch, Segmenter
from models.mosis.appearance import anchor_grid

SIZE = (64, 96)
COUNTS = (3, 0, 1, 7)
"""Labels of each image."""
MODELS = Path(models.__file__).parent


@pytest.fixture
def _contentless() -> Iterator[None]:
    anchor_grid.cache_clear()
    with FakeTensorMode():
        yield
    anchor_grid.cache_clear()


def on_gpu(model: Segmenter) -> Segmenter:
    """Its weights and buffers there; `Module.to` asks for a driver."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            empty = torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
            setattr(module, name, nn.Parameter(empty, weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))
    return model


def batch_on_gpu(counts: tuple[int, ...]) -> Batch:
    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    labels = [Instances(empty(n, 4), empty(n), empty(n, *SIZE, dtype=torch.bool)) for n in counts]
    frames = [empty(len(counts), 3, *SIZE) for _ in range(2)]
    return Batch(frames[0], frames[1], empty(len(counts)), labels)


class Copies(TorchDispatchMode):
    """Functions that bring tensors from the host to the device. By way of memory that is not pinned the host waits, so
    only `upload` may.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made_in: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = str(kwargs.get("device", ""))
        if function is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and there.startswith("cuda"):
            ours = [frame.name for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(MODELS)]
            self.made_in.add(ours[-1])
        return function(*args, **kwargs)


@pytest.mark.usefixtures("_contentless")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("counts", [COUNTS, (0, 0)])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("mosis", {"objective": "motion_labels"}),
        ("mosis", {"objective": "em"}),
        ("mosis", {"objective": "literal"}),
        ("mosis", {"objective": "literal", "segment_motion": "closed_form", "photometric": "ssim_l1"}),
        ("mosis", {"objective": "literal", "objectness_target": "literal", "warp_direction": "literal"}),
        ("yolo_supervised", {"loss": "detector"}),
        ("yolo_supervised", {"loss": "thesis"}),
        ("amd", {}),
        ("amd", {"photometric": "ssim", "readout": "flow", "dense_weight": 1.0}),
    ],
)
def test_no_loss_waits_for_the_device_or_mixes_two(
    method: str, settings: dict[str, Any], counts: tuple[int, ...], *, half: bool
) -> None:
    model = on_gpu(models.METHODS[method](build_config(method, settings), SIZE)).train()
    batch = batch_on_gpu(counts)
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        model.loss(batch)  # what is made for a size of picture is kept
        with Copies() as copies:
            losses = model.loss(batch)
    assert copies.made_in <= {"upload"}
    assert {value.device.type for value in losses.values()} == {"cuda"}
    assert all(value.ndim == 0 for value in losses.values())


@pytest.mark.usefixtures("_contentless")
def test_what_waits_or_mixes_is_seen() -> None:
    mask = torch.empty(4, dtype=torch.bool, device="cuda")
    with pytest.raises(DynamicOutputShapeException):
        torch.nonzero(mask)
    with pytest.raises(Exception, match="_local_scalar_dense"):
        mask.any().item()
    with pytest.raises(Exception, match="device"):
        torch.empty(4, device="cuda") + torch.empty(4)
    with Copies() as copies:
        clip_boxes(torch.empty(2, 4, device="cuda"), SIZE)
    assert copies.made_in == {"clip_boxes"}
