"""The choice that the thesis leaves to a person: which of AMD's channels is the objects', and what its objects are."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..common.instances import Instances
from ..common.whole import WHOLE, WholeBatch

MOMENTUM = 0.99
"""Of the running means: they remember about a hundred batches."""


class ChannelRecord(nn.Module):
    """Running means over training of how much each of C channels holds and how differently it moves.

    They are buffers, so that they travel with the weights: a single image shows no motion to choose by.
    """

    coverage: Tensor
    """(C,) share of the pixels that are most probably the channel's."""
    contrast: Tensor
    """(C,) pixels between its motion and that of the channel that holds most."""
    batches: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("coverage", torch.zeros(channels))
        self.register_buffer("contrast", torch.zeros(channels))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, masks: Tensor, motions: Tensor, whole: WholeBatch = WHOLE) -> None:
        """Take in one batch: masks (B, C, H, W) that sum to 1, motions (B, C, 2) pixels."""
        # Counted by comparing and picked by index_select: bincount and a subscript would wait for a GPU.
        channels = torch.arange(masks.shape[1], device=masks.device)
        winners = masks.argmax(1).flatten()
        coverage = whole.mean((winners == channels[:, None]).to(masks).mean(1))
        background = motions.index_select(1, coverage.argmax()[None])  # (B, 1, 2)
        contrast = whole.mean((motions - background).norm(dim=2).mean(0))
        self.batches += 1
        # A plain mean at first, so that the zeros of the start do not count.
        step = (1 / self.batches).clamp(min=1 - MOMENTUM)
        self.coverage += step * (coverage - self.coverage)
        self.contrast += step * (contrast - self.contrast)


def choose_channels(coverage: Tensor, contrast: Tensor, *, min_coverage: float, min_contrast: float) -> Tensor:
    """Which channels are objects': coverage, contrast (C,) as in ChannelRecord -> (C,) bool.

    The channel that holds most is the background; objects' are all others that hold enough and move otherwise. None
    is a possible answer, and the one for a network that calls everything background.
    """
    chosen = (coverage >= min_coverage) & (contrast >= min_contrast)
    chosen[coverage.argmax()] = False
    return chosen


def split_pieces(winners: np.ndarray, channel: int, *, min_pixels: float) -> np.ndarray:
    """Connected pieces (4-neighbours) of one channel: winners (H, W) int, each pixel's channel -> (N, H, W) bool."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats((winners == channel).astype(np.uint8), connectivity=4)
    kept = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= max(min_pixels, 1)]
    return pieces[None] == np.array(kept, pieces.dtype)[:, None, None]


def find_instances(masks: Tensor, chosen: Tensor, *, min_area: float) -> Instances:
    """Instances of one image, best score first.

    masks: (C, H, W) probabilities. chosen: (C,) bool. min_area: share of the image that a piece must reach.
    Every connected piece of a chosen channel is one; its score is its mean probability.
    """
    height, width = masks.shape[1:]
    winners = masks.argmax(0).cpu().numpy()
    channels = torch.nonzero(chosen)[:, 0].tolist()
    pieces = [split_pieces(winners, channel, min_pixels=min_area * height * width) for channel in channels]
    found = torch.from_numpy(np.concatenate([np.zeros((0, height, width), bool), *pieces])).to(masks.device)
    # A piece's pixels are those where its own channel is the largest.
    scores = (masks.amax(0) * found).flatten(1).sum(1) / found.flatten(1).sum(1).clamp(min=1)
    return Instances.from_masks(found, scores)[torch.argsort(scores, descending=True, stable=True)]
