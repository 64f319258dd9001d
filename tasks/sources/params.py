"""Settings of single sources, under `ingest:` in params.yaml, and the kinds of numbers that all settings are made of.

`tasks/params.py` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ImageSide = Annotated[int, Field(ge=64, le=4096, multiple_of=32)]
Shape = Literal["circle", "square", "triangle", "pentagon", "hexagon", "star"]

FORBID: dict[str, Any] = {"extra": "forbid", "strict": False}


@dataclass(frozen=True)
class SyntheticParams:
    """The generated video of thesis section 3.9. The last block goes beyond the thesis and is off by default."""

    __pydantic_config__: ClassVar = FORBID

    videos: PositiveInt = 24
    frames: Annotated[int, Field(ge=2)] = 120
    """Frames per video."""
    height: Annotated[int, Field(ge=32, le=4096)] = 128
    width: Annotated[int, Field(ge=32, le=4096)] = 128
    rate_hz: PositiveFloat = 24.0
    seed: Seed = 0
    shapes: tuple[Shape, ...] = ("circle", "square", "triangle", "pentagon", "hexagon", "star")
    objects: tuple[NonNegativeInt, NonNegativeInt] = (1, 5)
    """Fewest and most objects in a video."""
    radius: tuple[PositiveFloat, PositiveFloat] = (9.0, 22.0)
    """Smallest and largest object radius, pixels."""
    speed: tuple[NonNegativeFloat, NonNegativeFloat] = (0.8, 3.5)
    """Slowest and fastest object, pixels per frame."""
    background_path: Literal["sine", "cosine", "constant", "mixed"] = "mixed"
    """Motion of the background picture; mixed draws one per video."""
    background_zoom: tuple[PositiveFloat, PositiveFloat] = (1.2, 2.0)
    pictures: str | None = None
    """Folder of pictures to use as backgrounds and textures; null generates them."""
    dense_flow: bool = True
    """Store the true optical flow of each frame to the next."""

    rotation_deg: NonNegativeFloat = 0.0
    """Fastest rotation, degrees per frame."""
    scaling: Share = 0.0
    """Amplitude of growing and shrinking, as a share of the size."""
    deformation: Share = 0.0
    """Amplitude of outline waves, as a share of the radius."""
    occlusion_order: bool = False
    """Let the depth order of objects change between videos' spells instead of staying fixed."""
    standing_still: Share = 0.0
    """Share of time that each object stands still, in spells."""
    lighting: Share = 0.0
    """Amplitude of a slow change of brightness."""
    camera_shake: Annotated[float, Field(ge=0, le=64)] = 0.0
    """How far the camera jumps at random from frame to frame, pixels to each side."""
    camera_zoom: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Amplitude of the camera's slow zooming in and out, as a share of the size of all that is seen."""
    texture_contrast: Share = 1.0
    """Contrast within the background and within each object; their mean colours stay."""


@dataclass(frozen=True)
class YoutubeVisParams:
    """`youtube_vis:URL`, the root of a YouTube-VIS release (2019 or 2021 layout) or one of its JSON files."""

    __pydantic_config__: ClassVar = FORBID

    min_rate_hz: PositiveFloat | None = None
    """The rate that is enough for this source; null: ingest.min_rate_hz, which refuses the ordinary release (6 Hz)."""


@dataclass(frozen=True)
class NuscenesParams:
    """`nuscenes:URL`, the root of a nuScenes or nuImages release."""

    __pydantic_config__: ClassVar = FORBID

    min_rate_hz: PositiveFloat | None = None
    """The rate that is enough for this source; null: ingest.min_rate_hz."""


@dataclass(frozen=True)
class DavisParams:
    """`davis:URL`, the root of a dataset of folders of frames and of PNG masks: DAVIS and what is laid out alike."""

    __pydantic_config__: ClassVar = FORBID

    rate_hz: PositiveFloat = 24.0
    """Of the frames, which carry no times."""
    min_rate_hz: PositiveFloat | None = None
    """The rate that is enough for this source; null: ingest.min_rate_hz."""
