"""Labels that a method infers itself from unlabelled frames, over the whole train split: the E-step of a training.

Asked for all frames at once and seldom, not for every batch, inference costs a small part of a training, each of its
labels is learnt from many times, and copy-paste works on it as on any label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from models.common.images import to_tensor
from models.common.instances import Instances
from models.common.outline import settle_outlines
from models.interface import Batch
from tasks.errors import NothingLeftError
from tasks.labels import LabelStore
from tasks.training.batches import triplet_samples

if TYPE_CHECKING:
    from models.interface import Segmenter
    from tasks.frames import FrameStore

_BATCH = 16


@torch.no_grad()
def infer_labels(
    model: Segmenter, store: FrameStore, *, with_network: bool, device: torch.device | str = "cpu"
) -> Iterator[tuple[int, Instances]]:
    """(row, instances) of the train split's frames in which the model infers any, in ascending order of rows.

    The model must have needs "own_labels"; it is put into evaluation mode meanwhile. Frames without a neighbour
    `frame_gap` away on both sides have none. Outlines are settled by colour. Raises NothingLeftError without triplets.
    """
    samples = triplet_samples(store, model.frame_gap)
    assert samples.row_before is not None
    device, was_training = torch.device(device), model.training
    model.eval()
    try:
        for start in range(0, len(samples), _BATCH):
            part = slice(start, start + _BATCH)
            rows = (samples.row_a[part], samples.row_b[part], samples.row_before[part])
            frames = [store.gather(row) for row in rows]
            here, after, before = (to_tensor(frame, device) for frame in frames)
            dt = torch.from_numpy(samples.dt_s[part]).to(device)
            found = model.infer(Batch(here, after, dt, frame_before=before), with_network=with_network)
            for row, frame, instances in zip(rows[0].tolist(), frames[0], found, strict=True):
                settled = settle_outlines(frame, instances.to("cpu"))
                if len(settled):
                    yield row, settled
    finally:
        model.train(was_training)


def collect_labels(
    number: int, model: Segmenter, *, store: FrameStore, device: torch.device | str = "cpu"
) -> LabelStore:
    """The labels of round `number` in memory; round 0 does without the network. Raises NothingLeftError for none."""
    found = infer_labels(model, store, with_network=number > 0, device=device)
    return check_any(LabelStore.from_items(store.size, found))


def check_any(labels: LabelStore) -> LabelStore:
    """`labels`. Raises NothingLeftError if there are none."""
    if not labels.count:
        raise NothingLeftError(
            "nothing was inferred to move on its own in any frame of the train split: use clips in which things move "
            "against their background, or train.mosis.objective motion_labels"
        )
    return labels
