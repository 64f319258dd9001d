"""Settings of what runs by itself, under `service:` in params.yaml. `tasks/params.py` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from tasks.sources.params import FORBID, NonNegativeFloat, NonNegativeInt, PositiveFloat

Cron = Annotated[str, Field(pattern=r"^\S+( +\S+){4}$", max_length=100)]
Port = Annotated[int, Field(ge=0, le=65535)]


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
    retries: NonNegativeInt = 2
    """How often a video that failed for no plain reason is tried again before it is set aside."""
    video_timeout_minutes: PositiveFloat = 240.0
    """A video that takes longer is set aside, so that one that hangs does not stop the others."""
    host: Annotated[str, Field(min_length=1, max_length=253)] = "127.0.0.1"
    """Interface of the servers. Whoever reaches them can run code here: neither asks for a password."""
    prefect_port: Port = 0
    """0 takes a free one, and keeps to it as long as the service is up."""
    mlflow_port: Port = 0
