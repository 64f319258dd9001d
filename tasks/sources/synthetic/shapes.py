"""Anti-aliased outlines of the thesis' six shapes, inscribed in a circle of the given radius."""

from __future__ import annotations

import math

import numpy as np

from tasks.sources.synthetic.draw import SUBPIXEL, subpixels

_SAMPLES = 8
"""Points per pixel side that decide how much of a pixel is covered."""
_CORNERS = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
_STAR_TIPS = 5
_STAR_INNER = 0.5


def half_side(radius: float) -> int:
    """Half the side in pixels of the picture that holds a shape, with a transparent rim for interpolation."""
    return math.ceil(radius) + 2


def coverage(shape: str, radius: float) -> np.ndarray:
    """(S, S) uint8, S = 2 half_side: how much of each pixel the shape covers, 0 .. 255; it is centred."""
    side = 2 * half_side(radius)
    points = (2 * np.arange(side * _SAMPLES, dtype=np.int64) + 1) * SUBPIXEL // (2 * _SAMPLES) - side * SUBPIXEL // 2
    x, y = points[None, :], points[:, None]
    if shape == "circle":
        inside = x * x + y * y <= subpixels(radius) ** 2
    else:
        inside = _inside_polygon(x, y, corners(shape, radius))
    counts = inside.reshape(side, _SAMPLES, side, _SAMPLES).sum((1, 3), dtype=np.int64)
    return (counts * 255 // _SAMPLES**2).astype(np.uint8)


def corners(shape: str, radius: float) -> list[tuple[int, int]]:
    """(x, y) in 1/256 pixel around the centre, y down; one corner points up, a square stands on its side."""
    if shape == "star":
        radii = [radius if i % 2 == 0 else radius * _STAR_INNER for i in range(2 * _STAR_TIPS)]
    else:
        radii = [radius] * _CORNERS[shape]
    first = -math.pi / 4 if shape == "square" else -math.pi / 2
    angles = [first + 2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [(subpixels(r * math.cos(a)), subpixels(r * math.sin(a))) for r, a in zip(radii, angles, strict=True)]


def _inside_polygon(x: np.ndarray, y: np.ndarray, points: list[tuple[int, int]]) -> np.ndarray:
    """Even-odd rule in exact integers."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        crosses = (y1 > y) != (y2 > y)
        side = (x - x1) * (y2 - y1) - (x2 - x1) * (y - y1)
        inside ^= crosses & ((side < 0) if y2 > y1 else (side > 0))
    return inside
