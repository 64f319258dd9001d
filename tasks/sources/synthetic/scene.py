"""What a synthetic video shows and how it moves: drawn once per video, then a function of the frame number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tasks.sources.synthetic.camera import STILL, Camera, Pose
from tasks.sources.synthetic.draw import SUBPIXEL, UNIT, Draw, fold, subpixels, turn
from tasks.sources.synthetic.shapes import coverage
from tasks.sources.synthetic.textures import add_distractors, fade, texture

if TYPE_CHECKING:
    from tasks.params import SyntheticParams

_MIN_SCALE = 1 / 8
_CAMERA_STREAM = 1
"""Sets the camera's random draws apart from those of the scene."""
_CAMOUFLAGED = 4
"""One object in so many wears colours of its background, so that colour alone finds no objects."""


class Texture(Protocol):
    def __call__(
        self, draw: Draw, height: int, width: int, *, scale: float = 1.0, like: np.ndarray | None = None
    ) -> np.ndarray:
        """(height, width, 3) uint8 RGB, its pattern stretched by `scale`, its colours like those of `like`."""


@dataclass(frozen=True)
class Wave:
    """amplitude * sin(2 pi t / period + phase); t and period in frames."""

    amplitude: float = 0.0
    period: float = 1.0
    phase: float = 0.0

    def at(self, t: int) -> float:
        return self.amplitude * math.sin(2 * math.pi * t / self.period + self.phase)


@dataclass(frozen=True)
class Path:
    """Offset of the background window in pixels: start + velocity * t + wave."""

    start: tuple[float, float]
    velocity: tuple[float, float]
    waves: tuple[Wave, Wave]

    def at(self, t: int) -> tuple[int, int]:
        """(x, y) in 1/256 pixel."""
        x, y = (self.start[i] + self.velocity[i] * t + self.waves[i].at(t) for i in (0, 1))
        return subpixels(x), subpixels(y)


@dataclass(frozen=True)
class MovingObject:
    """One object: its sprite and its path.

    sprite: (S, S, 4) int32, RGB and coverage, each 0 .. 255.
    start, velocity, low, high: (x, y) in 1/256 pixel, the velocity per frame.
    moved: per frame, for how many frames it has been moving. bend: amplitude of the outline waves in 1/256 pixel.
    """

    sprite: np.ndarray
    radius: float
    start: tuple[int, int]
    velocity: tuple[int, int]
    low: tuple[int, int]
    high: tuple[int, int]
    moved: tuple[int, ...]
    spin: float
    scale: Wave
    bend: int
    bend_speed: tuple[int, int]

    @property
    def rigid(self) -> bool:
        """Pure translation."""
        return self.spin == 0 and self.scale.amplitude == 0 and self.bend == 0

    def centre(self, t: int) -> tuple[int, int]:
        x, y = (fold(self.start[i] + self.velocity[i] * self.moved[t], self.low[i], self.high[i]) for i in (0, 1))
        return x, y

    def pose(self, t: int) -> Pose:
        moved = self.moved[t]
        cos, sin = turn(self.spin * moved)
        scale = max(1 + self.scale.at(moved), _MIN_SCALE)
        a, b = round(cos * scale), round(sin * scale)
        c, d = round(cos / scale), round(sin / scale)
        phases = (self.bend_speed[0] * moved % 1024, self.bend_speed[1] * moved % 1024)
        reach = math.ceil((self.radius + 2 * self.bend / 256) * scale) + 2
        return Pose(self.centre(t), (a, -b, b, a), (c, d, -d, c), phases, reach)


@dataclass(frozen=True)
class Scene:
    """A whole video before it is drawn. background: (H', W', 3) uint8, as zoomed in."""

    height: int
    width: int
    frames: int
    background: np.ndarray
    path: Path
    objects: tuple[MovingObject, ...]
    orders: tuple[tuple[int, ...], ...]
    """Depth orders, back to front, one per spell."""
    spell: int
    """Frames that one depth order lasts."""
    light: Wave
    camera: Camera = STILL

    def order(self, t: int) -> tuple[int, ...]:
        return self.orders[t // self.spell]

    def gain(self, t: int) -> int:
        """Brightness in 1/256."""
        return max(0, round(256 * (1 + self.light.at(t))))


def draw_scene(params: SyntheticParams, index: int, paint: Texture = texture) -> Scene:
    """The scene of video `index`; depends on nothing but the parameters, the seed and the index."""
    draw = Draw(params.seed, index)
    zoom = draw.real(*params.background_zoom)
    size = (max(2, round(params.height * zoom)), max(2, round(params.width * zoom)))
    background = np.ascontiguousarray(paint(draw, *size, scale=zoom))
    add_distractors(draw, background, params.radius, 1.0)
    path = _draw_path(draw, params, size)
    objects = tuple(_draw_object(draw, params, paint, background) for _ in range(draw.integer(*params.objects)))
    spell = draw.integer(20, 50) if params.occlusion_order else params.frames
    spells = -(-params.frames // spell)
    orders = tuple(
        tuple(draw.order(len(objects))) if params.occlusion_order else tuple(range(len(objects))) for _ in range(spells)
    )
    light = Wave(params.lighting, draw.real(40, 120), draw.real(0, 6.2831))
    # Drawn from last and from draws of its own, so that neither changes anything else.
    background = fade(background, params.texture_contrast)
    camera = _draw_camera(Draw(params.seed, index, _CAMERA_STREAM), params)
    return Scene(params.height, params.width, params.frames, background, path, objects, orders, spell, light, camera)


def timestamps_us(params: SyntheticParams) -> list[int]:
    return [round(t * 1e6 / params.rate_hz) for t in range(params.frames)]


def _draw_path(draw: Draw, params: SyntheticParams, size: tuple[int, int]) -> Path:
    kind = params.background_path
    if kind == "mixed":
        kind = draw.choice(("sine", "cosine", "constant"))
    start = (draw.real(0, size[1]), draw.real(0, size[0]))
    fastest = (draw.choice((-1, 1)) * draw.real(0.2, 1.2), draw.choice((-1, 1)) * draw.real(0.2, 1.2))
    periods = (draw.real(50, 120), draw.real(50, 120))
    if kind == "constant":
        return Path(start, fastest, (Wave(), Wave()))
    phase = 0.0 if kind == "sine" else math.pi / 2
    x, y = (Wave(v * period / (2 * math.pi), period, phase) for v, period in zip(fastest, periods, strict=True))
    return Path(start, (0.0, 0.0), (x, y))


def _draw_camera(draw: Draw, params: SyntheticParams) -> Camera:
    reach = subpixels(params.camera_shake)
    zoom = Wave(params.camera_zoom, draw.real(30, 80), draw.real(0, 6.2831))
    if reach == 0 and params.camera_zoom == 0:
        return STILL
    shifts = draw.array(-reach, reach, (params.frames, 2)).tolist()
    zooms = [round(UNIT * max(1 + zoom.at(t), _MIN_SCALE)) for t in range(params.frames)]
    middle = (params.width * SUBPIXEL // 2, params.height * SUBPIXEL // 2)
    return Camera(middle, tuple((x, y) for x, y in shifts), tuple(zooms))


def _draw_object(draw: Draw, params: SyntheticParams, paint: Texture, background: np.ndarray) -> MovingObject:
    shape, radius = draw.choice(params.shapes), draw.real(*params.radius)
    cover = coverage(shape, radius)
    like = background if draw.integer(1, _CAMOUFLAGED) == 1 else None
    colours = fade(paint(draw, *cover.shape, like=like), params.texture_contrast)
    sprite = np.concatenate([colours, cover[:, :, None]], axis=2).astype(np.int32)
    # Half a radius from the edge: an object may be cut by the frame, but never hides behind it.
    margins = [subpixels(min(radius / 2, side / 4)) for side in (params.width, params.height)]
    high = [subpixels(side) - margin for side, margin in zip((params.width, params.height), margins, strict=True)]
    start = [draw.integer(low, top) for low, top in zip(margins, high, strict=True)]
    cos, sin = turn(draw.real(0, 6.2831))
    speed = subpixels(draw.real(*params.speed))
    fastest_spin = math.radians(params.rotation_deg)
    return MovingObject(
        sprite=sprite,
        radius=radius,
        start=(start[0], start[1]),
        velocity=((speed * cos + UNIT // 2) // UNIT, (speed * sin + UNIT // 2) // UNIT),
        low=(margins[0], margins[1]),
        high=(high[0], high[1]),
        moved=_draw_spells(draw, params.frames, params.standing_still),
        spin=draw.choice((-1, 1)) * draw.real(fastest_spin / 4, fastest_spin),
        scale=Wave(params.scaling, draw.real(40, 100), draw.real(0, 6.2831)),
        bend=subpixels(params.deformation * radius / 2),
        bend_speed=(draw.integer(6, 24), draw.integer(6, 24)),
    )


def _draw_spells(draw: Draw, frames: int, still_share: float) -> tuple[int, ...]:
    """Per frame, how many frames' worth of motion lie behind; equal neighbours stand still."""
    if still_share == 0:
        return tuple(range(frames))
    moved, count = [0], 0
    still = draw.integer(0, 99) < round(100 * still_share)
    while len(moved) < frames:
        rest = draw.integer(8, 24)
        length = rest if still else round(rest * (1 - still_share) / still_share)
        for _ in range(length):
            count += not still
            moved.append(count)
        still = not still
    return tuple(moved[:frames])
