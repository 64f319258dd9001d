"""Kills, full disks and dead stores: `python -m benchmarks.chaos --kills 50 --minutes 60 --seed 0`.

A service (`mosis up`) with a toy champion runs on loopback, videos are dropped, and at moments drawn by seed one of its
processes is killed with SIGKILL: the flow, the process that works on a video, the worker, Prefect's server, MLflow,
PostgreSQL where it is installed, DVC while its stage runs, a stage. Then `mosis up` again, as systemd or a person
would. After each kill and at rest the invariants are checked (benchmarks/survival/invariants.py); each finding counts
as a video lost or doubled, a file torn, a run hung or an orphan process. Scenarios: a full disk, a dead remote, 200
videos at once, a training that begins by itself. Run it from the root of a checkout, whose tests have the toys.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.harness import Report, Row, add_output_options, format_table, start
from benchmarks.survival.campaign import BOTH, NEW_VIDEO, Campaign, draw
from benchmarks.survival.decisions import count_decisions, inspect_decisions
from benchmarks.survival.farm import SMALL_TRAINING, Farm
from benchmarks.survival.invariants import KINDS, Finding
from benchmarks.survival.scenarios import SCENARIOS
from benchmarks.survival.victims import POSTGRES
from tasks.errors import DataError, MosisError

Work = Callable[[], tuple[Row, list[Finding]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of all campaigns together")
    parser.add_argument("--minutes", type=float, default=90.0, help="of kills; then the rest of them is left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", metavar="ROW", help="this campaign or scenario; may be repeated")
    add_output_options(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the service is ended, too
    report = Report("chaos", options)
    done = {row["row"] for row in report.rows}
    with tempfile.TemporaryDirectory(prefix="mosis-chaos-", ignore_cleanup_errors=True) as folder:
        for name, work in plans(options, Path(folder)):
            if name not in done and (not options.only or name in options.only):
                report.add(measure(name, work))
    columns = ("kills", *KINDS, "seconds")
    lines = [[row["row"], *(row.get(column, "-") for column in columns)] for row in report.rows]
    totals = {column: sum(row.get(column, 0) for row in report.rows) for column in columns}
    scenarios = {row["row"]: row["outcome"] for row in report.rows if "outcome" in row}
    report.finish(format_table(["", *columns], lines), **totals, scenarios=scenarios)
    if any(row.get("findings") or row.get("failed") for row in report.rows):
        raise DataError("there are findings: see above")


def plans(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Work]]:
    """(name, what to do) of every row, in order."""
    for number, (name, (share, campaign)) in enumerate(CAMPAIGNS.items()):
        kills, minutes, seed = round(options.kills * share), options.minutes * share, options.seed + number
        yield name, partial(campaign, folder / f"campaign{number}", kills, seed, minutes)
    for number, (name, scenario) in enumerate(SCENARIOS.items()):
        yield name, partial(scenario, folder / f"scenario{number}")


def measure(name: str, work: Work) -> Row:
    began = time.monotonic()
    try:
        row, found = work()
    except (MosisError, OSError, subprocess.SubprocessError) as error:
        return {"row": name, "failed": " ".join(str(error).split())[:300]}
    counts = {kind: sum(one.kind == kind for one in found) for kind in KINDS}
    texts = [f"{one.kind}: {one.text}" for one in found]
    print("".join(f"{name}: FOUND {text}\n" for text in texts), end="", file=sys.stderr)
    return {"row": name, **row, **counts, "findings": texts, "seconds": round(time.monotonic() - began, 1)}


def on_sqlite(base: Path, kills: int, seed: int, minutes: float) -> tuple[Row, list[Finding]]:
    """Videos come in, and each training takes what is in the library by then."""
    farm = Farm(base)
    farm.make(SMALL_TRAINING)
    campaign = Campaign(farm, retrain=True)
    row = campaign.run(draw(BOTH, kills, seed), minutes)
    return {**row, "decisions": count_decisions(farm)}, campaign.findings + inspect_decisions(farm, row["champions"])


def on_postgres(base: Path, kills: int, seed: int, minutes: float) -> tuple[Row, list[Finding]]:
    """Prefect and MLflow in PostgreSQL, which is killed too."""
    from tests.postgres import find_binaries, serve_postgres

    if find_binaries() is None:
        return {"outcome": "skipped: PostgreSQL is not installed"}, []
    with serve_postgres() as server:
        farm = Farm(base, database=server.make_database("chaos"))
        farm.make()

        def strike() -> None:
            server.kill()
            server.start()

        campaign = Campaign(farm, postgres=strike)
        return campaign.run(draw({**NEW_VIDEO, POSTGRES: 4}, kills, seed), minutes), campaign.findings


CAMPAIGNS = {"new-video and retrain": (0.7, on_sqlite), "new-video on PostgreSQL": (0.3, on_postgres)}
"""Name -> share of kills and minutes, and how."""


if __name__ == "__main__":
    start(main)
