"""Draws a scene: frames, visible masks and the true optical flow, all in integers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tasks.sources.synthetic.camera import Pose
from tasks.sources.synthetic.draw import SUBPIXEL, UNIT, mirror, sample
from tasks.sources.synthetic.scene import MovingObject, Scene

_SINE = np.array([round(math.sin(2 * math.pi * i / 1024) * UNIT) for i in range(1024)], np.int64)
_NOBODY = -1


@dataclass(frozen=True)
class Rendered:
    """One frame. image (H, W, 3) uint8 RGB; masks (D, H, W) bool, the visible parts; flow_uv (H, W, 2) float32 pixels
    to the next frame, zeros for the last one, or None where it was not asked for."""

    image: np.ndarray
    masks: np.ndarray
    flow_uv: np.ndarray | None


@dataclass(frozen=True)
class _Layer:
    """One object at one frame: where it lies, and the local coordinates of its pixels in 1/256 pixel."""

    place: tuple[slice, slice]
    local_x: np.ndarray
    local_y: np.ndarray
    pose: Pose


def render(scene: Scene, *, optical_flow: bool) -> Iterator[Rendered]:
    """Yield the frames in order."""
    for t in range(scene.frames):
        canvas = _background(scene, t)
        owner = np.full((scene.height, scene.width), _NOBODY, np.int32)
        layers: dict[int, _Layer] = {}
        for number in scene.order(t):
            layer = layers[number] = _place(scene.objects[number], t, scene)
            _paint(canvas, owner, scene.objects[number], number, layer)
        masks = owner[None] == np.arange(len(scene.objects))[:, None, None]
        flow_uv = _flow(scene, t, owner, layers) if optical_flow else None
        yield Rendered(_lit(canvas, scene.gain(t)), masks, flow_uv)


def _background(scene: Scene, t: int) -> np.ndarray:
    """(H, W, 3) int32: the window at its offset, bilinear, the picture mirrored at its edges."""
    offset_x, offset_y = scene.path.at(t)
    height, width = scene.background.shape[:2]
    x, y = scene.camera.see(scene.width, 0, t) + offset_x, scene.camera.see(scene.height, 1, t) + offset_y
    right, lower = (x & 255)[None, :, None], (y & 255)[:, None, None]
    picture = scene.background.astype(np.int32)
    upper_rows, lower_rows = picture[mirror(y >> 8, height)], picture[mirror((y >> 8) + 1, height)]
    rows = upper_rows * (256 - lower) + lower_rows * lower  # (H, W', 3)
    left, following = mirror(x >> 8, width), mirror((x >> 8) + 1, width)
    return (rows[:, left] * (256 - right) + rows[:, following] * right + (UNIT >> 1)) >> 16


def _place(thing: MovingObject, t: int, scene: Scene) -> _Layer:
    pose = scene.camera.view(thing.pose(t), t)
    centre_x, centre_y = pose.centre
    # Both ends within the frame: a zooming camera may lose an object altogether.
    left, right = _clip(centre_x, pose.reach, scene.width)
    top, bottom = _clip(centre_y, pose.reach, scene.height)
    x = np.arange(left, right, dtype=np.int64) * SUBPIXEL + SUBPIXEL // 2 - centre_x
    y = np.arange(top, bottom, dtype=np.int64) * SUBPIXEL + SUBPIXEL // 2 - centre_y
    grid_x, grid_y = (axis.ravel() for axis in np.meshgrid(x, y))
    if not _translates(thing, scene):
        grid_x, grid_y = _unbend(thing, pose, *_apply(pose.inverse, grid_x, grid_y))
    return _Layer((slice(top, bottom), slice(left, right)), grid_x, grid_y, pose)


def _clip(centre: int, reach: int, length: int) -> tuple[int, int]:
    """Pixels that reach so far from `centre` (1/256 pixel), first and one past the last, cut at the frame."""
    first, last = (centre >> 8) - reach, (centre >> 8) + reach + 1
    return min(max(0, first), length), min(max(0, last), length)


def _paint(canvas: np.ndarray, owner: np.ndarray, thing: MovingObject, number: int, layer: _Layer) -> None:
    half = len(thing.sprite) * SUBPIXEL // 2 - SUBPIXEL // 2
    window = canvas[layer.place]
    drawn = sample(thing.sprite, layer.local_x + half, layer.local_y + half).reshape(*window.shape[:2], 4)
    alpha = drawn[:, :, 3:]
    window[...] = (window * (255 - alpha) + drawn[:, :, :3] * alpha + 127) // 255
    # A pixel belongs to whom covers at least half of it.
    owner[layer.place][alpha[:, :, 0] >= 128] = number


def _flow(scene: Scene, t: int, owner: np.ndarray, layers: dict[int, _Layer]) -> np.ndarray:
    """(H, W, 2) float32: where each visible point of frame t lies in frame t + 1, minus where it is."""
    flow_uv = np.zeros((scene.height, scene.width, 2), np.float32)
    if t + 1 == scene.frames:
        return flow_uv
    flow_uv[...] = _background_flow(scene, t)
    for number, layer in layers.items():
        mine = owner[layer.place] == number
        if mine.any():
            flow_uv[layer.place][mine] = _object_flow(scene, number, t, layer, mine.ravel())
    return flow_uv


def _background_flow(scene: Scene, t: int) -> np.ndarray:
    """(H, W, 2) pixels, or (2,) under a camera that stands still."""
    here, there = scene.path.at(t), scene.path.at(t + 1)
    if scene.camera.still:
        return np.array([(here[i] - there[i]) / SUBPIXEL for i in (0, 1)])
    flows = []
    for axis, length in enumerate((scene.width, scene.height)):
        pixels = np.arange(length) * SUBPIXEL
        points = scene.camera.see(length, axis, t) + here[axis] - there[axis]
        flows.append((scene.camera.project(points, axis, t + 1) - pixels) / SUBPIXEL)
    across, down = np.meshgrid(*flows)
    return np.stack([across, down], axis=2)


def _object_flow(scene: Scene, number: int, t: int, layer: _Layer, mine: np.ndarray) -> np.ndarray:
    """(N, 2) pixels, or (2,) for pure translation: the difference of the centres (thesis 3.9)."""
    thing = scene.objects[number]
    pose = scene.camera.view(thing.pose(t + 1), t + 1)
    shift = [(pose.centre[i] - layer.pose.centre[i]) / SUBPIXEL for i in (0, 1)]
    if _translates(thing, scene):
        return np.array(shift, np.float32)
    local = layer.local_x[mine], layer.local_y[mine]
    now = _apply(layer.pose.matrix, *_bend(thing, layer.pose, *local))
    then = _apply(pose.matrix, *_bend(thing, pose, *local))
    return np.stack([(then[i] - now[i]).astype(np.float32) / SUBPIXEL + np.float32(shift[i]) for i in (0, 1)], axis=1)


def _translates(thing: MovingObject, scene: Scene) -> bool:
    return thing.rigid and not scene.camera.zooms_at_all


def _apply(matrix: tuple[int, int, int, int], x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c, d = matrix
    return (a * x + b * y + UNIT // 2) >> 16, (c * x + d * y + UNIT // 2) >> 16


def _bend(thing: MovingObject, pose: Pose, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Local coordinates to bent ones: two shears by travelling sines in turn, so that `_unbend` is exact."""
    if thing.bend == 0:
        return x, y
    y = y + _bend_by(thing, x, pose.bend_phases[1])
    return x + _bend_by(thing, y, pose.bend_phases[0]), y


def _unbend(thing: MovingObject, pose: Pose, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if thing.bend == 0:
        return x, y
    x = x - _bend_by(thing, y, pose.bend_phases[0])
    return x, y - _bend_by(thing, x, pose.bend_phases[1])


def _bend_by(thing: MovingObject, along: np.ndarray, phase: int) -> np.ndarray:
    """Sideways shift in 1/256 pixel, one wave per one and a half radii."""
    turns = along * 1024 // max(1, round(thing.radius * 1.5 * SUBPIXEL))
    return (_SINE[(turns + phase) & 1023] * thing.bend) >> 16


def _lit(canvas: np.ndarray, gain: int) -> np.ndarray:
    if gain == 256:
        return canvas.astype(np.uint8)
    return np.minimum(canvas * gain >> 8, 255).astype(np.uint8)
