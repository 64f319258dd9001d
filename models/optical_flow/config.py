"""Settings of the optical flow estimators: PWC-Lite, RAFT and dense inverse search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

FlowObjective = Literal["supervised", "unsupervised"]
Readout = Literal["linear", "refined"]
FlowPenalty = Literal["squared", "robust"]
PhotometricPenalty = Literal["ssim_l1", "census"]
RaftSize = Literal["small", "large"]
DisPreset = Literal["ultrafast", "fast", "medium"]


@dataclass(frozen=True)
class PwcLiteConfig:
    """PWC-Lite, trained on true optical flow or on frame pairs alone."""

    # Unknown keys fail when params.yaml is read; pydantic looks for this attribute, nothing here imports it.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    objective: FlowObjective = "supervised"
    """supervised: learn from true optical flow (thesis section 9.2). unsupervised: from the frames alone."""
    search_range: int = 4
    """Radius of every cost volume, pixels of its pyramid level."""
    readout: Readout = "refined"
    """linear: a 1x1 convolution of the motion features, as the thesis has it. refined: a full-resolution network that
    also sees the frame and what the motion found so far leaves unexplained."""
    crop: int = 64
    """Side of the window of the frames that a training step sees, pixels; 0 takes them whole. Matching is local: four
    times as many steps on a quarter of the pixels learn faster."""
    penalty: FlowPenalty = "squared"
    """Of the supervised objective: squared is section 9.2's and learns faster at first, robust counts an outlier
    at an object's edge less."""
    coarse_weight: float = 0.1
    """Weight of the supervised loss of the pyramid's own estimates, beside the read-out's."""
    photometric: PhotometricPenalty = "census"
    """Of the unsupervised objective: how two pixels are compared."""
    smoothness: float = 0.1
    """Weight of the edge-aware smoothness."""
    edge_sharpness: float = 150.0
    """Fall of the smoothness with the frame's gradient; the frame is in [0, 1]."""
    occlusion: bool = True
    """Leave out pixels whose forward and backward motion disagree: what is hidden cannot be matched."""

    def __post_init__(self) -> None:
        if self.search_range < 1:
            raise ValueError(f"search_range must be at least 1, not {self.search_range}")
        if self.crop and self.crop < 8 * self.search_range:
            raise ValueError(f"crop must be 0 or at least 8 times the search range, not {self.crop}")
        for name in ("coarse_weight", "smoothness", "edge_sharpness"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True)
class RaftConfig:
    """RAFT of torchvision; its weights are a file that the user has, nothing is downloaded."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    weights: str
    """File with the state of torchvision's raft_small or raft_large: .pt or .pth (weights only), or .safetensors."""
    size: RaftSize = "small"
    """small: 1.0 M parameters. large: 5.3 M."""
    updates: int = 12
    """Recurrent updates of the estimate; fewer are faster."""

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ValueError(f"updates must be at least 1, not {self.updates}")


@dataclass(frozen=True)
class DisConfig:
    """Dense inverse search through OpenCV; nothing is learnt."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    preset: DisPreset = "medium"
    """OpenCV's trade of speed for accuracy."""
    enlarge: float = 2.0
    """Frames are enlarged so many times before the search: small objects keep their own motion."""

    def __post_init__(self) -> None:
        if self.enlarge <= 0:
            raise ValueError(f"enlarge must be positive, not {self.enlarge}")
