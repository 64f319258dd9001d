"""Settings of AMD as the thesis rebuilds it (section 9.1) and compares it (section 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

Preset = Literal["resnet50", "small"]
Photometric = Literal["l1", "ssim"]
WarpDirection = Literal["literal", "consistent"]
Readout = Literal["mlp", "flow"]


@dataclass(frozen=True)
class AmdConfig:
    """What the text leaves open is explained in README.md beside this file."""

    # Unknown keys fail when params.yaml is read; pydantic looks for this attribute, nothing here imports it.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    preset: Preset = "small"
    """resnet50: the thesis' backbone (about 24 M parameters with its neck). small: about 1 M, for CPUs."""
    channels: int = 5
    """Mask channels, C: every pixel is shared among them."""
    photometric: Photometric = "l1"
    """l1: section 9.1. ssim: what section 3.7 says of AMD."""
    warp_direction: WarpDirection = "consistent"
    """literal: I_t sampled with frame t's flow, as MoSIS' eq. 9. consistent: I_t(x) against I_t+1(x + F(x))."""
    readout: Readout = "mlp"
    """mlp: a segment's motion is an MLP of its pooled features. flow: the pooled flow estimate plus that MLP."""
    motion_stride: int = 2
    """The motion network sees frames shrunk by this factor, 1 or 2: a segment's motion is a mean over many pixels."""
    dense_weight: float = 0.0
    """Of the same loss under the motion network's own flow estimate at every pixel, which teaches it motion."""
    search_range: int = 4
    """Radius of PWC-Lite's cost volume in feature pixels."""
    min_coverage: float = 0.002
    """Channels that hold less of the training images than this share are no objects' channels."""
    min_contrast: float = 0.1
    """Pixels by which a channel's motion must differ from the background's, on average, to be an objects' channel."""
    min_area: float = 0.002
    """Smaller connected pieces of a channel are no instances, share of the image."""
    score_threshold: float = 0.4
    """Pieces whose mean probability is below this are left out."""

    def __post_init__(self) -> None:
        if self.channels < 2:
            raise ValueError(f"channels must be at least 2, not {self.channels}: one of them is the background")
        if self.motion_stride not in (1, 2):
            raise ValueError(f"motion_stride must be 1 or 2, not {self.motion_stride}")
        if self.search_range < 1:
            raise ValueError(f"search_range must be at least 1, not {self.search_range}")
        for name in ("min_coverage", "min_area", "score_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        for name in ("min_contrast", "dense_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of 0 or more, not {getattr(self, name)}")
