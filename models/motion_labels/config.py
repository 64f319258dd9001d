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
