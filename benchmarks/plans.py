"""From plans that train (`benchmarks.training`) to a report's rows: seed by seed, and no training twice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.data import open_fresh, open_motion_labels, open_video
from benchmarks.harness import Report, Row, Setting, run_in_child
from benchmarks.training import Plan, as_yardstick, build_config, make_recipe, open_warm, train_row
from models.motion_labels.config import MotionLabelsConfig
from tasks.errors import ParamsError


def run_plans(report: Report, plans: Sequence[Plan], cache: Path) -> None:
    """Add the plans' rows to `report`, seed by seed of the data, so that a run that is stopped has whole seeds.

    Video and labels are made before, one after another, so that no row's time is spent on them. A plan with
    `minutes_of` runs once that row is there, and fails with it. Plans that are the same but for row and kind are
    trained once: the others are copies of that row, which they name under "same_as".
    """
    report.expect(plans)
    done = {row["row"] for row in report.rows}
    for plan in {describe_data(plan): plan for plan in plans if plan.row not in done}.values():
        # Where this fails, so do the rows that need it, and say why.
        run_in_child(prepare, plan, Setting(cache, report.options.device, 1, 1))
    for seed in dict.fromkeys(plan.data.seed for plan in plans):
        _run_seed(report, [plan for plan in plans if plan.data.seed == seed], cache)


def _run_seed(report: Report, plans: Sequence[Plan], cache: Path) -> None:
    _run_once(report, [plan for plan in plans if plan.minutes_of is None], cache)
    minutes = {row["row"]: row.get("cpu_minutes") or row["minutes"] for row in report.rows if "failed" not in row}
    trained = {row["row"]: as_yardstick(Plan(**row["plan"])) for row in report.rows if "failed" not in row}
    later = [plan for plan in plans if plan.minutes_of is not None]
    timed = [
        replace(plan, minutes=minutes[plan.minutes_of], yardstick=trained[plan.minutes_of])
        for plan in later
        if plan.minutes_of in minutes
    ]
    _run_once(report, timed, cache)
    for plan in later:
        if plan.minutes_of not in minutes:
            report.add({"row": plan.row, "failed": f"there is no row {plan.minutes_of!r} whose minutes to take"})


def _run_once(report: Report, plans: Sequence[Plan], cache: Path) -> None:
    """Train each of the plans that has no row yet, but what is the same as another's, or a row's, is copied from it."""
    done = {row["row"]: row for row in report.rows if "failed" not in row}
    trained = {describe_work(Plan(**row["plan"])): name for name, row in done.items() if "same_as" not in row}
    todo = {plan.row: describe_work(plan) for plan in plans if plan.row not in done}
    for name, work in todo.items():
        trained.setdefault(work, name)
    report.run(train_row, [plan for plan in plans if trained.get(todo.get(plan.row, "")) == plan.row], cache)
    rows = {row["row"]: row for row in report.rows}
    for plan in plans:
        if plan.row in todo and trained[todo[plan.row]] != plan.row:
            report.add(copy_row(rows[trained[todo[plan.row]]], plan))


def copy_row(row: Row, plan: Plan) -> Row:
    """The row of a plan that differs from the one of `row` by name and kind alone."""
    if "failed" in row:
        return {"row": plan.row, "failed": f"as {row['row']}: {row['failed']}"}
    own = {"row": plan.row, "kind": plan.kind, "same_as": row["row"]}
    return {**row, **own, "plan": row["plan"] | {"row": plan.row, "kind": plan.kind}}


def describe_work(plan: Plan) -> str:
    """The same for plans that train and score the same, whether a default is written out or not."""
    work = {**asdict(plan), "row": "", "kind": ""}
    with contextlib.suppress(ParamsError, ValueError, TypeError):  # what does not exist fails when it is run
        work["settings"] = asdict(build_config(plan.method, plan.settings))
        work["recipe"] = asdict(make_recipe(plan, plan.iterations))
        work["labeller"] = asdict(MotionLabelsConfig(**plan.labeller)) if plan.labels == "motion" else {}
    return json.dumps(work, default=str, sort_keys=True)


def describe_data(plan: Plan) -> str:
    """The same for plans that read the same video and labels."""
    warm = plan.warm and [plan.warm, plan.settings, plan.seed]
    return json.dumps([asdict(plan.data), plan.labels == "motion" and plan.labeller, warm], default=str)


def prepare(plan: Plan, setting: Setting) -> Row:
    """Make what `train_row` will read."""
    open_video(plan.data, setting.cache)
    if plan.data.fresh:
        open_fresh(plan.data, setting.cache)
    if plan.labels == "motion":
        open_motion_labels(plan.data, plan.labeller, setting.cache)
    if plan.warm:
        open_warm(plan, setting)
    return {}
