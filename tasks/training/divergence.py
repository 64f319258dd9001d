"""What is kept for a look when a training ends in NaN or Inf: the first batch that gave one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from tasks.files import atomic_path
from tasks.training.batches import RawBatch, RawLabels


def first_broken(steps: Sequence[dict[str, float]]) -> int | None:
    """Index of the first step of which a loss term is not a finite number."""
    return next((i for i, losses in enumerate(steps) if not all(map(math.isfinite, losses.values()))), None)


def save_batch(folder: Path, batch: RawBatch, iteration: int) -> Path:
    """Write `batch`, number `iteration` counted from 0, as folder/diverged-ITERATION.npz; numpy.load reads it.

    Its arrays are RawBatch's fields by name, those of the labels as labels_masks, labels_scores and labels_counts.
    Raises StorageError where the disk refuses.
    """
    arrays: dict[str, np.ndarray] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, RawLabels):
            arrays |= {f"labels_{name}": array for name, array in vars(value).items()}
        elif value is not None:
            arrays[field.name] = value
    path = folder / f"diverged-{iteration:08d}.npz"
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path
