"""The supervised detector of thesis section 9.3: `python -m benchmarks.detection`.

One generated video of 100 frames with one square on a moving background, Adam 1e-4, batch 8, 100 epochs, the losses of
that section (`train.yolo_supervised.loss: thesis`). The thesis gives its detection loss in training, 1.25 in epoch 1,
.0568 in epoch 50 and .0554 in epoch 100, and says that the box of the highest score is tight and that nothing else is
found: so beside the loss stand that box's IoU with the true one and how many boxes reach the cut of .4, over the frames
that were learnt from. The terms' weights are not named in the text, so the losses compare by their course only.
Runs with torch, torchvision, numpy, cv2 and pycocotools.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch

from benchmarks.data import generator_settings
from benchmarks.harness import Report, Row, Setting, add_options, at_least, describe_plan, format_table, peak_mib, start
from benchmarks.scores import CUT, predict, score
from benchmarks.training import build_model
from models.common.boxes import pairwise_iou
from models.common.instances import Instances
from models.interface import Segmenter
from tasks.frames import FrameStore
from tasks.labels import LabelStore
from tasks.precision import autocast_dtype, choose_device
from tasks.sources.synthetic import generate_video
from tasks.training.loop import Hooks, Recipe, fit
from tasks.training.optimise import Optimisation

_BATCH = 8
_LEARNING_RATE = 1e-4
_NEVER = 10**9
_EPOCHS_SHOWN = (1, 50, 100)
"""Those that the thesis gives figures of: 1.25, .0568 and .0554."""
_COLUMNS = ("preset", *(f"loss, epoch {epoch}" for epoch in _EPOCHS_SHOWN), "last", "best box IoU",
            "found a frame at .4", "box AP", "box AP50", "processor minutes")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """One training."""

    row: str
    preset: str
    frames: int
    epochs: int
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--preset", choices=("small", "yolov3"), default="small", help="size of the network")
    parser.add_argument("--frames", type=at_least(2), default=100)
    parser.add_argument("--epochs", type=at_least(1), default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10], help="of the generator and of training")
    options = parser.parse_args()
    report = Report("detection", options)
    plans = [
        Plan(f"section 9.3, {options.preset}, seed {seed}", options.preset, options.frames, options.epochs, seed)
        for seed in options.seeds
    ]
    report.expect(plans)
    report.run(train_row, plans, options.cache)
    lines = [
        [row["preset"], *(row["losses"].get(str(epoch)) for epoch in _EPOCHS_SHOWN), [*row["losses"].values()][-1],
         row["best_box_iou"],
         row["found_at_cut"], row["box"]["AP"], row["box"]["AP50"], row["cpu_minutes"]]
        for row in report.rows if "failed" not in row
    ]  # fmt: skip
    report.finish(format_table(_COLUMNS, lines))


def train_row(plan: Plan, setting: Setting) -> Row:
    """Train on one video and look at what is found in it."""
    device = choose_device(setting.device)
    store, truth = open_square(plan.seed, plan.frames)
    torch.manual_seed(plan.seed)
    model = build_model("yolo_supervised", {"preset": plan.preset, "loss": "thesis"}, store.size)
    epoch = plan.frames / _BATCH
    rates = Optimisation(
        max(1, round(plan.epochs * epoch)), _LEARNING_RATE, optimizer="adam", weight_decay=0.0, schedule="constant",
        warmup_iterations=0, clip_grad_norm=None,
    )  # fmt: skip
    recipe = Recipe(rates, _BATCH, seed=plan.seed, augment=False, validate_every=_NEVER)
    logged: list[tuple[int, float]] = []
    hooks = Hooks(on_log=lambda iteration, values: logged.append((iteration, values["detection"])))
    started = time.process_time()
    fitted = fit(model, store, recipe, labels=truth, device=device, hooks=hooks)
    cpu_minutes = (time.process_time() - started) / 60
    return {
        "preset": plan.preset,
        "seed": plan.seed,
        "iterations": fitted.iterations,
        "minutes": round(fitted.seconds / 60, 3),
        "cpu_minutes": None if device.type == "cuda" else round(cpu_minutes, 3),
        "losses": mean_by_epoch(logged, epoch),
        **look(model, store, truth, device),
        "peak_mib": round(fitted.peak_mib if device.type == "cuda" else peak_mib(), 1),
        "threads": setting.threads,
        "device": device.type,
        "plan": describe_plan(plan),
    }


def open_square(seed: int, frames: int) -> tuple[FrameStore, LabelStore]:
    """The video and its true instances."""
    settings = generator_settings(seed, videos=1, frames=frames, objects=(1, 1), shapes=("square",))
    video = generate_video(settings, 0)
    masks = torch.from_numpy(video.masks)  # (D, T, H, W)
    truth = [Instances.from_masks(masks[:, frame]) for frame in range(frames)]
    store = FrameStore.from_arrays([video.frames], ["train"], settings.rate_hz, truth=[truth])
    assert store.truth is not None
    return store, store.truth


def mean_by_epoch(logged: list[tuple[int, float]], epoch: float) -> dict[str, float]:
    """{epoch from 1: mean of what was logged in it}. logged: (iteration from 1, mean loss since the one before); epoch:
    iterations, not always a whole number. What spans two epochs counts for the one that it ends in.
    """
    parts: dict[int, list[float]] = {}
    for iteration, value in logged:
        parts.setdefault(math.ceil(iteration / epoch), []).append(value)
    return {str(number): round(mean(values), 5) for number, values in parts.items()}


def look(model: Segmenter, store: FrameStore, truth: LabelStore, device: torch.device) -> Row:
    """best_box_iou: mean over frames of the IoU of the box of the highest score with the one true box, 0 where nothing
    is found. found_at_cut: mean number of detections from CUT on.
    """
    rows = np.arange(len(store))
    expected = [truth[int(row)] for row in rows]
    found = predict(model, store, rows, device=device, dtype=autocast_dtype("auto", device))
    overlaps = [best_overlap(one, two) for one, two in zip(found, expected, strict=True)]
    return {
        "best_box_iou": round(mean(overlaps), 4),
        "found_at_cut": round(mean(int((one.scores >= CUT).sum()) for one in found), 3),
        **score(found, expected),
    }


def best_overlap(found: Instances, truth: Instances) -> float:
    """IoU of the box of the highest score with the nearest true one; 0 without either."""
    if not len(found) or not len(truth):
        return 0.0
    return float(pairwise_iou(found.boxes[found.scores.argmax()][None], truth.boxes).max())


if __name__ == "__main__":
    start(main)
