"""Tracks from instances, one frame at a time: masks are carried to the next frame by optical flow and matched there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from models.common.instances import Instances
from models.motion_labels.motion import warp
from tasks.optical_flow import estimate_flow, limit_side

WORK_SIDE = 256
"""Longer side, pixels, at which flow and overlap are computed: their cost does not grow with the video's size."""


@dataclass
class _LiveTrack:
    """mask: (h, w) float32 share of each pixel, where the object is expected in the last frame seen. missed: frames."""

    identity: int
    mask: np.ndarray
    missed: int = 0


class TrackLinker:
    """Gives each instance of a clip an identity, frame by frame; the same input gives the same identities.

    min_iou: smallest mask IoU, after warping by optical flow, that continues a track. max_gap: frames in a row that a
    track survives unseen. first_id: identities count up from here.
    """

    def __init__(self, *, min_iou: float, max_gap: int = 2, first_id: int = 1) -> None:
        self.min_iou = min_iou
        self.max_gap = max_gap
        self.next_id = first_id
        self._live: list[_LiveTrack] = []
        self._previous: np.ndarray | None = None

    def link(self, frame: np.ndarray, instances: Instances) -> Instances:
        """The next frame (H, W, 3) uint8 RGB of the clip and what was found in it -> the same with track_ids (N,)."""
        size = limit_side((frame.shape[0], frame.shape[1]), WORK_SIDE)
        small = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_AREA)
        masks = shrink_masks(instances.masks, size)
        self._advance(small)
        matches = match_masks(np.array([t.mask for t in self._live]).reshape(-1, *size), masks, self.min_iou)
        identities = self._update(masks, matches)
        return dataclasses.replace(instances, track_ids=torch.tensor(identities, dtype=torch.int64))

    def _advance(self, frame: np.ndarray) -> None:
        """Carry the live tracks' masks from the previous frame to this one."""
        if self._live and self._previous is not None:
            # Flow of this frame to the previous one says where each pixel of this frame was.
            flow_uv = estimate_flow(frame, self._previous)
            for track in self._live:
                track.mask = warp(track.mask, flow_uv, border=cv2.BORDER_CONSTANT)
        self._previous = frame

    def _update(self, masks: np.ndarray, matches: dict[int, int]) -> list[int]:
        """Identities of `masks`; matches: index of a mask -> index of the live track that it continues."""
        continued = set(matches.values())
        identities = []
        kept = []
        for index, mask in enumerate(masks):
            if index in matches:
                identity = self._live[matches[index]].identity
            else:
                identity, self.next_id = self.next_id, self.next_id + 1
            identities.append(identity)
            kept.append(_LiveTrack(identity, mask))
        for index, track in enumerate(self._live):
            if index not in continued and track.missed < self.max_gap and track.mask.any():
                kept.append(_LiveTrack(track.identity, track.mask, track.missed + 1))
        self._live = kept
        return identities


def match_masks(masks_a: np.ndarray, masks_b: np.ndarray, min_iou: float) -> dict[int, int]:
    """One-to-one pairs of greatest total IoU: index in b -> index in a, of those that overlap by `min_iou` or more."""
    iou = soft_iou(masks_a, masks_b)
    iou[iou < min_iou] = 0  # pairs that cannot be must not pull the others apart
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return {int(b): int(a) for a, b in zip(rows, columns, strict=True) if iou[a, b] > 0}


def soft_iou(masks_a: np.ndarray, masks_b: np.ndarray) -> np.ndarray:
    """IoU of masks (N, H, W) and (M, H, W), shares of each pixel in [0, 1], -> (N, M) float32; of empty ones 0."""
    pixels = masks_a.shape[1] * masks_a.shape[2]
    a, b = (masks.reshape(len(masks), pixels).astype(np.float32) for masks in (masks_a, masks_b))
    shared = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def shrink_masks(masks: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """(N, H, W) bool -> (N, h, w) float32, the covered share of each pixel at `size` = (h, w)."""
    shrunk = [
        cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA)
        for mask in masks.cpu().numpy()
    ]
    return np.array(shrunk, dtype=np.float32).reshape(len(shrunk), *size)
