"""`nuscenes:URL`: the cameras of nuScenes, and of nuImages with its masks, from the JSON tables of a release.

docs/datasets.md says what is read of each, and what is left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import SourceError
from tasks.files import TEMPORARY_PREFIX
from tasks.params import IngestParams
from tasks.sources import Job
from tasks.sources.nuscenes.job import BrokenJob, RecordingJob
from tasks.sources.nuscenes.masks import read_masks
from tasks.sources.nuscenes.release import Release, find_release
from tasks.sources.nuscenes.tables import Recording, read_recordings
from tasks.sources.places import escape_unprintable

__all__ = ["open_nuscenes"]

NUSCENES_HZ = 12.0
NUIMAGES_HZ = 2.0


def open_nuscenes(url: str, params: IngestParams) -> list[Job]:
    """A job for each scene and selected camera, and one that fails for records that belong to no scene.

    Raises SourceError or DataError, in one line, where a table cannot be used or a setting names what is not there.
    """
    settings = params.nuscenes
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as folder:
        release = find_release(url, settings.version, Path(folder))
        is_nuimages = release.has("object_ann")
        if is_nuimages:
            _check_accepted(params, release.shown)
        recordings, stray = read_recordings(
            release, cameras=settings.cameras, scenes=settings.scenes, is_nuimages=is_nuimages
        )
        masks = read_masks(release, recordings) if is_nuimages else None
    rate_hz = NUIMAGES_HZ if is_nuimages else NUSCENES_HZ
    jobs: list[Job] = [_make_job(release, recording, params, rate_hz, masks) for recording in recordings]
    if stray is not None:
        jobs.append(BrokenJob(f"{release.shown}/sample_data.json", stray))
    if not jobs:
        raise SourceError(f"{release.shown}: no scene with pictures of {_name(settings.cameras)}")
    return jobs


def _make_job(
    release: Release,
    recording: Recording,
    params: IngestParams,
    rate_hz: float,
    masks: dict[str, list[object]] | None,
) -> RecordingJob:
    source = f"{release.shown}/{escape_unprintable(recording.scene)}/{escape_unprintable(recording.camera)}"
    if masks is not None:
        masks = {one.token: masks[one.token] for one in recording.pictures if one.token in masks}
    return RecordingJob(source, recording, release.url, params, rate_hz, masks)


def _check_accepted(params: IngestParams, shown: str) -> None:
    """All of nuImages would be set aside, 93,000 samples one by one."""
    own = params.nuscenes.min_rate_hz
    wanted_hz = params.min_rate_hz if own is None else own
    if wanted_hz * (1 - params.rate_tolerance) > NUIMAGES_HZ:
        raise SourceError(
            f"{shown}: nuImages has {NUIMAGES_HZ:g} pictures a second, too few to follow motion from one to the next: "
            f"accept them with ingest.nuscenes.min_rate_hz: {NUIMAGES_HZ:g}"
        )


def _name(cameras: Sequence[str] | str) -> str:
    return cameras if isinstance(cameras, str) else ", ".join(cameras)
