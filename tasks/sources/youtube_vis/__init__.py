"""YouTube-VIS, 2019 and 2021: its annotation files and their frames, at any fsspec URL, a job per video."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tasks.errors import SourceError
from tasks.params import IngestParams
from tasks.sources import Job
from tasks.sources.params import YoutubeVisParams
from tasks.sources.places import hide_credentials, open_local
from tasks.sources.youtube_vis.classes import draw_held_out
from tasks.sources.youtube_vis.job import RefusedJob, YoutubeVisJob
from tasks.sources.youtube_vis.layout import AnnotationFile, check_there, find_files
from tasks.sources.youtube_vis.release import Release, VideoRecord, read_release

__all__ = ["open_youtube_vis"]


def open_youtube_vis(url: str, params: IngestParams) -> list[Job]:
    """Jobs of the root of a release, or of one of its JSON files, which is read once and whole; no frame is looked at.

    Raises SourceError or DataError, in one line, where there is no such file or it is broken as a whole, where it lacks
    a video that is asked for, and where every video is too slow (thesis 3.2).
    """
    settings = params.youtube_vis
    files = find_files(url, settings)
    if settings.videos is not None and len(files) > 1:
        raise SourceError(
            f"{files[0].place.shown} and {files[1].place.shown}: each numbers its videos anew: say with "
            "ingest.youtube_vis.splits whose ingest.youtube_vis.videos are meant"
        )
    jobs = [job for file in files for job in _list_jobs(file, params)]
    readable = [job for job in jobs if isinstance(job, YoutubeVisJob)]
    if readable and all(job.is_slow for job in readable):
        fastest = max(readable, key=lambda job: job.timing.rate_hz)
        raise SourceError(f"{hide_credentials(url)}: none of {len(readable)} videos is fast enough: {fastest.slowness}")
    return jobs


def _list_jobs(file: AnnotationFile, params: IngestParams) -> list[Job]:
    settings = params.youtube_vis
    shown = file.place.shown
    with tempfile.TemporaryDirectory() as folder, open_local(file.place, Path(folder)) as path:
        release = read_release(path, shown, None if settings.videos is None else frozenset(settings.videos))
    if settings.frames == "all":
        check_there(file.all_images, "the frames that ingest.youtube_vis.frames: all asks for")
    held_out = _draw(release, shown, settings)
    records = _choose(release, held_out, shown, settings)
    jobs: list[Job] = []
    for record in records:
        source = f"{shown}#{record.number}"
        if record.video is None:
            jobs.append(RefusedJob(source, record.fault))
            continue
        split = _split_of(record, file, held_out)
        try:
            jobs.append(YoutubeVisJob.plan(source, record, file, split, params))
        except SourceError as error:
            jobs.append(RefusedJob(source, str(error)))
    if release.fault:
        jobs.append(RefusedJob(shown, release.fault))
    return jobs


def _draw(release: Release, shown: str, settings: YoutubeVisParams) -> frozenset[int] | None:
    if settings.split is None:
        return None
    if not any(release.classes.values()):
        raise SourceError(f"{shown}: has no annotations to draw videos by: ingest.youtube_vis.split is for train files")
    return draw_held_out(release.classes, settings.split_seed)


def _choose(
    release: Release, held_out: frozenset[int] | None, shown: str, settings: YoutubeVisParams
) -> list[VideoRecord]:
    """The videos that the settings ask for, in the order of the file. Raises SourceError where there is none."""
    records = release.videos
    if settings.videos is not None:
        known = {record.number for record in records}
        missing = [str(number) for number in settings.videos if number not in known]
        if missing:
            raise SourceError(
                f"{shown}: has no video {', '.join(missing[:10])} (ingest.youtube_vis.videos): its ids go from "
                f"{release.lowest} to {release.highest}"
            )
    if held_out is not None and settings.split != "both":
        records = [record for record in records if (record.number in held_out) == (settings.split == "train_val")]
    if not records:
        raise SourceError(f"{shown}: no video is left of it: check ingest.youtube_vis.split and .videos")
    return records[: settings.max_videos]


def _split_of(record: VideoRecord, file: AnnotationFile, held_out: frozenset[int] | None) -> str | None:
    """The split that clips state: that of the draw, else the folder's for what is annotated and not for training."""
    if held_out is not None:
        return "val" if record.number in held_out else "train"
    return {"valid": "val", "test": "test"}.get(file.split or "") if record.tracks else None
