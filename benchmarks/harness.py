"""What every benchmark shares: options, rows in processes of their own, a results file that grows row by row, tables.

    add_options(parser)                          # --cache --jobs --device --resume --output --no-save
    options = parser.parse_args()
    report = Report("thesis", options)           # begins benchmarks/results/thesis.json, or resumes it
    with cache_folder(options) as cache:
        report.run(function, plans, cache)       # function(plan, Setting) -> row, each in a process of its own
    report.finish(format_table(columns, lines))  # the last printed line is the whole results file as JSON

A plan is a frozen dataclass with a field `row`, its name; a row is a dict that JSON can hold. `benchmarks.data` has
generated video, `benchmarks.training` plans that train and test a method. Runs with torch, numpy, cv2 and pycocotools.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tasks.errors import DataError, MosisError, StorageError
from tasks.files import read_json, write_json
from tasks.process import count_cores, die_with_parent, pin_threads, sleep_when_idle, tune_allocator

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_SOURCES = ("models", "tasks", "benchmarks")
_NO_EFFECT = ("resume", "cache", "output", "no_save", "rows", "pictures", "seeds")
"""Options that change no row's figures: a run may be resumed with others. Where there are --seeds, rows name theirs."""
_PLACES = ("--cache", "--output", "--pictures")
_EXPECTED = (MosisError, ValueError, TypeError, RuntimeError, OSError, NotImplementedError)

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where and how a row runs. threads: of this process. jobs: rows that run at the same time as this one, and it."""

    cache: Path
    device: str
    threads: int
    jobs: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of a benchmark whose rows run in processes of their own."""
    parser.add_argument("--cache", type=Path, help="keep generated video and labels here; default: a temporary folder")
    parser.add_argument("--jobs", type=at_least(1), default=1, help="rows at once, each with its share of the cores")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto takes a GPU where there is one; cpu; cuda",
    )
    add_output_options(parser)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Those that `Report` reads."""
    parser.add_argument("--resume", action="store_true", help="keep the finished rows of the results file")
    parser.add_argument("--output", type=Path, help="results file; default: benchmarks/results/NAME.json")
    parser.add_argument("--no-save", action="store_true", help="print only")


def at_least(least: int) -> Callable[[str], int]:
    """A type of argparse: whole numbers from `least` on."""

    def count(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        return value

    return count


def above_zero(text: str) -> float:
    """A type of argparse."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value


@contextlib.contextmanager
def cache_folder(options: argparse.Namespace) -> Iterator[Path]:
    """--cache, or a temporary folder that goes with the run."""
    if options.cache is not None:
        try:
            options.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{options.cache}: cannot be made ({error.strerror}): name another --cache") from None
        yield options.cache
        return
    with tempfile.TemporaryDirectory(prefix="mosis-benchmark-") as folder:
        yield Path(folder)


def start(main: Callable[[], None]) -> None:
    """Run a benchmark; what its user can mend is one line.

    main: of a module that runs as `python -m benchmarks.NAME`. It is called as that module's, not as __main__'s: what
    goes to other processes is found there by its module's name.
    """
    spec = sys.modules["__main__"].__spec__
    if main.__module__ == "__main__" and spec is not None:
        main = importlib.import_module(spec.name).main
    try:
        main()
    except MosisError as error:
        raise SystemExit(f"benchmark: {error}") from None


def check_writable(path: Path) -> None:
    """Raises StorageError in one line where a results file could not be written, before hours are spent on it."""
    if path.is_dir():
        raise StorageError(f"{path} is a folder: name a file under --output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}): name another --output") from None


class Report:
    """The results of one benchmark, written whole after every row.

    With --resume the rows of an earlier run are kept if sources and options are the same; those that failed run again,
    and those during which the sources changed.
    Raises DataError in one line where they are not, or where the file is broken.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        sleep_when_idle()
        self.options = options
        self.rows: list[Row] = []
        self._order: dict[str, int] = {}
        self._path = None if options.no_save else (options.output or RESULTS / f"{name}.json")
        if self._path is not None:
            check_writable(self._path)
        self._head = {"name": name, **describe_run(), "options": _plain(vars(options), _NO_EFFECT)}
        if options.resume and self._path is not None and self._path.is_file():
            self.rows = self._read_rows(self._path)

    def expect(self, plans: Sequence[Any]) -> None:
        """Rows are to stand in the order of these plans, whichever is finished first."""
        for plan in plans:
            self._order.setdefault(plan.row, len(self._order))

    def run(self, function: Callable[[Any, Setting], Row], plans: Sequence[Any], cache: Path) -> None:
        """Run the plans that have no row yet, --jobs at once, and write the file after each.

        function: at module level; what it raises that a user can mend, and its process' death, become a row with
        "failed". Rows stand in the order of the plans.
        """
        done = {row["row"] for row in self.rows}
        todo = [plan for plan in plans if plan.row not in done]
        jobs = max(1, self.options.jobs)
        # Not by how many rows are left: rows of one table have the same threads.
        setting = Setting(cache, self.options.device, max(1, count_cores() // jobs), jobs)
        self.expect(plans)
        with ThreadPoolExecutor(jobs) as threads:
            running = {threads.submit(run_in_child, function, plan, setting): plan for plan in todo}
            for finished in as_completed(running):
                self.add({"row": running[finished].row, **finished.result()})

    def add(self, row: Row) -> None:
        """Take up a finished row, write the file and say so; a row that other code may have made is marked."""
        self._order.setdefault(row["row"], len(self._order))
        if digest_sources() != self._head["sources"]:
            row = {**row, "sources_changed": True}
            print(f"{row['row']}: models, tasks or benchmarks have changed since the run began", file=sys.stderr)
        self.rows = sorted([*self.rows, row], key=lambda one: self._order.get(one["row"], -1))
        self.save()
        print(f"{row['row']}: {row.get('failed') or 'done'}", file=sys.stderr, flush=True)

    def save(self, **extra: Any) -> None:
        """Write the file, with more keys beside the rows."""
        self._head |= extra
        if self._path is not None:
            write_json(self._path, self.document())

    def document(self) -> dict[str, Any]:
        return {**self._head, "rows": self.rows}

    def finish(self, table: str, **extra: Any) -> None:
        """Print the table and, as the last line, everything as one JSON object."""
        self.save(**extra)
        print(table)
        print(json.dumps(self.document(), sort_keys=True), flush=True)
        if self.rows and all("failed" in row for row in self.rows):
            raise SystemExit(1)

    def _read_rows(self, path: Path) -> list[Row]:
        try:
            found = read_json(path)
        except DataError as error:
            raise DataError(f"{error}: run without --resume, or name another --output") from None
        for key, name in (("sources", "other sources"), ("options", "other options"), ("machine", "another machine")):
            if not isinstance(found, dict) or found.get(key) != json.loads(json.dumps(self._head[key])):
                raise DataError(f"{path} was written with {name}: run without --resume, or name another --output")
        rows = found.get("rows")
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "row" in row for row in rows):
            raise DataError(f"{path} holds no rows: run without --resume, or name another --output")
        return [row for row in rows if "failed" not in row and not row.get("sources_changed")]


def run_in_child(function: Callable[..., Row], plan: Any, setting: Setting) -> Row:
    """function(plan, setting) in a fresh process, so that peak memory and allocator are its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, plan, setting))
    process.start()
    sender.close()
    try:
        row: Row = receiver.recv()
    except EOFError:
        process.join()
        row = {"failed": _explain_exit(process.exitcode or 0)}
    process.join()
    return row


def _call(sender: Connection, function: Callable[..., Row], plan: Any, setting: Setting) -> None:
    # Else a killed benchmark would go on computing. Linux takes the end of the thread that started a process for its
    # parent's; that thread waits for the row.
    die_with_parent()
    tune_allocator()
    pin_threads(setting.threads)
    try:
        row = function(plan, setting)
    except _EXPECTED as error:
        row = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    sender.send(row)
    sender.close()


def _explain_exit(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}, see above"


def peak_mib() -> float:
    """Largest resident size of this process so far, MiB.

    Not getrusage's: that starts from the parent's size when a process is made. 0 where there is no /proc.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def without_places(arguments: Sequence[str]) -> list[str]:
    """Arguments without the options that only say where things lie: a result speaks of no machine's folders.

    An --output below the current folder stays: the command as it is quoted would else write over another table.
    """
    kept: list[str] = []
    for argument in _join_values(arguments):
        name, _, value = argument.partition("=")
        if name not in _PLACES:
            kept.append(argument)
        elif name == "--output" and not Path(value).is_absolute():
            kept += [name, value]
    return kept


def _join_values(arguments: Sequence[str]) -> list[str]:
    """`--cache X` as `--cache=X`, and so for all of _PLACES."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in _PLACES:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def describe_run() -> dict[str, Any]:
    """Command, commit, whether it is what runs, a digest of what runs, machine and versions."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    # Results are no source: a benchmark that follows another on a clean tree runs on a clean tree, too.
    places = [*_SOURCES, f":!{RESULTS.relative_to(ROOT).as_posix()}"]
    changed = subprocess.run([*git, "status", "--porcelain", "--", *places], capture_output=True, check=False)
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *without_places(sys.argv[1:])]),
        "commit": commit or "unknown",
        "dirty": bool(changed.stdout.strip()) or bool(changed.returncode),
        "sources": digest_sources(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def describe_machine() -> dict[str, Any]:
    import torch

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"system": platform.system(), "cpu": cpu, "cores": count_cores(), "memory_gib": round(memory, 1), "gpu": gpu}


def describe_versions() -> dict[str, str]:
    import cv2
    import numpy as np
    import torch

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cv2": cv2.__version__,
        "torch": torch.__version__,
    }


def format_table(columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Text columns; floats with three digits, None as a dash."""
    texts = [list(columns), *([_cell(value) for value in line] for line in lines)]
    widths = [max(len(line[column]) for line in texts) for column in range(len(columns))]
    return "\n".join(
        "  ".join(text.ljust(width) if place == 0 else text.rjust(width) for place, (text, width) in enumerate(pairs))
        for pairs in (zip(line, widths, strict=True) for line in texts)
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _plain(values: dict[str, Any], without: Sequence[str]) -> dict[str, Any]:
    """Options as JSON holds them."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items() if name not in without}


def digest_sources() -> str:
    """Of every module that could change a figure; results and pictures do not count."""
    files = [file for name in _SOURCES for file in (ROOT / name).rglob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def describe_plan(plan: Any) -> dict[str, Any]:
    """A plan's fields as JSON holds them."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(plan), default=str))
    return plain
