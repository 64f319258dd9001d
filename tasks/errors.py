"""Every exception that users meet. Messages are one line: what is wrong, where, and what to do.

    MosisError
    ├── ParamsError      params.yaml: unknown key, wrong type, value out of range       (also a ValueError)
    ├── SourceError      something to ingest that cannot be: missing, empty, undecodable (also a ValueError)
    │   └── AbsentError  a part of a dataset that was never brought here
    ├── DataError        a file of ours or a label file that is broken or does not fit   (also a ValueError)
    ├── NothingLeftError every input of a stage was set aside, or more than the allowed share
    ├── CollapseError    training has degenerated: nothing anywhere, one mask for everything, NaN
    ├── BusyError        another process works in this workspace
    ├── StageError       a stage's own process failed; its message has been shown
    └── StorageError     disk full, not writable, remote unreachable                    (also an OSError)

`tasks.__main__` and `flows.cli` print the message in one line and exit with `exit_code`; a traceback shows only
with MOSIS_TRACEBACK=1.
"""

from __future__ import annotations


class MosisError(Exception):
    """Base of all errors that a user can mend."""

    exit_code = 1


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


class StageError(MosisError):
    pass


class StorageError(MosisError, OSError):
    pass
