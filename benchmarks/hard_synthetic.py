"""Generated video beyond the thesis', one difficulty at a time: `python -m benchmarks.hard_synthetic`.

Each row pair is the same network for the same number of iterations, learnt from motion labels alone and from true
masks. Both learn and are tested under the difficulty. Objects that stand still at the moment of a test frame are
counted apart (thesis: what learnt from motion finds what does not move); the labels' own scores are on train frames.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.data import Dataset
from benchmarks.harness import Report, Row, add_options, at_least, cache_folder, format_table, start
from benchmarks.plans import run_plans
from benchmarks.tables import format_rows, summarise
from benchmarks.training import INFERENCE, Plan

SCENES: dict[str, dict[str, Any]] = {
    "rotation and scale": {"rotation_deg": 4.0, "scaling": 0.25},
    "deformation": {"deformation": 0.3},
    "occlusion and crossing": {"objects": (4, 7), "radius": (12.0, 24.0), "occlusion_order": True},
    "standing still": {"standing_still": 0.5},
    "camera shake and zoom": {"camera_shake": 1.5, "camera_zoom": 0.1},
    "lighting change": {"lighting": 0.3},
    "low texture contrast": {"texture_contrast": 0.25},
    "many small objects": {"objects": (10, 14), "radius": (5.0, 8.0)},
}
"""Changes to the generator's settings."""
LABEL_FREE, SUPERVISED = "label-free", "supervised"
_WAYS: dict[str, dict[str, Any]] = {
    LABEL_FREE: {"labels": "motion", "settings": {"objective": "motion_labels", **INFERENCE}},
    SUPERVISED: {"method": "yolo_supervised", "labels": "truth", "settings": INFERENCE},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10])
    parser.add_argument("--videos", type=at_least(1), default=24)
    parser.add_argument("--frames", type=at_least(2), default=120)
    parser.add_argument("--fresh", type=at_least(0), default=50, help="videos that belong to no split")
    parser.add_argument("--iterations", type=at_least(1), default=2000, help="of batch 16, for every row")
    parser.add_argument("--rows", nargs="+", choices=list(SCENES), default=list(SCENES), help="difficulties")
    options = parser.parse_args()
    report = Report("hard_synthetic", options)
    with cache_folder(options) as cache:
        run_plans(report, make_plans(options), cache)
    summary = summarise_scenes(report.rows)
    report.finish(f"{format_rows(report.rows)}\n\n{format_summary(summary)}", summary=summary)


def make_plans(options: argparse.Namespace) -> list[Plan]:
    plans = []
    for seed in options.seeds:
        for name in options.rows:
            data = Dataset(seed, options.videos, {"frames": options.frames, **SCENES[name]}, fresh=options.fresh)
            plans += [
                Plan(
                    f"{name}, {way}, seed {seed}", f"{name}, {way}", data, **changes, seed=seed,
                    iterations=options.iterations,
                )
                for way, changes in _WAYS.items()
            ]  # fmt: skip
    return plans


def summarise_scenes(rows: list[Row]) -> dict[str, Any]:
    """Per difficulty: `summarise` of both ways, and of the label-free one the labels' own AP on train frames and the
    recall on what stands still and what moves, means over seeds.
    """
    summary: dict[str, Any] = {}
    for name in SCENES:
        own = [row for row in rows if row.get("kind", "").startswith(f"{name}, ")]
        if not own:
            continue
        ways = summarise(own, twin=f"{name}, {SUPERVISED}")
        summary[name] = {way: ways.get(f"{name}, {way}") for way in _WAYS}
        for way in _WAYS:
            recalls = [row["recall"] for row in own if row["kind"] == f"{name}, {way}"]
            if summary[name][way] is not None:
                summary[name][way]["recall"] = {kind: _pool_recall([r[kind] for r in recalls]) for kind in recalls[0]}
        labels = [row["label_scores"] for row in own if "label_scores" in row]
        summary[name]["labels"] = {kind: _mean([one[kind]["AP"] for one in labels]) for kind in ("mask", "box")}
    return summary


def format_summary(summary: dict[str, Any]) -> str:
    columns = ("difficulty", "labels' mask AP", "label-free", "supervised", "share", "box share", "still, label-free",
               "moving", "still, supervised", "moving")  # fmt: skip
    lines = []
    for name, one in summary.items():
        ways = [one[way] or {} for way in (LABEL_FREE, SUPERVISED)]
        scores = [_at(way, "mask_AP", "mean") for way in ways]
        shares = [_at(ways[0], f"{kind}_share", "mean") for kind in ("mask", "box")]
        recalls = [_at(way, "recall", kind, "recall_50") for way in ways for kind in ("still", "moving")]
        lines.append([name, one["labels"]["mask"], *scores, *shares, *recalls])
    return format_table(columns, lines)


def _pool_recall(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall over the instances of all seeds together."""
    count = sum(part["instances"] for part in parts)
    pooled: dict[str, Any] = {"instances": count}
    for name in ("recall_50", "recall_50_at_cut"):
        met = sum(part["instances"] * part[name] for part in parts if part[name] is not None)
        pooled[name] = met / count if count else None
    return pooled


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _at(values: dict[str, Any] | None, *keys: str) -> Any:
    for key in keys:
        values = None if values is None else values.get(key)
    return values


if __name__ == "__main__":
    start(main)
