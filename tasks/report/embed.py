"""Pictures inside the page, as data: URIs, within a budget."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tasks.errors import DataError
from tasks.picture_codec import check_whole, decode_rgb, encode_rgb, read_header

MAX_WIDTH = 960
MAX_BYTES = 128 * 1024
"""Of one picture as it is; a larger one is encoded again."""
BUDGET = 3 * 2**20
"""Bytes of all pictures of a page together."""
_MAX_FILE = 32 * 2**20
_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """width, height: pixels, so that the page does not jump while it loads."""

    source: str
    width: int
    height: int


class Album:
    """Hands out pictures of one page until its budget is spent, and counts what is left out."""

    def __init__(self, budget: int = BUDGET) -> None:
        self.left = budget
        self.omitted = 0
        self.unreadable: list[str] = []

    def embed(self, path: Path, folder: Path) -> Picture | None:
        """The picture at `path`, which must lie in `folder`, or None: too much already, missing, broken, elsewhere."""
        try:
            data, mime, size = _load(path, folder)
        except DataError as error:
            self.unreadable.append(str(error))
            return None
        if len(data) > self.left:
            self.omitted += 1
            return None
        self.left -= len(data)
        return Picture(f"data:{mime};base64,{base64.b64encode(data).decode()}", size[1], size[0])


def _load(path: Path, folder: Path) -> tuple[bytes, str, tuple[int, int]]:
    """Bytes fit to embed, their type and (height, width)."""
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{path.name} lies outside {folder.name}: picture refused")
        if path.stat().st_size > _MAX_FILE:
            raise DataError(f"{path.name} is larger than {_MAX_FILE // 2**20} MiB: picture refused")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    header = read_header(data, where=path.name)
    if header.is_plain and len(data) <= MAX_BYTES and header.size[1] <= MAX_WIDTH:
        check_whole(data, where=path.name)
        return data, "image/jpeg" if header.suffix == ".jpg" else "image/png", header.size
    image = _shrink(decode_rgb(data, where=path.name, upright=True))
    data, _ = encode_rgb(image, jpeg_quality=_QUALITY, where=path.name)
    return data, "image/jpeg", (image.shape[0], image.shape[1])


def _shrink(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if width <= MAX_WIDTH:
        return image
    size = (MAX_WIDTH, max(1, round(height * MAX_WIDTH / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
