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

    splits: Annotated[tuple[Literal["train", "valid", "test"], ...], Field(min_length=1)] | None = None
    """Parts of a release to read; null: all that are there."""
    frames: Literal["ordinary", "all"] = "ordinary"
    """ordinary: those that the annotation file lists, every fifth. all: the all-frames release, which lies beside."""
    source_rate_hz: PositiveFloat = 30.0
    """Of the videos that the frame numbers count in; nominal, the release does not state it."""
    min_rate_hz: PositiveFloat | None = None
    """The rate that is enough for this source; null: ingest.min_rate_hz, which refuses the ordinary release (6 Hz).
    The pairs stage keeps what was accepted here."""
    videos: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None
    """Only the videos of these ids; the thesis has 60, 63, 93 and 362."""
    max_videos: PositiveInt | None = None
    """At most the first so many of each annotation file."""
    split: Literal["train_train", "train_val", "both"] | None = None
    """Cut the train part in two: ten videos of each class make train_val (split val of the clips), the others
    train_train (split train). One of the names takes its videos alone."""
    split_seed: Seed = 0
    """Draws the ten videos of each class."""
    exhaustive: bool = False
    """Take the annotations for every object there is, as its own evaluation does within 40 classes."""


@dataclass(frozen=True)
class NuscenesParams:
    """`nuscenes:URL`, the root of a nuScenes or nuImages release."""

    __pydantic_config__: ClassVar = FORBID

    version: str | None = None
    """The folder of tables, such as v1.0-mini; null: the only one there is."""
    cameras: Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)] = ("CAM_FRONT",)
    """Channels; each makes clips of its own."""
    scenes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of scenes, such as scene-0061, in nuImages tokens of samples; null: all."""
    max_gap_ms: PositiveFloat | None = None
    """A longer interval between two pictures ends a clip, and the pairs stage accepts those up to it; null: one and a
    half nominal intervals, 125 ms at 12 Hz."""
    min_rate_hz: PositiveFloat | None = None
    """The mean rate, without gaps, that is enough for this source; null: ingest.min_rate_hz, which refuses nuImages
    (2 Hz)."""


@dataclass(frozen=True)
class DavisParams:
    """`davis:URL`, the root of a dataset of folders of frames and of mask pictures: DAVIS and what is laid out alike.

    docs/datasets.md says what each layout is.
    """

    __pydantic_config__: ClassVar = FORBID

    layout: Literal["davis", "flat", "plain", "segtrack_v2", "fbms", "youtube_vos"] | None = None
    """null: recognised by the folders that there are; to be stated where two layouts fit."""
    resolution: str | None = None
    """480p, 1080p, Full-Resolution; null: 480p, or the only one there is."""
    annotations: str | None = None
    """Folder of the masks, such as Annotations_unsupervised; null: Annotations, or the only one there is."""
    split: str | None = None
    """Ingest the sequences of this split alone: a list in ImageSets (val, 2016/val), or train, val or test where the
    release has a folder for each."""
    list: str | None = None
    """Path or URL of a list of sequences, one a line: ingest those alone."""
    sequences: tuple[str, ...] = ()
    """Names of sequences: ingest those alone."""
    motion_groups: str | None = None
    """Path or URL of JSON {sequence: [[id, id], ...]}: objects that move jointly count as one, as in DAVIS17-motion."""
    merge: bool = False
    """All objects count as one, as DAVIS 2016 and the single-object scores have it."""
    rate_hz: Annotated[float, Field(ge=0.1, le=1000)] | None = None
    """Rate at which frame numbers count up, as frames carry no times; null: 24 for DAVIS, 30 for YouTube-VOS, whose
    every fifth frame is 6 Hz; to be stated for the others."""
    min_rate_hz: PositiveFloat | None = None
    """The rate that is enough for this source; null: ingest.min_rate_hz, which refuses every fifth frame."""
