"""A program of a training process in tests: `python ranks_toy.py WHAT FOLDER`, its rank in the environment."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from training_toy import ToySegmenter, toy_recipe, toy_store

import models
from models.amd.config import AmdConfig
from models.common.instances import Instances
from models.interface import Batch, Segmenter
from models.mosis.config import MosisConfig
from models.yolo_supervised.config import YoloSupervisedConfig
from tasks.errors import CollapseError, MosisError
from tasks.process import die_with_parent
from tasks.training.batches import cut_part
from tasks.training.checkpoint import Checkpoints
from tasks.training.distributed import Ranks, check_alike, join
from tasks.training.loop import Hooks, fit
from tasks.training.ranks import read_rank

CPU = torch.device("cpu")
SIZE = (64, 64)
IMAGES = 4
LABELS = {"uneven": (3, 1, 0, 5), "one_half": (0, 0, 2, 3), "none": (0, 0, 0, 0)}
"""Labels of each image."""
CASES = [
    *((method, labels) for method in ("labels", "thesis") for labels in LABELS),
    ("literal", "none"),
    ("amd", "none"),
]
METHODS: dict[str, tuple[str, Any]] = {
    "labels": ("mosis", MosisConfig(objective="motion_labels")),
    "literal": ("mosis", MosisConfig(objective="literal")),
    "thesis": ("yolo_supervised", YoloSupervisedConfig(loss="thesis")),
    "amd": ("amd", AmdConfig(preset="small")),
}


def build(name: str) -> Segmenter:
    method, config = METHODS[name]
    torch.manual_seed(0)
    return models.METHODS[method](config, SIZE).train()


def joint_batch(counts: tuple[int, ...]) -> Batch:
    """Four images with so many labels each, some without weight."""
    generator = torch.Generator().manual_seed(2)  # one with no ReLU within rounding of its kink
    frames = [torch.rand(IMAGES, 3, *SIZE, generator=generator) for _ in range(2)]
    labels = []
    for count in counts:
        masks = torch.zeros(count, *SIZE, dtype=torch.bool)
        for mask in masks:
            y, x, side = (int(value) for value in torch.randint(4, 40, (3,), generator=generator))
            mask[y : y + side // 2 + 4, x : x + side // 2 + 6] = True
        scores = torch.rand(count, generator=generator)
        labels.append(Instances.from_masks(masks, torch.where(scores < 0.2, 0, scores)))
    return Batch(frames[0], frames[1], torch.ones(IMAGES), labels)


def cut(batch: Batch, ranks: Ranks) -> Batch:
    own = cut_part(IMAGES, (ranks.number, ranks.count))
    assert batch.labels is not None
    return Batch(batch.frame_a[own], batch.frame_b[own], batch.dt[own], batch.labels[own], whole=ranks.whole)


def take_gradients(ranks: Ranks, method: str, labels: str) -> dict[str, torch.Tensor]:
    """Losses, gradients and buffers of one step, by name."""
    model, batch = build(method), joint_batch(LABELS[labels])
    ranks.prepare(model)
    losses_of = ranks.wrap(model)
    torch.manual_seed(5)
    losses = losses_of(cut(batch, ranks))
    losses["total"].backward()
    found = {f"loss {key}": ranks.mean(value.detach()) for key, value in losses.items()}
    found |= {f"gradient {key}": value.grad for key, value in model.named_parameters() if value.grad is not None}
    return found | {f"buffer {key}": value for key, value in model.named_buffers()}


def everything(ranks: Ranks, folder: Path) -> None:
    """All that needs no process to die."""
    for method, labels in CASES:
        found = take_gradients(ranks, method, labels)
        if ranks.first:
            torch.save(found, folder / f"{method}-{labels}.pt")
    toy_fit(ranks, folder)
    try:
        toy_fit(ranks, folder / "diverged", learning_rate=1e30, clip_grad_norm=None)
    except CollapseError as error:
        (folder / f"diverged-{ranks.number}.txt").write_text(str(error))
    ranks.wait()
    try:
        check_alike(ranks, {"code": "same", "parameters": f"of {ranks.number}"})
    except MosisError as error:
        (folder / f"differing-{ranks.number}.txt").write_text(str(error))


def toy_fit(ranks: Ranks, folder: Path, **changes: Any) -> None:
    """Train the toy, its losses in folder/losses.pt; a rank named in MOSIS_TOY_KILL ends itself at step 8."""
    torch.manual_seed(7)
    model = ToySegmenter(kill_at=8 if os.environ.get("MOSIS_TOY_KILL") == str(ranks.number) else None)
    model.features[3].p = 0.0  # dropout draws for each process alone
    store, labels = toy_store()
    checkpoints = Checkpoints(folder / "checkpoint", {"parameters": "p"}, every=5)
    told: dict[str, Any] = {"resumed": [], "losses": []}
    hooks = Hooks(
        on_resume=lambda iteration, notes: told["resumed"].append((iteration, notes)),
        on_log=lambda iteration, values: told["losses"].append((iteration, values["mask"], values["total"])),
        on_validate=lambda iteration, model: (folder / f"validated-{ranks.number}-{iteration}").touch(),
    )
    recipe = toy_recipe(augment=True, copy_paste=True, batch_size=4, validate_every=15, **changes)
    fit(model, store, recipe, labels=labels, checkpoints=checkpoints, hooks=hooks, ranks=ranks)
    told["weights"] = model.state_dict()
    torch.save(told, folder / f"told-{ranks.number}.pt")


def sit(ranks: Ranks, folder: Path) -> None:
    """Tell the process, then wait: rank 1 until somebody kills it, the others for it."""
    (folder / f"pid-{ranks.number}-{os.getpid()}").touch()
    if ranks.number == 1:
        signal.pause()
    ranks.wait()


if __name__ == "__main__":
    die_with_parent()
    torch.set_num_threads(1)
    try:
        with join(read_rank(), CPU) as joined:
            globals()[sys.argv[1]](joined, Path(sys.argv[2]))
    except MosisError as error:
        print(f"rank {read_rank().number}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(3)
