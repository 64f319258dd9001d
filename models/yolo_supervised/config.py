"""Settings of the supervised twin: MoSIS' network and inference, learnt from ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Preset = Literal["yolov3", "small"]
Loss = Literal["detector", "thesis"]


@dataclass(frozen=True)
class YoloSupervisedConfig:
    """`preset` and everything about inference mean what they mean in MosisConfig."""

    # Unknown keys fail when params.yaml is read; pydantic looks for this attribute, nothing here imports it.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    preset: Preset = "small"
    """yolov3: Darknet-53 as in the thesis (about 62 M parameters). small: about 1 M, for CPUs."""
    loss: Loss = "detector"
    """detector: the losses that MoSIS learns labels with. thesis: section 9.3's, squared errors."""
    top_k: int = 32
    """Most detections of an image."""
    score_threshold: float = 0.4
    """s_min of section 3.8."""
    nms_iou: float = 0.1
    """Box NMS of section 3.8. It costs .04-.05 mAP where objects overlap; the demo's preset uses 0.5."""
    mask_threshold: float = 0.5
    """m_min of section 3.8."""
    box_from_mask: bool = False
    """Give the mask's extent as the box."""
    score_with_mask: bool = False
    """Score = objectness x mean mask probability inside the mask, instead of objectness alone."""

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_iou", "mask_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
