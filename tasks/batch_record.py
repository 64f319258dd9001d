"""What came into the library, in MLflow: one run per batch of videos, with their lineage and label-free figures.

The library is the record of what is done; this is a copy for people. What a kill or a dead server kept from being
copied goes into the next batch's run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks import library
from tasks.errors import DataError
from tasks.files import read_json, write_json
from tasks.library import Entry
from tasks.tracking import Tracker

STATE = Path(".mosis", "tracked.json")
_IN_ONE_RUN = 1000
_IDS_IN_TAG = 200
"""Of 17 characters each, within the 5000 that MLflow keeps of a tag."""


def record(workspace: Path) -> str | None:
    """Log all done videos that no run has yet, in order of arrival; the run's id, None where there was nothing to log.

    A dead server costs a line on standard error and a try in the next run.
    """
    state = _read_state(workspace)
    known = set(state["videos"])
    new = [video for video in library.done_videos(workspace) if video not in known]
    entries = sorted(_read(workspace, new), key=lambda entry: (entry.arrived_at, entry.video_id))[:_IN_ONE_RUN]
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
    # So that a run whose process is killed now is taken up again by the next, and does not stay RUNNING.
    write_json(workspace / STATE, {**state, "open_run": tracker.run_id})
    _log(tracker, entries)
    tracker.finish()
    if not tracker.is_open:
        return None
    videos = sorted(known | {entry.video_id for entry in entries})
    write_json(workspace / STATE, {"open_run": None, "videos": videos})
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


def _read(workspace: Path, videos: Sequence[str]) -> list[Entry]:
    """Those that lie here: a clone may not have pulled them all."""
    found = []
    for video in videos:
        try:
            found.append(library.read_entry(library.entry_folder(workspace, video)))
        except DataError:
            continue
    return found


def _read_state(workspace: Path) -> dict[str, Any]:
    try:
        state = read_json(workspace / STATE)
        videos, run_id = [str(video) for video in state["videos"]], state["open_run"]
    except (DataError, TypeError, KeyError):
        videos, run_id = [], None
    return {"videos": videos, "open_run": run_id if isinstance(run_id, str) else None}
