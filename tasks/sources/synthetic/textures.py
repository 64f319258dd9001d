"""Generated pictures: value noise of several octaves, gradients, stripes, checks, and shapes that are no objects."""

from __future__ import annotations

import numpy as np

from tasks.sources.synthetic.draw import Draw, turn
from tasks.sources.synthetic.shapes import coverage

KINDS = ("noise", "stripes", "checks", "gradient")
SHAPES = ("circle", "square", "triangle", "pentagon", "hexagon", "star")


def texture(draw: Draw, height: int, width: int, *, scale: float = 1.0, like: np.ndarray | None = None) -> np.ndarray:
    """(height, width, 3) uint8 RGB. `scale` stretches the pattern, not the grain; colours come from `like` if given."""
    kind = draw.choice(KINDS)
    periods = [max(2, round(scale * draw.integer(16, 40) / 2**octave)) for octave in range(4)]
    noise = value_noise(draw, height, width, periods)
    if kind == "noise":
        pattern = noise
    else:
        share = draw.integer(40, 120)
        pattern = (_PATTERNS[kind](draw, height, width, scale, noise) * (256 - share) + noise * share) >> 8
    coloured = _palette(draw, like)[np.clip(pattern, 0, 255)]
    grain = draw.array(-5, 5, (height, width, 1)) + draw.array(-3, 3, (height, width, 3))
    return np.clip(coloured + grain, 0, 255).astype(np.uint8)


def fade(picture: np.ndarray, contrast: float) -> np.ndarray:
    """`picture` (H, W, 3) uint8 drawn towards its mean colour: `contrast` of 1 leaves it, 0 leaves the mean alone."""
    if contrast == 1:
        return picture
    share = round(256 * contrast)
    mean = picture.sum((0, 1), dtype=np.int64) // (picture.shape[0] * picture.shape[1])
    return ((picture.astype(np.int32) * share + mean * (256 - share) + 128) >> 8).astype(np.uint8)


def add_distractors(draw: Draw, picture: np.ndarray, radius: tuple[float, float], scale: float) -> None:
    """Paint shapes filled with other parts of the picture, lighter or darker, into it: they are part of the background.

    They pan with it and are no instances; without them, any drawn outline would give an object away.
    """
    height, width = picture.shape[:2]
    source = picture.copy()
    for _ in range(draw.integer(3, 7)):
        shape, size = draw.choice(SHAPES), draw.real(*radius) * scale
        cover = coverage(shape, min(size, min(height, width) / 2))
        side_y, side_x = min(len(cover), height), min(len(cover), width)
        top, left = draw.integer(0, height - side_y), draw.integer(0, width - side_x)
        from_y, from_x = draw.integer(0, height - side_y), draw.integer(0, width - side_x)
        shade = draw.choice((-1, 1)) * draw.integer(12, 36)
        place = (slice(top, top + side_y), slice(left, left + side_x))
        fill = source[from_y : from_y + side_y, from_x : from_x + side_x].astype(np.int32) + shade
        alpha = cover[:side_y, :side_x, None].astype(np.int32)
        mixed = (picture[place] * (255 - alpha) + np.clip(fill, 0, 255) * alpha + 127) // 255
        picture[place] = mixed.astype(np.uint8)


def value_noise(draw: Draw, height: int, width: int, periods: list[int]) -> np.ndarray:
    """(height, width) int32 in 0 .. 255, the full range used. One octave per period in pixels, each half as strong."""
    total = np.zeros((height, width), np.int64)
    for octave, period in enumerate(periods):
        row, row_weight = _lattice(height, period)
        column, column_weight = _lattice(width, period)
        values = draw.array(0, 255, (int(row[-1]) + 2, int(column[-1]) + 2)).astype(np.int64)
        rows = values[row] * (256 - row_weight[:, None]) + values[row + 1] * row_weight[:, None]
        total += (rows[:, column] * (256 - column_weight) + rows[:, column + 1] * column_weight) >> octave
    return _stretch(total)


def _lattice(length: int, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Cell of each pixel, and its smooth-step weight of the next cell in 1/256."""
    position = np.arange(length, dtype=np.int64) * 256 // period
    part = position & 255
    return position >> 8, (part * part * (768 - 2 * part)) >> 16


def _stretch(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    return ((values - low) * 255 // max(high - low, 1)).astype(np.int32)


def _ramp(draw: Draw, height: int, width: int) -> np.ndarray:
    """Distance along a random direction, in 1/65536 pixel."""
    cos, sin = turn(draw.real(0, 6.2831))
    return np.arange(height, dtype=np.int64)[:, None] * sin + np.arange(width, dtype=np.int64)[None, :] * cos


def _stripes(draw: Draw, height: int, width: int, scale: float, noise: np.ndarray) -> np.ndarray:
    period = round(scale * draw.integer(6, 16) * 256)
    along = (_ramp(draw, height, width) >> 8) + noise * draw.integer(0, 8) * round(scale * 256) // 256
    phase = along % period * 512 // period
    wave = np.where(phase < 256, phase, 511 - phase)
    # A steeper triangle wave is a band with soft edges; plain thresholds would flicker when moved by part of a pixel.
    return np.clip((wave - 128) * draw.choice((1, 4)) + 128, 0, 255)


def _checks(draw: Draw, height: int, width: int, scale: float, noise: np.ndarray) -> np.ndarray:
    side = max(3, round(scale * draw.integer(4, 11)))
    rows, columns = np.arange(height) // side, np.arange(width) // side
    return ((rows[:, None] + columns[None, :]) & 1).astype(np.int64) * 255


def _gradient(draw: Draw, height: int, width: int, scale: float, noise: np.ndarray) -> np.ndarray:
    return _stretch(_ramp(draw, height, width)).astype(np.int64)


_PATTERNS = {"stripes": _stripes, "checks": _checks, "gradient": _gradient}


def _palette(draw: Draw, like: np.ndarray | None) -> np.ndarray:
    """(256, 3) int32: straight lines between a few colours, so that no single colour marks a texture."""
    count = draw.integer(2, 4)
    colours = [_colour(draw, like)]
    for _ in range(50):
        colour = _colour(draw, like)
        if np.abs(colour - colours[-1]).max() >= 60:
            colours.append(colour)
        if len(colours) == count:
            break
    count = len(colours)
    position = np.arange(256, dtype=np.int32) * (count - 1)
    cell, part = position >> 8, (position & 255)[:, None]
    stops = np.stack([*colours, colours[-1]])
    return (stops[cell] * (256 - part) + stops[cell + 1] * part) >> 8


def _colour(draw: Draw, like: np.ndarray | None) -> np.ndarray:
    if like is None:
        return draw.array(15, 240, (3,))
    return like[draw.integer(0, like.shape[0] - 1), draw.integer(0, like.shape[1] - 1)].astype(np.int32)
