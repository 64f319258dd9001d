"""Pictures, masks and optical flow to bytes and back: headers are read and bounded before anything is decoded."""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tasks.errors import DataError

MAX_PIXELS = 64_000_000
"""Pictures that claim more are refused before decoding."""

_EXIF_ORIENTATION = 0x0112
_MASK_FORMATS = ("BMP", "PNG", "PPM")
_EXACT_16_BIT = ("I", "I;16", "I;16B")
_BROKEN_PICTURE = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, OverflowError, zlib.error)
_KITTI_SCALE, _KITTI_OFFSET = 64.0, 2**15


@dataclass(frozen=True)
class PictureHeader:
    """What a picture says of itself. size: (height, width) as stored, before `orientation` (EXIF, 1 = upright)."""

    size: tuple[int, int]
    suffix: str
    mode: str
    orientation: int

    @property
    def is_plain(self) -> bool:
        """An upright 8-bit grey or RGB JPEG or PNG: its own bytes can be kept."""
        return self.orientation == 1 and self.mode in ("RGB", "L") and self.suffix in (".jpg", ".png")


@dataclass(frozen=True)
class Encoded:
    """The bytes of a picture with the header that was read from them, and their CRC-32 where it was taken."""

    data: bytes
    header: PictureHeader
    crc: int | None = None


def read_header(data: bytes, *, where: str) -> PictureHeader:
    """Header of a picture. Raises DataError where it is no picture or claims more than MAX_PIXELS; decodes nothing."""
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(io.BytesIO(data))
        with image:
            width, height = image.size
            # The base class, because the PNG reader would decode the whole picture in search of a late chunk.
            exif_orientation = Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)
            header = PictureHeader(
                (height, width),
                {"JPEG": ".jpg", "PNG": ".png"}.get(image.format or "", ""),
                image.mode,
                exif_orientation if exif_orientation in range(1, 9) else 1,
            )
    except Image.DecompressionBombError:
        raise DataError(f"{where}: claims far more than {MAX_PIXELS // 10**6} megapixels: picture refused") from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, OverflowError):
        raise DataError(f"{where}: not a picture that can be read") from None
    if not 0 < width * height <= MAX_PIXELS:
        raise DataError(
            f"{where}: claims {width} x {height}, more than {MAX_PIXELS // 10**6} megapixels: picture refused"
        )
    return header


def check_whole(data: bytes, *, where: str) -> None:
    """Decode a picture and drop it: DataError where it is cut short or damaged, which OpenCV paints over in grey."""
    read_header(data, where=where)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except _BROKEN_PICTURE:
        raise DataError(f"{where}: the picture is cut short or damaged") from None


def decode_rgb(data: bytes, *, size: tuple[int, int] | None = None, where: str, upright: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an encoded picture of any depth; alpha is dropped, grey repeated.

    size: (height, width) that the header must claim. upright: turn the picture as its EXIF orientation says.
    """
    header = read_header(data, where=where)
    if size is not None and header.size != size:
        claimed = f"{header.size[1]} x {header.size[0]}"
        raise DataError(f"{where}: is {claimed}, the clip is {size[1]} x {size[0]}: ingest the source again")
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        frame = None
    if frame is None:
        raise DataError(f"{where}: the picture is damaged and cannot be decoded")
    return frame


def encode_rgb(frame: np.ndarray | bytes | Encoded, *, jpeg_quality: int | None, where: str) -> tuple[bytes, str]:
    """(bytes, suffix) of (H, W, 3) uint8 RGB as JPEG, or PNG where `jpeg_quality` is None. Bytes pass through."""
    if isinstance(frame, bytes):
        frame = Encoded(frame, read_header(frame, where=where))
    if isinstance(frame, Encoded):
        if not frame.header.suffix:
            raise DataError(f"{where}: neither JPEG nor PNG: decode it first")
        return frame.data, frame.header.suffix
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"{where}: frames are (H, W, 3) uint8 RGB, not {frame.shape} {frame.dtype}")
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    if jpeg_quality is None:
        return _encode(".png", bgr), ".png"
    return _encode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]), ".jpg"


def decode_labels(data: bytes, *, size: tuple[int, int] | None = None, where: str) -> np.ndarray:
    """(H, W) uint8, uint16 or int32: the ids that a mask picture (PNG, BMP, PGM or PPM) has in its pixels.

    Of a palette picture the indices, of a grey one the levels (8 or 16 bit); of a coloured one the level where red,
    green and blue are equal, else 256 + 65536 red + 256 green + blue. Alpha is dropped. size: (height, width)
    that the header must claim.
    """
    header = read_header(data, where=where)
    if size is not None and header.size != size:
        claimed = f"{header.size[1]} x {header.size[0]}"
        raise DataError(f"{where}: is {claimed}, its picture {size[1]} x {size[0]}: mask refused")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format not in _MASK_FORMATS or (image.mode not in _EXACT_16_BIT and _is_16_bit_png(data)):
                raise DataError(f"{where}: no mask of exact ids: expected a PNG, BMP, PGM or PPM, with 8 bits a colour")
            image.load()
            pixels = np.asarray(image)
            mode = image.mode
    except DataError:
        raise
    except _BROKEN_PICTURE:
        raise DataError(f"{where}: the picture is cut short or damaged") from None
    if mode in ("P", "L", "1", *_EXACT_16_BIT):
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    if mode == "LA":
        return np.ascontiguousarray(pixels[..., 0])
    if mode not in ("RGB", "RGBA"):
        raise DataError(f"{where}: a picture of mode {mode} is no mask")
    red, green, blue = (pixels[..., channel] for channel in range(3))
    ids = np.add(blue, 256, dtype=np.int32)  # in place from here on: MAX_PIXELS are a quarter of a gigabyte in int32
    for channel, bits in ((green, 8), (red, 16)):
        ids += np.left_shift(channel, bits, dtype=np.int32)
    np.copyto(ids, red, where=(red == green) & (green == blue))
    return ids


def _is_16_bit_png(data: bytes) -> bool:
    """By the bit depth in its header: the reader would drop the lower half of each colour."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10"


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> {"size": [H, W], "counts": ASCII str}, as pycocotools writes it."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Any, size: tuple[int, int], *, where: str) -> np.ndarray:
    """(H, W) bool. Raises DataError unless the RLE has this size and its runs fill it exactly."""
    return coco_mask.decode(check_rle(rle, size, where=where)).astype(bool)


def check_rle(rle: Any, size: tuple[int, int], *, where: str) -> dict[str, Any]:
    """The RLE as `encode_rle` writes it. Raises DataError unless it has this size and its runs fill it exactly."""
    try:
        counts = rle["counts"].encode("ascii")
        claimed = [int(side) for side in rle["size"]]
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError):
        raise DataError(f"{where}: not a run-length encoded mask") from None
    if claimed != list(size) or _sum_runs(counts) != size[0] * size[1]:
        raise DataError(f"{where}: run lengths do not fill {size[1]} x {size[0]}: mask refused")
    return {"size": claimed, "counts": rle["counts"]}


def encode_flow(flow_uv: np.ndarray) -> bytes:
    """(H, W, 2) float32 pixels -> 16-bit KITTI PNG (R: u * 64 + 2^15, G: v likewise, B: 1 where known).

    Steps of 1/64 px within +-511 px; NaN and what lies outside becomes unknown.
    """
    scaled = np.rint(flow_uv * _KITTI_SCALE + _KITTI_OFFSET)
    known = np.all((scaled >= 0) & (scaled <= 2**16 - 1), axis=-1)
    scaled = np.where(np.expand_dims(known, -1), scaled, 0).astype(np.uint16)
    bgr = np.dstack([known.astype(np.uint16), scaled[..., 1], scaled[..., 0]])
    return _encode(".png", bgr)


def decode_flow(data: bytes, *, size: tuple[int, int], where: str) -> np.ndarray:
    """(H, W, 2) float32 pixels, NaN where unknown: the inverse of `encode_flow`."""
    if read_header(data, where=where).size != size:
        raise DataError(f"{where}: its size is not the clip's: ingest the source again")
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        bgr = None
    if bgr is None or bgr.dtype != np.uint16 or bgr.shape != (*size, 3):
        raise DataError(f"{where}: not a 16-bit KITTI picture")
    flow_uv = (bgr[..., :0:-1].astype(np.float32) - _KITTI_OFFSET) / _KITTI_SCALE
    flow_uv[bgr[..., 0] == 0] = np.nan
    return flow_uv


def _encode(suffix: str, bgr: np.ndarray, options: list[int] | None = None) -> bytes:
    done, data = cv2.imencode(suffix, bgr, options or [])
    assert done
    return bytes(data)


def _sum_runs(counts: bytes) -> int:
    """Pixels that COCO's compressed counts cover, or -1 where they are malformed.

    Checked before decoding because the C code trusts its input: 6-bit characters from '0', low 5 bits are data, bit 5
    continues, bit 4 of the last is the sign, and from the fourth run on each is a difference to the one two before.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        digit = character - 48
        if not 0 <= digit < 64 or shift > 30:
            return -1
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        value += runs[-2] if len(runs) > 2 else 0
        if not 0 <= value < 2**32:
            return -1
        runs.append(value)
        value, shift = 0, 0
    return sum(runs) if shift == 0 else -1
