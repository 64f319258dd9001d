"""The charts and pictures of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.report.charts import Chart, Series, line_chart
from tasks.report.embed import Album, Picture
from tasks.report.inputs import Inputs, Table
from tasks.report.words import count, words

_NO_TERMS = ("iteration", "learning_rate", "images_per_s")
SAMPLES = 4
"""Pictures of the training that are shown."""


@dataclass(frozen=True)
class Figure:
    picture: Picture
    caption: str


@dataclass
class Gallery:
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def chart_losses(losses: Table | None) -> list[Chart]:
    """The total first, then every term."""
    if losses is None:
        return []
    terms = sorted((name for name in losses.columns if name not in _NO_TERMS), key=lambda name: name != "total")
    steps = losses.numbers("iteration")
    charts = (
        line_chart(words(term), [Series(term, steps, losses.numbers(term), noisy=True)], x_label="iteration")
        for term in terms
    )
    return [chart for chart in charts if chart is not None]


def chart_validation(validation: Table | None, split: str) -> list[Chart]:
    """AP where there is truth, and what can be counted without. split: which frames were looked at, may be ""."""
    if validation is None:
        return []
    steps = validation.numbers("iteration")

    def series(*columns: str) -> list[Series]:
        return [Series(words(column), steps, validation.numbers(column)) for column in columns]

    charts = (
        line_chart(
            f"AP on frames of the {split} split" if split else "AP",
            series("mask_AP50", "mask_AP", "box_AP"),
            x_label="iteration",
            y_range=(0, 1),
        ),
        line_chart("Instances an image", series("instances_per_image"), x_label="iteration"),
        line_chart("Share of the image covered", series("coverage"), x_label="iteration"),
    )
    return [chart for chart in charts if chart is not None]


def chart_precision(curves: Table | None) -> list[Chart]:
    """A chart for masks and one for boxes, with a line for each IoU: curves are named mask_50, box_75 and so on."""
    if curves is None:
        return []
    names = [name.rpartition("_") for name in curves.columns.get("curve", [])]
    points = list(zip(names, curves.numbers("recall"), curves.numbers("precision"), strict=False))
    charts = []
    for kind in dict.fromkeys(kind for kind, _, _ in names):
        series = []
        for percent in dict.fromkeys(percent for its, _, percent in names if its == kind):
            line = [(recall, precision) for name, recall, precision in points if name == (kind, "_", percent)]
            series.append(Series(f"IoU .{percent}", [recall for recall, _ in line], [height for _, height in line]))
        title = {"mask": "Masks", "box": "Boxes"}.get(kind, kind)
        charts.append(line_chart(title, series, x_label="recall", y_range=(0, 1)))
    return [chart for chart in charts if chart is not None]


def hang_pictures(entries: Any, folder: Path, album: Album, kind: str | None = None) -> Gallery:
    """The pictures that a list of {"file", "kind", "caption", "clip_id", "frame"} names, of one kind or all.

    folder: what the files' names are relative to, and where they must lie.
    """
    gallery = Gallery()
    omitted = album.omitted
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            continue
        if kind in (None, entry.get("kind")) and (picture := album.embed(folder / entry["file"], folder)):
            gallery.figures.append(Figure(picture, _caption(entry)))
    if album.omitted > omitted:
        gallery.notes.append(f"{album.omitted - omitted} more are in {'/'.join(folder.parts[-2:])}.")
    return gallery


def hang_samples(inputs: Inputs, workspace: Path, album: Album) -> Gallery:
    """A few pictures from the beginning to the end of the training."""
    folder, paths = workspace / "outputs" / "train", inputs.sample_pictures
    chosen = sorted({round(i * (len(paths) - 1) / (SAMPLES - 1)) for i in range(SAMPLES)}) if paths else []
    pictures = [(paths[index], album.embed(paths[index], folder)) for index in chosen]
    return Gallery([Figure(picture, _moment(path.stem)) for path, picture in pictures if picture])


def _moment(name: str) -> str:
    """The training names its pictures by iteration."""
    return f"iteration {count(int(name))}" if name.isdecimal() and name.isascii() else words(name)


def _caption(entry: Mapping[str, Any]) -> str:
    return str(entry.get("caption") or f"clip {entry.get('clip_id')}, frame {entry.get('frame')}")
