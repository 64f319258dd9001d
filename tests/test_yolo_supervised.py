"""The supervised twin: assignment and losses of section 9.3 by hand, and ground truth through the stages."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_synthetic

import models
from models.common.instances import Instances
from models.interface import Batch
from models.mosis.appearance import anchor_grid, decode_boxes
from models.mosis.config import MosisConfig
from models.mosis.label_loss import Positives, Targets
from models.mosis.model import Mosis
from models.yolo_supervised.config import YoloSupervisedConfig
from models.yolo_supervised.losses import (
    assign,
    box_loss,
    box_parameters,
    no_objectness_loss,
    objectness_loss,
    shape_iou,
)
from models.yolo_supervised.model import YoloSupervised
from tasks import evaluate, ingest, pairs, train
from tasks import params as parameters
from tasks.errors import NothingLeftError
from tasks.files import read_json
from tasks.frames import FrameStore
from tasks.training.batches import truth_samples
from tasks.training.loop import Recipe, fit
from tasks.training.optimise import Optimisation

pytestmark = pytest.mark.usefixtures("one_thread")


SIZE = (64, 64)
GRID = anchor_grid(SIZE)  # 2 x 2, 4 x 4 and 8 x 8 cells of three anchors: 12 + 48 + 192 proposals


def targets(*boxes: tuple[float, float, float, float], image: list[int] | None = None) -> Targets:
    """Labels with these boxes; masks do not matter here."""
    count = len(boxes)
    index = torch.tensor(image if image is not None else [0] * count, dtype=torch.long)
    return Targets(
        index, torch.tensor(boxes).reshape(-1, 4), torch.zeros(count, *SIZE, dtype=torch.bool), torch.ones(count)
    )


def positives(*proposals: int) -> Positives:
    """Image 0's proposals, each for the label of its place."""
    return Positives(
        torch.zeros(len(proposals), dtype=torch.long),
        torch.tensor(proposals, dtype=torch.long),
        torch.arange(len(proposals)),
        torch.ones(len(proposals), dtype=torch.bool),
    )


def a_square(side: int = 20) -> Instances:
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, 10 : 10 + side, 22 : 22 + side] = True
    return Instances.from_masks(mask)


def a_batch(*labels: Instances) -> Batch:
    frames = torch.rand(len(labels), 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return Batch(frames, frames, torch.zeros(len(labels)), list(labels))


def build(loss: str = "thesis") -> YoloSupervised:
    torch.manual_seed(0)
    return YoloSupervised(YoloSupervisedConfig(loss=loss), SIZE)


def test_a_box_is_given_to_its_cell_and_best_anchor_on_every_scale() -> None:
    found = assign(GRID, targets((30.0, 10.0, 50.0, 38.0)), SIZE, 1)  # 20 x 28 around (40, 24)
    # Stride 32: column 1, row 0, anchor 48 x 60. Stride 16: column 2, row 1, its own anchor. Stride 8: column 5, row 3,
    # anchor 16 x 24.
    assert found.proposal.tolist() == [(0 * 2 + 1) * 3, 12 + (1 * 4 + 2) * 3, 12 + 48 + (3 * 8 + 5) * 3 + 2]
    assert found.label.tolist() == [0, 0, 0]
    assert found.image.tolist() == [0, 0, 0]
    assert found.chosen.all()


def test_the_earlier_of_two_boxes_has_a_place_that_both_want() -> None:
    twice = assign(GRID, targets((30.0, 10.0, 50.0, 38.0), (30.0, 10.0, 50.0, 38.0)), SIZE, 1)
    assert twice.label[twice.chosen].tolist() == [0, 0, 0]
    apart = assign(GRID, targets((30.0, 10.0, 50.0, 38.0), (30.0, 10.0, 50.0, 38.0), image=[0, 1]), SIZE, 2)
    assert apart.chosen.all()
    assert sorted(apart.label.tolist()) == [0, 0, 0, 1, 1, 1]
    assert apart.image.tolist() == apart.label.tolist()


def test_each_of_two_boxes_is_learnt_in_its_own_cells() -> None:
    both = (30.0, 10.0, 50.0, 38.0), (2.0, 2.0, 14.0, 20.0)
    found = assign(GRID, targets(*both), SIZE, 1)
    assert found.chosen.all()
    for label, box in enumerate(both):
        alone = assign(GRID, targets(box), SIZE, 1)
        assert found.proposal[found.label == label].tolist() == alone.proposal.tolist()


def test_a_centre_on_the_far_border_stays_in_the_last_cell() -> None:
    found = assign(GRID, targets((44.0, 44.0, 84.0, 84.0)), SIZE, 1)  # its centre is (64, 64)
    assert found.proposal.tolist()[0] // 3 == 3


def test_no_box_no_positive() -> None:
    assert len(assign(GRID, targets(), SIZE, 2).label) == 0


def test_the_iou_of_shapes_ignores_where_they_are() -> None:
    found = shape_iou(torch.tensor([[2.0, 4.0]]), torch.tensor([[2.0, 4.0], [4.0, 2.0], [4.0, 8.0]]))
    assert torch.allclose(found, torch.tensor([[1.0, 4 / 12, 8 / 32]]))


def test_negatives_alone_pay_for_objectness() -> None:
    logits = torch.zeros(1, 4)
    logits[0, 2] = 50.0
    assert no_objectness_loss(logits, positives(2)).item() == pytest.approx(math.log(2))
    assert no_objectness_loss(logits, positives()).item() == pytest.approx((3 * math.log(2) + 50) / 4)


def test_objectness_of_a_positive_is_to_be_its_own_iou() -> None:
    label = targets((0.0, 0.0, 10.0, 10.0))
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 5.0]]], requires_grad=True)  # IoU 0.5
    logits = torch.tensor([[math.log(3.0)]], requires_grad=True)  # 0.75
    loss = objectness_loss(logits, boxes, positives(0), label)
    assert loss.item() == pytest.approx(0.25**2)
    loss.backward()
    assert logits.grad is not None
    assert boxes.grad is None  # the box must not move to where its score is right


def test_box_parameters_are_what_the_network_puts_out() -> None:
    raw = torch.randn(1, len(GRID.strides), 4, generator=torch.Generator().manual_seed(1))
    boxes = decode_boxes(raw, GRID, centre_reach=0.0)[0]
    found = box_parameters(boxes, GRID, torch.arange(len(boxes)))
    assert torch.allclose(found[:, :2], raw[0, :, :2].sigmoid(), atol=1e-4)
    assert torch.allclose(found[:, 2:], raw[0, :, 2:], atol=1e-4)


def test_the_box_loss_by_hand() -> None:
    # Proposal 0: the cell 0..32, anchor 48 x 60. The label sits a quarter of the cell off in x, twice as wide.
    boxes = torch.tensor([[[-8.0, -14.0, 40.0, 46.0]]])
    label = targets((-24.0, -14.0, 72.0, 46.0))
    assert box_loss(boxes, GRID, positives(0), label).item() == pytest.approx(0.25**2 + math.log(2) ** 2, rel=1e-5)
    assert box_loss(label.boxes[None], GRID, positives(0), label).item() == 0


def test_gradients_of_the_losses() -> None:
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(1, 6, 2, generator=generator, dtype=torch.float64) * 30
    boxes = torch.cat((corner, corner + 5 + 20 * torch.rand(1, 6, 2, generator=generator, dtype=torch.float64)), 2)
    label = targets((3.0, 4.0, 20.0, 30.0), (11.0, 5.0, 40.0, 29.0))
    label = label._replace(boxes=label.boxes.double())
    grid = GRID._replace(**{name: value.double() for name, value in GRID._asdict().items()})
    chosen, logits = positives(1, 4), torch.randn(1, 6, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda b: box_loss(b, grid, chosen, label), boxes.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: no_objectness_loss(x, chosen), logits.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: objectness_loss(x, boxes.detach(), chosen, label), logits)


def test_images_without_objects_teach_the_background_alone() -> None:
    losses = build().loss(a_batch(Instances.empty(*SIZE), Instances.empty(*SIZE)))
    assert {name for name, value in losses.items() if value.item() != 0} == {"total", "detection", "no_objectness"}
    losses["total"].backward()


def test_the_terms_add_up_and_detection_is_the_figure_of_the_thesis() -> None:
    losses = build().loss(a_batch(a_square(), Instances.empty(*SIZE)))
    detection = losses["no_objectness"] + losses["objectness"] + losses["box"]
    assert losses["detection"].item() == pytest.approx(detection.item())
    assert losses["total"].item() == pytest.approx((detection + losses["mask"] + losses["dice"]).item())
    assert all(losses[name].item() > 0 for name in losses)


def test_the_thesis_losses_learn_a_box() -> None:
    model, batch = build(), a_batch(a_square(), a_square(12))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    seen = []
    for _ in range(12):
        optimizer.zero_grad()
        losses = model.loss(batch)
        losses["total"].backward()
        optimizer.step()
        seen.append(losses["detection"].item())
    assert seen[-1] < seen[0] / 2


def test_the_twin_is_the_same_network_with_the_same_label_losses() -> None:
    twin = build("detector")
    torch.manual_seed(0)
    mosis = Mosis(MosisConfig(objective="motion_labels"), SIZE)
    assert [name for name, _ in twin.state_dict().items()] == [name for name, _ in mosis.state_dict().items()]
    batch = a_batch(a_square(), a_square(12))
    torch.manual_seed(5)
    expected = mosis.loss(batch)
    torch.manual_seed(5)
    assert {name: value.item() for name, value in twin.loss(batch).items()} == {
        name: value.item() for name, value in expected.items()
    }
    assert twin.needs == "truth"


def test_a_batch_without_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="ground truth"):
        build().loss(Batch(torch.rand(1, 3, *SIZE), torch.rand(1, 3, *SIZE), torch.zeros(1)))


def frame_store(*, truth: bool) -> FrameStore:
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 255, (3, *SIZE, 3), dtype=np.uint8) for _ in range(3)]
    known = [[a_square(), Instances.empty(*SIZE), a_square()], None, [a_square()] * 3] if truth else None
    return FrameStore.from_arrays(clips, ["train", "train", "val"], 24.0, truth=known)


def test_truth_samples_are_the_train_frames_that_are_known_the_empty_ones_too() -> None:
    samples = truth_samples(frame_store(truth=True))
    assert samples.row_a.tolist() == [0, 1, 2]
    assert samples.row_b.tolist() == [0, 1, 2]
    with pytest.raises(NothingLeftError, match=r"no clip of the train split has ground truth.*train\.method"):
        truth_samples(frame_store(truth=False))


def test_the_loop_trains_the_twin_on_the_stores_truth() -> None:
    store = frame_store(truth=True)
    fitted = fit(build("detector"), store, Recipe(Optimisation(2, 1e-3), batch_size=3), labels=store.truth)
    assert fitted.iterations == 2


def test_the_stages_train_and_score_the_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSIS_TRACKING", "off")
    document = tiny_synthetic(videos=4, frames=6)
    document["pairs"] |= {"workers": 1, "train_share": 0.5, "val_share": 0.25}
    document["train"] = {
        "method": "yolo_supervised", "iterations": 2, "batch_size": 2, "warmup_iterations": 1, "validation_images": 2,
        "yolo_supervised": {"loss": "thesis"},
    }  # fmt: skip
    params = parameters.parse(document)
    for stage in (ingest, pairs, train, evaluate):
        stage.run(params, tmp_path)
    summary = read_json(tmp_path / "outputs" / "train" / "summary.json")
    assert (summary["method"], summary["objective"]) == ("yolo_supervised", "yolo_supervised")
    assert summary["labels"]["count"] >= summary["labels"]["images"] > 0
    assert read_json(tmp_path / "outputs" / "evaluate" / "metrics.json")["images"] > 0


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="nms_iou"):
        YoloSupervisedConfig(nms_iou=1.5)
    with pytest.raises(ValueError, match="top_k"):
        YoloSupervisedConfig(top_k=0)
    assert isinstance(models.METHODS["yolo_supervised"](YoloSupervisedConfig(), SIZE), YoloSupervised)
