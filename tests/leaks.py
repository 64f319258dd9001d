"""Where a secret could be seen: files, git's objects, command lines, what was printed; and what listens where."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import subprocess
import urllib.parse
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flows.processes import Process


def find(secrets: Iterable[str], places: Mapping[str, bytes]) -> list[str]:
    """Names of the places that hold one of the secrets, as it is or as URLs and headers write it."""
    wanted = {form for secret in secrets for form in _forms(secret)}
    return sorted(name for name, content in places.items() if any(form in content for form in wanted))


def _forms(secret: str) -> set[bytes]:
    plain = secret.encode()
    return {plain, urllib.parse.quote(secret, safe="").encode(), base64.b64encode(plain).rstrip(b"=")}


def files(folder: Path) -> dict[str, bytes]:
    """Every file below it, those of servers and databases too, and its own name."""
    found = {}
    for place, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):
                if os.path.isfile(path) and not os.path.islink(path):
                    with open(path, "rb") as file:
                        found[repr(path)] = path + b"\n" + file.read()
    return found


def git_objects(workspace: Path) -> dict[str, bytes]:
    """Each object of git, unpacked: they are compressed on the disk."""
    found = {}
    for path in (workspace / ".git" / "objects").glob("??/*"):
        found[f"git {path.parent.name}{path.name}"] = zlib.decompress(path.read_bytes())
    packed = subprocess.run(["git", "cat-file", "--batch-all-objects", "--batch"], cwd=workspace, capture_output=True)
    return {**found, "git, all": packed.stdout}


def command_lines(processes: Iterable[Process]) -> dict[str, bytes]:
    """What every user of the machine may read of them."""
    found = {}
    for process in processes:
        with contextlib.suppress(OSError):
            found[f"process {process.pid}"] = Path("/proc", str(process.pid), "cmdline").read_bytes()
    return found


def said(texts: Sequence[str]) -> dict[str, bytes]:
    return {f"printed {number}": text.encode() for number, text in enumerate(texts)}


def listening(processes: Iterable[Process]) -> set[tuple[str, int]]:
    """(address, port) of all TCP sockets at which one of them listens."""
    inodes = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for handle in Path("/proc", str(process.pid), "fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(handle))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].partition(":")
                found.add((_address(address), int(port, 16)))
    return found


def _address(text: str) -> str:
    """As people write it; the kernel prints words of four bytes in the machine's order."""
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))
