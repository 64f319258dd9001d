"""What a network computes in, the same in training, validation and use."""

from __future__ import annotations

import torch


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type for autocast by params.train.precision: bfloat16 where asked for, or on CUDA by default; None means
    float32.
    """
    reduced = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if reduced else None
