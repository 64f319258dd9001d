"""Dense optical flow on generated video: end-point and squared error against the true motion (thesis section 9.2).

`python -m benchmarks.optical_flow`: no motion at all (what any estimator must beat), dense inverse search, PWC-Lite
trained on true motion and on frame pairs alone, and RAFT where --raft-weights names a file. Trained on the train clips,
scored on the test clips of one generator seed. And section 9.2's own experiment: one video of 100 frames with one
square, whose error in training the thesis gives (MSE .013). Settings were chosen on seed 500.
Runs with torch, numpy, cv2 and pycocotools.

Columns: epe in pixels, over all pixels and apart over those of objects, of the background, and of what the next frame
hides (pixels whose point the true motion leads onto another layer); over_1px is the share of pixels that are off by
more than one; mse is the mean over both components, as in the thesis; ms is processor time for one pair.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import generator_settings
from benchmarks.harness import Report, Row, Setting, add_options, at_least, cache_folder, format_table, peak_mib, start
from models import OPTICAL_FLOW
from models.common.images import to_tensor
from models.common.instances import Instances
from models.common.warp import inside_frame, warp
from models.interface import OpticalFlowEstimator
from models.optical_flow.config import DisConfig, FlowObjective, PwcLiteConfig, RaftConfig, RaftSize
from models.optical_flow.losses import end_point_error
from tasks.frames import FrameStore
from tasks.sources.synthetic import generate_video
from tasks.sources.synthetic.jobs import assign_splits
from tasks.training.loop import Fitted, Hooks, Recipe, fit
from tasks.training.optimise import Optimisation

_BATCH = 16
_COLUMNS = ("epe", "epe_objects", "epe_background", "epe_hidden", "over_1px", "mse", "ms")


@dataclass(frozen=True)
class Data:
    """Generated video: seed and number of videos, split 70/15/15; every `step`-th pair of the split `scored` is scored.
    changes: to the generator's settings.
    """

    seed: int
    videos: int
    step: int
    scored: str = "test"
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """One row. method: of OPTICAL_FLOW, or "still" for no motion. iterations, batch, learning_rate: where trained."""

    row: str
    method: str
    data: Data
    objective: FlowObjective = "supervised"
    iterations: int = 0
    batch: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    weights: str = ""
    raft_size: RaftSize = "small"


class _Still(OpticalFlowEstimator):
    """Nothing moves."""

    def estimate(self, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        return torch.zeros_like(frames_a[:, :2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seed", type=int, default=10, help="of the generator and of training")
    parser.add_argument("--videos", type=at_least(1), default=24)
    parser.add_argument("--step", type=at_least(1), default=2, help="score every STEP-th pair of the test clips")
    parser.add_argument("--batch", type=at_least(1), default=4)
    parser.add_argument("--iterations", type=at_least(1), default=2000, help="of the supervised row")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of the supervised row")
    parser.add_argument("--unsupervised-iterations", type=at_least(1), default=800)
    parser.add_argument("--unsupervised-learning-rate", type=float, default=2e-3)
    parser.add_argument("--square-frames", type=at_least(2), default=100, help="of section 9.2's video")
    parser.add_argument("--raft-weights", default="", help="file with the state of torchvision's RAFT; no row without")
    parser.add_argument("--raft-size", choices=("small", "large"), default="small")
    options = parser.parse_args()
    report = Report("optical_flow", options)
    with cache_folder(options) as cache:
        report.run(run_row, plan_rows(options), cache)
    if not options.raft_weights:
        note = "raft: left out, needs --raft-weights FILE"
        report.add({"row": "raft", "left_out": note})
    lines = [
        [row.get("left_out", row["row"]), *(row.get(name) for name in ("iterations", "minutes", *_COLUMNS))]
        for row in report.rows
    ]
    report.finish(format_table(("row", "iterations", "minutes", *_COLUMNS), lines))


def plan_rows(options: argparse.Namespace) -> list[Plan]:
    data = Data(options.seed, options.videos, options.step)
    square = Data(
        options.seed, 1, 1, "train", {"frames": options.square_frames, "objects": (1, 1), "shapes": ("square",)}
    )
    common = {"data": data, "batch": options.batch, "seed": options.seed}
    rows = [
        Plan("no motion", "still", data),
        Plan("dis", "dis", data),
        Plan("pwc_lite supervised", "pwc_lite", iterations=options.iterations,
             learning_rate=options.learning_rate, **common),
        Plan("pwc_lite unsupervised", "pwc_lite", objective="unsupervised", iterations=options.unsupervised_iterations,
             learning_rate=options.unsupervised_learning_rate, **common),
        Plan("section 9.2, in training", "pwc_lite", iterations=options.iterations,
             learning_rate=options.learning_rate, **{**common, "data": square}),
    ]  # fmt: skip
    if options.raft_weights:
        rows.append(Plan("raft", "raft", data, weights=options.raft_weights, raft_size=options.raft_size))
    return rows


def run_row(plan: Plan, setting: Setting) -> Row:
    torch.set_num_threads(1)  # whatever the machine has: maps this small gain little from more
    torch.manual_seed(plan.seed)
    model = build(plan)
    store = open_store(plan.data, (plan.data.scored,) if model.needs is None else ("train", plan.data.scored))
    row: Row = {"method": plan.method, "plan": asdict(plan), "threads": 1}
    if model.needs is not None:
        row |= train(model, store, plan)
    return row | score(model.eval().cpu(), store, plan.data) | {"peak_mib": round(peak_mib())}


def build(plan: Plan) -> OpticalFlowEstimator:
    if plan.method == "still":
        return _Still()
    if plan.method == "dis":
        return OPTICAL_FLOW["dis"](DisConfig())
    if plan.method == "raft":
        return OPTICAL_FLOW["raft"](RaftConfig(weights=plan.weights, size=plan.raft_size))
    return OPTICAL_FLOW["pwc_lite"](PwcLiteConfig(objective=plan.objective))


def train(model: OpticalFlowEstimator, store: FrameStore, plan: Plan) -> Row:
    """Train in place on the CPU. minutes: on the clock; cpu_minutes: of the processor, whatever else ran beside."""
    rates = Optimisation(
        plan.iterations, plan.learning_rate, weight_decay=1e-4, warmup_iterations=plan.iterations // 20,
        clip_grad_norm=5.0,
    )  # fmt: skip
    curve: list[list[float]] = []
    hooks = Hooks(on_log=lambda iteration, values: curve.append([iteration, values.get("mse", values["total"])]))
    started = time.process_time()
    fitted: Fitted = fit(model, store, Recipe(rates, plan.batch, seed=plan.seed, validate_every=10**9), hooks=hooks)
    every = max(1, len(curve) // 20)
    return {
        "iterations": fitted.iterations,
        "minutes": round(fitted.seconds / 60, 2),
        "cpu_minutes": round((time.process_time() - started) / 60, 2),
        "curve": [[iteration, round(value, 4)] for iteration, value in curve[every - 1 :: every]],
    }


def open_store(data: Data, needed: Sequence[str]) -> FrameStore:
    """The clips of the needed splits with truth and true optical flow, generated into memory."""
    settings = generator_settings(data.seed, dense_flow=True, videos=data.videos, **data.changes)
    chosen = [(index, split) for index, split in enumerate(assign_splits(data.videos, data.seed)) if split in needed]
    clips, truths, fields = [], [], []
    for index, _ in chosen:
        video = generate_video(settings, index)
        assert video.flow_uv is not None
        clips.append(video.frames)
        fields.append(video.flow_uv.astype(np.float16))
        masks = torch.from_numpy(video.masks)  # (D, T, H, W)
        tracks = torch.arange(len(masks))
        truths.append([Instances.from_masks(masks[:, t], track_ids=tracks) for t in range(len(video.frames))])
    splits = [split for _, split in chosen]
    return FrameStore.from_arrays(clips, splits, settings.rate_hz, truth=truths, optical_flow=fields)


def score(model: OpticalFlowEstimator, store: FrameStore, data: Data) -> Row:
    """Errors over every `data.step`-th pair of the split `data.scored`; None where there is no such pixel."""
    assert store.optical_flow is not None
    rows = store.pairs(data.scored).row_a[:: data.step]
    errors, squares, objects, hidden, seconds = [], [], [], [], 0.0
    for first in range(0, len(rows), _BATCH):
        part = rows[first : first + _BATCH]
        frame_a, frame_b = to_tensor(store.gather(part)), to_tensor(store.gather(part + 1))
        started = time.process_time()
        with torch.no_grad():
            flow_uv = model.estimate(frame_a, frame_b)
        seconds += time.process_time() - started
        true_uv, layers = read_truth(store, part), read_layers(store, part)
        errors.append(end_point_error(flow_uv, true_uv))
        squares.append((flow_uv - true_uv).square().mean(1))
        objects.append(layers > 0)
        hidden.append(find_hidden(true_uv, layers, read_layers(store, part + 1)))
    error, square, thing, gone = (torch.cat(parts) for parts in (errors, squares, objects, hidden))
    return {
        "pairs": len(rows),
        "epe": _mean(error),
        "epe_objects": _mean(error[thing]),
        "epe_background": _mean(error[~thing]),
        "epe_hidden": _mean(error[gone]),
        "over_1px": _mean((error > 1).float()),
        "mse": _mean(square),
        "ms": round(1000 * seconds / max(1, len(rows)), 2),
    }


def read_truth(store: FrameStore, rows: np.ndarray) -> Tensor:
    """(B, 2, H, W) float32 pixels."""
    assert store.optical_flow is not None
    fields = [store.optical_flow[int(row)] for row in rows]
    return torch.from_numpy(np.stack([field for field in fields if field is not None])).permute(0, 3, 1, 2)


def read_layers(store: FrameStore, rows: np.ndarray) -> Tensor:
    """(B, H, W) float32: 0 for the background, 1, 2, ... for the instances of the clip, by their track."""
    assert store.truth is not None
    layers = []
    for row in rows:
        instances = store.truth[int(row)]
        assert instances.track_ids is not None
        layers.append((instances.masks * (instances.track_ids + 1)[:, None, None]).sum(0).float())
    return torch.stack(layers)


def find_hidden(true_uv: Tensor, layers_a: Tensor, layers_b: Tensor) -> Tensor:
    """(B, H, W) bool: within the frame, but under another layer in the next one."""
    there = warp(layers_b[:, None], true_uv.round())[:, 0]
    return inside_frame(true_uv) & ((there - layers_a).abs() > 0.5)


def _mean(values: Tensor) -> float | None:
    return round(float(values.double().mean()), 5) if values.numel() else None


if __name__ == "__main__":
    start(main)
