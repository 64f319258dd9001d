"""Section 9.3's experiment: one square, its losses by epoch and the box that is most certain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.detection import best_overlap, look, mean_by_epoch, open_square
from benchmarks.training import build_model
from models.common.instances import Instances


def test_losses_by_epoch():
    assert mean_by_epoch([(2, 4.0), (4, 2.0), (6, 1.0), (8, 0.5)], 4) == {"1": 3.0, "2": 0.75}
    assert mean_by_epoch([(3, 4.0), (5, 1.0)], 4) == {"1": 4.0, "2": 1.0}
    assert mean_by_epoch([(2, 4.0), (3, 2.0), (5, 1.0)], 2.5) == {"1": 4.0, "2": 1.5}
    assert mean_by_epoch([], 4) == {}


def test_the_box_that_is_most_certain_counts():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]])
    found = Instances(boxes, torch.tensor([0.3, 0.9]), torch.zeros(2, 8, 8, dtype=torch.bool))
    truth = Instances.from_masks(torch.ones(1, 4, 4, dtype=torch.bool))
    assert best_overlap(found, truth) == pytest.approx(0.5)
    assert best_overlap(found[:1], truth) == pytest.approx(1.0)
    assert best_overlap(Instances.empty(8, 8), truth) == 0.0
    assert best_overlap(found, Instances.empty(8, 8)) == 0.0


def test_every_frame_has_one_square_that_a_perfect_model_finds(monkeypatch):
    store, truth = open_square(510, 6)
    assert len(store) == 6
    assert all(len(truth[row]) == 1 for row in range(6))
    model = build_model("yolo_supervised", {"loss": "thesis"}, store.size)
    at = iter(range(6))

    def predict(images, **settings):
        known = [truth[next(at)] for _ in images]
        return [Instances(one.boxes, torch.tensor([0.8]), one.masks) for one in known]

    monkeypatch.setattr(model, "predict", predict)
    row = look(model, store, truth, torch.device("cpu"))
    assert (row["best_box_iou"], row["found_at_cut"]) == (1.0, 1)
    assert np.isclose(row["box"]["AP"], 1.0)
