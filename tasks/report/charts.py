"""Line charts as inline SVG: no script, no font, colours from the page's style so that they follow light and dark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 8, 34
_PLOT_WIDTH, _PLOT_HEIGHT = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
_TICKS = 5
_LEAST_SPAN = 0.05
"""Of an axis, as a share of its values."""
MAX_POINTS = 240
COLOURS = 4
"""Series of a chart that can be told apart."""


@dataclass(frozen=True)
class Series:
    """A line; points that are not finite leave gaps. noisy: draw it faint, with its running mean on top."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    noisy: bool = False


@dataclass(frozen=True)
class Chart:
    """Something to show: `svg`, and for the legend each series' name, colour number and last value."""

    title: str
    svg: Markup
    legend: list[tuple[str, int, float | None]]


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, y_range: tuple[float, float] | None = None
) -> Chart | None:
    """A chart of up to COLOURS series, or None where no point of them is finite."""
    lines = [_Line(one, index + 1) for index, one in enumerate(series[:COLOURS])]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    x_low, x_high = _span([x for line in lines for x, _ in line.points], None)
    heights = [y for line in lines for _, y in line.means]
    y_low, y_high = _span(heights, y_range or _from_zero(heights))
    frame = _Frame(x_low, x_high, y_low, y_high)
    body = Markup("").join([*_axes(frame, x_label), _plot(frame, lines)])
    svg = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, body
    )
    return Chart(title, svg, [(line.name, line.colour, line.means[-1][1]) for line in lines])


class _Line:
    """A series without its gaps, thinned to what a screen can show, and the same smoothed."""

    def __init__(self, series: Series, colour: int) -> None:
        self.name, self.colour, self.noisy = series.name, colour, series.noisy
        finite = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        self.points = _thin(finite)
        self.means = _smooth(self.points, len(self.points) // 24) if series.noisy else self.points


@dataclass(frozen=True)
class _Frame:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return round((value - self.x_low) / (self.x_high - self.x_low) * _PLOT_WIDTH, 1)

    def y(self, value: float) -> float:
        return round((self.y_high - value) / (self.y_high - self.y_low) * _PLOT_HEIGHT, 1)


def _axes(frame: _Frame, x_label: str) -> list[Markup]:
    parts = []
    for value in ticks(frame.y_low, frame.y_high):
        y = _TOP + frame.y(value)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, WIDTH - _RIGHT, y, y))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(_LEFT - 6, y + 4, f"{value:g}"))
    for value in ticks(frame.x_low, frame.x_high):
        x, y = _LEFT + frame.x(value), HEIGHT - _BOTTOM + 15
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, y, f"{value:g}"))
    middle = _LEFT + _PLOT_WIDTH / 2
    parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(middle, HEIGHT - 4, x_label))
    return parts


def _plot(frame: _Frame, lines: Sequence[_Line]) -> Markup:
    """The lines in an inner SVG, which cuts off what leaves the axes."""
    parts = [_polyline(frame, line.points, line.colour, "raw") for line in lines if line.noisy]
    parts += [_polyline(frame, line.means, line.colour, "line") for line in lines]
    return Markup('<svg x="{}" y="{}" width="{}" height="{}">{}</svg>').format(
        _LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT, Markup("").join(parts)
    )


def _polyline(frame: _Frame, points: Sequence[tuple[float, float]], colour: int, kind: str) -> Markup:
    if len(points) == 1:
        (x, y) = points[0]
        return Markup('<circle class="s{}" cx="{}" cy="{}" r="3"/>').format(colour, frame.x(x), frame.y(y))
    path = " ".join(f"{frame.x(x):g},{frame.y(y):g}" for x, y in points)
    return Markup('<polyline class="{} s{}" points="{}"/>').format(kind, colour, path)


def ticks(low: float, high: float) -> list[float]:
    """A few round values from low to high."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _span(values: Sequence[float], wanted: tuple[float, float] | None) -> tuple[float, float]:
    """Low and high of an axis, never equal, and never so close that rounding would draw mountains."""
    if wanted is not None:
        return wanted
    low, high = min(values), max(values)
    if low == high == 0:
        return 0.0, 1.0
    least = max(abs(low), abs(high)) * _LEAST_SPAN
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    return low, high


def _from_zero(values: Sequence[float]) -> tuple[float, float] | None:
    """From zero where that costs no detail, so that half as high means half as much."""
    low, high = min(values), max(values)
    return (0.0, high) if 0 <= low < high / 2 else None


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS: means of as many equal runs."""
    if len(points) <= MAX_POINTS:
        return list(points)
    cuts = [len(points) * number // MAX_POINTS for number in range(MAX_POINTS + 1)]
    return [_mean(points[start:stop]) for start, stop in itertools.pairwise(cuts)]


def _smooth(points: Sequence[tuple[float, float]], reach: int) -> list[tuple[float, float]]:
    """Running mean over `reach` points on either side, fewer where there are fewer, as many left as right."""
    means = []
    for index, (x, _) in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)
        means.append((x, _mean(points[index - near : index + near + 1])[1]))
    return means


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
