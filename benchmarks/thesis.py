"""Thesis Table 2 on generated video: `python -m benchmarks.thesis`.

24 videos of 120 frames at 128 x 128, split 70/15/15 by video (thesis 4.1), seeds 10, 11 and 12, and 50 fresh videos.
The supervised twin and the motion labels train for `--minutes-equivalent` iterations of batch 16; the rows without
labels of any kind train for as many minutes as the twin of their seed took, since their iterations cost more: of
processor time on a CPU, by the clock on a GPU, at the rate that the twin is measured to have beside them. `--minutes`
sets the minutes of every row instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from benchmarks.data import Dataset
from benchmarks.harness import Report, above_zero, add_options, at_least, cache_folder, start
from benchmarks.plans import run_plans
from benchmarks.tables import format_rows, summarise
from benchmarks.training import INFERENCE, Plan

TWIN = "yolo_supervised"
_THESIS_OPTIMISATION = {
    "learning_rate": 1e-4, "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant", "clip_grad_norm": None,
    "warmup_iterations": 0, "augment": False,
}  # fmt: skip
"""The implementation details given with Table 2, which has no augmentation; batches of 16 are the default here."""
AS_WRITTEN = {
    "objective": "literal", "objectness_target": "literal", "warp_direction": "literal", "error_scale": "literal",
}  # fmt: skip
"""Eq. 9, 10 and 13-15 to the letter; inference (section 3.8) is the thesis' by default."""
_AMD_SETTINGS = {"photometric": "ssim", "readout": "flow", "dense_weight": 1.0}
"""What makes AMD learn within minutes, by models/amd/README.md; its optimiser, too, is the one chosen there."""
_AMD_OPTIMISATION = {
    "learning_rate": 2e-3, "optimizer": "adam", "weight_decay": 0.0, "warmup_iterations": 20, "batch_size": 8,
    "augment": False,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    TWIN: {"method": "yolo_supervised", "labels": "truth", "settings": INFERENCE},
    "mosis motion_labels": {"labels": "motion", "settings": {"objective": "motion_labels", **INFERENCE}},
    "mosis em": {"settings": {"objective": "em", **INFERENCE}},
    "mosis literal": {"settings": AS_WRITTEN, "recipe": _THESIS_OPTIMISATION},
    "amd": {"method": "amd", "settings": _AMD_SETTINGS, "recipe": _AMD_OPTIMISATION},
    "mosis literal, faults mended": {"settings": {"objective": "literal", **INFERENCE}},
    "amd as written": {
        "method": "amd",
        "settings": {"motion_stride": 1, "warp_direction": "literal"},
        "recipe": _THESIS_OPTIMISATION,
    },
}
"""What is particular to each row. *mosis literal* keeps the thesis' inference and optimiser."""
_ON_DEMAND = ("mosis literal, faults mended", "amd as written")
_AMD_PRESETS = {"small": "small", "yolov3": "resnet50"}
_BY_MINUTES = tuple(kind for kind, changes in KINDS.items() if "labels" not in changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--videos", type=at_least(1), default=24)
    parser.add_argument("--frames", type=at_least(2), default=120)
    parser.add_argument("--fresh", type=at_least(0), default=50, help="videos that belong to no split")
    parser.add_argument("--preset", choices=list(_AMD_PRESETS), default="small", help="size of the networks")
    default = [kind for kind in KINDS if kind not in _ON_DEMAND]
    parser.add_argument("--rows", nargs="+", choices=list(KINDS), default=default, help="kinds of rows")
    parser.add_argument(
        "--minutes-equivalent", type=at_least(1), default=2000, metavar="ITERATIONS", help="of the rows with labels"
    )
    parser.add_argument("--minutes", type=above_zero, help="of training, for every row; on a CPU of processor time")
    options = parser.parse_args()
    report = Report("thesis", options)
    with cache_folder(options) as cache:
        run_plans(report, make_plans(options, {row["kind"] for row in report.rows}), cache)
    report.finish(format_rows(report.rows), summary=summarise(report.rows, twin=TWIN))


def make_plans(options: argparse.Namespace, kinds_there: Iterable[str] = ()) -> list[Plan]:
    """Seed by seed, so that a run that is stopped has whole tables of some seeds. kinds_there: of rows made before."""
    plans = []
    known = {*options.rows, *kinds_there}
    for seed in options.seeds:
        data = Dataset(seed, options.videos, {"frames": options.frames}, fresh=options.fresh)
        for kind in options.rows:
            changes = {**KINDS[kind]}
            preset = _AMD_PRESETS[options.preset] if changes.get("method") == "amd" else options.preset
            changes["settings"] = {"preset": preset, **changes["settings"]}
            by_minutes = kind in _BY_MINUTES and options.minutes is None and TWIN in known
            plans.append(
                Plan(
                    f"{kind}, seed {seed}", kind, data, **changes, seed=seed, iterations=options.minutes_equivalent,
                    minutes=options.minutes, minutes_of=f"{TWIN}, seed {seed}" if by_minutes else None,
                )
            )  # fmt: skip
    return plans


if __name__ == "__main__":
    start(main)
