"""Instances of 5 x 6 pixels that a hand can check."""

from __future__ import annotations

import torch

from models.common.instances import Instances

SIZE = (5, 6)


def boxes(*extents: tuple[int, int, int, int], track_ids: list[int] | None = None) -> Instances:
    """Instances whose masks are full boxes."""
    masks = torch.zeros(len(extents), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, extents, strict=True):
        mask[y1:y2, x1:x2] = True
    ids = None if track_ids is None else torch.tensor(track_ids)
    return Instances.from_masks(masks, torch.arange(1, len(extents) + 1) / 4, ids)


FIRST = boxes((0, 0, 2, 3), (1, 1, 6, 5), track_ids=[7, 3])
SECOND = boxes((2, 2, 3, 3))


def assert_same(a: Instances, b: Instances) -> None:
    assert torch.equal(a.boxes, b.boxes)
    assert torch.equal(a.scores, b.scores)
    assert torch.equal(a.masks, b.masks)
    assert (a.track_ids is None) == (b.track_ids is None)
    assert a.track_ids is None or torch.equal(a.track_ids, b.track_ids)  # type: ignore[arg-type]
