"""What a method learns from, batch by batch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from models.interface import OpticalFlowEstimator, Segmenter
from tasks.training.batches import (
    RawBatch,
    RowBatch,
    Samples,
    flow_samples,
    labelled_samples,
    make_batch,
    pair_samples,
    truth_samples,
    typical_confidence,
)

if TYPE_CHECKING:
    from tasks.frames import FrameStore
    from tasks.labels import LabelStore
    from tasks.training.distributed import Ranks
    from tasks.training.loop import Recipe


class Reader:
    """The batches of one round: of the samples that the method learns from, this process' part of each."""

    def __init__(
        self,
        store: FrameStore,
        labels: LabelStore | None,
        model: Segmenter | OpticalFlowEstimator,
        recipe: Recipe,
        ranks: Ranks,
    ) -> None:
        self._make = partial(
            make_batch, store, _choose_samples(store, labels, model), labels,
            batch_size=recipe.batch_size, seed=recipe.seed, augment=recipe.augment, copy_paste=recipe.copy_paste,
            trusted=1.0 if labels is None else typical_confidence(labels),
            optical_flow=store.optical_flow if model.needs == "optical_flow" else None,
        )  # fmt: skip
        self._part = (ranks.number, ranks.count)

    def read(self, iteration: int, *, resident: bool) -> RawBatch | RowBatch:
        """The batch of that number, or this process' part of it."""
        return self._make(iteration=iteration, part=self._part, resident=resident)

    def read_whole(self, iteration: int) -> RawBatch:
        """The batch of that number with its frames, the parts of all processes."""
        whole = self._make(iteration=iteration)
        assert isinstance(whole, RawBatch)
        return whole


def _choose_samples(store: FrameStore, labels: LabelStore | None, model: Segmenter | OpticalFlowEstimator) -> Samples:
    if model.needs == "truth":
        return truth_samples(store)
    if model.needs == "optical_flow":
        return flow_samples(store)
    return pair_samples(store) if labels is None else labelled_samples(store, labels)
