"""When new video counts as unlike what a model was trained on, under `service.drift` in params.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from tasks.sources.params import FORBID, Share


@dataclass(frozen=True)
class DriftParams:
    """How far a batch's label-free figures may be from those of the model's own held-out video (docs/metrics.md)."""

    __pydantic_config__: ClassVar = FORBID

    min_frames: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    """Batches with fewer are judged together with the next."""
    temporal_iou_fall: Share = 0.3
    """As a share of what it was, like the next two."""
    photometric_gain_fall: Share = 0.5
    mean_score_fall: Share = 0.2
    empty_share_rise: Share = 0.3
    """Of the share of frames in which nothing is found."""
