"""The background's motion and what moves against it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .motion import FlowReader, pixel_grid

_MIN_INLIERS = 0.35


@dataclass(frozen=True)
class Motion:
    """Motion from one frame to another and the background's part in it.

    other: index of the other frame. flow_uv, background_uv: (H, W, 2) float32 pixels from this frame to the other.
    inside: (H, W) bool, where the background's pixels are still in view in the other frame.
    """

    other: int
    flow_uv: np.ndarray
    background_uv: np.ndarray
    inside: np.ndarray

    @property
    def residual_uv(self) -> np.ndarray:
        return self.flow_uv - self.background_uv


def fit_motion(reader: FlowReader, frame: int, other: int, tolerance: float) -> Motion | None:
    """Flow and background motion of `frame` to `other`; None where no motion holds for much of the frame."""
    flow_uv = reader.between(frame, other)
    background_uv = fit_background(flow_uv, tolerance)
    if background_uv is None:
        return None
    height, width = reader.size
    x, y = pixel_grid(reader.size)
    there_x, there_y = x + background_uv[..., 0], y + background_uv[..., 1]
    inside = (there_x >= 0) & (there_x <= width - 1) & (there_y >= 0) & (there_y <= height - 1)
    return Motion(other, flow_uv, background_uv, inside)


def fit_background(flow_uv: np.ndarray, tolerance: float, where: np.ndarray | None = None) -> np.ndarray | None:
    """The homography that most of the flow (H, W, 2) follows within `tolerance` pixels, as a flow field; or None."""
    height, width = flow_uv.shape[:2]
    step = max(2, min(height, width) // 32)
    x, y = pixel_grid((height, width))
    start = np.stack([x, y], -1)[step // 2 :: step, step // 2 :: step].reshape(-1, 2)
    moved = flow_uv[step // 2 :: step, step // 2 :: step].reshape(-1, 2)
    if where is not None:
        kept = where[step // 2 :: step, step // 2 :: step].reshape(-1)
        start, moved = start[kept], moved[kept]
    if len(start) < 12:
        return None
    matrix, inliers = cv2.findHomography(start, start + moved, cv2.RANSAC, tolerance, maxIters=500, confidence=0.999)
    if matrix is None or inliers.mean() < _MIN_INLIERS:
        return None
    return homography_flow(matrix, (height, width))


def homography_flow(matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 2) float32 flow of a 3x3 homography in pixel coordinates."""
    x, y = pixel_grid(size)
    points = np.stack([x, y], -1)
    moved = cv2.perspectiveTransform(points.reshape(1, -1, 2), matrix.astype(np.float64))
    return (moved.reshape(points.shape) - points).astype(np.float32)


def residual_magnitude(motions: list[Motion]) -> np.ndarray:
    """(H, W) pixels: the least motion against the background over the given motions, 0 where none can tell."""
    least = np.full(motions[0].inside.shape, np.inf, np.float32)
    for motion in motions:
        magnitude = np.hypot(motion.residual_uv[..., 0], motion.residual_uv[..., 1])
        least = np.where(motion.inside, np.minimum(least, magnitude), least)
    return np.where(np.isfinite(least), least, 0).astype(np.float32)
