"""Damaged input for every reader: `python -m benchmarks.fuzz --inputs 10000 --seed 0`.

Small good data of every kind are damaged by seed: bytes, values of JSON, YAML and Parquet, entries of archives, chunks
of pictures, names, links. Each input goes through the public way in, in a process that is watched. It must be read, or
refused by a MosisError whose message is one line; whatever else happens is a finding: another exception, more than 20
seconds, more than 1 GiB more memory, the end of the process, anything written outside the target folder or opened
outside a dataset, a connection, a planted value in a message. `--reader NAME --only SEED` runs one of them again.
Run it from the root of a checkout, whose tests have the miniatures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.fuzzing.guard import Result, work
from benchmarks.fuzzing.readers import READERS, Reader
from benchmarks.harness import Report, Row, add_output_options, format_table, start
from tasks.errors import DataError

MAX_SECONDS = 20.0
_START_SECONDS = 300.0
_KINDS = {"crash": "crashes", "hang": "hangs", "memory": "memory", "error": "errors"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0, help="of the first input; the others count on from it")
    parser.add_argument("--reader", choices=sorted(READERS), help="this one alone")
    parser.add_argument("--only", type=int, metavar="SEED", help="this input alone, and tell what came of it")
    add_output_options(parser)
    options = parser.parse_args()
    readers = {options.reader: READERS[options.reader]} if options.reader else READERS
    if options.only is not None:
        names = [options.reader] if options.reader else [_turn(list(readers), options.only)]
        tasks = [(names[0], options.only)]
        for name, result in run(readers, tasks):
            print(name, json.dumps(asdict(result), indent=1))
        return
    report = Report("fuzz", options)
    seeds = range(options.seed, options.seed + options.inputs)
    rows: dict[str, Row] = {name: empty_row(name) for name in readers}
    for name, result in run(readers, ((_turn(list(readers), seed), seed) for seed in seeds)):
        count(rows[name], result)
        if result.finding is not None:
            print(f"--reader {name} --only {result.seed}: {result.finding}", file=sys.stderr, flush=True)
    for row in rows.values():
        report.add(row)
    columns = ("inputs", "read", "set_aside", *_KINDS.values(), "worst_seconds", "peak_mib")
    lines = [[row["row"], *(row[column] for column in columns)] for row in report.rows]
    totals = {column: sum(row[column] for row in report.rows) for column in columns[:-2]}
    report.finish(format_table(["reader", *columns], lines), total=totals)
    if any(row["findings"] for row in rows.values()):
        raise DataError("there are findings: see above")


def _turn(names: list[str], seed: int) -> str:
    return names[seed % len(names)]


def empty_row(name: str) -> Row:
    numbers = dict.fromkeys(("inputs", "read", "set_aside", *_KINDS.values()), 0)
    return {"row": name, **numbers, "worst_seconds": 0.0, "peak_mib": 0.0, "findings": []}


def count(row: Row, result: Result) -> None:
    """Add one input. read: something of it was taken; set_aside: nothing, with a reason. peak_mib: above the start."""
    row["inputs"] += 1
    row["worst_seconds"] = max(row["worst_seconds"], result.seconds)
    row["peak_mib"] = max(row["peak_mib"], result.more_mib)
    if result.finding is None:
        row["read" if result.read else "set_aside"] += 1
    else:
        row[_KINDS[result.kind]] += 1
        row["findings"].append({"seed": result.seed, "finding": result.finding})


def run(
    readers: Mapping[str, Reader], tasks: Iterable[tuple[str, int]], max_seconds: float = MAX_SECONDS
) -> Iterator[tuple[str, Result]]:
    """(reader, result) of each (reader, seed), in their order; a process that ended is followed by another."""
    with tempfile.TemporaryDirectory(prefix="mosis-fuzz-") as folder:
        specimens = Path(folder, "specimens")
        for name, reader in readers.items():
            (specimens / name).mkdir(parents=True)
            reader.make(specimens / name)
        scratch = Path(folder, "scratch")
        scratch.mkdir()
        worker: _Worker | None = None
        try:
            for name, seed in tasks:
                worker = worker or _Worker(readers, specimens, scratch)
                result, worker = worker.try_one(name, seed, max_seconds)
                yield name, result
        finally:
            if worker is not None:
                worker.end()


class _Worker:
    """The process that reads, and the clock that it cannot stop."""

    def __init__(self, readers: Mapping[str, Reader], specimens: Path, scratch: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._log = scratch / "log.txt"
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, dict(readers), specimens, scratch))
        self._process.start()
        theirs.close()
        try:
            ready = self._ours.poll(_START_SECONDS)
            if ready:
                self._ours.recv()
        except EOFError:
            ready = False
        if not ready:
            self._kill()
            raise DataError(f"good data cannot be read: {self._tail()}")

    def try_one(self, name: str, seed: int, max_seconds: float) -> tuple[Result, _Worker | None]:
        """(result, the worker for the next: None where this one is no more)."""
        try:
            self._ours.send((name, seed, max_seconds))
            if self._ours.poll(max_seconds):
                values: dict[str, Any] = self._ours.recv()
                return Result(**values), self
        except (EOFError, OSError):
            self._process.join()
            text = f"the process ended with {self._process.exitcode}: {self._tail()}"
            return Result(seed, finding=text, kind="crash"), None
        self._kill()
        text = f"not done after {max_seconds:g} s: {self._tail()}"
        return Result(seed, seconds=max_seconds, finding=text, kind="hang"), None

    def end(self) -> None:
        self._ours.send(None)
        self._process.join(10)
        self._kill()

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _tail(self) -> str:
        """What it printed last, or the calls that it was in."""
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""
        _, dumped, calls = text.rpartition("(most recent call first):")
        return " ".join((f"{text[:200]} ... {calls[:400]}" if dumped else text[-600:]).split())


if __name__ == "__main__":
    start(main)
