"""Settings of MoSIS. By default inference is the thesis' (section 3.8), the objective the one that learns best, and the
options of the literal one are the readings that say what the text means; `preset` chooses the network's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

Preset = Literal["yolov3", "small"]
Objective = Literal["literal", "em", "motion_labels"]
ObjectnessTarget = Literal["literal", "inverted", "gain"]
WarpDirection = Literal["literal", "consistent"]
TargetNormalisation = Literal["minmax", "max", "none"]
ErrorScale = Literal["literal", "half"]
Photometric = Literal["ssim", "ssim_l1"]
SegmentMotionKind = Literal["mlp", "closed_form"]
MotionModel = Literal["affine", "translation"]

STRIDES = (32, 16, 8)
"""Of the three YOLO heads, pixels: grids of 4, 8 and 16 cells at 128 x 128."""
ANCHORS = (
    ((48.0, 60.0), (64.0, 80.0), (80.0, 96.0)),
    ((20.0, 28.0), (28.0, 36.0), (36.0, 44.0)),
    ((8.0, 10.0), (12.0, 16.0), (16.0, 24.0)),
)
"""(width, height) in pixels of each head's three anchors, in the order of STRIDES (thesis section 9.3)."""


@dataclass(frozen=True)
class NetworkSpec:
    """The size of an appearance network; everything else is common to the presets."""

    stem: int
    """Channels of the backbone's first convolution."""
    stem_stride: int
    widths: tuple[int, ...]
    """Channels of the backbone's stages, each of stride 2, the last four ending at strides 4, 8, 16 and 32."""
    blocks: tuple[int, ...]
    """Residual blocks of each stage."""
    neck_widths: tuple[int, int, int, int]
    """Channels of the neck at strides 32, 16, 8 and 4; the last are those of the mask head, too."""
    neck_depth: int
    """Convolutions of each neck block, 1x1 and 3x3 in turn."""
    region_side: int
    """Cells along each side of a region's mask (RoIAlign's output)."""
    region_samples: int
    """Points along each side of a cell that RoIAlign averages."""
    region_margin: float
    """How far a region reaches beyond its box on each side, as a share of the side, so that a mask may mend its box."""
    centre_reach: float
    """How far beyond its cell a box's centre may lie, in cells: 0 is YOLOv3's; more lets cells share a label."""


NETWORKS: dict[Preset, NetworkSpec] = {
    # Darknet-53 with YOLOv3's neck; the thesis adds stride 4 and 28 x 28 regions for masks.
    "yolov3": NetworkSpec(
        stem=32,
        stem_stride=1,
        widths=(64, 128, 256, 512, 1024),
        blocks=(1, 2, 8, 8, 4),
        neck_widths=(512, 256, 128, 128),
        neck_depth=5,
        region_side=28,
        region_samples=2,
        region_margin=0.0,
        centre_reach=0.0,
    ),
    "small": NetworkSpec(
        stem=24,
        stem_stride=2,
        widths=(48, 96, 128, 160),
        blocks=(1, 2, 2, 1),
        neck_widths=(96, 64, 48, 32),
        neck_depth=1,
        region_side=14,
        region_samples=1,
        region_margin=0.15,
        centre_reach=0.5,
    ),
}


@dataclass(frozen=True)
class InferenceConfig:
    """How detections are made of proposals (section 3.8), for every method with this network."""

    # Unknown keys fail when params.yaml is read; pydantic looks for this attribute, nothing here imports it.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    top_k: int = 32
    """Most detections of an image; for the literal objective also the proposals kept, K in eq. 2-8."""
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
        check_at_least(self, 1, "top_k")


def check_at_least(config: object, least: int, *names: str) -> None:
    """Raises ValueError naming the first of the settings `names` that is lower."""
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, not {getattr(config, name)}")


def check_finite(config: object, *names: str) -> None:
    """Raises ValueError naming the first of the settings `names` that is no finite number."""
    for name in names:
        if not math.isfinite(getattr(config, name)):
            raise ValueError(f"{name} must be a finite number, not {getattr(config, name)}")


@dataclass(frozen=True)
class MosisConfig(InferenceConfig):
    """Named options for what the thesis leaves open or gets wrong are explained in README.md beside this file."""

    preset: Preset = "small"
    """yolov3: Darknet-53 as in the thesis (about 62 M parameters). small: about 1 M, for CPUs."""
    objective: Objective = "motion_labels"
    """literal: eq. 9-16, photometric reconstruction. em: the same end, by motion in closed form and instances inferred
    in rounds. motion_labels: learn from labels proposed by motion."""
    frame_gap: int = 4
    """em: frames between those compared. Slow things need some, what turns or leaves the picture soon can bear few."""
    frame_step: int = 4
    """em: an E-step takes one of so many neighbouring frames, which are near copies, and the next E-step another. Fewer
    are left out where frames are few."""
    rounds: int = 2
    """em: E-steps after the first, which has no network to ask, at equal parts of the training."""
    motion_model: MotionModel = "affine"
    """em: how an instance may move against the background. translation: without rotation, scale and shear."""
    segment_motion: SegmentMotionKind = "mlp"
    """literal: how a segment's motion is read. mlp: eq. 5-7. closed_form: the displacement of least colour error under
    the segment, nothing learnt; with warp_direction consistent only, as eq. 9 as written asks for the opposite."""
    search_range: int = 4
    """Radius of PWC-Lite's cost volume in feature pixels."""
    objectness_target: ObjectnessTarget = "gain"
    """t in eq. 14: literal (the error as written), inverted (1 - t), gain (against the background's motion alone)."""
    warp_direction: WarpDirection = "consistent"
    """literal: eq. 9 samples I_t with frame t's flow. consistent: I_t(x) is compared with I_t+1(x + F_t(x))."""
    target_normalisation: TargetNormalisation = "minmax"
    """How eq. 14's targets are brought to [0, 1] per image: the thesis says only "normalise"."""
    error_scale: ErrorScale = "half"
    """E in eq. 13: literal (1 - SSIM, up to 2) or half of it, in the [0, 1] that the text announces."""
    photometric: Photometric = "ssim"
    """literal: the error of eq. 11 and 13. ssim: as written. ssim_l1: 0.85 of it and 0.15 L1 (Godard et al., 2017)."""
    lambda_obj: float = 0.2
    """Weight of the objectness loss in eq. 16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "search_range", "frame_gap", "frame_step")
        check_at_least(self, 0, "rounds", "lambda_obj")
        check_finite(self, "lambda_obj")
        if self.segment_motion == "closed_form" and self.warp_direction != "consistent":
            raise ValueError("segment_motion closed_form needs warp_direction consistent, not literal")
