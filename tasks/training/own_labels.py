"""Labels that a method infers itself from unlabelled frames, over the whole train split: the E-step of a training.

Asked for many frames at once and seldom, not for every batch, inference costs a small part of a training, each of its
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
from tasks.training.batches import Samples, triplet_samples

if TYPE_CHECKING:
    from models.interface import Segmenter
    from tasks.frames import FrameStore

FEWEST = 256
"""Triplets that a round takes at the least, where there are as many."""
_BATCH = 16


def round_samples(number: int, model: Segmenter, store: FrameStore) -> Samples:
    """The triplets that round `number` infers labels for. Raises NothingLeftError without any."""
    samples = triplet_samples(store, model.frame_gap)
    step = max(1, min(model.frame_step, len(samples) // FEWEST))
    return take(samples, slice(number * step // (model.rounds + 1), None, step))


def take(samples: Samples, part: slice) -> Samples:
    """Those of the triplets `samples` that lie in `part`."""
    assert samples.row_before is not None
    return Samples(samples.row_a[part], samples.row_b[part], samples.dt_s[part], samples.row_before[part])


@torch.no_grad()
def infer_labels(
    model: Segmenter,
    store: FrameStore,
    samples: Samples,
    *,
    with_network: bool,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, Instances]]:
    """(row, instances) of the middle frames of the triplets `samples` in which the model infers any, in their order.

    The model must have needs "own_labels"; it is put into evaluation mode meanwhile. Outlines are settled by colour.
    """
    device, was_training = torch.device(device), model.training
    model.eval()
    try:
        for start in range(0, len(samples), _BATCH):
            part = take(samples, slice(start, start + _BATCH))
            assert part.row_before is not None
            frames = [store.gather(rows) for rows in (part.row_a, part.row_b, part.row_before)]
            here, after, before = (to_tensor(frame, device) for frame in frames)
            dt = torch.from_numpy(part.dt_s).to(device)
            found = model.infer(Batch(here, after, dt, frame_before=before), with_network=with_network)
            for row, frame, instances in zip(part.row_a.tolist(), frames[0], found, strict=True):
                settled = settle_outlines(frame, instances.to("cpu"))
                if len(settled):
                    yield row, settled
    finally:
        model.train(was_training)


def infer_round(
    number: int, model: Segmenter, store: FrameStore, *, device: torch.device | str = "cpu"
) -> Iterator[tuple[int, Instances]]:
    """`infer_labels` for round `number`, in ascending order of rows; round 0 does without the network."""
    return infer_labels(model, store, round_samples(number, model, store), with_network=number > 0, device=device)


def collect_labels(
    number: int, model: Segmenter, *, store: FrameStore, device: torch.device | str = "cpu"
) -> LabelStore:
    """The labels of round `number` in memory. Raises NothingLeftError for none."""
    return check_any(LabelStore.from_items(store.size, infer_round(number, model, store, device=device)))


def check_any(labels: LabelStore) -> LabelStore:
    """`labels`. Raises NothingLeftError if there are none."""
    if not labels.count:
        raise NothingLeftError(
            "nothing was inferred to move on its own in any frame of the train split: use clips in which things move "
            "against their background, or train.mosis.objective motion_labels"
        )
    return labels
