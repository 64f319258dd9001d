"""What came into the library, in MLflow: one run per batch of videos, with their lineage and label-free figures.

The library is the record of what is done; this is a copy for people. What a kill or a dead server kept from being
copied goes into the next batch's run. Videos too few to judge drift by wait, and are judged with the next.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import drift, library
from tasks.drift import Verdict
from tasks.drift_params import DriftParams
from tasks.errors import DataError, ParamsError, StorageError
from tasks.files import read_json, write_json
from tasks.library import Entry
from tasks.tracking import Tracker, read_version

STATE = Path(".mosis", "tracked.json")
_IN_ONE_RUN = 1000
_IDS_IN_TAG = 200
"""Of 17 characters each, within the 5000 that MLflow keeps of a tag."""


def record(workspace: Path, limits: DriftParams) -> str | None:
    """Log all done videos that no run has yet, in order of arrival; the run's id, None where there was nothing to log.

    limits: of drift, by which the videos of each version are judged. A dead server costs a line on standard error and a
    try in the next run.
    """
    state = _read_state(workspace)
    known = set(state["videos"])
    new = [video for video in library.done_videos(workspace) if video not in known]
    entries = sorted(library.present_entries(workspace, new), key=lambda entry: (entry.arrived_at, entry.video_id))[
        :_IN_ONE_RUN
    ]
    if not entries:
        return None
    tags = {
        "model_version": ",".join(sorted({str(entry.model.get("version", "none")) for entry in entries})),
        "video_ids": ",".join(entry.video_id for entry in entries[:_IDS_IN_TAG]),
    }
    tracker = Tracker.start(
        workspace, name="new-video", params=dict(entries[-1].params), tags=tags, run_id=state["open_run"]
    )
    if tracker.run_id is None:
        return None
    if state["open_run"]:  # a run that is taken up may have been begun with fewer videos
        for name, value in tags.items():
            tracker.tag(name, value)
    # So that a run whose process is killed now is taken up again by the next, and does not stay RUNNING.
    write_json(workspace / STATE, {**state, "open_run": tracker.run_id})
    _log(tracker, entries)
    waiting = library.present_entries(workspace, state["waiting"])
    try:
        judged = _judge(workspace, tracker.run_id, entries, waiting, limits)
    except StorageError as error:
        print(f"tracking: {error}; this batch is recorded with the next", file=sys.stderr, flush=True)
        return None
    _log_drift(tracker, judged)
    tracker.finish()
    if not tracker.is_open:
        return None
    drift.keep(workspace, [one.verdict for one in judged if not one.waits])
    videos = sorted(known | {entry.video_id for entry in entries})
    # Those of other versions wait on, and those that do not lie here just now.
    waits = dict.fromkeys(state["waiting"]) | dict.fromkeys(v for one in judged if one.waits for v in one.videos)
    for one in judged:
        if not one.waits:
            waits = {video: None for video in waits if video not in one.videos}
    write_json(workspace / STATE, {"open_run": None, "videos": videos, "waiting": [*waits][-_IN_ONE_RUN:]})
    return tracker.run_id


def _log(tracker: Tracker, entries: Sequence[Entry]) -> None:
    """The figures of the n-th video as step n, totals without one, and all of it as batch.json."""
    for step, entry in enumerate(entries):
        figures = {f"label_free.{name}": value for name, value in entry.label_free.items()}
        tracker.log({**figures, "video.frames": entry.frames, "video.annotations": entry.annotations}, step)
    totals = {
        "videos": len(entries),
        "frames": sum(entry.frames for entry in entries),
        "seconds": sum(entry.seconds for entry in entries),
        "annotations": sum(entry.annotations for entry in entries),
    }
    tracker.log({f"batch.{name}": float(value) for name, value in totals.items()}, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "batch.json")
        write_json(path, {"videos": [entry.to_json() for entry in entries]})
        tracker.artifact(path)


@dataclass(frozen=True)
class _Judged:
    """videos: ids of those that the verdict is about. waits: whether they are too few, and are to be judged later."""

    verdict: Verdict
    videos: tuple[str, ...]
    waits: bool


def _judge(
    workspace: Path, run_id: str, entries: Sequence[Entry], waiting: Sequence[Entry], limits: DriftParams
) -> list[_Judged]:
    """One verdict of each version of the batch, about its videos and those of `waiting`, which earlier batches had too
    few of; without a reference where the version is not in the registry any more.
    """
    by_version: dict[str, list[Entry]] = {}
    for entry in entries:
        by_version.setdefault(str(entry.model.get("version")), []).append(entry)
    judged = []
    for version, new in by_version.items():
        videos = [*(one for one in waiting if str(one.model.get("version")) == version), *new]
        try:
            tags = read_version(workspace, version).tags
        except (DataError, ParamsError):
            tags = {}
        reference = drift.reference_of(tags, map(_threshold, videos))
        verdict = drift.assess(run_id, videos, reference, limits)
        waits = bool(verdict.reference) and verdict.frames < limits.min_frames
        judged.append(_Judged(verdict, tuple(video.video_id for video in videos), waits))
    return judged


def _threshold(video: Entry) -> float:
    """From which score on it was labelled; NaN, which is like no other, where its entry does not say so."""
    export = video.params.get("export")
    found = export.get("score_threshold") if isinstance(export, dict) else None
    return float(found) if isinstance(found, int | float) else math.nan


def _log_drift(tracker: Tracker, judged: Sequence[_Judged]) -> None:
    told = [one for one in judged if one.verdict.alerts is not None]
    alerts = [alert for one in told for alert in one.verdict.alerts or ()]
    if told:
        tracker.log({"drift.alerts": float(len(alerts))}, 0)
        # Some may have come with earlier batches.
        tracker.tag("drift_video_ids", ",".join([video for one in told for video in one.videos][:_IDS_IN_TAG]))
    for one in told:
        tracker.log({f"drift.reference.{name}": value for name, value in one.verdict.reference.items()}, 0)
    names = ",".join(sorted({alert.figure for alert in alerts}))
    otherwise = "waits" if any(one.waits for one in judged) else "not judged"
    tracker.tag("drift", names or ("none" if told else otherwise))


def _read_state(workspace: Path) -> dict[str, Any]:
    try:
        state = read_json(workspace / STATE)
        videos, run_id = [str(video) for video in state["videos"]], state["open_run"]
        waiting = [str(video) for video in state.get("waiting", ())]  # of none in a state of before it was kept
    except (DataError, TypeError, KeyError, AttributeError):
        videos, run_id, waiting = [], None, []
    return {"videos": videos, "open_run": run_id if isinstance(run_id, str) else None, "waiting": waiting}
