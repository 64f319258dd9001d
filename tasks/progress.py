"""Progress for people: a rich bar on a terminal, else a line every ten seconds on stderr.

One at a time: inside another, and in the processes of a pool, it is silent.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Context manager: `with Progress("decode", total=10) as progress: progress.advance()`."""

    _any_shown = False

    def __init__(self, description: str, total: int | None = None) -> None:
        self.description = description
        self.total = total
        self.done = 0
        self._bar: Any = None
        self._row: Any = None
        self._silent = False
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> Progress:
        self._started = self._shown = time.monotonic()
        self._silent = Progress._any_shown or multiprocessing.parent_process() is not None
        if self._silent:
            return self
        Progress._any_shown = True
        if sys.stderr.isatty():
            self._bar = _rich_bar()
        if self._bar is not None:
            self._bar.start()
            self._row = self._bar.add_task(self.description, total=self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._silent:
            return
        Progress._any_shown = False
        if self._bar is not None:
            self._bar.stop()
        elif self._shown > self._started and kind is None:
            self._write_line()

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self._bar is not None:
            self._bar.update(self._row, completed=self.done)
        elif not self._silent and time.monotonic() - self._shown >= _SECONDS_BETWEEN_LINES:
            self._write_line()

    def describe(self, description: str) -> None:
        """Change the text beside the bar, e.g. to show a loss."""
        self.description = description
        if self._bar is not None:
            self._bar.update(self._row, description=description)

    def _write_line(self) -> None:
        self._shown = time.monotonic()
        seconds = self._shown - self._started
        of_total = "" if self.total is None else f"/{self.total} ({100 * self.done // max(self.total, 1)}%)"
        print(f"{self.description}: {self.done}{of_total} after {seconds:.0f} s", file=sys.stderr, flush=True)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable`, showing how far it has come. `total` defaults to len(iterable) where it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(description, total) as progress:
        for item in iterable:
            yield item
            progress.advance()


def _rich_bar() -> Any:
    """A started-on-demand bar, or None where rich is not installed (a bare training machine)."""
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
