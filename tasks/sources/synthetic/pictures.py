"""A folder of pictures as textures and backgrounds, instead of generated ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tasks.errors import DataError, SourceError
from tasks.sources.synthetic.draw import Draw
from tasks.sources.synthetic.scene import Texture
from tasks.sources.synthetic.textures import texture

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class PictureTexture:
    """Random cuts of pictures. Shrinking and stretching are bit-exact, so that cuts are the same on every machine."""

    paths: tuple[Path, ...]

    def __call__(
        self, draw: Draw, height: int, width: int, *, scale: float = 1.0, like: np.ndarray | None = None
    ) -> np.ndarray:
        """(height, width, 3) uint8 RGB: at least half of a picture's extent; `scale` and `like` do not apply."""
        picture = _read(draw.choice(self.paths))
        # In 1/256: the largest cut of this shape that fits, then a random share of it.
        fit = min(picture.shape[0] * 256 // height, picture.shape[1] * 256 // width)
        share = draw.integer(128, 256)
        side_y, side_x = (max(1, (side * fit >> 8) * share >> 8) for side in (height, width))
        top, left = draw.integer(0, picture.shape[0] - side_y), draw.integer(0, picture.shape[1] - side_x)
        cut = picture[top : top + side_y, left : left + side_x]
        shrunk = _shrink(cut, max(1, min(side_y // height, side_x // width)))
        return cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)


def open_texture(folder: str | None) -> Texture:
    """Textures from `folder`, or generated ones for None. Raises SourceError where it holds no picture."""
    return texture if folder is None else PictureTexture(list_pictures(folder))


def list_pictures(folder: str) -> tuple[Path, ...]:
    """Readable pictures of a folder, by name; none is decoded."""
    if not Path(folder).is_dir():
        raise SourceError(f"ingest.synthetic.pictures: {folder} is not a folder: name a folder of pictures, or null")
    paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        kinds = ", ".join(SUFFIXES)
        raise SourceError(f"ingest.synthetic.pictures: no picture in {folder} ({kinds}): name another folder, or null")
    return tuple(paths)


def _read(path: Path) -> np.ndarray:
    # Here and not above: generated textures need numpy and cv2 only.
    from tasks.picture_codec import decode_rgb

    try:
        return decode_rgb(path.read_bytes(), where=str(path), upright=True)
    except (OSError, DataError) as error:
        raise SourceError(f"{error}: mend it, or take it out of ingest.synthetic.pictures") from None


def _shrink(picture: np.ndarray, factor: int) -> np.ndarray:
    """Means of factor x factor pixels, in integers: cv2's own area interpolation sums floats."""
    if factor == 1:
        return np.ascontiguousarray(picture)
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    blocks = picture[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return ((blocks.sum((1, 3), dtype=np.int64) + factor * factor // 2) // (factor * factor)).astype(np.uint8)
