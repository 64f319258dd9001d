"""The one detection type that every stage and method passes around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Instances:
    """Class-agnostic instances of one image. Empty is a value, not an exception.

    boxes: (N, 4) float32, x1 y1 x2 y2 in pixels, x2 and y2 exclusive edges (width = x2 - x1).
    scores: (N,) float32 in [0, 1]. For labels it is the label's confidence, 1 for ground truth.
    masks: (N, H, W) bool.
    track_ids: (N,) int64 identity over a clip, or None where there is none.
    """

    boxes: Tensor
    scores: Tensor
    masks: Tensor
    track_ids: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.boxes.shape[0]
        if self.boxes.shape != (n, 4) or self.scores.shape != (n,) or self.masks.ndim != 3 or len(self.masks) != n:
            raise ValueError(
                f"instances disagree: boxes {tuple(self.boxes.shape)}, scores {tuple(self.scores.shape)}, "
                f"masks {tuple(self.masks.shape)}"
            )
        if self.masks.dtype != torch.bool:
            raise ValueError(f"masks must be bool, not {self.masks.dtype}")
        if self.track_ids is not None and self.track_ids.shape != (n,):
            raise ValueError(f"{tuple(self.track_ids.shape)} track ids for {n} instances")

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def __getitem__(self, index: Tensor | slice | list[int]) -> Instances:
        """Select instances by a bool or integer tensor, a slice or a list: every field alike."""
        if isinstance(index, list):
            index = torch.tensor(index, dtype=torch.long, device=self.boxes.device)
        track_ids = None if self.track_ids is None else self.track_ids[index]
        return Instances(self.boxes[index], self.scores[index], self.masks[index], track_ids)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return int(self.masks.shape[1]), int(self.masks.shape[2])

    def to(self, device: torch.device | str) -> Instances:
        track_ids = None if self.track_ids is None else self.track_ids.to(device)
        return Instances(self.boxes.to(device), self.scores.to(device), self.masks.to(device), track_ids)

    def with_scores(self, scores: Tensor) -> Instances:
        return replace(self, scores=scores)

    @classmethod
    def empty(cls, height: int, width: int, device: torch.device | str = "cpu") -> Instances:
        return cls(
            torch.zeros(0, 4, device=device),
            torch.zeros(0, device=device),
            torch.zeros(0, height, width, dtype=torch.bool, device=device),
        )

    @classmethod
    def from_masks(cls, masks: Tensor, scores: Tensor | None = None, track_ids: Tensor | None = None) -> Instances:
        """Instances whose boxes are the extents of `masks` (N, H, W) bool. Empty masks are dropped."""
        kept = masks.flatten(1).any(1)
        scores = torch.ones(len(masks), device=masks.device) if scores is None else scores.float()
        track_ids = None if track_ids is None else track_ids[kept]
        return cls(mask_extents(masks[kept]), scores[kept], masks[kept], track_ids)

    @classmethod
    def cat(cls, parts: Sequence[Instances]) -> Instances:
        """Join instances of one image, in order. Track ids survive only if every part has them."""
        if not parts:
            raise ValueError("nothing to join: use Instances.empty(height, width)")
        ids = [part.track_ids for part in parts if part.track_ids is not None]
        return cls(
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.masks for part in parts]),
            torch.cat(ids) if len(ids) == len(parts) else None,
        )


def mask_extents(masks: Tensor) -> Tensor:
    """Tight boxes of bool masks (N, H, W): (N, 4) float32 x1 y1 x2 y2, exclusive edges; zeros where a mask is empty."""
    n, height, width = masks.shape
    boxes = torch.zeros(n, 4, device=masks.device)
    if n == 0:
        return boxes
    columns, rows = masks.any(1), masks.any(2)  # (N, W), (N, H)
    x = torch.arange(width, device=masks.device)
    y = torch.arange(height, device=masks.device)
    boxes[:, 0] = torch.where(columns, x, width).min(1).values
    boxes[:, 1] = torch.where(rows, y, height).min(1).values
    boxes[:, 2] = torch.where(columns, x + 1, 0).max(1).values
    boxes[:, 3] = torch.where(rows, y + 1, 0).max(1).values
    boxes[~masks.flatten(1).any(1)] = 0
    return boxes
