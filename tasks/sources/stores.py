"""Remote stores through fsspec: what may pass is tried again, what will not fails at once, a cut download is noticed.

Two settings, in the environment since they belong to a machine's network and shape no output: MOSIS_STORE_ATTEMPTS
(default 5), and MOSIS_STORE_TIMEOUT (default 60), the seconds within which a store has to show some progress.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tasks.errors import MosisError, ParamsError, SourceError, StoreError

T = TypeVar("T")

FIRST_WAIT_S = 0.5
"""Before the second attempt; twice as long before each one after, less up to a half at random."""
_BLOCK_BYTES = 4 * 2**20
"""Read at once, and so what a store has to send within its time: 70 kB/s by default."""
_LISTING_TIMES = 10
"""A listing shows no progress before its end, and a large bucket's takes many requests."""
_PASSING_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
_PASSING_KINDS = frozenset(
    ("HTTPClientError", "ResponseParserError", "ClientConnectionError", "ClientPayloadError", "HTTPException")
)
"""Bases that are no OSError, of botocore (two), aiohttp (two) and urllib3 or http.client: connection cut or refused."""
_LASTING = (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
"""Of this machine's files: links in a circle, names that cannot be."""
_DIFFERENT = "its bytes are not those of its checksum"
_MD5 = re.compile(r"[0-9a-f]{32}")


class Beat(Protocol):
    """Called by work in a store to say that it goes on, and how many times the usual silence is to be borne now."""

    def __call__(self, times: float = 1) -> None: ...


@dataclass(frozen=True)
class Patience:
    attempts: int
    silence_s: float

    @classmethod
    def from_environment(cls) -> Patience:
        """Raises ParamsError where a setting is no number above 0."""
        return cls(int(_number("MOSIS_STORE_ATTEMPTS", 5, least=1)), _number("MOSIS_STORE_TIMEOUT", 60, least=1e-3))


@dataclass(frozen=True)
class Fault:
    """passes: whether another attempt may succeed. reason: without the error's own text, which may quote the URL."""

    passes: bool
    reason: str


def persist(
    url: str, shown: str, work: Callable[[Beat], T], *, setting: str = "ingest.sources", verb: str = "read"
) -> T:
    """The result of `work`, which is tried again after faults that may pass.

    setting, verb: what messages call the place that names this URL, and what was to be done with it.
    Raises SourceError at once where the fault lies with this place (not there, no permission, no such kind of URL), and
    StoreError where the store has failed or been silent too often: that is no fault of a source, and a stage that
    went on would take part of the data for all of it.
    """
    patience = Patience.from_environment()
    fault = Fault(True, "")
    for number in range(patience.attempts):
        if number:
            _forget_connections(url)
            time.sleep(FIRST_WAIT_S * 2 ** (number - 1) * random.uniform(0.5, 1))
        try:
            return _Attempt(work, patience.silence_s).result()
        except (MosisError, LocalWriteError):
            raise
        except Exception as error:  # noqa: BLE001 - fsspec's back ends raise whatever their libraries raise
            fault = judge(error, setting=setting, verb=verb)
        if not fault.passes:
            raise SourceError(f"{shown}: {fault.reason}")
    times = "once" if patience.attempts == 1 else f"{patience.attempts} times"
    raise StoreError(
        f"{shown}: the store failed, tried {times} ({fault.reason}): run this again when it answers, or be "
        "more patient with MOSIS_STORE_ATTEMPTS and MOSIS_STORE_TIMEOUT"
    )


def list_below(url: str, shown: str) -> tuple[Any, str, list[str] | None]:
    """(file system, path in it, names below it), None for the names where that is a file. Raises as `persist`."""

    def work(beat: Beat) -> tuple[Any, str, list[str] | None]:
        filesystem, path = fsspec.core.url_to_fs(url)
        filesystem.invalidate_cache()
        beat()
        kind = filesystem.info(path)["type"]  # neither `exists` nor `isfile`: they take every error for a no
        is_file = filesystem.isfile(path) if isinstance(filesystem, LocalFileSystem) else kind != "directory"
        beat(_LISTING_TIMES)
        return filesystem, path, [str(name) for name in filesystem.find(path)] if not is_file else None

    return persist(url, shown, work)


def fetch(url: str, shown: str, target: Path) -> None:
    """Copy a file whole to `target`: of the size that the store states, and of its MD5 where the ETag is one.

    An ETag that looks like an MD5 is none where the store encrypts with keys of its own. So a download that differs
    from it counts as whole if the next one is the same.
    Raises as `persist`, and the local disk's own OSError.
    """
    unlike: set[str] = set()

    def work(beat: Beat) -> None:
        target.unlink(missing_ok=True)  # an attempt given up may still hold it open
        filesystem, path = fsspec.core.url_to_fs(url)
        beat()
        with filesystem.open(path, "rb", cache_type="none") as source:
            beat()
            details = getattr(source, "details", None) or filesystem.info(path)
            size, md5 = _copy(source, target, beat)
        stated = details.get("size")
        if stated is not None and size != stated:
            raise _Incomplete(f"{size} of {stated} bytes came")
        if (tag := _md5_tag(details)) is not None and md5 != tag and md5 not in unlike:
            unlike.add(md5)
            raise _Incomplete(_DIFFERENT)

    try:
        persist(url, shown, work)
    except LocalWriteError as error:
        raise error.cause from None


def judge(error: BaseException, *, setting: str = "ingest.sources", verb: str = "read") -> Fault:
    """What an error of a store means: the outermost of it and its causes that says anything."""
    for one in _causes(error):
        status = _http_status(one)
        if isinstance(one, _Incomplete):
            return Fault(True, str(one))
        if type(one).__name__ == "FlexibleChecksumError":
            return Fault(True, _DIFFERENT)
        if isinstance(one, TimeoutError):
            return Fault(True, "it did not answer in time")
        if status in _PASSING_STATUS:
            return Fault(True, f"HTTP {status}")
        if isinstance(one, PermissionError) or status in (401, 403):
            return Fault(
                False, "access refused: check its permissions and, for a store, the credentials in the environment"
            )
        if status == 404 or (isinstance(one, FileNotFoundError) and one.__cause__ is None):
            return Fault(False, f"not found: check the path or URL ({setting})")
        if "Credentials" in type(one).__name__:
            return Fault(
                False, "no credentials: set them in the environment, e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if status is None and _is_passing(one):
            return Fault(True, f"the connection failed, {type(one).__name__}")
    what = "a package that this kind of URL needs" if isinstance(error, ImportError) else "the URL and the settings"
    return Fault(False, f"cannot be {verb} ({type(error).__name__}): check {what}")


class LocalWriteError(Exception):
    """The local disk refused; `cause` says why. Keeps its errors apart from the store's."""

    def __init__(self, cause: OSError) -> None:
        self.cause = cause


class _Incomplete(Exception):
    pass


class _GivenUp(Exception):
    pass


class _Attempt(Generic[T]):
    """`work` in a thread of its own, since a call into a library that hangs can only be left behind."""

    def __init__(self, work: Callable[[Beat], T], silence_s: float) -> None:
        self._work = work
        self._silence_s = silence_s
        self._deadline = 0.0
        self._given_up = False
        self._done = threading.Event()
        self._value: T
        self._error: BaseException | None = None

    def result(self) -> T:
        """What `work` returns or raises; TimeoutError once it has been silent for too long."""
        self._beat()
        threading.Thread(target=self._run, daemon=True, name="store").start()
        while not self._done.wait(max(0.0, self._deadline - time.monotonic())):
            if time.monotonic() >= self._deadline:
                self._given_up = True
                raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._value

    def _beat(self, times: float = 1) -> None:
        if self._given_up:
            raise _GivenUp
        self._deadline = time.monotonic() + times * self._silence_s

    def _run(self) -> None:
        try:
            self._value = self._work(self._beat)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            self._error = error
        self._done.set()


def _copy(source: Any, target: Path, beat: Beat) -> tuple[int, str]:
    """(bytes copied, their MD5 in hex)."""
    size, digest = 0, hashlib.md5(usedforsecurity=False)
    file = _write(lambda: target.open("wb"))
    with file:
        while block := source.read(_BLOCK_BYTES):
            beat()
            _write(functools.partial(file.write, block))
            digest.update(block)
            size += len(block)
        _write(file.flush)
    return size, digest.hexdigest()


def _write(action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        raise LocalWriteError(error) from None


def _md5_tag(details: dict[str, Any]) -> str | None:
    """The ETag where it may be an MD5; those of uploads in parts have a dash."""
    tag = str(details.get("ETag", "")).strip('"').lower()
    return tag if _MD5.fullmatch(tag) else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause's cause; no more than anyone chains on purpose."""
    one: BaseException | None = error
    for _ in range(10):
        if one is None:
            return
        yield one
        one = one.__cause__


def _http_status(error: BaseException) -> int | None:
    """As botocore, aiohttp and requests hold it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, OSError):
        if error.errno in _LASTING:
            return False
        # An OSError with a cause is a library's translation: the cause knows better.
        lasting = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)
        return error.__cause__ is None and not isinstance(error, lasting)
    return isinstance(error, EOFError) or any(kind.__name__ in _PASSING_KINDS for kind in type(error).__mro__)


def _forget_connections(url: str) -> None:
    """The next attempt begins with file systems of its own: one left behind may be in the middle of something."""
    for part in url.split("::"):
        protocol = fsspec.core.split_protocol(part)[0] or part
        if protocol in fsspec.available_protocols():
            fsspec.get_filesystem_class(protocol).clear_instance_cache()


def _number(name: str, default: float, *, least: float) -> float:
    text = os.environ.get(name, "").strip()
    try:
        value = float(text or default)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise ParamsError(f"{name}={text}: a number from {least:g} on is wanted, or nothing for {default:g}")
    return value
