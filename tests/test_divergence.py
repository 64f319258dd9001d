"""Trainings whose weights leave all bounds end in one line and nothing worse.

Libraries read and write memory that is not theirs where a coordinate is no number: a process that dies says nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.data import Dataset, Video, open_video
from benchmarks.training import build_model
from models.common.masks import crop_masks
from models.common.warp import Outside, warp
from tasks.errors import CollapseError
from tasks.training.checkpoint import Checkpoints
from tasks.training.loop import Recipe, fit
from tasks.training.optimise import Optimisation

pytestmark = pytest.mark.usefixtures("one_thread")
NUMBERLESS = (float("nan"), float("inf"), -float("inf"))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Video:
    data = Dataset(500, 3, {"frames": 8, "height": 64, "width": 64}, fresh=0)
    return open_video(data, tmp_path_factory.mktemp("video"))


@pytest.mark.parametrize(
    ("method", "settings", "rate"),
    [
        ("mosis", {"objective": "motion_labels"}, 1e30),
        ("mosis", {"objective": "literal"}, 1e30),
        ("mosis", {"objective": "literal", "segment_motion": "closed_form"}, 1e30),
        ("yolo_supervised", {"loss": "thesis"}, 1e30),
        ("amd", {}, 1e30),
        ("amd", {}, 10.0),
    ],
)
def test_a_rate_beyond_all_bounds_ends_in_a_line_and_keeps_the_batch(
    video: Video, tmp_path: Path, method: str, settings: dict[str, Any], rate: float
) -> None:
    torch.manual_seed(0)
    model = build_model(method, settings, video.store.size)
    recipe = Recipe(Optimisation(10, rate, warmup_iterations=0, clip_grad_norm=None), 2, augment=False)
    checkpoints = Checkpoints(tmp_path, {}, every=5)
    with pytest.raises(CollapseError, match=r"lower train\.learning_rate"):
        fit(model, video.store, recipe, labels=video.store.truth, checkpoints=checkpoints)
    assert len(list(tmp_path.glob("diverged-*.npz"))) == 1


@pytest.mark.parametrize("value", NUMBERLESS)
@pytest.mark.parametrize("outside", ["border", "zeros", "circular"])
def test_where_motion_is_no_number_nothing_is_known_and_nothing_else_touched(outside: Outside, value: float) -> None:
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    flow_uv = torch.zeros(1, 2, 8, 8)
    flow_uv[0, 0, 2, 3] = value
    flow_uv.requires_grad_()
    warped = warp(image, flow_uv, outside=outside)
    unknown = warped.isnan()
    assert unknown.sum() == 3
    assert unknown[0, :, 2, 3].all()
    torch.testing.assert_close(warped[~unknown], image[~unknown])
    warped.sum().backward()
    assert image.grad is not None
    assert image.grad[0, :, 2, 3].eq(0).all()
    assert image.grad.isfinite().all()


@pytest.mark.parametrize("value", NUMBERLESS)
def test_a_box_that_is_no_number_is_cut_without_harm(value: float) -> None:
    boxes = torch.tensor([[2.0, 2.0, 6.0, 6.0]]).repeat(5, 1)
    for corner in range(4):
        boxes[corner, corner] = value
    cells = crop_masks(torch.ones(1, 8, 8).bool(), torch.zeros(5, dtype=torch.long), boxes, 14)
    assert cells.isfinite().all()
    assert cells[4].eq(1).all()
