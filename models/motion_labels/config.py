"""Settings of the motion labeller; pixels are those of the frames it is given (training size)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class MotionLabelsConfig:
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    gaps: tuple[int, ...] = (1, 2, 4, 8)
    """Frame distances to choose from: the smallest at which something moves clearly is taken, frame by frame."""
    min_area: int = 40
    """Smallest instance in pixels at training size."""
    max_area: float = 0.6
    """Largest instance as a share of the frame: beyond it the background, not an object, was fitted wrongly."""
    min_speed: float = 0.45
    """Slowest motion against the background that counts, pixels per frame at a shorter side of 128."""
    clear_motion: float = 3.0
    """Residual motion at which a gap is long enough, pixels at a shorter side of 128."""
    photometric_cap: float = 0.02
    """Largest difference of colour error (grey levels of 1) that one pixel's vote may count."""
    smoothness: float = 1.0
    """Weight of agreement with the neighbouring pixels against a pixel's own vote."""
    window: int = 3
    """Frames to each side whose votes are averaged along the optical flow; 0 uses each frame alone."""
