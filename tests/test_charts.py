"""Charts put points where they belong, and numbers are written for people."""

from __future__ import annotations

import re

from tasks.report.charts import MAX_POINTS, Series, line_chart, ticks
from tasks.report.words import count, duration, figure, share


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0, 800) == [0, 200, 400, 600, 800]
    assert ticks(0.37, 2.1) == [0.5, 1.0, 1.5, 2.0]
    assert ticks(-0.002, 0.002) == [-0.002, -0.001, 0, 0.001, 0.002]


def test_a_chart_puts_points_where_they_belong() -> None:
    chart = line_chart("t", [Series("a", [0, 1, 2], [0, 10, 5])], x_label="x", y_range=(0, 10))
    assert chart is not None
    points = re.search(r'polyline class="line s1" points="([^"]*)"', chart.svg)
    assert points is not None
    assert points[1] == "0,168 143,0 286,84"  # the plot is 286 x 168, y downwards
    assert chart.legend == [("a", 1, 5)]


def test_charts_survive_gaps_single_points_and_constants() -> None:
    nan, inf = float("nan"), float("inf")
    assert line_chart("t", [Series("a", [1, 2], [nan, inf])], x_label="x") is None
    assert line_chart("t", [], x_label="x") is None
    single = line_chart("t", [Series("a", [5], [0])], x_label="x")
    assert single is not None
    assert "<circle" in single.svg
    assert "nan" not in single.svg
    constant = line_chart("t", [Series("a", [0, 1], [3, 3])], x_label="x")
    assert constant is not None
    assert "84" in constant.svg  # half way up
    zero = line_chart("t", [Series("a", [0, 1], [0, 0])], x_label="x")
    assert zero is not None
    assert "e-" not in zero.svg
    many = line_chart("t", [Series("a", range(10_000), range(10_000), noisy=True)], x_label="x")
    assert many is not None
    assert max(points.count(",") for points in re.findall(r'points="([^"]*)"', many.svg)) == MAX_POINTS
    hostile = '<script>alert("1")</script>'
    title = line_chart(hostile, [Series(hostile, [0, 1], [0, 1])], x_label=hostile)
    assert title is not None
    assert "<script" not in title.svg


def test_numbers_are_written_for_people() -> None:
    assert [figure(v) for v in (0.7123, 12.345, 1234.5, None, float("nan"), "odd")] == [
        "0.712",
        "12.3",
        "1,234",
        "–",
        "–",
        "odd",
    ]
    assert [count(v) for v in (1234567, None, True)] == ["1,234,567", "–", "True"]
    assert share(0.0432) == "4.3 %"
    assert [duration(v) for v in (4.25, 312.4, 7260, "x")] == ["4.2 s", "5 min 12 s", "2 h 1 min", "x"]
