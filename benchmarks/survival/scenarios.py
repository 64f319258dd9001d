"""Without a kill: the disk is full, the remote is gone, everything comes at once, and training begins by itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.survival import victims
from benchmarks.survival.decisions import inspect_decisions
from benchmarks.survival.farm import SMALL_TRAINING, Farm, wait_until
from benchmarks.survival.invariants import Finding, Inspector, inspect_end, order_of
from benchmarks.survival.victims import FLOW, VIDEO
from tasks.library import done_videos
from tasks.promotion import ledger

Outcome = tuple[dict[str, Any], list[Finding]]
VIDEOS = 8
MANY = 200
_DISK_MIB = 256
_OUTAGE_S = 90.0
"""Long enough for a run to begin in it, whatever it began before."""
_PATIENCE_S = 400.0
_DECIDED_S = 900.0
_FLAT = 1.15
"""Memory is flat if its largest in the last quarter is no more than so many times the largest in the second."""


def disk_full(base: Path) -> Outcome:
    """The disk of workspace, remote and servers has no byte left for a while, with videos done and videos to do."""
    with small_disk(base) as is_small:
        if not is_small:
            return {"outcome": "skipped: mounting a small disk needs root"}, []
        farm = Farm(base)
        farm.make()
        ballast = base / "ballast"

        def fill() -> None:
            with open(ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(2**16))

        return outage(farm, fill, ballast.unlink)


def remote_gone(base: Path) -> Outcome:
    """The DVC remote, an S3 server, refuses everything for a while."""
    from tests.store_toy import KEY, SECRET, Fault, serve_badly, serve_s3

    with serve_s3() as upstream, serve_badly(upstream) as store:
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
        farm = Farm(base, variables={**keys, "AWS_ENDPOINT_URL": upstream})
        farm.make()
        farm.run([sys.executable, "-c", "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"])
        for arguments in (
            ["add", "--default", "store", "s3://bucket/dvc"],
            ["modify", "store", "endpointurl", store.url],
        ):
            farm.run([sys.executable, "-m", "dvc", "remote", *arguments])

        def refuse() -> None:
            store.faults[:] = [Fault("", "503", times=10**9)]

        row, found = outage(farm, refuse, store.faults.clear)
        fetched = farm.run([sys.executable, "-m", "dvc", "status", "--cloud", "--json"], check=False)
        if fetched.returncode != 0 or '"library' in fetched.stdout:
            found.append(Finding("torn", f"the remote lacks what git names: {(fetched.stdout + fetched.stderr)[:200]}"))
        # One video may have been sent already and wait for its commit.
        if not store.hits or row["done_in_outage"] > 1:
            found.append(
                Finding("hung", f"no outage: {store.hits} requests refused, {row['done_in_outage']} videos done")
            )
        return {**row, "requests_refused": store.hits}, found


def outage(farm: Farm, begin: Callable[[], None], finish: Callable[[], None]) -> Outcome:
    """Some videos are done, then nothing works, then it does again: all are done, and none is set aside.

    begin: also what keeps it so, every second.
    """
    inspector = Inspector(farm)
    found: list[Finding] = []
    farm.drop(VIDEOS)
    try:
        farm.up()
        farm.notify()
        if not wait_until(lambda: farm.waiting() <= VIDEOS - 2, _PATIENCE_S):
            found.append(Finding("hung", f"no two of {VIDEOS} videos were done within {_PATIENCE_S:g} s"))
        begin()
        before = len(done_videos(farm.workspace))
        farm.notify()
        over = time.monotonic() + _OUTAGE_S
        while time.monotonic() < over:
            time.sleep(1)
            begin()
        during = len(done_videos(farm.workspace)) - before
        found += inspector.inspect()
        finish()
        farm.drop(VIDEOS)
        resumed = time.monotonic()
        farm.up()
        farm.notify()
        found += inspector.inspect_rest()
        row = {"done_before": before, "done_in_outage": during, "rest_seconds": round(time.monotonic() - resumed, 1)}
    finally:
        found += inspect_end(farm)
    return {"outcome": "went on by itself" if not found else "see findings", **row}, found


def all_at_once(base: Path, count: int = MANY) -> Outcome:
    """So many videos dropped together: all done, in order of arrival, in flat memory."""
    farm = Farm(base)
    farm.make()
    inspector = Inspector(farm)
    sizes: dict[str, list[float]] = {FLOW: [], VIDEO: [], "worker": []}
    try:
        farm.up()
        farm.drop(count)
        farm.notify()
        began = time.monotonic()

        def sample() -> bool:
            for kind, seen in sizes.items():
                if count - farm.waiting() > 0 and (found := victims.find(farm, kind)):
                    seen.append(victims.proportional_mib(found[0]))
            return not farm.waiting()

        wait_until(sample, 10 * count, every_s=1)
        seconds = time.monotonic() - began
        found = inspector.inspect_rest()
    finally:
        found = [*found, *inspect_end(farm)]
    order = order_of(farm)
    if order != sorted(order):
        found.append(Finding("doubled", "the videos were not done in order of arrival"))
    growth = {kind: round(grow(seen), 3) for kind, seen in sizes.items() if len(seen) >= 8}
    found += [Finding("hung", f"memory of the {kind} grew {by:.2f} times") for kind, by in growth.items() if by > _FLAT]
    row = {
        "outcome": f"{len(order)} of {count} done, in order of arrival" if not found else "see findings",
        "videos": count,
        "memory_growth": growth,
        "peak_mib": {kind: round(max(seen, default=0)) for kind, seen in sizes.items()},
        "seconds_per_video": round(seconds / count, 2),
    }
    return row, found


def trains_by_itself(base: Path) -> Outcome:
    """Videos are dropped, and nobody does anything more: a training by event, with the champion as its teacher, ends in
    a decision that is carried out. No schedule is near, and no command is given.
    """
    farm = Farm(base)
    never = "0 0 1 1 *"
    farm.make({**SMALL_TRAINING, "service.self_training": True, "service.retrain_cron": never})
    inspector = Inspector(farm)
    found: list[Finding] = []
    try:
        farm.up()
        began = time.monotonic()
        farm.drop(VIDEOS)
        farm.notify()
        wait_until(lambda: any(one.state == ledger.DONE for one in ledger.read_records(farm.workspace)), _DECIDED_S)
        seconds = time.monotonic() - began
        records = ledger.read_records(farm.workspace)
        if not records or records[0].state != ledger.DONE:
            found.append(Finding("hung", f"nothing was decided within {_DECIDED_S:g} s"))
        elif not records[0].self_training:
            found.append(Finding("lost", "the champion did not teach"))
        found += inspector.inspect_rest()
    finally:
        found += inspect_end(farm)
    found += inspect_decisions(farm, inspector.champions)
    outcome = records[0].outcome if records else "nothing decided"
    return {"outcome": outcome, "videos": VIDEOS, "seconds_to_decision": round(seconds, 1)}, found


def grow(sizes: list[float]) -> float:
    """The largest of the last quarter over the largest of the second."""
    quarter = len(sizes) // 4
    return max(sizes[-quarter:]) / max(1e-9, max(sizes[quarter : 2 * quarter]))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """`folder` as a disk of its own in memory; False, and nothing done, where we may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={_DISK_MIB}m,mode=700,uid={os.getuid()}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


SCENARIOS: dict[str, Callable[[Path], Outcome]] = {
    "disk full": disk_full,
    "remote unreachable": remote_gone,
    "200 videos at once": all_at_once,
    "training by itself": trains_by_itself,
}
