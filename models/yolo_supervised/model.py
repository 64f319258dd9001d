"""The supervised twin: MoSIS' appearance network and inference, learning from ground truth alone."""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

from ..interface import Batch
from ..mosis.config import InferenceConfig, MosisConfig
from ..mosis.model import Mosis
from .config import YoloSupervisedConfig
from .losses import thesis_loss


class YoloSupervised(Mosis):
    """Section 4.1's YOLO-supervised: every weight has the name that it has in MoSIS, so either's fit the other.

    size: (height, width) in pixels of training frames, multiples of 32.
    """

    def __init__(self, config: YoloSupervisedConfig, size: tuple[int, int]) -> None:
        inference = {field.name: getattr(config, field.name) for field in fields(InferenceConfig)}
        # The objective without a motion network.
        super().__init__(MosisConfig(preset=config.preset, objective="motion_labels", **inference), size)
        self.needs = "truth"
        self.loss_kind = config.loss

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Detector losses against `batch.labels`: named scalars with "total". Raises ValueError without labels."""
        if batch.labels is None:
            raise ValueError("the supervised twin learns from ground truth, and the batch has none")
        if self.loss_kind == "detector":
            return self._label_loss(batch)
        return thesis_loss(self.appearance(batch.frame_a), batch.labels, self.appearance, batch.whole)
