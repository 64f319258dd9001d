"""From the host to where a model computes."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`, the same where it is there already.

    From memory that is not pinned a GPU first finishes what it has been given and the host waits for it: so by way of
    pinned memory.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and torch.cuda.is_available():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
