"""A picture as sample_data has it, checked field by field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tasks.errors import DataError
from tasks.picture_codec import MAX_PIXELS
from tasks.sources.places import escape_unprintable

MAX_NAME = 1_000
# No character that a URL gives a meaning to (: ? # % * [) or that stands for a variable of the environment ($).
FILE_NAME = re.compile(r"[\w+.,=@ ()-]+(/[\w+.,=@ ()-]+)*")
_MICROSECONDS = range(10**14, 10**16)
"""Unix times of the years 1973 to 2286."""
_UNITS = {"seconds": (1e8, 1e11), "milliseconds": (1e11, 1e14), "nanoseconds": (1e17, 1e19)}


@dataclass(frozen=True, slots=True)
class Picture:
    """What sample_data tells of a picture. prev, next: tokens of its neighbours in time, "" where there is none."""

    token: str
    prev: str
    next: str
    time_us: int
    file_name: str
    is_key: bool


def to_picture(record: dict[str, Any]) -> Picture:
    """A record of sample_data, checked. Raises DataError."""
    before, after, time_us, name = (record.get(key) for key in ("prev", "next", "timestamp", "filename"))
    if type(before) is not str or type(after) is not str:
        raise DataError("prev and next must be tokens")
    if type(time_us) is not int or time_us not in _MICROSECONDS:
        raise DataError(_explain_time(time_us))
    if type(name) is not str or len(name) > MAX_NAME or not FILE_NAME.fullmatch(name) or ".." in name.split("/"):
        raise DataError(f"filename {show(name)} does not name a file below the root: refused")
    width, height = record.get("width"), record.get("height")
    if type(width) is not int or type(height) is not int or not (width > 0 and 0 < height <= MAX_PIXELS // width):
        raise DataError(f"claims {show(width)} x {show(height)} pixels: refused")
    if type(record.get("is_key_frame")) is not bool:
        raise DataError("is_key_frame must be true or false")
    return Picture(record["token"], before, after, time_us, name, record["is_key_frame"])


def _explain_time(value: Any) -> str:
    units = [unit for unit, (low, high) in _UNITS.items() if type(value) in (int, float) and low <= value < high]
    looks = f", which looks like {units[0]}" if units else ""
    return f"timestamp {show(value)}{looks}: must be whole microseconds since 1970, convert the table"


def show(value: Any) -> str:
    """A value of a table for a message: short, and without what would break a line."""
    text = escape_unprintable(str(value)[:100])
    return text if len(text) <= 60 else text[:57] + "..."
