"""The fast losses against the plain ones that the benchmark measures them by: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.naive import labels as naive_labels
from benchmarks.naive import photometric as naive_photometric
from models.common.instances import Instances
from models.interface import Batch
from models.mosis.config import MosisConfig
from models.mosis.label_loss import assign, choose_boxes, gather_targets, label_loss, label_overlap
from models.mosis.model import Mosis

SIZE = (64, 64)

pytestmark = pytest.mark.usefixtures("one_thread")


def rectangles(*boxes: tuple[int, int, int, int], scores: list[float]) -> Instances:
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return Instances.from_masks(masks, torch.tensor(scores))


def assert_same(model: Mosis, fast: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    assert fast.keys() == plain.keys()
    for name, value in fast.items():
        assert plain[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(terms["total"], parameters, retain_graph=True) for terms in (fast, plain))
    difference = torch.cat([(a - b).flatten() for a, b in zip(ours, theirs, strict=True)])
    assert difference.norm() < 1e-4 * torch.cat([b.flatten() for b in theirs]).norm()


def test_the_label_loss_is_the_plain_one() -> None:
    torch.manual_seed(0)
    model = Mosis(MosisConfig(), SIZE).train()
    labels = [
        rectangles((10, 10, 30, 38), (12, 8, 34, 40), (40, 4, 60, 20), scores=[1.0, 0.5, 0.8]),
        Instances.empty(*SIZE),
        rectangles((2, 30, 50, 63), scores=[0.0]),
        rectangles((20, 20, 29, 31), scores=[0.7]),
    ]
    proposals = model.appearance(torch.rand(len(labels), 3, *SIZE))
    torch.manual_seed(3)
    fast = label_loss(proposals, labels, model.appearance)
    torch.manual_seed(3)  # the same draw of boxes
    targets = gather_targets(labels, proposals.boxes)
    overlap = label_overlap(proposals.boxes, targets)
    positives = assign(overlap, proposals.grid, targets, centre_reach=model.appearance.centre_reach)
    drawn = choose_boxes(proposals.boxes.detach(), positives, targets, len(labels))
    first = [0, 3, 3, 4]  # number of each image's first label among all
    boxes: list[list[naive_labels.MaskBox]] = [[] for _ in labels]
    image = torch.arange(len(labels)).repeat_interleave(len(drawn.boxes) // len(labels))[drawn.chosen]
    for own, box, label in zip(
        image.tolist(), drawn.boxes[drawn.chosen], drawn.label[drawn.chosen].tolist(), strict=True
    ):
        boxes[own].append((box, label - first[own]))
    plain = naive_labels.label_loss(proposals, labels, model.appearance, boxes)
    assert all(value > 0 for value in fast.values())
    assert_same(model, fast, plain)


def test_without_boxes_given_the_plain_label_loss_draws_its_own() -> None:
    torch.manual_seed(0)
    model = Mosis(MosisConfig(), SIZE).train()
    labels = [rectangles((10, 10, 30, 38), scores=[1.0])]
    terms = naive_labels.label_loss(model.appearance(torch.rand(1, 3, *SIZE)), labels, model.appearance)
    assert all(term > 0 for term in terms.values())


def test_the_photometric_loss_is_the_plain_one() -> None:
    torch.manual_seed(0)
    model = Mosis(MosisConfig(objective="literal", top_k=6), SIZE).train()
    coarse = torch.nn.functional.interpolate(torch.rand(2, 3, 12, 12), size=72, mode="bicubic").clamp(0, 1)
    frame_a, frame_b = coarse[..., 4:68, 4:68], coarse[..., 2:66, 5:69]
    fast = model.loss(Batch(frame_a, frame_b, torch.ones(2)))
    assert_same(model, fast, naive_photometric.photometric_loss(model, frame_a, frame_b))
