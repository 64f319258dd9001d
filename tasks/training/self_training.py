"""Self-training rounds: the network, part-way through its training, adds the objects that the labels miss.

Motion labels miss what stands still, and a missed object teaches that it is background. What the network is sure of and
no label touches becomes a label. Labels stay as they are: measured on generated video, the network's own masks and
its doubts about labels made them worse, its additions better.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from models.common.images import to_tensor
from models.common.instances import Instances

if TYPE_CHECKING:
    from models.interface import Segmenter
    from tasks.frames import FrameStore
    from tasks.labels import LabelStore

TOUCHING = 0.2
"""Share of a detection that may lie on labels for it to count as an object of its own."""
_BATCH = 16


def round_starts(iterations: int, rounds: int) -> list[int]:
    """Iterations before which a round relabels, dividing the training into rounds + 1 equal parts: (4, 1) -> [2]."""
    return sorted({iterations * number // (rounds + 1) for number in range(1, rounds + 1)} - {0})


@torch.no_grad()
def relabel(
    model: Segmenter,
    store: FrameStore,
    labels: LabelStore,
    *,
    score_threshold: float,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, Instances]]:
    """(row, labels with additions) of every row of the train split that has any, in ascending order.

    labels: those of the labeller; a round adds to them, not to what an earlier round added. The model is put into
    evaluation mode meanwhile. score_threshold: of what is added, in [0, 1]; the score becomes the label's confidence.
    """
    was_training = model.training
    model.eval()
    try:
        rows = [row for clip in store.clips if clip.split == "train" for row in range(clip.first_row, clip.stop)]
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            images = to_tensor(store.gather(np.array(part)), torch.device(device))
            for row, found in zip(part, model.predict(images, score_threshold=score_threshold), strict=True):
                merged = add_missing(labels[row], found.to("cpu"))
                if len(merged):
                    yield row, merged
    finally:
        model.train(was_training)


def add_missing(labels: Instances, found: Instances) -> Instances:
    """`labels` and behind them those of `found`, best first, that lie on no label and on none added before.

    Boxes are mask extents; what overlaps a little is cut from the addition. Track ids are dropped.
    """
    taken = labels.masks.any(0)
    masks, scores = [*labels.masks], [*labels.scores]
    for index in torch.argsort(found.scores, descending=True, stable=True).tolist():
        mask = found.masks[index]
        area = int(mask.sum())
        if area and int((mask & taken).sum()) <= TOUCHING * area:
            masks.append(mask & ~taken)
            scores.append(found.scores[index])
            taken = taken | mask
    if not masks:
        return Instances.empty(*labels.size)
    return Instances.from_masks(torch.stack(masks), torch.stack(scores).float())
