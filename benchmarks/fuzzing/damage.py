"""Damage by seed to a folder: the same seed spoils the same good files in the same way."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

from benchmarks.fuzzing.containers import spoil
from benchmarks.fuzzing.values import OUTSIDE, PLANTED_VARIABLE

_NAMES = (
    *("a\nb", "\x1b[31m", "\udcff", "a::b", "${HOME}", f"${{{PLANTED_VARIABLE}}}", "-rf", "%00", "a b", "\u2028"),
    *("http:", "*", "[a]", "a" * 200, "0" * 200, ".hidden", "00001", "99999999999999999999", "١٢٣", "①"),
)
_LINKS = ("loop", OUTSIDE, "/etc/passwd", ".", "..", "/dev/null", "absent")
_PICTURES = (".jpg", ".png", ".bmp", ".tif", ".webp", ".pgm", ".ppm", ".gif")


def damage(folder: Path, chance: random.Random, *, pipes: bool) -> list[str]:
    """Spoil one to three things below `folder`; what was done, for a person. pipes: whether a file may become one."""
    return [_spoil_one(folder, chance, pipes=pipes) for _ in range(chance.choice((1, 1, 1, 2, 3)))]


def _spoil_one(folder: Path, chance: random.Random, *, pipes: bool) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "nothing left"
    # Lists and tables say how all else is read, and are outnumbered by pictures.
    tables = [path for path in files if path.suffix not in _PICTURES]
    path = chance.choice(tables if tables and chance.random() < 0.6 else files)
    name = path.relative_to(folder).as_posix()
    if chance.random() < 0.12:
        return f"{name}: {_move(path, files, chance, pipes=pipes)}"
    data = path.read_bytes()
    how, spoiled = spoil(data, path.suffix, chance)
    _put(path, spoiled)
    return f"{name}: {how}"


def _put(path: Path, data: bytes) -> None:
    """A new file: the old one may be a link to the good one."""
    path.unlink()
    path.write_bytes(data)


def _move(path: Path, files: list[Path], chance: random.Random, *, pipes: bool) -> str:
    """Damage to the folder: files gone, swapped, under other names, links, pipes, very long ones."""
    kind = chance.choice(("remove", "swap", "rename", "rename", "link", "link", "folder", "pipe", "empty", "sparse"))
    data = path.read_bytes()
    path.unlink()
    if kind == "swap":
        other = chance.choice(files)
        path.write_bytes(other.read_bytes() if other != path else b"")
    elif kind == "rename":
        name = chance.choice(_NAMES) + chance.choice(("", path.suffix, path.suffix.upper(), ".jpg"))
        with contextlib.suppress(OSError):
            path.with_name(name).write_bytes(data)
        return f"renamed {name!r}"
    elif kind == "link":
        target = chance.choice(_LINKS)
        inside = path.name if target == "loop" else target
        depth = len(path.relative_to(_root(files, path)).parts) - 1
        path.symlink_to("../" * depth + inside if target == OUTSIDE else inside)
        return f"link to {target}"
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe" and pipes:
        os.mkfifo(path)
    elif kind in ("empty", "sparse"):
        with path.open("wb") as file:
            file.write(data if kind == "sparse" else b"")
            file.truncate(
                len(data) + (700 if pipes and chance.random() < 0.1 else 1) * 2**20 if kind == "sparse" else 0
            )
    return kind


def _root(files: list[Path], path: Path) -> Path:
    return Path(os.path.commonpath([one.parent for one in [*files, path]]))
