"""A camera that shakes and zooms: what it does to everything in view, in integers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tasks.sources.synthetic.draw import SUBPIXEL, UNIT


@dataclass(frozen=True)
class Pose:
    """An object at one frame: image = matrix @ bent(local) + centre.

    centre: (x, y) in 1/256 pixel. matrix, inverse: row-major 2x2 in 1/65536.
    bend_phases: of the two outline waves, in 1/1024 turn.
    """

    centre: tuple[int, int]
    matrix: tuple[int, int, int, int]
    inverse: tuple[int, int, int, int]
    bend_phases: tuple[int, int]
    reach: int
    """Pixels from the centre beyond which nothing of the object lies."""


@dataclass(frozen=True)
class Camera:
    """A point p of the scene is seen at middle + zoom (p - middle) - shift, in 1/256 pixel from the frame's corner.

    shifts: per frame (x, y) in 1/256 pixel. zooms: per frame in 1/65536. Both empty for a camera that stands still.
    """

    middle: tuple[int, int] = (0, 0)
    shifts: tuple[tuple[int, int], ...] = ()
    zooms: tuple[int, ...] = ()

    @property
    def still(self) -> bool:
        return not self.shifts

    @property
    def zooms_at_all(self) -> bool:
        return any(zoom != UNIT for zoom in self.zooms)

    def view(self, pose: Pose, t: int) -> Pose:
        """An object's pose in the scene -> in frame t."""
        if self.still:
            return pose
        zoom, inverse = self.zooms[t], _invert(self.zooms[t])
        x, y = (self.middle[i] + _scale(pose.centre[i] - self.middle[i], zoom) - self.shifts[t][i] for i in (0, 1))
        a, b, c, d = (_scale(entry, zoom) for entry in pose.matrix)
        e, f, g, h = (_scale(entry, inverse) for entry in pose.inverse)
        reach = pose.reach * zoom // UNIT + 2 if zoom != UNIT else pose.reach
        return replace(pose, centre=(x, y), matrix=(a, b, c, d), inverse=(e, f, g, h), reach=reach)

    def see(self, length: int, axis: int, t: int) -> np.ndarray:
        """(length,) int64: which coordinate of the scene each pixel of frame t shows; both in 1/256 pixel, 0 being the
        centre of the first pixel. axis: 0 across, 1 down."""
        pixels = np.arange(length, dtype=np.int64) * SUBPIXEL
        if self.still:
            return pixels
        middle = self.middle[axis] - SUBPIXEL // 2
        from_middle = pixels + self.shifts[t][axis] - middle
        return (from_middle * _invert(self.zooms[t]) + UNIT // 2 >> 16) + middle

    def project(self, points: np.ndarray, axis: int, t: int) -> np.ndarray:
        """The other way: where coordinates of the scene are seen in frame t; float64 in 1/256 pixel."""
        if self.still:
            return points.astype(np.float64)
        middle = self.middle[axis] - SUBPIXEL // 2
        return (points - middle) * (self.zooms[t] / UNIT) + middle - self.shifts[t][axis]


STILL = Camera()


def _invert(zoom: int) -> int:
    """1 / zoom in 1/65536, rounded."""
    return (UNIT * UNIT + zoom // 2) // zoom


def _scale(value: int, factor: int) -> int:
    """value * factor, the factor in 1/65536, rounded; exactly value where the factor is 1."""
    return (value * factor + UNIT // 2) >> 16
