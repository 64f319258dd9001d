"""JSON files of any length, read one value at a time: memory is that of the largest value, not of the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tasks.errors import DataError

MAX_VALUE = 64 * 2**20
_BLOCK = 2**20
_SPACE = " \t\n\r"


@dataclass(frozen=True)
class Entry:
    """A value of the file's object, or of one of the lists in it. text: as it stands in the file."""

    key: str
    in_list: bool
    value: Any
    text: str


def read_entries(path: Path, *, where: str, max_bytes: int, max_value: int = MAX_VALUE) -> Iterator[Entry]:
    """What a JSON object holds, in the order of the file; its lists give an entry for each of their values.

    `where` stands in messages for the path. NaN and Infinity, which JSON does not have, come as text, so that they
    break the record that holds them and no other.
    Raises DataError where the file cannot be read, is no JSON object, names a key twice, or has a value of more than
    max_value characters; that may be after many entries.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _read(_Window(file, where, max_bytes, max_value))
    except OSError as error:
        raise DataError(f"cannot read {where}: {error.strerror or error}") from None


def read_values(path: Path, *, where: str, max_bytes: int, max_value: int = MAX_VALUE) -> Iterator[Any]:
    """The values of a file that is one list, as `read_entries` gives those of an object. Raises as it does."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            window = _Window(file, where, max_bytes, max_value)
            if window.peek() != "[":
                raise window.broken("a list, [...], is expected")
            window.take("[")
            for entry in _read_list(window, ""):
                yield entry.value
            if window.peek():
                raise window.broken("more follows after its end")
    except OSError as error:
        raise DataError(f"cannot read {where}: {error.strerror or error}") from None


def load(text: str | bytes) -> Any:
    """The value of an entry's text again."""
    return json.loads(text, parse_constant=str)


def _read(window: _Window) -> Iterator[Entry]:
    if window.peek() != "{":
        raise window.broken("an object, {...}, is expected")
    window.take("{")
    seen: set[str] = set()
    closed = window.take_if("}")
    while not closed:
        key, _ = window.value()
        if not isinstance(key, str) or key in seen:
            raise window.broken("keys are texts, and each stands once")
        seen.add(key)
        window.take(":")
        if window.take_if("["):
            yield from _read_list(window, key)
        else:
            yield Entry(key, False, *window.value())
        closed = window.take("},") == "}"
    if window.peek():
        raise window.broken("more follows after its end")


def _read_list(window: _Window, key: str) -> Iterator[Entry]:
    closed = window.take_if("]")
    while not closed:
        yield Entry(key, True, *window.value())
        closed = window.take("],") == "]"


class _Window:
    """The part of the text that is looked at; what was taken goes with the next block."""

    def __init__(self, file: IO[str], where: str, max_bytes: int, max_value: int) -> None:
        self._file = file
        self._where = where
        self._left = max_bytes
        self._max_value = max_value
        self._decoder = json.JSONDecoder(parse_constant=str)
        self._text = ""
        self._at = 0

    def broken(self, why: str) -> DataError:
        return DataError(f"{self._where} is not valid JSON of this kind: {why}")

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow():
                return ""

    def take(self, expected: str) -> str:
        """The next character, one of `expected`."""
        found = self.peek()
        if not found or found not in expected:
            raise self.broken(f"{' or '.join(expected)} is expected, {found or 'the end'} found")
        self._at += 1
        return found

    def take_if(self, expected: str) -> bool:
        if self.peek() != expected:
            return False
        self._at += 1
        return True

    def value(self) -> tuple[Any, str]:
        """(the next value, its text)."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._grow():  # it may only be cut by the window's end
                    continue
                raise self.broken(f"{error.msg}, or cut short") from None
            except (ValueError, RecursionError):
                raise self.broken("a number too long or lists too deep") from None
            # A number at the window's end may go on: 1 of 12, of 1.5, of 1e5.
            if (end < len(self._text) and self._text[end] not in ".eE") or not self._grow():
                break
        text, self._at = self._text[self._at : end], end
        return value, text

    def _grow(self) -> bool:
        """Read as much again as waits, at least a block; False at the end of the file."""
        waiting = len(self._text) - self._at
        if waiting > self._max_value:
            raise self.broken(f"a value is broken, or longer than {self._max_value} characters")
        try:
            block = self._file.read(max(_BLOCK, waiting))
        except UnicodeDecodeError:
            raise self.broken("it is no UTF-8 text") from None
        self._left -= len(block)
        if self._left < 0:
            raise self.broken("it is too large")
        if block:
            self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)
