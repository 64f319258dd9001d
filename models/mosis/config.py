"""Settings of MoSIS. Defaults are the thesis' (sections 3 and 4); `preset` chooses the network's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Preset = Literal["yolov3", "small"]
Objective = Literal["literal", "motion_labels"]
ObjectnessTarget = Literal["literal", "inverted", "gain"]
WarpDirection = Literal["literal", "consistent"]
TargetNormalisation = Literal["minmax", "max", "none"]


@dataclass(frozen=True)
class MosisConfig:
    """Named options for what the thesis leaves open or gets wrong are explained in README.md beside this file."""

    # Unknown keys fail when params.yaml is read; pydantic looks for this attribute, nothing here imports it.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    preset: Preset = "small"
    """yolov3: Darknet-53 as in the thesis (about 62 M parameters). small: about 1 M, for CPUs."""
    objective: Objective = "motion_labels"
    """literal: eq. 9-16, photometric reconstruction. motion_labels: learn from labels proposed by motion."""
    top_k: int = 32
    """Proposals kept by objectness, K in eq. 2-8 and at inference."""
    search_range: int = 4
    """Radius of PWC-Lite's cost volume in feature pixels."""
    objectness_target: ObjectnessTarget = "gain"
    """t in eq. 14: literal (the error as written), inverted (1 - t), gain (against the background's motion alone)."""
    warp_direction: WarpDirection = "consistent"
    """literal: eq. 9 samples I_t with frame t's flow. consistent: I_t(x) is compared with I_t+1(x + F_t(x))."""
    target_normalisation: TargetNormalisation = "minmax"
    """How eq. 14's targets are brought to [0, 1] per image: the thesis says only "normalise"."""
    lambda_obj: float = 0.2
    """Weight of the objectness loss in eq. 16."""
    score_threshold: float = 0.4
    """s_min of section 3.8."""
    nms_iou: float = 0.1
    """Box NMS of section 3.8. It costs .04-.05 mAP where objects overlap; the demo's preset uses 0.5."""
    mask_threshold: float = 0.5
    """m_min of section 3.8."""
    box_from_mask: bool = False
    """Give the mask's extent as the box, the improvement that section 5 asks for."""
    score_with_mask: bool = False
    """Score = objectness x mean mask probability inside the mask, instead of objectness alone."""

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_iou", "mask_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        for name in ("top_k", "search_range"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
