"""The thesis' recipe against the clock: so many pairs in so many minutes, and what the network finds as it learns.

`python -m benchmarks.thesis_recipe --pairs 1000000 --minutes 10 --preset yolov3`, on a GPU, trains the thesis' network
on its generated video (17 of 24 videos of 120 frames) with its optimiser (Adam, 1e-4, batch 16) and prints average
precision against wall time, as a table and as a picture beside the results file; the thesis' 1,000,000 pairs took 5
hours on a V100. --as-written takes its equations and inference to the letter, else their faults are mended. --objective
motion_labels and --twin (true masks) learn from single images, which count as pairs, with copy-paste as by default; the
labeller's time stands beside the minutes (`label_seconds`, of one core) and not in them. Not objective em, whose rounds
stand at parts of a training whose length has to be known: `benchmarks.thesis`.
Training ends with the pairs or the minutes, whichever come first; scoring is not counted as time. Runs with torch,
torchvision, numpy, cv2 and pycocotools.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import torch

import models
from benchmarks.data import Dataset, Video, open_motion_labels, open_video
from benchmarks.harness import (
    RESULTS,
    Report,
    Row,
    Setting,
    above_zero,
    add_options,
    at_least,
    cache_folder,
    describe_plan,
    format_table,
    start,
)
from benchmarks.scores import predict, score
from benchmarks.thesis import AS_WRITTEN
from models.interface import Segmenter
from models.mosis.config import MosisConfig, Objective, Preset
from tasks.errors import ParamsError
from tasks.precision import autocast_dtype, choose_device
from tasks.training.loop import Hooks, Recipe, fit
from tasks.training.optimise import Optimisation

THESIS = {"thesis, label-free": 0.149, "thesis, supervised": 0.391}
"""Mask AP of Table 2."""
_NEVER = 10**9


@dataclass(frozen=True)
class Plan:
    """One training. points: how often it is scored; images: of the test split, each time."""

    row: str
    pairs: int
    minutes: float
    objective: Objective
    preset: Preset
    as_written: bool
    twin: bool
    batch_size: int
    learning_rate: float
    precision: str
    points: int
    images: int
    videos: int
    frames: int
    data_seed: int
    seed: int


class _TimeIsUp(Exception):
    pass


@dataclass
class _Watch:
    """Scores a training as it goes on and ends it when its time is up; scoring does not count as time."""

    plan: Plan
    model: Segmenter
    video: Video
    device: torch.device

    def __post_init__(self) -> None:
        rows = self.video.rows("test")
        self.rows = rows[np.linspace(0, len(rows) - 1, min(self.plan.images, len(rows))).astype(np.int64)]
        self.truth = self.video.truth(self.rows)
        self.points: list[dict[str, float | None]] = []
        self.pairs = 0
        self.minutes = 0.0
        self.resumed = time.perf_counter()

    def hear(self, iteration: int, values: dict[str, float]) -> None:
        """A hook of `fit`. Raises _TimeIsUp."""
        self.minutes += (time.perf_counter() - self.resumed) / 60
        self.pairs = iteration * self.plan.batch_size
        done = max(self.pairs / self.plan.pairs, self.minutes / self.plan.minutes)
        if done >= (len(self.points) + 1) / self.plan.points:
            self.look()
        self.resumed = time.perf_counter()
        if self.minutes >= self.plan.minutes:
            raise _TimeIsUp

    def look(self) -> None:
        dtype = autocast_dtype(self.plan.precision, self.device)
        scores = score(predict(self.model, self.video.store, self.rows, device=self.device, dtype=dtype), self.truth)
        self.model.train()
        named = {f"{kind}_{name}": scores[kind][name] for kind in ("mask", "box") for name in ("AP", "AP50", "AP75")}
        self.points.append({"minutes": round(self.minutes, 3), "pairs": self.pairs, **named})


def main() -> None:
    options = parse_options()
    report = Report("thesis_recipe", options)
    row = "twin" if options.twin else options.objective
    plan = Plan(row, **{field.name: getattr(options, field.name) for field in fields(Plan) if field.name != "row"})
    with cache_folder(options) as cache:
        report.run(train, [plan], cache)
    points = [point for row in report.rows for point in row.get("points", ())]
    columns = ("minutes", "pairs", "mask_AP", "mask_AP50", "box_AP", "box_AP50")
    if options.output or not options.no_save:
        draw_curves((options.output or RESULTS / "thesis_recipe.json").with_suffix(".png"), report.rows)
    report.finish(format_table(columns, [[point[name] for name in columns] for point in points]))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=at_least(1), default=1_000_000)
    parser.add_argument("--minutes", type=above_zero, default=10.0)
    parser.add_argument("--objective", choices=("literal", "motion_labels"), default="literal")
    parser.add_argument("--preset", choices=get_args(Preset), default="yolov3")
    parser.add_argument("--as-written", action="store_true", help="the literal objective with the text's faults")
    parser.add_argument("--twin", action="store_true", help="learn from true masks, the objective's labels aside")
    parser.add_argument("--batch-size", type=at_least(1), default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--points", type=at_least(1), default=10, help="scores along the way")
    parser.add_argument("--images", type=at_least(1), default=96, help="of the test split, scored each time")
    parser.add_argument("--videos", type=at_least(1), default=24)
    parser.add_argument("--frames", type=at_least(2), default=120)
    parser.add_argument("--data-seed", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    add_options(parser)
    return parser.parse_args()


def train(plan: Plan, setting: Setting) -> Row:
    """Train within the budget, scored `points` times and at its end. Raises ParamsError for options at odds."""
    if plan.as_written and (plan.twin or plan.objective != "literal"):
        raise ParamsError("--as-written is of the literal objective: leave out --twin, and --objective")
    device = choose_device(setting.device)
    data = Dataset(plan.data_seed, plan.videos, {"frames": plan.frames}, fresh=0)
    video = open_video(data, setting.cache)
    objective: Objective = "motion_labels" if plan.twin else plan.objective
    labels, label_seconds = video.store.truth, None
    if objective == "motion_labels" and not plan.twin:
        motion = open_motion_labels(data, {}, setting.cache)
        labels, label_seconds = motion.labels, motion.seconds
    torch.manual_seed(plan.seed)
    written: dict[str, Any] = AS_WRITTEN if plan.as_written else {"objective": objective, "nms_iou": 0.5}
    model = models.METHODS["mosis"](MosisConfig(preset=plan.preset, **written), video.store.size)
    watch, stopped = _Watch(plan, model, video, device), "pairs"
    try:
        fit(model, video.store, make_recipe(plan), labels=labels, device=device, hooks=Hooks(on_log=watch.hear))
    except _TimeIsUp:
        stopped = "minutes"
    if not watch.points or watch.points[-1]["pairs"] != watch.pairs:
        watch.look()
    return {
        **describe_plan(plan),
        "device": device.type,
        "stopped_by": stopped,
        "minutes": round(watch.minutes, 3),
        "label_seconds": label_seconds,
        "pairs": watch.pairs,
        "pairs_per_s": round(watch.pairs / watch.minutes / 60, 2),
        "points": watch.points,
    }


def make_recipe(plan: Plan) -> Recipe:
    """The thesis' optimisation (section 4), as many steps as the pairs take; what learns from labels is augmented."""
    iterations = max(1, plan.pairs // plan.batch_size)
    learns_from_labels = plan.twin or plan.objective != "literal"
    optimisation = Optimisation(iterations, plan.learning_rate, 0.0, schedule="constant", optimizer="adam")
    return Recipe(
        optimisation, plan.batch_size, seed=plan.seed, precision=plan.precision, augment=learns_from_labels,
        copy_paste=learns_from_labels, validate_every=_NEVER,
    )  # fmt: skip


def draw_curves(path: Path, rows: Sequence[Row]) -> None:
    """Mask AP (thick) and box AP (thin) over minutes as a PNG, 640 x 400, the thesis' own mask AP as grey lines.

    Nothing where there is no point.
    """
    points = [point for row in rows for point in row.get("points", ())]
    if not points:
        return
    canvas = np.full((400, 640, 3), 255, np.uint8)
    left, top, right, bottom = 60, 20, 620, 350
    longest = max(float(point["minutes"]) for point in points) or 1.0
    highest = max(
        0.1, *THESIS.values(), *(float(point[name] or 0) for point in points for name in ("mask_AP", "box_AP"))
    )

    def at(minutes: float, value: float) -> tuple[int, int]:
        return round(left + (right - left) * minutes / longest), round(bottom - (bottom - top) * value / highest)

    def write(text: str, place: tuple[int, int]) -> None:
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)

    for name, value in THESIS.items():
        cv2.line(canvas, at(0, value), at(longest, value), (170, 170, 170), 1)
        write(f"{name} {value:.3f}", (left + 4, at(0, value)[1] - 4))
    for row in rows:
        for name, width in (("mask_AP", 2), ("box_AP", 1)):
            line = [at(float(point["minutes"]), float(point[name] or 0)) for point in row.get("points", ())]
            cv2.polylines(
                canvas, [np.array(line, np.int32).reshape(-1, 1, 2)], False, (180, 80, 30), width, cv2.LINE_AA
            )
    cv2.rectangle(canvas, (left, top), (right, bottom), (0, 0, 0), 1)
    write(f"AP, mask (thick) and box; top {highest:.2f}", (left, top - 6))
    write(f"minutes of training, to {longest:.2f}", (left, bottom + 20))
    cv2.imwrite(str(path), canvas)


if __name__ == "__main__":
    start(main)
