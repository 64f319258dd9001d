"""Stage 1: sources -> clip archives in data/clips, with what was refused and why."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.clips import REJECTED, ClipEntry, write_manifest
from tasks.cluster import open_executor
from tasks.errors import AbsentError, NothingLeftError, ParamsError, StorageError, explain
from tasks.files import atomic_folder, storage_errors
from tasks.params import IngestParams, Params
from tasks.pool import Outcome, map_unordered
from tasks.sources import Job, open_source

_REASONS_SHOWN = 3
_REASONS_ON_FAILURE = 100


@dataclass(frozen=True)
class Rejected:
    source: str
    reason: str


def run(params: Params, workspace: Path) -> None:
    """Ingest every source into workspace/data/clips, which appears whole or not at all.

    Raises SourceError at once where a source does not exist, NothingLeftError where all or too many were set aside.
    """
    ingest = params.ingest
    _check(ingest)
    jobs = _list_jobs(ingest)
    folder = workspace / "data" / "clips"
    with atomic_folder(folder) as temporary:
        with open_executor(params.compute) as executor:
            outcomes = _run_jobs(jobs, temporary, ingest.workers, executor)
        entries, rejected, duplicates = _collect(outcomes, temporary)
        absent = sum(isinstance(outcome.error, AbsentError) for outcome in outcomes)
        _check_share(rejected, absent, len(jobs), ingest.max_rejected_share)
        write_manifest(temporary, entries)
        lines = [json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in rejected]
        (temporary / REJECTED).write_text("".join(lines), encoding="utf-8")
    print(_summarise(entries, rejected, duplicates))


def _check(params: IngestParams) -> None:
    if params.rate_hz is not None and params.rate_hz < params.min_rate_hz * (1 - params.rate_tolerance):
        raise ParamsError(
            f"ingest.rate_hz: {params.rate_hz:g} is below ingest.min_rate_hz {params.min_rate_hz:g}: every clip "
            "would be too slow; raise the one or lower the other"
        )


def _list_jobs(params: IngestParams) -> list[Job]:
    """Jobs of all sources; a file named twice is read once."""
    jobs: dict[str, Job] = {}
    for url in params.sources:
        for job in open_source(url, params):
            jobs.setdefault(job.source, job)
    return list(jobs.values())


@dataclass(frozen=True)
class _Work:
    """A job with a folder of its own: if it fails midway, the clips already written go with the folder."""

    job: Job
    folder: Path


def _run_job(work: _Work) -> list[ClipEntry]:
    shutil.rmtree(work.folder, ignore_errors=True)  # of a process that was killed at the same job
    with storage_errors(work.folder):
        work.folder.mkdir()
    try:
        return work.job.run(work.folder)
    except BaseException:
        shutil.rmtree(work.folder, ignore_errors=True)
        raise


def _run_jobs(
    jobs: list[Job], folder: Path, workers: int, executor: Executor | None
) -> list[Outcome[_Work, list[ClipEntry]]]:
    """Outcomes in the order of `jobs`. A full or broken disk ends the stage: it is no fault of a source."""
    works = [_Work(job, folder / f".job-{index:06d}") for index, job in enumerate(jobs)]
    outcomes = []
    description = "ingest" if len(works) > 1 else None
    for outcome in map_unordered(_run_job, works, workers, description, executor=executor):
        if isinstance(outcome.error, StorageError):
            raise outcome.error
        outcomes.append(outcome)
    return sorted(outcomes, key=lambda outcome: outcome.index)


def _collect(
    outcomes: list[Outcome[_Work, list[ClipEntry]]], folder: Path
) -> tuple[list[ClipEntry], list[Rejected], list[str]]:
    """Move the clips of all jobs into `folder`: (clips, sources set aside, sources with the content of another)."""
    entries: dict[str, ClipEntry] = {}
    rejected, duplicates = [], []
    for outcome in outcomes:
        source = outcome.item.job.source
        if outcome.error is not None:
            rejected.append(Rejected(source, explain(outcome.error, source)))
            shutil.rmtree(outcome.item.folder, ignore_errors=True)
            continue
        made = outcome.get()
        known = [entry for entry in made if entry.clip_id in entries]
        if known:
            duplicates.append(f"{source} (same content as {entries[known[0].clip_id].source})")
        for entry in made:
            if entry.clip_id not in entries:
                path = folder / entry.path.name
                os.replace(entry.path, path)
                entries[entry.clip_id] = replace(entry, path=path)
        shutil.rmtree(outcome.item.folder, ignore_errors=True)
    return list(entries.values()), rejected, duplicates


def _check_share(rejected: list[Rejected], absent: int, total: int, max_share: float) -> None:
    """absent: how many of them were never there, which says nothing of what is; datasets are downloaded in parts."""
    if not rejected:
        return
    reasons = _list_reasons(rejected)
    if len(rejected) == total:
        raise NothingLeftError(f"nothing could be ingested: {reasons}")
    bad, there = len(rejected) - absent, total - absent
    share = bad / there
    if share > max_share:
        if len(rejected) > _REASONS_SHOWN:  # no file of them stays of a stage that fails
            for one in rejected[:_REASONS_ON_FAILURE]:
                print(f"set aside {one.source}: {one.reason}", file=sys.stderr)
        raise NothingLeftError(
            f"{bad} of {there} sources ({share:.0%}) set aside, more than ingest.max_rejected_share "
            f"({max_share:.0%}) allows, raise it to go on without them: {reasons}"
        )


def _list_reasons(rejected: list[Rejected]) -> str:
    shown = "; ".join(f"{item.source}: {item.reason}" for item in rejected[:_REASONS_SHOWN])
    more = len(rejected) - _REASONS_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown


def _summarise(entries: Iterable[ClipEntry], rejected: list[Rejected], duplicates: list[str]) -> str:
    entries = list(entries)
    frames = sum(entry.frames for entry in entries)
    seconds = sum(entry.seconds for entry in entries)
    text = f"ingest: {len(entries)} clips, {frames} frames, {seconds:.1f} s of video"
    notes = sorted({f"{entry.source}: {entry.note}" for entry in entries if entry.note})
    if rejected:
        text += f"; {len(rejected)} set aside: {_list_reasons(rejected)} (all in data/clips/{REJECTED})"
    if duplicates:
        text += f"; {len(duplicates)} ingested once only: {'; '.join(duplicates[:_REASONS_SHOWN])}"
    if notes:
        text += f"; note: {'; '.join(notes[:_REASONS_SHOWN])}"
    return text
