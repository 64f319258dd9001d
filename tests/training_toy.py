"""A toy problem for the training loop: bright squares on dark noise, and the smallest network that can find them.

Run as a script it is one training in a folder, which may kill itself: python training_toy.py FOLDER [KILL_AT].
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from models.common.instances import Instances
from models.interface import Batch, Needs, Segmenter
from tasks.frames import FrameStore
from tasks.labels import LabelStore
from tasks.training.checkpoint import Checkpoints
from tasks.training.loop import Fitted, Hooks, Recipe, fit
from tasks.training.optimise import Optimisation

SIDE = 32


class ToySegmenter(Segmenter):
    """One instance per image at most. Dropout and batch norm are there for the state that they bring."""

    def __init__(self, needs: Needs = "labels", kill_at: int | None = None) -> None:
        super().__init__()
        self.needs = needs
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Conv2d(8, 1, 3, padding=1)
        self.kill_at = kill_at
        self.steps = 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.steps += 1
        if self.steps == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        logits = self.head(self.features(batch.frame_a))[:, 0]
        if self.needs == "labels":
            assert batch.labels is not None
            target = torch.stack([instances.masks.any(0).float() for instances in batch.labels])
        else:
            target = (batch.frame_b.mean(1) > 0.5).float()
        mask = functional.binary_cross_entropy_with_logits(logits, target)
        size = self.head.weight.square().sum()
        return {"mask": mask, "size": size, "total": mask + 1e-4 * size}

    def predict(
        self, images: Tensor, *, score_threshold: float | None = None, output_size: tuple[int, int] | None = None
    ) -> list[Instances]:
        probability = self.head(self.features(images))[:, 0].sigmoid()
        scores = probability.flatten(1).amax(1)
        floor = 0.4 if score_threshold is None else score_threshold
        found = [Instances.from_masks(p[None] > 0.5, s[None]) for p, s in zip(probability, scores, strict=True)]
        return [instances[instances.scores >= floor] for instances in found]


def toy_store(
    seed: int = 0, clips: int = 3, frames: int = 6, splits: tuple[str, ...] = ("train", "train", "val")
) -> Any:
    """(store, labels): per clip one 8x8 to 12x12 bright square that moves a pixel a frame."""
    rng = np.random.default_rng(seed)
    arrays, truths = [], []
    for _ in range(clips):
        video = rng.integers(0, 90, (frames, SIDE, SIDE, 3), dtype=np.uint8)
        y, x, side = rng.integers(2, 12), rng.integers(2, 12), rng.integers(8, 13)
        masks = torch.zeros(frames, SIDE, SIDE, dtype=torch.bool)
        for t in range(frames):
            video[t, y : y + side, x + t : x + t + side] += 150
            masks[t, y : y + side, x + t : x + t + side] = True
        arrays.append(video)
        truths.append([Instances.from_masks(mask[None]) for mask in masks])
    store = FrameStore.from_arrays(arrays, list(splits[:clips]), 24.0, truth=truths)
    items = (
        (clip.first_row + i, instances)
        for clip, per in zip(store.clips, truths, strict=True)
        for i, instances in enumerate(per)
    )
    return store, LabelStore.from_items((SIDE, SIDE), items)


def toy_recipe(**changes: Any) -> Recipe:
    optimisation = {"iterations": 30, "learning_rate": 0.02, "warmup_iterations": 3, "clip_grad_norm": 5.0}
    recipe: dict[str, Any] = {"batch_size": 4, "augment": False, "validate_every": 1000}
    for name, value in changes.items():
        (optimisation if name in Optimisation.__dataclass_fields__ else recipe)[name] = value
    return Recipe(optimisation=Optimisation(**optimisation), **recipe)


def train_in(
    folder: Path,
    *,
    kill_at: int | None = None,
    fingerprint: dict[str, str] | None = None,
    seconds: float = 0.0,
    **changes: Any,
) -> Fitted:
    """Train a toy with checkpoints in `folder`, then write folder/weights.safetensors."""
    torch.manual_seed(7)
    model = ToySegmenter(kill_at=kill_at)
    store, labels = toy_store()
    checkpoints = Checkpoints(folder / "checkpoint", fingerprint or {"params": "p"}, every=5, seconds=seconds)
    hooks = Hooks(on_resume=lambda iteration, notes: print(iteration, *notes, sep="\n"))
    recipe = toy_recipe(augment=True, **changes)
    fitted = fit(model, store, recipe, labels=labels, checkpoints=checkpoints, hooks=hooks)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "weights.safetensors"
    )
    return fitted


if __name__ == "__main__":
    torch.set_num_threads(2)
    train_in(Path(sys.argv[1]), kill_at=int(sys.argv[2]) if len(sys.argv) > 2 else None)
