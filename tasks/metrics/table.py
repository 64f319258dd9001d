"""The scores of metrics.json as people read them, after the evaluate stage and at the end of a run."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table

SHOWN = ("AP50", "AP75", "AP", "AR100")


def describe_scores(metrics: dict[str, Any]) -> list[RenderableType]:
    """For rich to print: the note, if any; the AP table where there is truth; what can be said without it."""
    shown: list[RenderableType] = [metrics["note"]] if metrics.get("note") else []
    if metrics["images"]:
        shown.append(score_table(metrics))
        further = further_scores(metrics)
        if further:
            shown.append(figure_table("Further scores that this truth offers", further))
    shown.append(figure_table("Detections, judged without labels", metrics["label_free"]))
    return shown


def score_table(metrics: dict[str, Any]) -> Table:
    """Class-agnostic COCO scores, with and without the score cut; a dash where there was nothing to score."""
    title = f"COCO scores, {metrics['images']} images of the {metrics['split']} split"
    table = Table("", title=title, title_justify="left")
    for name in SHOWN:
        table.add_column(name, justify="right")
    for kind, title in (("mask", "masks"), ("box", "boxes")):
        for key, row in ((kind, title), (f"{kind}_at_cut", f"{title}, score {metrics['cut']} or more")):
            table.add_row(row, *(figure(metrics[key][name]) for name in SHOWN))
    return table


def further_scores(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Name -> figure of the scores beside COCO's, of the families that there are."""
    figures: dict[str, float | None] = {}
    best, tracks, davis = (metrics.get(name) for name in ("best_match", "tracks", "davis"))
    if best:
        figures["best match, mean IoU"] = best["best_iou"]
        figures["best match, recall at .5"] = best["recall_50"]
        figures["best match, AR100"] = best["AR100"]
    if tracks:
        figures |= {f"tracks, {name}": tracks[name] for name in ("AP50", "AP75", "AP", "AR10")}
    if davis:
        for task, name in (("single", "one foreground"), ("unsupervised", "objects")):
            figures |= {f"{name}, {measure}": davis[task][measure]["mean"] for measure in ("J", "F", "J&F")}
    return figures


def figure_table(title: str, figures: dict[str, Any]) -> Table:
    """Names and figures, one a row."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), figure(value))
    return table


def figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
