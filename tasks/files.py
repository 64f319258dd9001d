"""Files that appear whole or not at all, JSON with bounds, content hashes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.errors import BusyError, DataError, StorageError

TEMPORARY_PREFIX = ".tmp-"
"""Names that start so are being written, or were left by a killed run; the next write of the same name clears them."""
_BLOCK_BYTES = 2**20

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space or use a workspace on another disk",
    errno.EDQUOT: "the disk quota is used up: free some space or use a workspace on another disk",
    errno.EFBIG: "the file would exceed the size limit of this disk or session: raise it or use another disk",
    errno.EACCES: "no permission to write: change the permissions or choose another folder",
    errno.EPERM: "no permission to write: change the permissions or choose another folder",
    errno.EROFS: "the disk is read-only: choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder: remove or rename it",
    errno.EEXIST: "a file lies where a folder is needed: remove or rename it",
    errno.EISDIR: "a folder lies where a file is needed: remove or rename it",
    errno.EIO: "the disk reports an error: check it, or use a workspace on another disk",
    errno.EMFILE: "this process has as many files open as it may: raise the limit (ulimit -n)",
    errno.ENFILE: "this machine has as many files open as it may: end other programs or raise fs.file-max",
    errno.ENOMEM: "there is not enough memory for it: end other programs, or raise ulimit -v or vm.max_map_count",
}
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@contextlib.contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turn what a user can mend about writing `path` (disk full, no permission, ...) into one line: StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        raise StorageError(f"cannot write {path}: {_ADVICE[error.errno]}") from error


def check_scarce(path: Path | str, error: Exception) -> None:
    """Raise StorageError where `path` could not be read for want of file descriptors or memory: it is not broken."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if number in _SCARCE:
        raise StorageError(f"cannot read {path}: {_ADVICE[number]}") from error


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary sibling of `path`, same suffix, to write to; fsync and rename on success, remove on error.

    Parent folders are made. Raises StorageError where the disk is full, read-only or not ours.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(path)
        temporary = _temporary_name(path)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            with contextlib.suppress(OSError):  # a network disk without locks
                _lock(descriptor)
            yield temporary
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Give an empty temporary sibling folder of `path` to fill; on success it takes the place of `path` and of all
    that was in it, on error it is removed. Raises StorageError as `atomic_path` does.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(path))
        _clear_stale(path)
        temporary = _temporary_name(path)
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a network disk without locks
                _lock(descriptor)
            yield temporary
            _fsync_tree(temporary)
            _take_place(temporary, path)
            _fsync(path.parent)
        finally:
            os.close(descriptor)
            shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` atomically as JSON with sorted keys, so that equal values give equal bytes. NaN is refused."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path | str, *, max_bytes: int = 64 * 2**20) -> Any:
    """Parse a JSON file of at most `max_bytes`. Raises DataError where it is missing, larger or broken."""
    try:
        data = bytearray()  # asked for at once, as many bytes as are allowed would be set aside, however few there are
        with open(path, "rb") as file:
            while len(data) <= max_bytes and (block := file.read(_BLOCK_BYTES)):
                data += block
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > max_bytes:
        raise DataError(f"{path} is larger than {max_bytes} bytes: not a file of this kind")
    return parse_json(data, name=str(path))


def parse_json(data: bytes | bytearray, *, name: str) -> Any:
    """Parse JSON bytes; `name` stands in the DataError's message. NaN and Infinity are refused."""
    try:
        return json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not valid JSON: {' '.join(str(error).split())[:200]}") from None


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(paths: Iterable[Path | str]) -> str:
    """Hex SHA-256 over files and folders: content and names relative to each given path's parent, in a fixed order.

    __pycache__ and unfinished temporary files do not count. Raises DataError where a path does not exist.
    """
    digest = hashlib.sha256()
    for root in sorted(Path(path) for path in paths):
        if not root.exists():
            raise DataError(f"{root} not found: cannot take its fingerprint")
        for file in _files_below(root):
            name = file.relative_to(root.parent).as_posix()
            digest.update(f"{name}\0{sha256_file(file)}\0".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def sole_process(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path` meanwhile; the kernel frees it however this process ends.

    Raises BusyError(busy) where another process holds it. On a network disk without locks nothing is held.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(busy) from None
        except OSError:
            pass  # without a lock rather than not at all
        yield
    finally:
        os.close(descriptor)


def _files_below(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return sorted(p for p in root.rglob("*") if p.is_file() and not _ignored(p.relative_to(root)))


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Ask the disk to begin with what was written there: the fsync at the end then waits for less. Promises nothing.

    Linux with glibc only; elsewhere nothing happens.
    """
    start_only = 2
    with contextlib.suppress(OSError, AttributeError):
        call = ctypes.CDLL(None).sync_file_range
        call(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), start_only)


def _ignored(relative: Path) -> bool:
    return any(part == "__pycache__" or part.startswith(TEMPORARY_PREFIX) for part in relative.parts)


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _temporary_name(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")


def _clear_stale(path: Path) -> None:
    """Remove what killed writers of `path` left. A living writer holds a lock on its temporary, a dead one cannot."""
    for stale in path.parent.glob(f"{TEMPORARY_PREFIX}????????-{_escape(path.name)}"):
        try:
            descriptor = os.open(stale, os.O_RDONLY)
        except OSError:
            continue
        try:
            _lock(descriptor)
        except OSError:
            continue
        else:
            shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _escape(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _lock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _fsync(Path(parent, name))
        _fsync(Path(parent))


def _take_place(temporary: Path, path: Path) -> None:
    """Rename a folder over another; at no moment is there neither, where the kernel can exchange two names."""
    if not path.exists():
        os.rename(temporary, path)
    elif not _exchange(temporary, path):
        old = _temporary_name(path)
        os.rename(path, old)
        os.rename(temporary, path)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """renameat2(RENAME_EXCHANGE): Linux with glibc only. False where it is not to be had."""
    at_working_directory, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    status = renameat2(at_working_directory, os.fsencode(a), at_working_directory, os.fsencode(b), rename_exchange)
    return bool(status == 0)
