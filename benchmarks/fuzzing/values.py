"""Damage by seed to bytes, and to the values of JSON and YAML: hostile ones in the place of good ones."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import yaml

PLANTED_VARIABLE = "MOSIS_FUZZ_PLANTED"
"""Environment variable whose value may show nowhere; hostile names ask for it."""
OUTSIDE = "../outside/secret"
"""A file beside the input's folder, which no dataset may lead to."""

_DEEP, _LONG = "@@deep@@", "@@long@@"
_HOSTILE: tuple[Any, ...] = (
    *(float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, -0.0, 0.5, -1, 0, 1, 2, 255, 256),
    *(10**10, -(10**10), 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 10**400),
    *(None, True, False, [], {}, [[]], [None], {"": ""}, [0] * 4, ["a"] * 3, [1e308] * 4, [float("nan")] * 4),
    *("", " ", "0", "-1", "\0", "\n", "a\nb", "\x1b[2J", "\u2028", "\ud800", "ä", "a" * 300, "a" * 100_000, "%s%n"),
    *("..", ".", "/", "~", "~/x", OUTSIDE, f"../../{OUTSIDE}", f"a/../../../{OUTSIDE}", "/etc/passwd", "C:\\x"),
    *(f"${{{PLANTED_VARIABLE}}}", "${HOME}", "$HOME", "${UNSET_ONE}", "::", "a::b", "zip://a::b", "file:///etc/passwd"),
    *("http://127.0.0.1:9/x", "s3://bucket/key", "memory://x", "00000.jpg", "a/../00000.jpg", "*", "[", "#?%2e%2e/"),
    *({"size": [10**5, 10**5], "counts": "0"}, {"size": [48, 64], "counts": [3072]}, {"size": [48, 64], "counts": "o"}),
    *({"counts": [10**12], "size": [10**6, 10**6]}, [[0, 0, 1e9, 0, 1e9, 1e9]], [[0.0] * 6], [[1e308] * 8]),
    *(_DEEP, _LONG),
)
_WORDS = (b'"', b"[", b"]", b"{", b"}", b",", b":", b"NaN", b"-", b"1e999", b"null", b"\xff", b"\0", b"\\u0000", b"\n")
_YAML = (
    *(
        "a: &a [x, x, x, x, x, x, x, x, x]",
        "- *a",
        "? [1]\n: 2",
        "2026-99-99",
        "9" * 5000,
        "[" * 10_000,
        "!!python/x 1",
    ),
    *("<<: 1", "'", "\t", ":", "&a", "*b", "!!int a", "!!float x", "!!timestamp x", "!!binary x", "1:99:99", ".nan"),
    *("{" * 2_000, "- " * 5_000, "\x07", "\ufeff", "--- 1\n--- 2", "%YAML 9.9", "!!python/x 1"),
)
_BOMB = "&a [x,x,x,x,x,x,x,x]"


def spoil_bytes(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    kind = chance.choice(("flip", "flip", "zero", "delete", "double", "cut", "number", "number", "word", "noise"))
    spoiled = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64)) if kind != "cut" else 1):
        at, length = _place(len(spoiled), chance)
        if kind == "flip" and spoiled:
            spoiled[at] ^= 1 << chance.randrange(8)
        elif kind == "zero":
            spoiled[at : at + length] = bytes(min(length, len(spoiled) - at))
        elif kind == "delete":
            del spoiled[at : at + length]
        elif kind == "double":
            spoiled[at:at] = spoiled[at : at + length]
        elif kind == "cut":
            del spoiled[at:]
        elif kind == "number":
            size = chance.choice((1, 2, 4, 8))
            value = chance.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, 65_500))
            spoiled[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, chance.choice(("big", "little")))
        elif kind == "word":
            spoiled[at : at + chance.choice((0, 1))] = chance.choice(_WORDS)
        else:
            spoiled[at : at + length] = chance.randbytes(min(length, 64))
    return kind, bytes(spoiled)


def _place(size: int, chance: random.Random) -> tuple[int, int]:
    """(where, how many bytes). Ends are hit more often than the middle: that is where headers and indices lie."""
    if not size:
        return 0, 1
    near = min(size, chance.choice((64, 1024, size, size)))
    at = chance.randrange(near)
    length = chance.choice((1, 4, 16, max(1, size // 10)))
    return (at if chance.random() < 0.6 else size - 1 - at), length


def spoil_json(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    document = json.loads(data)
    done = [spoil_value(document, chance) for _ in range(chance.choice((1, 1, 1, 2, 5)))]
    text = json.dumps(document)
    text = text.replace(f'"{_DEEP}"', "[" * 10_000 + "]" * 10_000).replace(f'"{_LONG}"', "9" * 5_000)
    if chance.random() < 0.05:
        text = text.replace("{", '{"id": 1, "token": "a", ', 1)
    return ", ".join(done), text.encode("utf-8", "surrogatepass")


def spoil_value(document: Any, chance: random.Random) -> str:
    """Replace, remove or double one value of a JSON document, in place."""
    parent: Any = None
    key: Any = None
    way: list[str] = []
    value = document
    while isinstance(value, (dict, list)) and value and (parent is None or chance.random() < 0.8):
        parent, key = value, chance.choice(sorted(value) if isinstance(value, dict) else range(len(value)))
        way.append(str(key))
        value = parent[key]
    where = ".".join(way[:6])
    kind = chance.choice(("replace", "replace", "replace", "replace", "remove", "double", "copy", "rename"))
    if parent is None:
        return "empty"
    if kind == "replace":
        parent[key] = chance.choice(_HOSTILE)
        return f"{where} = {ascii(parent[key])[:60]}"
    if kind == "remove":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[str(chance.choice(_HOSTILE))] = parent.pop(key)
    elif kind == "double" and isinstance(parent, list):
        parent.extend([value] * chance.choice((1, 3, 1000)))
    else:  # another's value in its place: ids twice, links in a circle, masks of other sizes
        other = chance.choice(sorted(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key] = parent[other]
    return f"{kind} {where}"


def spoil_yaml(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    lines = data.decode().splitlines()
    if chance.random() < 0.5:
        document = yaml.safe_load(data)
        done = spoil_value(document, chance)
        text = yaml.safe_dump(document)
        return done, text.replace(_DEEP, "[" * 10_000).replace(_LONG, "9" * 5_000).encode("utf-8", "surrogatepass")
    at = chance.randrange(len(lines))
    word = chance.choice((*_YAML, _BOMB))
    if word == _BOMB:
        # A name for eight of the one before, ten times over: a few hundred bytes, a billion values.
        pairs = itertools.pairwise("abcdefghijk")
        bomb = [f"a: {_BOMB}", *(f"{b}: &{b} [{','.join([f'*{a}'] * 8)}]" for a, b in pairs)]
        chosen = chance.choice((0, len(lines)))
        lines[chosen:chosen] = bomb
        if chance.random() < 0.5:
            lines = [*bomb, "ingest: {sources: *k}"]
    else:
        lines[at] = lines[at].partition(":")[0] + ": " + word if chance.random() < 0.6 else word
    return f"line {at}: {word[:20]!r}", "\n".join(lines).encode()
