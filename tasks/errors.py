"""Every exception that users meet. Messages are one line: what is wrong, where, and what to do.

    MosisError
    ├── ParamsError      params.yaml: unknown key, wrong type, value out of range       (also a ValueError)
    ├── SourceError      something to ingest that cannot be: missing, empty, undecodable (also a ValueError)
    │   └── AbsentError  a part of a dataset that was never brought here
    ├── DataError        a file of ours or a label file that is broken or does not fit   (also a ValueError)
    ├── NothingLeftError every input of a stage was set aside, or more than the allowed share
    ├── CollapseError    training has degenerated: nothing anywhere, one mask for everything, NaN
    ├── BusyError        another process works in this workspace
    ├── ModelError       a model, or the device it runs on, cannot be used: no fault of what it was given
    ├── StageError       a stage's own process failed; its message has been shown
    └── StorageError     disk full, not writable, remote unreachable                    (also an OSError)
        └── StoreError   a store that failed or was silent too often: the same may succeed later

`tasks.__main__` and `flows.cli` print the message in one line and exit with `exit_code`; a traceback shows only
with MOSIS_TRACEBACK=1.
"""

from __future__ import annotations

import unicodedata

_LONGEST = 2_000


class MosisError(Exception):
    """Base of all errors that a user can mend. Its message is one line, whatever names and values are in it."""

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_to_line(one) if isinstance(one, str) else one for one in arguments))


class ParamsError(MosisError, ValueError):
    exit_code = 2


class SourceError(MosisError, ValueError):
    pass


class AbsentError(SourceError):
    pass


class DataError(MosisError, ValueError):
    pass


class NothingLeftError(MosisError):
    pass


class CollapseError(MosisError):
    pass


class BusyError(MosisError):
    pass


class ModelError(MosisError):
    pass


class StageError(MosisError):
    pass


class StorageError(MosisError, OSError):
    pass


class StoreError(StorageError):
    exit_code = 3


def explain(error: Exception, source: str) -> str:
    """Why `source` is set aside, one line; the source's name stands beside it already."""
    text = " ".join(str(error).split()).removeprefix(f"{source}: ")
    if isinstance(error, MosisError):
        return text
    if isinstance(error, MemoryError):
        return "needs more memory than there is: lower ingest.max_side or ingest.workers"
    return f"unexpected {type(error).__name__}: {text[:200]}"


def escape_unprintable(text: str) -> str:
    """Control characters, line separators and bytes that are no UTF-8 as in a Python literal; all else stays."""
    broken = ("Cc", "Cs", "Zl", "Zp")
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in broken else c for c in text)


def _to_line(text: str) -> str:
    """A value from outside may be a megabyte: the end, where messages say what to do, stays."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 500]} ... {text[-500:]}"
    return escape_unprintable(text)
