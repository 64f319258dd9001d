"""Seeded draws and fixed-point arithmetic: everything that decides a pixel is an integer.

A floating-point sum may differ in its last bit with the width of the vector unit or a fused multiply-add, and one such
bit changes a pixel. So random numbers are drawn as integers only (PCG64 is specified to the bit), sines come from
`math` and are rounded at once, and all blending is integer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

SUBPIXEL = 256
"""Positions are integers in 1/256 pixel."""
UNIT = 1 << 16
"""Matrices and sines are integers in 1/65536."""

_T = TypeVar("_T")


class Draw:
    """Random draws from PCG64 seeded by integers, in a fixed order."""

    def __init__(self, *entropy: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(entropy))))

    def integer(self, low: int, high: int) -> int:
        """low .. high, both included."""
        return int(self._rng.integers(low, high + 1))

    def array(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        """int32 array of low .. high, both included."""
        return self._rng.integers(low, high + 1, shape, dtype=np.int32)

    def real(self, low: float, high: float) -> float:
        """low .. high in steps of 1/65536, rounded so that any machine gets the same number."""
        return self.integer(round(low * UNIT), round(high * UNIT)) / UNIT

    def choice(self, values: Sequence[_T]) -> _T:
        return values[self.integer(0, len(values) - 1)]

    def order(self, n: int) -> list[int]:
        """A permutation of 0 .. n - 1."""
        keys = [self.integer(0, 2**62) for _ in range(n)]
        return sorted(range(n), key=keys.__getitem__)


def subpixels(value: float) -> int:
    """Pixels to 1/256 pixel."""
    return round(value * SUBPIXEL)


def turn(angle: float) -> tuple[int, int]:
    """(cos, sin) of radians, in 1/65536."""
    return round(math.cos(angle) * UNIT), round(math.sin(angle) * UNIT)


def fold(position: int, low: int, high: int) -> int:
    """Reflect a straight path between two walls: a bounce, however far it goes in one step."""
    span = high - low
    if span <= 0:
        return low
    along = (position - low) % (2 * span)
    return low + (along if along <= span else 2 * span - along)


def mirror(indices: np.ndarray, length: int) -> np.ndarray:
    """Indices into a picture that goes on for ever as its own mirror image."""
    along = indices % (2 * length)
    return np.where(along < length, along, 2 * length - 1 - along)


def sample(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples of picture (H, W, C) at x, y (N,) in 1/256 pixel, 0 being the centre of the first pixel.

    Outside, the nearest edge pixel. Returns (N, C) int32, of the picture's range.
    """
    height, width = picture.shape[:2]
    x, y = np.clip(x, 0, (width - 1) * SUBPIXEL), np.clip(y, 0, (height - 1) * SUBPIXEL)
    left, top = x >> 8, y >> 8
    right_weight, bottom_weight = (x & 255)[:, None], (y & 255)[:, None]
    right_step = (left < width - 1).astype(np.int32)
    bottom_step = (top < height - 1).astype(np.int32) * width
    flat = picture.reshape(height * width, -1)
    corner = top * width + left
    upper = flat[corner] * (256 - right_weight) + flat[corner + right_step] * right_weight
    lower = flat[corner + bottom_step] * (256 - right_weight) + flat[corner + bottom_step + right_step] * right_weight
    return (upper * (256 - bottom_weight) + lower * bottom_weight + (UNIT >> 1)) >> 16
