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
    """A chart for masks and one for boxes, a line for each IoU; curves without a kind share one chart."""
    if curves is None:
        return []
    recall, precision = curves.numbers("recall"), curves.numbers("precision")
    empty = [""] * len(curves)
    kinds, ious = curves.columns.get("kind", empty), curves.columns.get("iou", empty)
    charts = []
    for kind in dict.fromkeys(kinds):
        series = []
        for iou in dict.fromkeys(iou for iou, its in zip(ious, kinds, strict=True) if its == kind):
            rows = [i for i in range(len(curves)) if kinds[i] == kind and ious[i] == iou]
            name = f"IoU {iou}" if iou else "precision"
            series.append(Series(name, [recall[i] for i in rows], [precision[i] for i in rows]))
        title = {"mask": "Masks", "box": "Boxes"}.get(kind, kind)
        charts.append(line_chart(title, series, x_label="recall", y_range=(0, 1)))
    return [chart for chart in charts if chart is not None]


def hang_pictures(inputs: Inputs, workspace: Path, album: Album, kind: str) -> Gallery:
    """The pictures of one kind that the evaluation chose."""
    gallery = Gallery()
    folder = workspace / "outputs" / "evaluate"
    omitted = album.omitted
    for entry in inputs.pictures.value or ():
        if entry.get("kind") != kind or not isinstance(entry.get("file"), str):
            continue
        if picture := album.embed(folder / entry["file"], folder):
            gallery.figures.append(Figure(picture, _caption(entry)))
    if album.omitted > omitted:
        gallery.notes.append(f"{album.omitted - omitted} more are in outputs/evaluate/pictures.")
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
    caption = str(entry.get("caption") or "")
    clip_id, frame = entry.get("clip_id"), entry.get("frame")
    place = ", ".join([f"clip {clip_id}"] * bool(clip_id) + [f"frame {frame}"] * (frame is not None))
    if not caption or str(clip_id) in caption:
        return caption or place
    return f"{caption} ({place})" if place else caption
