"""A benchmark of rows that compute nothing, fail, or kill: `python -m tests.benchmark_toy ACTION ... [options]`."""

from __future__ import annotations

import argparse
import os
import signal
from dataclasses import dataclass

from benchmarks import harness
from benchmarks.harness import Report, Row, Setting, add_options, cache_folder, format_table, start
from tasks.pool import map_unordered


@dataclass(frozen=True)
class ToyPlan:
    row: str
    action: str


def square(number: int) -> int:
    return number * number


def toy_row(plan: ToyPlan, setting: Setting) -> Row:
    with (setting.cache / "calls").open("a") as file:
        file.write(f"{plan.row}\n")
    if plan.action == "refuse":
        raise ValueError("two\nlines")
    if plan.action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if plan.action == "stop" and not (setting.cache / "stopped").exists():
        (setting.cache / "stopped").touch()
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    if plan.action == "change":
        (setting.cache / "changed").write_text("while it runs")
    if plan.action == "spread":
        return {"squares": sorted(one.get() for one in map_unordered(square, [1, 2, 3], 2, "squares"))}
    return {"pid": os.getpid(), "threads": setting.threads, "jobs": setting.jobs}


def main() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    parser.add_argument("actions", nargs="+")
    parser.add_argument("--colour")
    parser.add_argument("--seeds", nargs="+")
    options = parser.parse_args()
    changed = options.cache / "changed"
    if changed.is_file():
        changed.unlink()
    harness.digest_sources = lambda: (
        os.environ.get("TOY_SOURCES", "none") + str(changed.is_file() and not options.resume)
    )
    # Both load torch, which takes longer than all the rest.
    harness.describe_machine = lambda: {"cores": 1}
    harness.describe_versions = dict
    report = Report("toy", options)
    plans = [ToyPlan(f"{number} {action}", action) for number, action in enumerate(options.actions)]
    with cache_folder(options) as cache:
        report.run(toy_row, plans, cache)
    report.finish(format_table(["row"], [[row["row"]] for row in report.rows]), note="done")


if __name__ == "__main__":
    start(main)
