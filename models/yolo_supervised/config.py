"""Settings of the supervised twin: MoSIS' network and inference, learnt from ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..mosis.config import InferenceConfig, Preset

Loss = Literal["detector", "thesis"]


@dataclass(frozen=True)
class YoloSupervisedConfig(InferenceConfig):
    """`preset` means what it means in MosisConfig."""

    preset: Preset = "small"
    """yolov3: Darknet-53 as in the thesis (about 62 M parameters). small: about 1 M, for CPUs."""
    loss: Loss = "detector"
    """detector: the losses that MoSIS learns labels with. thesis: section 9.3's, squared errors."""
