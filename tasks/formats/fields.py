"""Fields of label files from anywhere: taken one by one, checked, and refused in one line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from tasks.errors import DataError
from tasks.picture_codec import MAX_PIXELS

CATEGORY_ID = 1
CATEGORIES = [{"id": CATEGORY_ID, "name": "object", "supercategory": "object"}]
"""All that a class-agnostic segmenter knows."""
_MAX_ID = 2**63


def take_list(document: dict[str, Any], key: str, *, where: str) -> list[dict[str, Any]]:
    """A list of objects. Raises DataError."""
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise DataError(f"{where}: {key} must be a list of objects")
    return value


def take_id(entry: dict[str, Any], key: str, *, where: str) -> int:
    value = entry.get(key)
    if type(value) is not int or not 0 <= value < _MAX_ID:
        raise DataError(f"{where}: {key} must be a whole number, not {_shown(value)}")
    return value


def take_size(entry: dict[str, Any], *, where: str) -> tuple[int, int]:
    """(height, width), bounded as pictures are."""
    height, width = entry.get("height"), entry.get("width")
    if type(height) is not int or type(width) is not int or height < 1 or width < 1:
        raise DataError(f"{where}: height and width must be whole numbers above 0")
    if height * width > MAX_PIXELS:
        raise DataError(f"{where}: claims {width} x {height}, more than {MAX_PIXELS // 10**6} megapixels: refused")
    return height, width


def check_file_name(name: Any, *, where: str) -> str:
    """A relative path that stays below the folder it is joined to. Raises DataError."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise DataError(f"{where}: {_shown(name)} is not a file name")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or (len(name) > 1 and name[1] == ":"):
        raise DataError(f"{where}: {_shown(name)} points outside the data's folder: refused")
    return name


def check_box(value: Any, *, where: str) -> list[float]:
    """[x, y, width, height], as it was written."""
    if not isinstance(value, list) or len(value) != 4 or not all(_is_number(v) for v in value):
        raise DataError(f"{where}: a box is [x, y, width, height], not {_shown(value)}")
    if value[2] < 0 or value[3] < 0:
        raise DataError(f"{where}: a box of negative size: {_shown(value)}")
    return value


def check_area(value: Any, *, where: str) -> float:
    if not _is_number(value) or value < 0:
        raise DataError(f"{where}: area must be a number, not {_shown(value)}")
    return float(value)


def check_unique(numbers: Iterable[int], *, where: str) -> None:
    seen: set[int] = set()
    for number in numbers:
        if number in seen:
            raise DataError(f"{where}: id {number} stands twice")
        seen.add(number)


def rest_of(entry: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """What other writers, or we, added: readers of COCO ignore keys that they do not know."""
    taken = set(known)
    return {key: value for key, value in entry.items() if key not in taken}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e12


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
