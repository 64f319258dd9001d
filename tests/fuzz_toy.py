"""Readers that do what none may as soon as their input is damaged, and what the fuzz run says of each."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.fuzzing.readers import Outcome, Reader
from tasks.errors import DataError, SourceError, StorageError


def make(folder: Path) -> None:
    (folder / "0").mkdir()
    (folder / "0" / "good.json").write_text('{"a": [1, 2, 3]}')


def is_good(folder: Path) -> bool:
    path = folder / "good.json"
    return path.is_file() and path.read_bytes() == b'{"a": [1, 2, 3]}'


def refuse(folder: Path, target: Path) -> Outcome:
    if not is_good(folder):
        raise SourceError("it is broken: copy it again")
    return Outcome(read=1)


def fail(folder: Path, target: Path) -> Outcome:
    return Outcome(read=1) if is_good(folder) else Outcome(read=int("no number"))


def end(folder: Path, target: Path) -> Outcome:
    return Outcome(read=1) if is_good(folder) else os._exit(3)


def hang(folder: Path, target: Path) -> Outcome:
    if not is_good(folder):
        time.sleep(60)
    return Outcome(read=1)


def grow(folder: Path, target: Path) -> Outcome:
    return Outcome(read=1 if is_good(folder) else len(b"x" * (1100 * 2**20)))


def escape(folder: Path, target: Path) -> Outcome:
    if not is_good(folder):
        (target / ".." / "beside").write_text("x")
    return Outcome(read=1)


def follow(folder: Path, target: Path) -> Outcome:
    if not is_good(folder):
        (folder / "../outside/secret").read_text()
    return Outcome(read=1)


def leave(folder: Path, target: Path) -> Outcome:
    if not is_good(folder):
        Path(os.environ["TMPDIR"], "left").write_text("x")
    return Outcome(read=1)


def tell(folder: Path, target: Path) -> Outcome:
    if not is_good(folder):
        raise DataError(f"no such place: {os.environ['HOME']}")
    return Outcome(read=1)


def break_line(folder: Path, target: Path) -> Outcome:
    return Outcome(read=1, shown=[] if is_good(folder) else ["a\nb"])


def blame_the_disk(folder: Path, target: Path) -> Outcome:
    if not is_good(folder):
        raise StorageError("the disk is full")
    return Outcome(read=1)


def say_nothing(folder: Path, target: Path) -> Outcome:
    return Outcome(read=int(is_good(folder)))


EXPECTED: dict[str, tuple[str, str | None]] = {
    "refuse": ("", None),
    "fail": ("error", "ValueError at .*no number"),
    "end": ("crash", "the process ended with 3"),
    "hang": ("hang", "not done after 6 s"),
    "grow": ("memory", "took 1[01].. MiB more"),
    "escape": ("error", "written outside: .*beside"),
    "follow": ("error", "opened .*secret"),
    "leave": ("error", "left behind among temporary files: 'left'"),
    "tell": ("error", "a secret is shown"),
    "break_line": ("error", "not one line of text"),
    "blame_the_disk": ("error", "a damaged file is taken for a broken disk"),
    "say_nothing": ("error", "neither read nor refused"),
}
READERS = {
    name: Reader(make, function, "dataset" if name == "follow" else "file")
    for name, function in globals().copy().items()
    if name in EXPECTED
}
