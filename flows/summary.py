"""What a person reads when a run has ended: what was done, how good it is, where things are, what to try next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows import service
from tasks import drift, inbox, library, params, tracking, versioning, workspace
from tasks.errors import MosisError
from tasks.files import read_json
from tasks.metrics.table import describe_scores, figure_table
from tasks.promotion import ledger, rounds
from tasks.sources.places import hide_credentials

if TYPE_CHECKING:  # flows.pipeline imports Prefect, which `mosis status` can do without
    from flows.pipeline import PipelineRun, StageRun

_OUTCOMES = {"ran": "done", "restored": "restored from the cache", "unchanged": "unchanged, skipped"}


def print_run(folder: Path, run: PipelineRun) -> None:
    """The summary of a finished run in the workspace `folder`, on standard output."""
    console = Console(highlight=False, soft_wrap=True)
    metrics = read_json(folder / "outputs" / "evaluate" / "metrics.json")
    console.print()
    console.print(stage_table(run.stages))
    console.print(*describe_scores(metrics), sep="\n")
    counts = read_json(folder / "outputs" / "labels" / "summary.json")
    console.print(figure_table("Labels", {name: counts[name] for name in ("images", "annotations", "tracks")}))
    if not counts["annotations"]:
        console.print(
            "warning  the network finds nothing in any frame, and would label new video so: train longer "
            "(train.iterations), give more clips, or lower export.score_threshold"
        )
    model = run.model
    console.print(
        f"labels   {_shown(folder / 'outputs/labels/coco.json')}, {_shown(folder / 'outputs/labels/ytvis.json')}"
    )
    console.print(f"report   {_shown(folder / 'outputs/report/index.html')}")
    console.print(f"model    {model.uri}, version {model.version}" + ("" if model.created else " (unchanged)"))
    if model.note:
        console.print(f"         {model.note}")
    console.print("\nNext:")
    for command in next_commands(folder):
        console.print(f"  {command}")


def print_status(folder: Path) -> None:
    """Which stages the next run would run, and the champion."""
    console = Console(highlight=False, soft_wrap=True)
    params.load(folder / "params.yaml")
    workspace.refresh_code(folder)
    changed = versioning.changed_stages(folder)
    for stage in params.STAGES:
        console.print(f"{stage:<10}{'changed, will run' if stage in changed else 'unchanged'}")
    champion = tracking.find_champion(folder)
    console.print(f"champion  {champion.uri + ', version ' + champion.version if champion else 'none yet'}")
    for line in describe_service(folder):
        console.print(line)


def describe_service(folder: Path) -> list[str]:
    """The inbox, the library and what runs, of a workspace that has been used so; else nothing."""
    running = service.living(folder)
    done = library.done_videos(folder)
    if not running and not done:
        return []
    url = inbox.inbox_url(params.load(folder / "params.yaml").service.inbox, folder)
    seen = inbox.Seen(folder / ".mosis" / "inbox.jsonl")
    rejected = library.read_rejected(folder)
    try:
        digests = [seen.sha256(arrival) for arrival in inbox.list_arrivals(url)]
        known = sum(digest is not None and library.video_id(digest) in done for digest in digests)
        aside = sum(digest in rejected for digest in digests)
        there = f"{len(digests)} videos, {len(digests) - known - aside} not done yet"
        there += f", {aside} set aside (library/{library.REJECTED})" if aside else ""
    except MosisError as error:
        there = str(error)
    try:
        decided = [ledger.describe(record) for record in ledger.read_records(folder)[-1:]]
    except MosisError as error:
        decided = [str(error)]
    under_way = (folder / rounds.STATE).is_file()
    entries = library.done_entries(folder)
    seconds = sum(entry.seconds for entry in entries)
    length = f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} minutes"
    states = [f"{name} {'runs' if alive else 'has died'}" for name, alive in running.items()]
    return [
        f"inbox     {hide_credentials(url)}: {there}",
        f"library   {len(done)} videos, {length}, {sum(entry.annotations for entry in entries)} instances",
        *[f"drift     {verdicts[-1].describe()}" for verdicts in [drift.read_verdicts(folder)] if verdicts],
        *[f"decision  {line}" for line in decided],
        *(["training  a round is under way or was stopped: `mosis retrain` goes on with it"] if under_way else []),
        f"service   {', '.join(states) if states else 'down'}",
    ]


def stage_table(stages: Iterable[StageRun]) -> Table:
    table = Table("stage", "", title="Stages", title_justify="left")
    table.add_column("seconds", justify="right")
    for run in stages:
        table.add_row(run.stage, _OUTCOMES[run.outcome], f"{run.seconds:.1f}")
    return table


def next_commands(folder: Path) -> list[str]:
    """Three commands to try now, as they can be pasted into the shell that printed them."""
    mosis = _program("mosis")
    predict = (
        "import mlflow, numpy; model = mlflow.pyfunc.load_model('models:/mosis@champion'); "
        "print(model.predict(numpy.zeros((1, 128, 128, 3), numpy.uint8)))"
    )
    # A URI from the environment is there in the next command too, and may hold a password.
    known = "MLFLOW_TRACKING_URI" in os.environ
    store = "" if known else f"MLFLOW_TRACKING_URI={shlex.quote(tracking.tracking_uri(folder))} "
    load = f'{store}{_program("python")} -c "{predict}"'
    return [f"xdg-open {_shown(folder / 'outputs/report/index.html')}", f"{mosis} run YOUR_VIDEO.mp4", load]


def _program(name: str) -> str:
    """The program as the shell must call it: by name where it is on the path, else by its place in this environment."""
    here = Path(sys.executable).parent / name
    found = shutil.which(name)
    return name if found and Path(found).resolve() == here.resolve() else _shown(here)


def _shown(path: Path) -> str:
    """Relative to where the person is, if below it: shorter, and it can be pasted."""
    here = Path(os.path.abspath("."))
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
