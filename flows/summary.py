"""What a person reads when a run has ended: what was done, how good it is, where things are, what to try next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tasks import params, tracking, versioning
from tasks.files import read_json

if TYPE_CHECKING:  # flows.pipeline imports Prefect, which `mosis status` can do without
    from flows.pipeline import PipelineRun, StageRun

SCORES = ("AP50", "AP75", "AP", "AR100")
_ROWS = {
    "mask": "masks",
    "box": "boxes",
    "mask_at_cut": "masks, scores above the cut",
    "box_at_cut": "boxes, scores above the cut",
}
_OUTCOMES = {"ran": "done", "restored": "restored from the cache", "unchanged": "unchanged, skipped"}


def print_run(folder: Path, run: PipelineRun) -> None:
    """The summary of a finished run in the workspace `folder`, on standard output."""
    console = Console(highlight=False, soft_wrap=True)
    metrics = _read(folder / "outputs" / "evaluate" / "metrics.json")
    console.print()
    console.print(stage_table(run.stages))
    if metrics.get("images"):
        console.print(score_table(metrics))
    else:
        console.print("No ground truth in these sources, so no AP; what can be said without it:")
    console.print(pairs_table(metrics.get("label_free", {}), title="Detections, judged without labels"))
    counts = _read(folder / "outputs" / "labels" / "summary.json")
    console.print(pairs_table(_numbers(counts), title="Labels"))
    model = run.model
    console.print(
        f"labels   {_shown(folder / 'outputs/labels/coco.json')}, {_shown(folder / 'outputs/labels/ytvis.json')}"
    )
    console.print(f"report   {_shown(folder / 'outputs/report/index.html')}")
    console.print(f"model    {model.uri}, version {model.version}" + ("" if model.created else " (unchanged)"))
    console.print("\nNext:")
    for command in next_commands(folder):
        console.print(f"  {command}")


def print_status(folder: Path) -> None:
    """Which stages the next run would run, and the champion."""
    console = Console(highlight=False, soft_wrap=True)
    params.load(folder / "params.yaml")
    changed = versioning.changed_stages(folder)
    for stage in params.STAGES:
        console.print(f"{stage:<10}{'changed, will run' if stage in changed else 'unchanged'}")


def stage_table(stages: Iterable[StageRun]) -> Table:
    table = Table("stage", "", title="Stages", title_justify="left")
    table.add_column("seconds", justify="right")
    for run in stages:
        table.add_row(run.stage, _OUTCOMES[run.outcome], f"{run.seconds:.1f}")
    return table


def score_table(metrics: dict[str, Any]) -> Table:
    """COCO scores; a score with nothing to score is a dash."""
    title = f"Class-agnostic COCO scores: {metrics.get('images')} images of the {metrics.get('split')} split"
    table = Table("", title=title, title_justify="left")
    for score in SCORES:
        table.add_column(score, justify="right")
    for key, name in _ROWS.items():
        scores = metrics.get(key) or {}
        table.add_row(name, *(_figure(scores.get(score)) for score in SCORES))
    return table


def pairs_table(values: dict[str, Any], *, title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in values.items():
        table.add_row(name.replace("_", " "), _figure(value))
    return table


def next_commands(folder: Path) -> list[str]:
    """Three commands to try now, as they can be pasted into the shell that printed them."""
    mosis = _program("mosis")
    predict = (
        "import mlflow, numpy; model = mlflow.pyfunc.load_model('models:/mosis@champion'); "
        "print(model.predict(numpy.zeros((1, 128, 128, 3), numpy.uint8)))"
    )
    load = f'MLFLOW_TRACKING_URI={shlex.quote(tracking.tracking_uri(folder))} {_program("python")} -c "{predict}"'
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


def _read(path: Path) -> dict[str, Any]:
    document = read_json(path)
    return document if isinstance(document, dict) else {}


def _numbers(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if isinstance(value, int | float) and value is not True}


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
