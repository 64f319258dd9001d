from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from models import METHODS
from models.common.instances import Instances, mask_extents
from models.interface import Batch
from models.mosis.appearance import Proposals, anchor_grid
from models.mosis.config import MosisConfig
from models.mosis.model import Mosis, mask_certainty

SIZE = (64, 64)

pytestmark = pytest.mark.usefixtures("one_thread")


def build(**settings: object) -> Mosis:
    torch.manual_seed(0)
    return Mosis(MosisConfig(**settings), SIZE).eval()  # type: ignore[arg-type]


def fake(model: Mosis, monkeypatch: pytest.MonkeyPatch, found: list[list[tuple[list[float], float]]]) -> None:
    """Let the network propose `found`, (box, score) per image, and fill every region of a mask up to its box."""
    side = model.appearance.region_side

    def propose(images: Tensor) -> Proposals:
        size = (images.shape[2], images.shape[3])
        boxes, logits = torch.zeros(len(images), 8, 4), torch.full((len(images), 8), -50.0)
        for image, instances in enumerate(found):
            for index, (box, score) in enumerate(instances):
                boxes[image, index], logits[image, index] = torch.tensor(box), torch.logit(torch.tensor(score))
        return Proposals(boxes, logits, torch.zeros(len(images), 1, 1, 1), anchor_grid(size), size)

    def fill(mask_features: Tensor, regions: list[Tensor]) -> Tensor:
        margin = model.appearance.region_margin
        cells = (torch.arange(side) + 0.5) / side * (1 + 2 * margin) - margin
        inside = ((cells > 0) & (cells < 1)).float()
        logits = (inside[:, None] * inside) * 40 - 20
        return logits.expand(sum(map(len, regions)), side, side)

    monkeypatch.setattr(model.appearance, "forward", propose)
    monkeypatch.setattr(model.appearance, "mask_logits", fill)


A, B, C = [4.0, 4.0, 24.0, 28.0], [6.0, 4.0, 26.0, 28.0], [36.0, 30.0, 60.0, 62.0]


def test_scores_boxes_and_order_of_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(nms_iou=0.5)
    fake(model, monkeypatch, [[(A, 0.5), (C, 0.9)]])
    (found,) = model.predict(torch.rand(1, 3, *SIZE))
    assert found.boxes.tolist() == [C, A]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.5]))
    truth = torch.zeros(2, *SIZE, dtype=torch.bool)
    truth[0, 30:62, 36:60] = truth[1, 4:28, 4:24] = True
    iou = (found.masks & truth).sum((1, 2)) / (found.masks | truth).sum((1, 2))
    assert (iou > 0.75).all()


def test_thresholds_and_nms_drop_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(score_threshold=0.4, nms_iou=0.5)
    fake(model, monkeypatch, [[(A, 0.9), (B, 0.8), (C, 0.3)]])
    images = torch.rand(1, 3, *SIZE)
    assert model.predict(images)[0].boxes.tolist() == [A]
    assert model.predict(images, score_threshold=0.2)[0].boxes.tolist() == [A, C]
    loose = build(score_threshold=0.4, nms_iou=0.9)  # A and B have an IoU of 18 / 22
    fake(loose, monkeypatch, [[(A, 0.9), (B, 0.8), (C, 0.3)]])
    assert loose.predict(images)[0].boxes.tolist() == [A, B]


def test_at_most_top_k_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(top_k=1, score_threshold=0.1)
    fake(model, monkeypatch, [[(A, 0.5), (C, 0.9)]])
    assert model.predict(torch.rand(1, 3, *SIZE))[0].boxes.tolist() == [C]


def test_images_with_different_numbers_of_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    fake(model, monkeypatch, [[(A, 0.9), (C, 0.8)], [], [(C, 0.7)]])
    found = model.predict(torch.rand(3, 3, *SIZE))
    assert [len(instances) for instances in found] == [2, 0, 1]
    assert found[1].masks.shape == (0, *SIZE)


def test_output_size_scales_boxes_and_masks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    fake(model, monkeypatch, [[(A, 0.9)]])
    (found,) = model.predict(torch.rand(1, 3, *SIZE), output_size=(128, 640))
    assert found.size == (128, 640)
    assert found.boxes.tolist() == [[40.0, 8.0, 240.0, 56.0]]
    assert (mask_extents(found.masks) - found.boxes).abs().max() < 12


def test_box_from_mask_gives_the_extent(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(box_from_mask=True)
    fake(model, monkeypatch, [[(A, 0.9), (C, 0.8)]])
    (found,) = model.predict(torch.rand(1, 3, *SIZE))
    assert torch.equal(found.boxes, mask_extents(found.masks))


def test_boxes_end_at_the_border_and_those_outside_or_without_area_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    fake(model, monkeypatch, [[([-9.0, 40.0, 20.0, 90.0], 0.9), ([70.0, 5.0, 90.0, 20.0], 0.8), ([9.0] * 4, 0.7)]])
    (found,) = model.predict(torch.rand(1, 3, *SIZE))
    assert found.boxes.tolist() == [[0.0, 40.0, 20.0, 64.0]]


def test_two_objects_that_the_border_cuts_alike_stay_two(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = [-26.0, 10.0, 14.0, 40.0], [0.0, 10.0, 14.0, 44.0]  # IoU .26, and .88 once they are cut
    for box_from_mask, kept in ((False, 2), (True, 1)):
        model = build(nms_iou=0.5, box_from_mask=box_from_mask)
        fake(model, monkeypatch, [[(one, 0.9), (other, 0.8)]])
        assert len(model.predict(torch.rand(1, 3, *SIZE))[0]) == kept


def test_score_with_mask_multiplies_by_certainty(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.zeros(3, 2, 2)
    masks[0] = torch.tensor([[0.9, 0.7], [0.2, 0.0]])
    masks[1] = 0.4
    torch.testing.assert_close(mask_certainty(masks, 0.5), torch.tensor([0.8, 0.0, 0.0]))
    model = build(score_with_mask=True)
    fake(model, monkeypatch, [[(A, 0.8)]])
    monkeypatch.setattr(
        model.appearance,
        "mask_logits",
        lambda _, r: torch.full((len(r[0]), 14, 14), 1.0986),  # sigmoid .75
    )
    assert model.predict(torch.rand(1, 3, *SIZE))[0].scores.item() == pytest.approx(0.6, abs=1e-4)
    assert len(model.predict(torch.rand(1, 3, *SIZE), score_threshold=0.7)[0]) == 0


def test_prediction_is_repeatable_and_takes_sides_that_differ() -> None:
    model = build(objective="literal", score_threshold=0.0)
    images = torch.rand(2, 3, 64, 96)
    first, again = model.predict(images), model.predict(images)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.masks, other.masks)
        assert torch.equal(one.boxes, other.boxes)
        assert one.size == (64, 96)
    assert model.predict(images[:0]) == []


def test_an_untrained_network_for_labels_predicts_nothing() -> None:
    (found,) = build().predict(torch.rand(1, 3, *SIZE))
    assert len(found) == 0
    assert found.size == SIZE


def test_huge_output_holds_no_float_maps() -> None:
    model = build(objective="literal", score_threshold=0.0, nms_iou=0.5)
    (found,) = model.predict(torch.rand(1, 3, *SIZE), output_size=(1080, 1920))
    assert found.size == (1080, 1920)
    assert len(found) <= 32


def batch(size: int = 64, images: int = 2) -> Batch:
    torch.manual_seed(1)
    frames = torch.rand(images, 3, size, size)
    masks = torch.zeros(images, size, size, dtype=torch.bool)
    labels = []
    for index in range(images):
        mask = masks[index]
        mask[10:34, 8 + 12 * index : 36 + 12 * index] = True
        frames[index] = frames[index] * 0.3 + mask * torch.tensor([0.7, 0.1, 0.4])[:, None, None]
        labels.append(Instances.from_masks(mask[None]))
    return Batch(frames, frames.roll(1, 3), torch.full((images,), 1 / 24), labels)


def test_needs_follows_the_objective() -> None:
    assert build(objective="literal").needs == "pairs"
    labelled = build(objective="motion_labels")
    assert labelled.needs == "labels"
    assert not any(name.startswith(("motion", "segment_motion")) for name, _ in labelled.named_parameters())
    with pytest.raises(ValueError, match="the batch has none"):
        labelled.loss(Batch(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), torch.ones(1)))


def test_the_literal_loss_teaches_both_networks() -> None:
    model = build(objective="literal").train()
    terms = model.loss(batch())
    assert set(terms) == {"total", "photo_forward", "photo_backward", "objectness"}
    terms["total"].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_in_closed_form_only_the_appearance_network_learns() -> None:
    model = build(objective="literal", segment_motion="closed_form").train()
    assert [name for name, _ in model.named_parameters() if not name.startswith("appearance.")] == []
    assert set(model.state_dict()) == set(build(objective="motion_labels").state_dict())
    terms = model.loss(batch())
    terms["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match="closed_form needs warp_direction consistent"):
        build(objective="literal", segment_motion="closed_form", warp_direction="literal")


def test_photometric_gradient_reaches_boxes_through_the_paste() -> None:
    model = build(objective="literal", lambda_obj=0.0).train()
    model.loss(batch())["total"].backward()
    weights = dict(model.appearance.named_parameters())
    gradients = [weights[f"heads.{scale}.output.weight"].grad for scale in range(3)]
    box_outputs = [gradient.view(3, 5, -1)[:, :4].abs().sum((0, 2)) for gradient in gradients if gradient is not None]
    assert (torch.stack(box_outputs).sum(0) > 0).all()


def test_masks_of_the_literal_objective_are_probabilities_times_objectness() -> None:
    model = build(objective="literal", top_k=5)
    masks, logits = model.propose(torch.rand(2, 3, *SIZE))
    assert masks.shape == (2, 5, *SIZE)
    assert (masks >= 0).all()
    assert (masks <= logits.sigmoid()[..., None, None] + 1e-6).all()
    assert (logits[:, :-1] >= logits[:, 1:]).all()


def test_it_learns_one_image() -> None:
    model = build(nms_iou=0.5, box_from_mask=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    lesson = batch()
    assert lesson.labels is not None
    for step in range(40):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model.loss(lesson)["total"].backward()
        optimizer.step()
    model.eval()
    for found, label in zip(model.predict(lesson.frame_a), lesson.labels, strict=True):
        assert len(found) == 1
        iou = (found.masks & label.masks).sum() / (found.masks | label.masks).sum()
        assert iou > 0.8


def test_methods_are_listed_without_torch() -> None:
    code = "import models, sys; assert 'mosis' in models.METHODS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert isinstance(METHODS["mosis"](MosisConfig(), SIZE), Mosis)


@pytest.mark.parametrize("size", [(100, 64), (64, 100)])
def test_training_sizes_that_do_not_fit_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        Mosis(MosisConfig(), size)
