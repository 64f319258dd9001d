"""Optimiser and learning rate, the rate as a pure function of the iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Optimisation:
    """Names and meanings are those of params.yaml."""

    iterations: int
    learning_rate: float
    weight_decay: float = 1e-3
    warmup_iterations: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    optimizer: Literal["adamw", "adam"] = "adamw"
    clip_grad_norm: float | None = None


def build_optimizer(model: nn.Module, settings: Optimisation) -> Optimizer:
    """AdamW or Adam; norms and biases (parameters of at most one dimension) do not decay.

    Fused: one pass over memory, the same bits for the same number of threads.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind([group for group in groups if group["params"]], lr=settings.learning_rate, fused=True)


def learning_rate_at(iteration: int, settings: Optimisation) -> float:
    """Rate of step `iteration`, counted from 0: a linear warm-up, then constant or half a cosine down to 0."""
    warmup = min(settings.warmup_iterations, settings.iterations)
    if iteration < warmup:
        return settings.learning_rate * (iteration + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    share = (iteration - warmup) / max(settings.iterations - warmup, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
