"""Frames to network input: the only resize of frames, in pairs and in prediction alike, and the scaling to [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def resize_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stretch a frame (H, W, 3) uint8 to `size` = (height, width), uint8.

    Area interpolation where both sides shrink (no aliasing), bilinear otherwise. A frame of that size already comes
    back as it is. Raises ValueError for anything but a non-empty (H, W, 3) uint8 array.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
        raise ValueError(f"expected a frame (H, W, 3) uint8, not {frame.shape} {frame.dtype}")
    height, width = size
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = height <= frame.shape[0] and width <= frame.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=interpolation)


def to_tensor(frames: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(B, H, W, 3) uint8 RGB -> (B, 3, H, W) float32 in [0, 1], in channels_last memory order, on `device`.

    The bytes travel to the device before they grow fourfold.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"expected frames (B, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    import torch  # here, so that who only resizes frames does without its second and its 300 MB in every process

    return scale_bytes(torch.from_numpy(np.ascontiguousarray(frames)).to(device))


def scale_bytes(frames: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1], in channels_last memory order."""
    return frames.permute(0, 3, 1, 2).float() / 255
