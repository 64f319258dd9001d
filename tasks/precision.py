"""Where a network computes and in what, the same in training, validation and use; labels of its own in float32."""

from __future__ import annotations

import torch

from tasks.errors import ParamsError


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type for autocast by params.train.precision: bfloat16 where asked for, or on CUDA by default; None means
    float32.
    """
    reduced = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if reduced else None


def choose_device(name: str) -> torch.device:
    """auto takes a GPU where there is one. Raises ParamsError where cuda is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ParamsError("device: cuda is asked for and this machine has none: use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
