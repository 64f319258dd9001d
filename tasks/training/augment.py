"""Augmentation of frames, masks and optical flow: pure functions of a numpy Generator, exact on uint8.

One draw serves every frame of a sample and its masks, so that they stay aligned and a pair keeps its motion up to the
same flip or transpose. Boxes are not moved: they are taken anew from the moved masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PERMUTE_SHARE = 0.5
INVERT_SHARE = 0.25
CONTRAST = 0.25
"""Contrast is multiplied by 1 - CONTRAST to 1 + CONTRAST, about mid-grey."""
BRIGHTNESS = 32.0
"""Brightness is shifted by at most this many grey levels of 255."""


@dataclass(frozen=True)
class Augmentation:
    """One draw. Order: transpose, then flips; channels, then the grey table.

    channels: which input channel each output channel takes.
    table: (256,) uint8, output level of each input level (contrast, brightness and inversion in one).
    """

    transpose: bool
    flip_x: bool
    flip_y: bool
    channels: tuple[int, int, int]
    table: np.ndarray

    def frames(self, frames: np.ndarray) -> np.ndarray:
        """(..., H, W, 3) uint8 -> the same shape, or (..., W, H, 3) where transposed."""
        moved = self._move(frames, height_axis=frames.ndim - 3)
        return self.table[moved[..., list(self.channels)]]

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """(N, H, W) -> the same moves without the colours."""
        return np.ascontiguousarray(self._move(masks, height_axis=1))

    def optical_flow(self, flow_uv: np.ndarray) -> np.ndarray:
        """(H, W, 2) motion, u then v -> the same moves, of the field and of the vectors in it."""
        moved = self._move(flow_uv, height_axis=0)
        if self.transpose:
            moved = moved[..., ::-1]
        signs = np.array([-1 if self.flip_x else 1, -1 if self.flip_y else 1], flow_uv.dtype)
        return moved * signs

    def _move(self, array: np.ndarray, *, height_axis: int) -> np.ndarray:
        x_axis = height_axis + 1
        if self.transpose:
            array = array.swapaxes(height_axis, x_axis)
        flipped = tuple(axis for axis, flip in ((x_axis, self.flip_x), (height_axis, self.flip_y)) if flip)
        return np.flip(array, flipped) if flipped else array


def draw_augmentation(rng: np.random.Generator, *, square: bool) -> Augmentation:
    """Draw one augmentation; transposes only where frames are square, since a batch has one size."""
    transpose, flip_x, flip_y = (rng.random(3) < 0.5).tolist()
    order = rng.permutation(3).tolist()
    channels = tuple(order) if rng.random() < PERMUTE_SHARE else (0, 1, 2)
    contrast = rng.uniform(1 - CONTRAST, 1 + CONTRAST)
    brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    table = grey_table(contrast, brightness, invert=bool(rng.random() < INVERT_SHARE))
    return Augmentation(transpose and square, flip_x, flip_y, channels, table)


def grey_table(contrast: float, brightness: float, *, invert: bool) -> np.ndarray:
    """(256,) uint8: inverted first where asked, then (level - 127.5) * contrast + 127.5 + brightness, cut."""
    levels = np.arange(256, dtype=np.float64)
    if invert:
        levels = 255 - levels
    return np.clip(np.rint((levels - 127.5) * contrast + 127.5 + brightness), 0, 255).astype(np.uint8)
