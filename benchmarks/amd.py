"""AMD on one moving object and on several, with the automatic choice of channels beside an oracle's.

`python -m benchmarks.amd`: generated video of thesis section 3.9, with one object and with three to five, learnt from
one video (its first four fifths; scored on the rest, as section 9.1 watches one video) and from 24 (scored on the test
split's other videos, as section 4.1). No row sees a label; truth scores. Settings were chosen on generator seed 510,
rows are of seed 10. Two pictures of the one-video rows are written beside the results: frame, the five channels, what
the automatic choice finds, truth.

"oracle" gives every object of a frame the channel that fits it best, one to one (Hungarian): what a person who chooses
channels frame by frame could reach. "person" is the one channel that fits the objects' union best over all frames.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.data import Dataset, generator_settings, open_video
from benchmarks.harness import (
    RESULTS,
    Report,
    Row,
    Setting,
    add_options,
    at_least,
    cache_folder,
    describe_plan,
    format_table,
    start,
)
from benchmarks.scores import iou_table, predict, score
from models.amd.config import AmdConfig
from models.amd.model import Amd
from models.common.images import to_tensor
from models.common.instances import Instances
from tasks.frames import FrameStore
from tasks.pictures import overlay, side_by_side, stack_rows, write_jpeg
from tasks.sources.synthetic import generate_video
from tasks.training.loop import Recipe, fit
from tasks.training.optimise import Optimisation

LEARNS: dict[str, Any] = {"photometric": "ssim", "readout": "flow", "dense_weight": 1.0}
"""What makes AMD learn within minutes: README.md of models/amd says what each is for."""
CHANNELS = 5
OBJECTS = {"one object": (1, 1), "several objects": (3, 5)}
COLUMNS = (
    "row", "auto AP50", "auto best IoU", "found/frame", "oracle AP50", "oracle IoU", "person IoU", "chosen", "coverage",
    "minutes",
)  # fmt: skip
_TRAIN_SHARE = 0.8
_PICTURES = 3
_NEVER = 10**9


@dataclass(frozen=True)
class Plan:
    """One row. video: number of the one video to learn from, None for all of the train split. picture: file name."""

    row: str
    objects: tuple[int, int]
    video: int | None
    seed: int
    iterations: int
    learning_rate: float
    videos: int = 24
    settings: dict[str, Any] = field(default_factory=dict)
    picture: Path | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seed", type=int, default=10, help="of the generator and of the weights")
    parser.add_argument("--videos", type=at_least(1), default=24, help="of the rows that learn from many")
    parser.add_argument(
        "--iterations", type=at_least(1), default=250, help="of batch 8; the results say how long they took"
    )
    parser.add_argument("--preset", default="small", help="small, or the thesis' resnet50")
    parser.add_argument("--rows", nargs="+", help="names of rows to run; default: all")
    options = parser.parse_args()
    report = Report("amd", options)
    plans = [plan for plan in make_plans(options) if not options.rows or plan.row in options.rows]
    with cache_folder(options) as cache:
        report.run(run_row, plans, cache)
    report.finish(format_table(COLUMNS, [describe_row(row) for row in report.rows]))


def make_plans(options: argparse.Namespace) -> list[Plan]:
    """One object and several, from one video and from many, and one object with everything as the text has it."""
    pictures = None if options.no_save else (options.output.parent if options.output else RESULTS)
    common: dict[str, Any] = {"seed": options.seed, "iterations": options.iterations, "videos": options.videos}
    learns = {"preset": options.preset, **LEARNS}
    plans = []
    for name, objects in OBJECTS.items():
        picture = None if pictures is None else pictures / f"amd_{name.replace(' ', '_')}.jpg"
        plans.append(
            Plan(f"{name}, one video", objects, 0, **common, learning_rate=2e-3, settings=learns, picture=picture)
        )
    as_written = {"preset": options.preset}
    row = "one object, one video, as written"
    plans.append(Plan(row, OBJECTS["one object"], 0, **common, learning_rate=1e-4, settings=as_written))
    for name, objects in OBJECTS.items():
        row = f"{name}, {options.videos} videos"
        plans.append(Plan(row, objects, None, **common, learning_rate=2e-3, settings=learns))
    return plans


def run_row(plan: Plan, setting: Setting) -> Row:
    """Train, score, draw."""
    device = torch.device(
        "cuda" if setting.device == "auto" and torch.cuda.is_available() else setting.device.replace("auto", "cpu")
    )
    store = open_many(plan, setting) if plan.video is None else open_one(plan)
    torch.manual_seed(plan.seed)
    model = Amd(AmdConfig(**plan.settings, channels=CHANNELS), store.size)
    optimisation = Optimisation(
        plan.iterations, plan.learning_rate, 0.0, min(20, plan.iterations), "cosine", "adam", clip_grad_norm=5.0
    )
    recipe = Recipe(optimisation, batch_size=8, seed=plan.seed, augment=False, validate_every=_NEVER)
    fitted = fit(model, store, recipe, device=device)
    rows = np.concatenate([np.arange(clip.first_row, clip.stop) for clip in store.clips if clip.split == "test"])
    assert store.truth is not None
    truth = [store.truth[int(row)] for row in rows]
    found = predict(model, store, rows, device=device, dtype=None)
    winners = find_winners(model, store, rows)
    if plan.picture is not None:
        draw(plan.picture, store, rows, winners, found, truth)
    return {
        "iterations": fitted.iterations,
        "minutes": round(fitted.seconds / 60, 2),
        "pairs_per_s": round(fitted.images_per_s, 2),
        "images": len(rows),
        "parameters": sum(p.numel() for p in model.parameters()),
        "automatic": {
            **score(found, truth),
            "best_iou": best_iou(found, truth),
            "found_per_frame": sum(map(len, found)) / len(rows),
        },
        **score_channels(winners, truth, CHANNELS),
        "chosen": torch.nonzero(model.chosen_channels())[:, 0].tolist(),
        "training_coverage": model.record.coverage.tolist(),
        "training_contrast_px": model.record.contrast.tolist(),
        "plan": describe_plan(replace(plan, picture=None)),
    }


def open_one(plan: Plan) -> FrameStore:
    """One generated video, cut in time: its first part to train on, the rest to test."""
    video = generate_video(generator_settings(plan.seed, objects=plan.objects), plan.video or 0)
    masks = torch.from_numpy(video.masks)  # (D, T, H, W)
    truth = [Instances.from_masks(masks[:, t]) for t in range(len(video.frames))]
    cut = round(_TRAIN_SHARE * len(truth))
    frames = [np.ascontiguousarray(video.frames[part]) for part in (slice(cut), slice(cut, None))]
    return FrameStore.from_arrays(frames, ["train", "test"], 24.0, truth=[truth[:cut], truth[cut:]])


def open_many(plan: Plan, setting: Setting) -> FrameStore:
    """Videos split by video, as for Table 2."""
    data = Dataset(plan.seed, plan.videos, {"objects": plan.objects}, fresh=0)
    return open_video(data, setting.cache).store


@torch.no_grad()
def find_winners(model: Amd, store: FrameStore, rows: np.ndarray) -> Tensor:
    """(N, H, W) int64: the most probable channel of every pixel, on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    parts = [rows[start : start + 16] for start in range(0, len(rows), 16)]
    return torch.cat([model.masks(to_tensor(store.gather(part), device)).argmax(1).cpu() for part in parts])


def score_channels(winners: Tensor, truth: Sequence[Instances], channels: int) -> dict[str, Any]:
    """Figures that need no choice of channels: the oracle's, the person's, how much of a frame each channel holds."""
    masks = torch.stack([winners == channel for channel in range(channels)], dim=1)  # (N, C, H, W)
    matched = [match_channels(one, expected) for one, expected in zip(masks, truth, strict=True)]
    unions = torch.stack([expected.masks.any(0) for expected in truth])[:, None]  # (N, 1, H, W)
    shared, either = ((masks & unions).flatten(2).sum(2), (masks | unions).flatten(2).sum(2))
    fit_of = (shared / either.clamp(min=1)).mean(0)  # (C,)
    oracle = [found for found, _ in matched]
    ious = np.concatenate([values for _, values in matched])
    return {
        "oracle": {**score(oracle, list(truth)), "iou": float(ious.mean()) if len(ious) else None},
        "person": {"channel": int(fit_of.argmax()), "iou": float(fit_of.max())},
        "channel_iou": fit_of.tolist(),
        "channel_coverage": masks.float().mean((0, 2, 3)).tolist(),
    }


def match_channels(masks: Tensor, truth: Instances) -> tuple[Instances, np.ndarray]:
    """Channels (C, H, W) bool given to true objects one to one, so that the sum of IoU is the largest.

    Returns the channels that got an object, and (M,) IoU of every object, 0 for those left without a channel.
    """
    ious = iou_table(masks, truth.masks)  # (C, M)
    channels, objects = linear_sum_assignment(-ious)
    values = np.zeros(len(truth))
    values[objects] = ious[channels, objects]
    return Instances.from_masks(masks[torch.from_numpy(channels)], torch.from_numpy(ious[channels, objects])), values


def best_iou(found: Sequence[Instances], truth: Sequence[Instances]) -> float | None:
    """Mean over true objects of the IoU of the detection that fits each best, 0 where there is none."""
    best = [iou_table(one.masks, expected.masks).max(0, initial=0) for one, expected in zip(found, truth, strict=True)]
    values = np.concatenate(best)
    return float(values.mean()) if len(values) else None


def draw(
    path: Path,
    store: FrameStore,
    rows: np.ndarray,
    winners: Tensor,
    found: Sequence[Instances],
    truth: Sequence[Instances],
) -> None:
    """A few frames, each with its channels (white where a channel holds a pixel), what was found, and truth."""
    lines = []
    for index in np.linspace(0, len(rows) - 1, _PICTURES).astype(int):
        frame = store.frame(int(rows[index]))
        held = [np.where(winners[index].numpy()[..., None] == channel, 255, 0) for channel in range(CHANNELS)]
        channels = [np.broadcast_to(one, frame.shape).astype(np.uint8) for one in held]
        lines.append(side_by_side([frame, *channels, overlay(frame, found[index]), overlay(frame, truth[index])]))
    write_jpeg(path, stack_rows(lines), quality=80)


def describe_row(row: Row) -> list[Any]:
    if "failed" in row:
        return [row["row"], *([None] * (len(COLUMNS) - 2)), row["failed"]]
    automatic, oracle = row["automatic"], row["oracle"]
    return [
        row["row"],
        automatic["mask"]["AP50"],
        automatic["best_iou"],
        automatic["found_per_frame"],
        oracle["mask"]["AP50"],
        oracle["iou"],
        row["person"]["iou"],
        ",".join(map(str, row["chosen"])) or "none",
        " ".join(f"{share:.2f}" for share in row["channel_coverage"]),
        row["minutes"],
    ]


if __name__ == "__main__":
    start(main)
