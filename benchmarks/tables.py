"""Rows that trained (`benchmarks.training`) as tables, and their means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.harness import Row, format_table

COLUMNS = ("row", "mask AP50", "AP75", "AP", "box AP50", "AP75", "AP", "mask AP, cut", "box AP, cut",
           "fresh mask AP", "box AP", "minutes", "labelling", "iterations", "images/s", "pairs/s", "MiB")  # fmt: skip
"""minutes: of the training; labelling: minutes of one core that its motion labels took before."""


def summarise(rows: Sequence[Row], *, twin: str) -> dict[str, Any]:
    """Per kind of row: mean and spread over seeds of mask AP and box AP, and their share of the twin's.

    twin: the kind of the supervised row; rows are compared with the one of their own data seed. {kind: {"rows",
    "mask_AP": {"mean", "std", "min", "max"}, "box_AP", "fresh_mask_AP", "fresh_box_AP", "mask_share", "box_share"}},
    None where there is nothing to take.
    """
    finished = [row for row in rows if "failed" not in row]
    twins = {row["data_seed"]: row for row in finished if row["kind"] == twin}
    summary: dict[str, Any] = {}
    for kind in dict.fromkeys(row["kind"] for row in finished):
        own = [row for row in finished if row["kind"] == kind]
        summary[kind] = {"rows": len(own), "minutes": mean(row["minutes"] for row in own)}
        for what in ("mask", "box"):
            summary[kind][f"{what}_AP"] = spread([row[what]["AP"] for row in own])
            summary[kind][f"fresh_{what}_AP"] = spread([row["fresh"][what]["AP"] for row in own if "fresh" in row])
            shares = [share(row, twins.get(row["data_seed"]), what) for row in own]
            summary[kind][f"{what}_share"] = spread(shares)
    return summary


def share(row: Row, twin: Row | None, what: str) -> float | None:
    """AP of a row as a share of its supervised twin's; what: "mask" or "box"."""
    if twin is None or row[what]["AP"] is None or not twin[what]["AP"]:
        return None
    return float(row[what]["AP"] / twin[what]["AP"])


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean, sample standard deviation (0 for one value), least and most of what is not None."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = stdev(known) if len(known) > 1 else 0.0
    return {"mean": mean(known), "std": deviation, "min": min(known), "max": max(known)}


def format_rows(rows: Sequence[Row]) -> str:
    """The table of rows that trained, and why others failed."""
    lines: list[list[Any]] = []
    failures = ""
    for row in rows:
        if "failed" in row:
            failures += f"\n{row['row']}: {row['failed']}"
            continue
        scores = [row[kind][name] for kind in ("mask", "box") for name in ("AP50", "AP75", "AP")]
        fresh = [row.get("fresh", {}).get(kind, {}).get("AP") for kind in ("mask", "box")]
        cut = [row[kind]["AP"] for kind in ("mask_at_cut", "box_at_cut")]
        labelling = None if row.get("label_seconds") is None else row["label_seconds"] / 60
        costs = [row[name] for name in ("iterations", "images_per_s", "pairs_per_s", "peak_mib")]
        lines.append([row["row"], *scores, *cut, *fresh, row["minutes"], labelling, *costs])
    return format_table(COLUMNS, lines) + failures
