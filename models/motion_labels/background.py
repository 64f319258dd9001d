"""The background's motion, layer by layer, and what moves against it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .motion import FlowReader, pixel_grid

_MIN_INLIERS = 0.35
_TOLERANCES = (0.25, 0.5, 1.0)
"""Tried in turn: a loose fit averages background layers that a tight one tells apart."""
_LAYER_TOLERANCE = (0.6, 0.27)
"""Pixels, and pixels per frame of distance, within which flow belongs to a further background layer."""
_LAYER_ROUNDS = 3
_LAYER_AREA = 0.1
"""Least share of the frame of a background layer: anything smaller may be an object that the border cuts."""
_LAYER_CONTACT = 1.0
"""A background layer runs along the frame's border for more than this times the root of its area."""
_SEAM = 5


@dataclass(frozen=True)
class Motion:
    """Motion from one frame to another and the background's part in it.

    other: index of the other frame. flow_uv, background_uv: (H, W, 2) float32 pixels from this frame to the other.
    telling: (H, W) bool, where the difference of the two says something: the background is still in view there, and no
    two of its layers meet.
    """

    other: int
    flow_uv: np.ndarray
    background_uv: np.ndarray
    telling: np.ndarray

    @property
    def residual_uv(self) -> np.ndarray:
        return self.flow_uv - self.background_uv


def fit_motion(reader: FlowReader, frame: int, other: int, scale: float) -> Motion | None:
    """Flow and background motion of `frame` to `other`; None where no motion holds for much of the frame.

    scale: the frame's size against a shorter side of 128; tolerances grow with it.
    """
    flow_uv = reader.between(frame, other)
    fits = (fit_homography(flow_uv, tolerance * scale) for tolerance in _TOLERANCES)
    background_uv = next((fit for fit in fits if fit is not None), None)
    if background_uv is None:
        return None
    tolerance = max(_LAYER_TOLERANCE[0], _LAYER_TOLERANCE[1] * abs(other - frame)) * scale
    background_uv, seam = add_border_layers(flow_uv, background_uv, tolerance)
    height, width = reader.size
    x, y = pixel_grid(reader.size)
    there_x, there_y = x + background_uv[..., 0], y + background_uv[..., 1]
    in_view = (there_x >= 0) & (there_x <= width - 1) & (there_y >= 0) & (there_y <= height - 1)
    return Motion(other, flow_uv, background_uv, in_view & ~seam)


def fit_homography(flow_uv: np.ndarray, tolerance: float, where: np.ndarray | None = None) -> np.ndarray | None:
    """The homography that most of the flow (H, W, 2) follows within `tolerance` pixels, as a flow field; or None.

    where: (H, W) bool pixels to fit, all by default. RANSAC of OpenCV, whose seed is fixed.
    """
    height, width = flow_uv.shape[:2]
    step = max(2, min(height, width) // 32)
    grid = np.s_[step // 2 :: step, step // 2 :: step]
    start = np.stack(pixel_grid((height, width)), -1)[grid].reshape(-1, 2)
    moved = flow_uv[grid].reshape(-1, 2)
    if where is not None:
        start, moved = start[where[grid].reshape(-1)], moved[where[grid].reshape(-1)]
    if len(start) < 12:
        return None
    matrix, inliers = cv2.findHomography(start, start + moved, cv2.RANSAC, tolerance, maxIters=500, confidence=0.999)
    if matrix is None or inliers.mean() < _MIN_INLIERS or not np.isfinite(matrix).all():
        return None
    return homography_flow(matrix, (height, width))


def add_border_layers(
    flow_uv: np.ndarray, background_uv: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """`background_uv` with the motion of further layers put in where they are large and hug the frame's border, and the
    (H, W) bool seams between layers, where flow is a mixture. Near ground and rocks move so, by parallax."""
    layered = background_uv.copy()
    owner = np.zeros(flow_uv.shape[:2], np.uint8)
    rest = np.linalg.norm(flow_uv - background_uv, axis=-1) > tolerance
    for _ in range(_LAYER_ROUNDS):
        layer_uv = fit_homography(flow_uv, tolerance, rest) if rest.mean() >= _LAYER_AREA else None
        if layer_uv is None:
            break
        inliers = rest & (np.linalg.norm(flow_uv - layer_uv, axis=-1) < tolerance)
        rest &= ~inliers
        for part in border_parts(inliers):
            layered[part] = layer_uv[part]
            owner[part] = owner.max() + 1
            rest &= ~part
    kernel = np.ones((_SEAM, _SEAM), np.uint8)
    return layered, cv2.dilate(owner, kernel) != cv2.erode(owner, kernel)


def border_parts(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of `mask` (H, W) bool that are large and run along the frame's border, each made fuller."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    parts = []
    for row in range(1, count):
        part, area = labels == row, stats[row, cv2.CC_STAT_AREA]
        # Three pixels in: flow is unsure of itself in the outermost ones.
        contact = sum(int(line.sum()) for line in (part[3], part[-4], part[:, 3], part[:, -4]))
        if area >= _LAYER_AREA * mask.size and contact > _LAYER_CONTACT * np.sqrt(area):
            closed = cv2.morphologyEx(part.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
            parts.append(cv2.dilate(closed, np.ones((7, 7), np.uint8)) > 0)
    return parts


def homography_flow(matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 2) float32 flow of a 3x3 homography in pixel coordinates."""
    points = np.stack(pixel_grid(size), -1)
    moved = cv2.perspectiveTransform(points.reshape(1, -1, 2), matrix.astype(np.float64))
    return (moved.reshape(points.shape) - points).astype(np.float32)


def residual_magnitude(motions: list[Motion]) -> np.ndarray:
    """(H, W) pixels: the least motion against the background over the given motions, 0 where none can tell."""
    least = np.full(motions[0].telling.shape, np.inf, np.float32)
    for motion in motions:
        magnitude = np.hypot(motion.residual_uv[..., 0], motion.residual_uv[..., 1])
        least = np.where(motion.telling, np.minimum(least, magnitude), least)
    return np.where(np.isfinite(least), least, 0).astype(np.float32)
