"""One damaged input in a process that is watched: what it opens, writes, says and needs. For fuzz.py."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import resource
import shutil
import socket
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.fuzzing.damage import damage
from benchmarks.fuzzing.readers import Reader
from benchmarks.fuzzing.values import PLANTED_VARIABLE
from benchmarks.harness import peak_mib
from tasks.errors import MosisError, StorageError
from tasks.process import die_with_parent, pin_threads

PLANTED = "planted-5a1f"
"""In the value of the planted variable, in the name of the home folder, and in the file that no dataset may lead to."""
MAX_MORE_MIB = 1024
_HARD_MIB = 2 * MAX_MORE_MIB
"""Of address space more than the process has when it begins: threads reserve more than they use."""
_LONGEST = 5_000
_BROKEN = ("Cc", "Cs", "Zl", "Zp")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGING = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0, "os.rename": 1, "os.link": 1}


@dataclass
class Result:
    """finding: what must not be, in one line; None where the input was read or refused as it should be."""

    seed: int
    read: bool = False
    seconds: float = 0.0
    more_mib: float = 0.0
    finding: str | None = None
    kind: str = ""
    damage: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


class Watch:
    """What an audit hook sees of this process: writing outside `allowed`, opening what is outside, other machines."""

    def __init__(self, allowed: list[Path]) -> None:
        self._allowed = [os.path.realpath(path) for path in allowed]
        self._seen: list[str] = []
        self._on = False
        self.forbidden = ""
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def watching(self, forbidden: str) -> Iterator[list[str]]:
        """forbidden: a file that may not even be opened; empty: none."""
        self.forbidden, self._seen, self._on = forbidden, [], True
        try:
            yield self._seen
        finally:
            self._on = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int):
                return
            if isinstance(flags, int) and flags & _WRITING:
                self._judge("written", path)
            elif self.forbidden and os.path.realpath(path) in (self.forbidden, "/etc/passwd") and not _is_table(path):
                self._seen.append(f"opened {os.fsdecode(path)!r}")
        elif event in _CHANGING and not isinstance(arguments[_CHANGING[event]], int):
            descriptor = arguments[-1]  # of the folder that the path starts from
            if not (event in ("os.remove", "os.rmdir") and isinstance(descriptor, int) and descriptor >= 0):
                self._judge(event, arguments[_CHANGING[event]])
        elif event == "os.symlink":
            self._judge(event, arguments[1])
        elif event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
            self._seen.append(f"connected to {arguments[1]!r}"[:200])
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            self._seen.append(f"{event} {arguments[0]!r}"[:200])

    def _judge(self, what: str, path: Any) -> None:
        parent, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        full = os.path.join(os.path.realpath(parent), name)
        if full != os.devnull and not any(full == one or full.startswith(f"{one}/") for one in self._allowed):
            self._seen.append(f"{what} outside: {full!r}")


def _is_table(path: Any) -> bool:
    """Annotation files may be links of their user's; it is pictures and names in tables that go on into clips."""
    return os.path.islink(path) and os.fsdecode(path).endswith((".json", ".txt"))


def work(connection: Connection, readers: Mapping[str, Reader], specimens: Path, scratch: Path) -> None:
    """Main of the process: says ready, then takes (reader, seed, seconds), None for the end, and sends a Result."""
    die_with_parent()
    pin_threads(1)
    sys.dont_write_bytecode = True
    tried, temporary = scratch / "target", scratch / "temporary"
    _settle(scratch, temporary)
    watch = Watch([tried, temporary])
    for name, reader in readers.items():  # lazy imports and tables are no memory of an input's
        for case in sorted((specimens / name).iterdir()):
            result = _try(reader, specimens / name, scratch, watch, 0, case)
            if result.finding or not result.read:
                raise AssertionError(f"{name}: good data is not read: {result.finding or result.reasons}")
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + _HARD_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send(None)
    while (task := connection.recv()) is not None:
        name, seed, seconds = task
        faulthandler.dump_traceback_later(0.95 * seconds)  # the one who waits says where it hung
        result = _try(readers[name], specimens / name, scratch, watch, seed)
        faulthandler.cancel_dump_traceback_later()
        connection.send(asdict(result))


def _settle(scratch: Path, temporary: Path) -> None:
    """A home, a temporary folder and a current folder of its own; its output goes to a file."""
    for name in ("outside", f"home-{PLANTED}", "here"):
        (scratch / name).mkdir(exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    (scratch / "outside" / "secret").write_text(PLANTED)
    os.environ |= {
        "HOME": str(scratch / f"home-{PLANTED}"),
        PLANTED_VARIABLE: f"/value-{PLANTED}",
        "TMPDIR": str(temporary),
    }
    tempfile.tempdir = str(temporary)
    os.chdir(scratch / "here")
    log = os.open(scratch / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()


def _try(reader: Reader, specimen: Path, scratch: Path, watch: Watch, seed: int, case: Path | None = None) -> Result:
    """case: this folder of good data, undamaged; None: one that the seed chooses, and spoils."""
    result = Result(seed)
    folder, target = scratch / "input", scratch / "target"
    for one in (folder, target):
        shutil.rmtree(one, ignore_errors=True)
    chance = random.Random(f"{specimen.name} {seed}")
    shutil.copytree(chance.choice(sorted(specimen.iterdir())) if case is None else case, folder, copy_function=os.link)
    target.mkdir()
    if case is None:
        result.damage = damage(folder, chance, pipes=reader.kind != "file")
    os.truncate(scratch / "log.txt", 0)
    before_mib = _forget_peak()
    started = time.perf_counter()
    forbidden = os.path.realpath(scratch / "outside" / "secret") if reader.kind == "dataset" else ""
    with watch.watching(forbidden) as seen:
        texts = _read(reader, folder, target, result)
    result.seconds = time.perf_counter() - started
    result.more_mib = max(0.0, peak_mib() - before_mib)
    left = [path.name for path in (scratch / "temporary").iterdir() if not path.name.startswith("pymp-")]
    if result.finding is None:
        result.kind, result.finding = _judge(result, seen, left, texts)
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(scratch / "temporary")
    (scratch / "temporary").mkdir()
    result.reasons = [reason[:300] for reason in result.reasons[:5]]
    return result


def _read(reader: Reader, folder: Path, target: Path, result: Result) -> list[str]:
    """What a person would get to see."""
    try:
        outcome = reader.read(folder, target)
    except StorageError as error:
        result.kind, result.finding = "error", f"a damaged file is taken for a broken disk: {error}"
    except MosisError as error:
        result.reasons = [str(error)]
    except BaseException as error:  # noqa: BLE001 - whatever else comes out is what is looked for
        where = _where(error)
        text = " ".join(ascii(str(error))[:300].split())
        memory = isinstance(error, MemoryError)
        result.kind = "memory" if memory else "error"
        result.finding = f"{type(error).__name__} at {where}: {text}"
    else:
        result.read, result.reasons = outcome.read > 0, outcome.reasons
        if not outcome.read and not outcome.reasons:
            result.kind, result.finding = "error", "neither read nor refused with a reason"
        return [*outcome.shown, *outcome.reasons]
    return result.reasons


def _where(error: BaseException) -> str:
    """The innermost line of ours."""
    place, trace = "?", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if any(f"/{part}/" in name for part in ("tasks", "models", "benchmarks")):
            place = f"{'/'.join(Path(name).parts[-3:])}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _judge(result: Result, seen: list[str], left: list[str], texts: list[str]) -> tuple[str, str | None]:
    """(kind of finding, finding) of a run that ended as it should."""
    if seen:
        return "error", seen[0]
    if left:
        return "error", f"left behind among temporary files: {left[0]!r}"
    if result.more_mib > MAX_MORE_MIB:
        return "memory", f"took {result.more_mib:.0f} MiB more"
    for text in texts:
        if any(unicodedata.category(character) in _BROKEN for character in text):
            return "error", f"not one line of text: {ascii(text)[:300]}"
        if len(text) > _LONGEST:
            return "error", f"a message of {len(text)} characters: {ascii(text)[:200]}"
        if PLANTED in text:
            return "error", f"a secret is shown: {ascii(text)[:300]}"
    return "", None


def _forget_peak() -> float:
    """MiB of memory now; the peak counts from here, where Linux lets it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_mib()
