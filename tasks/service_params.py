"""Settings of what runs by itself, under `service:` in params.yaml. `tasks/params.py` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from tasks.drift_params import DriftParams
from tasks.sources.params import FORBID, NonNegativeFloat, NonNegativeInt, PositiveFloat, Share


def _five_fields(text: str) -> str:
    """Whether they name a time, Prefect says at `mosis up`."""
    if len(text.split()) != 5 or "\n" in text:
        raise ValueError("write five fields, minute hour day month weekday, as in '*/5 * * * *'")
    return text


Cron = Annotated[str, Field(max_length=100), AfterValidator(_five_fields)]
Port = Annotated[int, Field(ge=0, le=65535)]


@dataclass(frozen=True)
class GateParams:
    """What a challenger may lose against the champion and still take its place. docs/service.md names the rules."""

    __pydantic_config__: ClassVar = FORBID

    canary_drop: Share = 0.02
    """Mask and box AP on the canary, against the best champion so far."""
    gain_drop: Share = 0.02
    """Photometric gain on held-out video."""
    temporal_iou_drop: Share = 0.03
    """Temporal IoU on held-out video."""
    empty_share_rise: Share = 0.05
    """Rise of the share of held-out frames in which nothing is found."""
    frames: Annotated[int, Field(ge=2, le=100_000)] = 240
    """Held-out frames that both are compared on, evenly spaced, in pairs of neighbours."""
    timeout_minutes: PositiveFloat = 120.0
    """A version that takes longer to score is not compared, and nothing changes."""


@dataclass(frozen=True)
class ServiceParams:
    """What `mosis up` runs. Not a stage: changing it re-runs nothing."""

    __pydantic_config__: ClassVar = FORBID

    inbox: str = "inbox"
    """Where new videos arrive: a folder, relative to the workspace or absolute, or an fsspec URL such as s3://."""
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """A file that has not changed for so long is whole."""
    cron: Cron = "*/5 * * * *"
    """How often the inbox is looked at without being told, as five fields of cron, UTC."""
    retrain_cron: Cron = "0 3 * * 0"
    """How often a new training is considered."""
    min_new_minutes: NonNegativeFloat = 60.0
    """Minutes of new video in the library from which a new training is worth it."""
    held_out_share: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    """Share of the videos that a retraining keeps out of the training, to compare on, where pairs.train_share keeps
    none: 0 keeps none, and then the canary alone decides."""
    self_training: bool = False
    """Let the champion add labels to the next training: train.teacher."""
    gate: GateParams = field(default_factory=GateParams)
    drift: DriftParams = field(default_factory=DriftParams)
    retries: NonNegativeInt = 2
    """How often a video that failed for no plain reason is tried again before it is set aside."""
    video_timeout_minutes: PositiveFloat = 240.0
    """A video that takes longer is set aside, so that one that hangs does not stop the others."""
    host: Annotated[str, Field(min_length=1, max_length=253)] = "127.0.0.1"
    """Interface of the servers. Whoever reaches them can run code here: neither asks for a password."""
    prefect_port: Port = 0
    """0 takes a free one, and keeps to it as long as the service is up."""
    mlflow_port: Port = 0
