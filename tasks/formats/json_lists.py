"""JSON files with long lists, written one entry at a time: memory does not grow with the file."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tasks.files import atomic_path


class JsonLists:
    """Context manager that writes {**header, name: [...], ...} with the named lists last; whole or not at all.

    Entries of different lists may come in any order: all but the first list wait in files without a name beside `path`.
    Raises StorageError as tasks/files.py does.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], names: Sequence[str]) -> None:
        self._path = path
        self._header = dict(header)
        self._names = list(names)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> JsonLists:
        temporary = self._stack.enter_context(atomic_path(self._path))
        with contextlib.ExitStack() as on_error:
            on_error.push(self._stack.__exit__)
            self._file = self._stack.enter_context(open(temporary, "w", encoding="utf-8"))
            self._lists = {
                name: _List(self._spool() if index else self._file) for index, name in enumerate(self._names)
            }
            self._file.write("{")
            for key, value in self._header.items():
                self._file.write(f"{json.dumps(key)}: {_dump(value)},\n")
            self._file.write(f"{json.dumps(self._names[0])}: [")
            on_error.pop_all()
        return self

    def append(self, name: str, value: Any) -> None:
        self._lists[name].append(value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if kind is not None:
            return bool(self._stack.__exit__(kind, error, trace))
        with self._stack:
            self._file.write("]")
            for name in self._names[1:]:
                self._file.write(f",\n{json.dumps(name)}: [")
                spool = self._lists[name].file
                spool.seek(0)
                shutil.copyfileobj(spool, self._file)
                self._file.write("]")
            self._file.write("}\n")
        return False

    def _spool(self) -> IO[str]:
        return self._stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", dir=self._path.parent))


class JsonList:
    """Context manager that writes one bare list, as COCO results are; whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> JsonList:
        temporary = self._stack.enter_context(atomic_path(self._path))
        with contextlib.ExitStack() as on_error:
            on_error.push(self._stack.__exit__)
            self._list = _List(self._stack.enter_context(open(temporary, "w", encoding="utf-8")))
            self._list.file.write("[")
            on_error.pop_all()
        return self

    def append(self, value: Any) -> None:
        self._list.append(value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if kind is not None:
            return bool(self._stack.__exit__(kind, error, trace))
        with self._stack:
            self._list.file.write("]\n")
        return False


class _List:
    """Entries of one list, a line each, without its brackets."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self._any = False

    def append(self, value: Any) -> None:
        self.file.write((",\n" if self._any else "\n") + _dump(value))
        self._any = True


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
