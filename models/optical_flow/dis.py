"""Dense inverse search behind the interface of the estimators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..common.dis import search_flow
from ..interface import OpticalFlowEstimator
from .config import DisConfig


class Dis(OpticalFlowEstimator):
    """Kroeger et al., ECCV 2016, through OpenCV: on the CPU, one pair after the other, nothing to train."""

    needs = None

    def __init__(self, config: DisConfig) -> None:
        super().__init__()
        self.preset, self.enlarge = config.preset, config.enlarge

    def estimate(self, frames_a: Tensor, frames_b: Tensor) -> Tensor:
        pairs = zip(_to_uint8(frames_a), _to_uint8(frames_b), strict=True)
        fields = [search_flow(a, b, preset=self.preset, enlarge=self.enlarge) for a, b in pairs]
        stacked = np.stack(fields) if fields else np.zeros((0, *frames_a.shape[-2:], 2), np.float32)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous().to(frames_a.device)


def _to_uint8(frames: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> (B, H, W, 3) uint8."""
    return (frames.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
