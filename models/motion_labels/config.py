"""Settings of the motion labeller.

Pixels are those of the frames it is given, at a shorter side of 128 or less; for larger frames lengths grow in
proportion, and areas with their square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class MotionLabelsConfig:
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    gaps: tuple[int, ...] = (1, 2, 4, 8)
    """Frame distances to choose from: the smallest at which something moves clearly is taken, frame by frame."""
    min_area: int = 40
    """Smallest instance in pixels."""
    max_area: float = 0.6
    """Largest instance as a share of the frame: beyond it the background, not an object, was fitted wrongly."""
    min_speed: float = 0.45
    """Motion against the background that always counts, pixels per frame; over a quiet background slower counts too."""
    clear_motion: float = 2.0
    """Median motion of a region against the background at which a gap is long enough, pixels."""
    photometric_cap: float = 0.02
    """Largest difference of colour error (the range of grey is 1) that one pixel's vote may count."""
    smoothness: float = 1.0
    """Weight of agreement with the neighbouring pixels against a pixel's own vote."""
    window: int = 5
    """Frames to each side whose labels are averaged along the optical flow; 0 uses each frame alone."""
    min_track: int = 3
    """Fewest frames in which an object has to be found for its labels to stand."""
    appearance: float = 1.0
    """Weight of an object's colours along its track against all votes of motion; 0 looks at motion alone."""
    carry: int = 12
    """Most frames that an object is carried on, with falling confidence, beyond where its motion shows it."""
    settle_outlines: bool = True
    """Move outlines by up to two pixels to where the colours beside them change."""

    def __post_init__(self) -> None:
        if not self.gaps or min(self.gaps) < 1:
            raise ValueError(f"gaps must be one frame or more, and at least one of them, not {list(self.gaps)}")
        numbers = ("min_area", "window", "min_track", "carry", "min_speed", "clear_motion", "smoothness", "appearance")
        for name in numbers:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of 0 or more, not {getattr(self, name)}")
        if not 0 < self.photometric_cap < math.inf:
            raise ValueError(f"photometric_cap must be a finite number above 0, not {self.photometric_cap}")
        if not 0 < self.max_area <= 1:
            raise ValueError(f"max_area must lie in (0, 1], not {self.max_area}")
