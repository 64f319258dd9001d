"""The report: one HTML page of a run that needs nothing else, from the files that its stages left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from tasks.files import atomic_path
from tasks.report import figures, sections
from tasks.report.embed import Album
from tasks.report.inputs import Inputs, read_inputs
from tasks.report.words import count

INVISIBLE = dict.fromkeys(
    [
        *range(9),
        11,
        12,
        *range(14, 32),
        *range(127, 160),
        0x61C,
        0x200E,
        0x200F,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    ],
    "\ufffd",
)
"""Control characters, those among them that turn the direction of writing: a name could make the page lie."""


def write_report(workspace: Path, destination: Path) -> None:
    """Write destination/index.html from what `workspace` holds.

    Whatever is missing or broken is said in its section; only writing can fail, with StorageError.
    """
    page = render(read_inputs(workspace), workspace).translate(INVISIBLE)
    with atomic_path(destination / "index.html") as temporary:
        # File names need not be Unicode: what UTF-8 cannot hold becomes a question mark.
        temporary.write_text(page, encoding="utf-8", errors="replace")


def render(inputs: Inputs, workspace: Path) -> str:
    """The page as text. Every value is escaped by the template; `workspace` is where pictures lie."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = count
    return environment.get_template("template.html").render(_gather(inputs, workspace))


def _gather(inputs: Inputs, workspace: Path) -> dict[str, Any]:
    """Names of the template."""
    metrics, labels, params = inputs.metrics.value or {}, inputs.labels.value or {}, inputs.params.value
    album = Album()
    # In the order of what must not fall victim to the page's size.
    evaluated, pictures = workspace / "outputs" / "evaluate", inputs.pictures.value
    galleries = {
        kind: figures.hang_pictures(pictures, evaluated, album, kind)
        for kind in ("detections", "worst", "optical_flow")
    }
    galleries["labels"] = figures.hang_pictures(labels.get("pictures"), workspace / "outputs" / "labels", album)
    return {
        "inputs": inputs,
        "metrics": metrics,
        "scored": sections.has_truth(metrics),
        "galleries": galleries,
        "samples": figures.hang_samples(inputs, workspace, album),
        "unreadable": album.unreadable,
        "run": sections.describe_run(inputs),
        "headline": sections.headline_scores(inputs),
        "scores": sections.tabulate_scores(metrics),
        "further": sections.describe_further(metrics),
        "label_free": sections.describe_label_free(metrics),
        "precision": figures.chart_precision(inputs.curves.value),
        "losses": figures.chart_losses(inputs.losses.value),
        "validation": figures.chart_validation(inputs.validation.value, sections.validation_split(inputs)),
        "data": sections.describe_data(inputs),
        "dropped": sections.tabulate_dropped(inputs),
        "rejected": sections.tabulate_rejected(inputs),
        "clips": sections.tabulate_clips(inputs),
        "labels": sections.describe_labels(labels),
        "labelled_clips": sections.tabulate_labelled_clips(labels),
        "thresholds": sections.describe_thresholds(params) if params else None,
        "lineage": sections.describe_lineage(inputs),
        "params": sections.list_params(params) if params else None,
    }
