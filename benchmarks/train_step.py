"""How fast a training step is, against the same losses written plainly and against its convolutions alone.

`python -m benchmarks.train_step` measures in turns, round after round, since a shared machine is never quiet:
  step      loss, backward, clipping and update, as tasks.training.loop does them
  naive     the same with the losses of benchmarks/naive, image by image and instance by instance
  convs     forward and backward of every convolution that the step runs, alone: the limit
  data      reading, augmenting, pasting and staging a batch
Pairs are images where the objective learns from one image (motion_labels). Ratios are medians over rounds of what was
measured within one round. Nothing is downloaded; runs with torch, torchvision, numpy and cv2.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.generator import generator_settings
from benchmarks.harness import Report, Row, Setting, add_options, cache_folder, describe_plan, format_table, start
from benchmarks.naive import labels as naive_labels
from benchmarks.naive import photometric as naive_photometric
from models.common.instances import Instances
from models.interface import Batch
from models.mosis.config import MosisConfig, Preset
from models.mosis.model import Mosis
from tasks.frames import FrameStore
from tasks.precision import autocast_dtype, choose_device
from tasks.sources.synthetic import generate_video
from tasks.training.batches import labelled_samples, make_batch, pair_samples, torch_seed
from tasks.training.loop import numerics, train_step
from tasks.training.optimise import Optimisation, build_optimizer

SIDE = 128
CLIP = 0.7
"""Largest gradient norm; any, so that clipping is timed."""
RATIOS = ("speedup_vs_naive", "share_of_conv_limit")
_VIDEOS, _FRAMES = 4, 24


@dataclass(frozen=True)
class Plan:
    """One row: the step of one objective. steps: of each round; the naive variant does one."""

    row: str
    preset: Preset
    precision: str
    batch_size: int
    rounds: int
    steps: int


def main() -> None:
    options = parse_options()
    report = Report("train_step", options)
    names = [field.name for field in fields(Plan) if field.name != "row"]
    plans = [Plan(row, **{name: getattr(options, name) for name in names}) for row in options.objective]
    with cache_folder(options) as cache:
        report.run(measure, plans, cache)
    rows = [row for row in report.rows if "failed" not in row]
    lines = [[row["row"], name, *speeds] for row in rows for name, speeds in row["pairs_per_s"].items()]
    lines += [[row["row"], name, row[name], row[name]] for row in rows for name in RATIOS]
    ratios = {name: {row["row"]: row[name] for row in rows} for name in RATIOS}
    report.finish(format_table(("objective", "pairs/s", "best", "median"), lines), **ratios)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    objectives = ("motion_labels", "literal")
    parser.add_argument("--objective", nargs="+", choices=objectives, default=list(objectives))
    parser.add_argument("--preset", choices=get_args(Preset), default="small")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps a round; the naive variant does one")
    add_options(parser)
    return parser.parse_args()


def measure(plan: Plan, setting: Setting) -> Row:
    """Pairs/s of every variant (best, median over rounds) and the ratios."""
    device = choose_device(setting.device)
    with numerics(device):
        variants = build_variants(plan, device)
        for variant, _ in variants.values():  # allocators, kernels and caches settle
            variant()
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(plan.rounds):
            for name, (variant, repeats) in variants.items():
                seconds[name].append(_time(variant, repeats, device))
    size = plan.batch_size
    speed = {name: (size / min(times), size / statistics.median(times)) for name, times in seconds.items()}
    return {
        **describe_plan(plan),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "pairs_per_s": {name: [round(value, 2) for value in figures] for name, figures in speed.items()},
        "speedup_vs_naive": _ratio(seconds["naive"], seconds["step"]),
        "share_of_conv_limit": _ratio(seconds["convs"], seconds["step"]),
    }


def build_variants(plan: Plan, device: torch.device) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, by name, each with the times that it is repeated within a round."""
    torch.manual_seed(0)
    config = MosisConfig(preset=plan.preset, objective=plan.row)  # type: ignore[arg-type]
    model = Mosis(config, (SIDE, SIDE)).to(device).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, Optimisation(1, 1e-4))
    dtype = autocast_dtype(plan.precision, device)
    make = data_source(generate_store(), learns_labels=model.needs == "labels", batch_size=plan.batch_size)
    batches = [make(number).to(device) for number in range(plan.steps)]
    turns = {"step": 0, "data": 0}

    def take_turn(name: str) -> int:
        turns[name] += 1
        torch.manual_seed(torch_seed(0, turns[name]))
        return turns[name]

    def step() -> object:
        batch = batches[take_turn("step") % len(batches)]
        return train_step(model, optimizer, batch, dtype=dtype, clip=CLIP)

    def naive() -> object:
        with _plain_loss(model):
            return train_step(model, optimizer, batches[0], dtype=dtype, clip=CLIP)

    convolutions = record_convolutions(model, batches[0], dtype)
    return {
        "step": (step, plan.steps),
        "naive": (naive, 1),
        "convs": (lambda: run_convolutions(convolutions), plan.steps),
        "data": (lambda: make(take_turn("data")).to(device), plan.steps),
    }


def generate_store() -> tuple[FrameStore, list[list[Instances]]]:
    """Frames of the thesis' generator and the truth of each, in memory."""
    settings = generator_settings(400, frames=_FRAMES)
    videos = [generate_video(settings, number) for number in range(_VIDEOS)]
    truth = [[Instances.from_masks(torch.from_numpy(video.masks[:, t])) for t in range(_FRAMES)] for video in videos]
    store = FrameStore.from_arrays([video.frames for video in videos], ["train"] * _VIDEOS, 24.0, truth=truth)
    return store, truth


def data_source(made: tuple[FrameStore, Any], *, learns_labels: bool, batch_size: int) -> Callable[[int], Any]:
    """number of a batch -> that batch as the product reads it, with copy-paste where it has labels: ground truth."""
    store = made[0]
    labels = store.truth if learns_labels else None
    samples = pair_samples(store) if labels is None else labelled_samples(store, labels)

    def make(number: int) -> Any:
        return make_batch(
            store, samples, labels, batch_size=batch_size, seed=0, iteration=number, augment=True, copy_paste=True
        )

    return make


@contextlib.contextmanager
def _plain_loss(model: Mosis) -> Iterator[None]:
    """Within, `model.loss` is the plain one."""

    def loss(batch: Batch) -> dict[str, Tensor]:
        if batch.labels is None:
            return naive_photometric.photometric_loss(model, batch.frame_a, batch.frame_b)
        return naive_labels.label_loss(model.appearance(batch.frame_a), batch.labels, model.appearance)

    model.loss = loss  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.loss


class _Recorder(TorchFunctionMode):
    """Notes the arguments of every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, torch.conv2d):
            self.calls.append((args, kwargs or {}))
        return func(*args, **(kwargs or {}))


Convolution = tuple[Tensor, Tensor, Tensor | None, tuple[Any, ...], Tensor]
"""Input, weight, bias, further arguments, and the gradient of the output."""


def record_convolutions(model: Mosis, batch: Batch, dtype: torch.dtype | None) -> list[Convolution]:
    """Every convolution of a step, with inputs of the same shape, memory order and type of its own."""
    with _Recorder() as recorder, torch.autocast(batch.frame_a.device.type, dtype, enabled=dtype is not None):
        model.loss(batch)
    recorded = []
    for (features, weight, bias, *rest), _ in recorder.calls:
        own = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in (weight, bias)]
        features = features.detach().to(dtype or features.dtype).clone().requires_grad_(features.requires_grad)
        output = F.conv2d(features, own[0], own[1], *rest)  # type: ignore[arg-type]
        recorded.append((features, own[0], own[1], tuple(rest), torch.ones_like(output)))
    return recorded  # type: ignore[return-value]


def run_convolutions(convolutions: list[Convolution]) -> None:
    for features, weight, bias, rest, gradient in convolutions:
        output = F.conv2d(features, weight, bias, *rest)
        wanted = [t for t in (features, weight, bias) if t is not None and t.requires_grad]
        torch.autograd.grad(output, wanted, gradient)


def _time(variant: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of one of `repeats` calls."""
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        variant()
    _synchronize(device)
    return (time.perf_counter() - started) / repeats


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds of what was measured within one round."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


if __name__ == "__main__":
    start(main)
